"""Model names: many spellings of one model, and the one form in which they are compared.

Ollama reads ``[scheme://][host/][namespace/]model[:tag]``, fills in what is
missing and ignores letter case. Whoever compares what a client wrote with a
list of allowed names has to compare canonical forms, or ``TINY`` passes where
``tiny:latest`` was forbidden.

Compared is what ``canonical`` returns. Sent upstream is neither that nor what
the client wrote, but the spelling in which the model is installed there, which
the catalog finds by the canonical form.
"""

from __future__ import annotations

import re
from functools import lru_cache

from proxy.exceptions import BadRequest, CloudModelRefused

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

# Of the longest name there can be, with a scheme and white space around it.
MAX_CHARACTERS = 700

# ``str.strip`` takes these for white space and Go does not.
_SEPARATORS = re.compile("[\x1c-\x1f]")

_NAME = re.compile(
    r"""
    (?:
        (?:
            (?:[a-z0-9+.-]+://)?
            (?P<host> [a-z0-9_][a-z0-9_.:-]{0,349} ) /
        )?
        (?P<namespace> [a-z0-9_][a-z0-9_-]{0,79} ) /
    )?
    (?P<model> [a-z0-9_][a-z0-9_.-]{0,79} )
    (?: : (?P<tag> [a-z0-9_][a-z0-9_.-]{0,79} ) )?
    """,
    re.VERBOSE,
)


# Clients write a few names over and over; a refusal is not remembered.
@lru_cache(maxsize=4096)
def canonical(name: str) -> str:
    """The form of ``name`` that is compared: as ``/api/tags`` shows it, in lower case.

    ``tiny``, ``TINY:latest`` and ``https://registry.ollama.ai/library/tiny`` all
    give ``tiny:latest``; another namespace or host is kept. Applying it again
    changes nothing. Raises ``CloudModelRefused`` for a name that Ollama would
    send to its vendor's cloud, and ``BadRequest`` for one that it does not read.
    """
    plain = name.strip()
    if not plain:
        raise BadRequest("model is required", "model")
    if len(name) > MAX_CHARACTERS or not plain.isascii() or _SEPARATORS.search(name):
        raise _invalid()
    plain, source = _without_source(plain.lower())
    if source is not None and _without_source(plain)[1] is not None:
        raise BadRequest("use either :local or :cloud in a model name, not both", "model")
    if source == "cloud":
        raise CloudModelRefused(name)
    parts = _NAME.fullmatch(plain)
    if parts is None:
        raise _invalid()
    host, namespace, model, tag = parts.group("host", "namespace", "model", "tag")
    short = f"{model}:{tag or DEFAULT_TAG}"
    if host is not None and host != DEFAULT_HOST:
        return f"{host}/{namespace}/{short}"
    return short if namespace in (None, DEFAULT_NAMESPACE) else f"{namespace}/{short}"


def _without_source(name: str) -> tuple[str, str | None]:
    """A name in lower case without the suffix that says where it runs, and what the suffix says."""
    front, colon, last = name.rpartition(":")
    last = last.strip()
    if colon and last in ("local", "cloud"):
        return front, last
    if colon and last.endswith("-cloud") and "/" not in last:
        return f"{front}:{last.removesuffix('-cloud')}", "cloud"
    return name, None


def _invalid() -> BadRequest:
    return BadRequest("invalid model name", "model")
