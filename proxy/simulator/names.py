"""How Ollama reads a model name.

The gateway has its own reading in ``tenants/model_names.py``. This one is deliberately
independent of it: tests that smuggle a name past the gateway compare the two.
"""

import re
from dataclasses import dataclass

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

# What Go calls white space; Python's strip() would also take U+001C to U+001F.
GO_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)

_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")


class BadName(ValueError):
    """The name cannot be read; the text is the one Ollama answers with."""


@dataclass(frozen=True, slots=True)
class Name:
    """A complete name. ``cloud``: the caller's spelling sends it to the vendor's cloud."""

    host: str
    namespace: str
    model: str
    tag: str
    cloud: bool = False

    @property
    def full(self) -> str:
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    @property
    def key(self) -> str:
        """What two spellings of one model have in common."""
        return self.full.lower()

    @property
    def short(self) -> str:
        """The name as lists show it: without the default host and namespace."""
        name = f"{self.model}:{self.tag}"
        if self.host.lower() != DEFAULT_HOST:
            return f"{self.host}/{self.namespace}/{name}"
        if self.namespace.lower() != DEFAULT_NAMESPACE:
            return f"{self.namespace}/{name}"
        return name


def parse(text: str) -> Name:
    """Read ``[scheme://][host/][namespace/]model[:tag]``, with a source suffix; raise ``BadName``."""
    name = text.strip(GO_SPACE)
    name, source = _cut_source(name)
    if source and _cut_source(name)[1]:
        raise BadName(f'use either :local or :cloud, not both: "{text}"')

    rest, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        rest, tag = name, DEFAULT_TAG
    rest, slash, model = rest.rpartition("/")
    host, namespace = DEFAULT_HOST, DEFAULT_NAMESPACE
    if slash:
        rest, slash, namespace = rest.rpartition("/")
        if slash:
            host = rest.partition("://")[2] if "://" in rest else rest
    if not (
        _HOST.fullmatch(host)
        and _NAMESPACE.fullmatch(namespace)
        and _PART.fullmatch(model)
        and _PART.fullmatch(tag)
    ):
        raise BadName("invalid model name")
    return Name(host, namespace, model, tag, cloud=source == "cloud")


def _cut_source(name: str) -> tuple[str, str]:
    """``name`` without its ``:local``, ``:cloud`` or ``-cloud`` ending, and which it was."""
    rest, colon, last = name.rpartition(":")
    if not colon:
        return name, ""
    ending = last.strip(GO_SPACE).lower()
    if ending in ("local", "cloud"):
        return rest, ending
    if ending.endswith("-cloud") and "/" not in ending:
        return f"{rest}:{last.strip(GO_SPACE)[: -len('-cloud')]}", "cloud"
    return name, ""
