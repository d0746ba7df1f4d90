"""Model names: many spellings of one model, and the one form in which they are compared.

Ollama reads ``[scheme://][host/][namespace/]model[:tag]``, fills in what is
missing and ignores letter case. Whoever compares what a client wrote with a
list of allowed names has to compare canonical forms, or ``TINY`` passes where
``tiny:latest`` was forbidden.

Compared, counted and kept in settings is what ``canonical`` returns, whichever
door a name came in by. Sent upstream is neither that nor what the client wrote,
but the spelling in which the model is installed there, which the catalog finds
by the canonical form.
"""

from __future__ import annotations

import re

from django.core.exceptions import ValidationError

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


class NoModelName(ValueError):
    """What Ollama does not read as the name of a model; says why in Ollama's words."""


class CloudModelName(ValueError):
    """A name that Ollama would send to its vendor's cloud."""


def canonical(name: str) -> str:
    """The form of ``name`` that is compared: as ``/api/tags`` shows it, in lower case.

    ``tiny``, ``TINY:latest`` and ``https://registry.ollama.ai/library/tiny`` all
    give ``tiny:latest``; another namespace or host is kept. Applying it again
    changes nothing. Raises ``CloudModelName`` and ``NoModelName``.
    """
    plain = name.strip()
    if not plain:
        raise NoModelName("model is required")
    if len(name) > MAX_CHARACTERS or not plain.isascii() or _SEPARATORS.search(name):
        raise NoModelName("invalid model name")
    plain, source = _without_source(plain.lower())
    if source is not None and _without_source(plain)[1] is not None:
        raise NoModelName("use either :local or :cloud in a model name, not both")
    if source == "cloud":
        raise CloudModelName(name)
    parts = _NAME.fullmatch(plain)
    if parts is None:
        raise NoModelName("invalid model name")
    host, namespace, model, tag = parts.group("host", "namespace", "model", "tag")
    short = f"{model}:{tag or DEFAULT_TAG}"
    if host is not None and host != DEFAULT_HOST:
        return f"{host}/{namespace}/{short}"
    return short if namespace in (None, DEFAULT_NAMESPACE) else f"{namespace}/{short}"


def canonical_setting(name: str) -> str:
    """The canonical form of a name that people write into a setting, empty if they leave it so.

    Raises ``ValidationError``.
    """
    try:
        return canonical(name) if name else ""
    except ValueError as exc:
        raise ValidationError(f"“{name}” is not the name of a local model, such as llama3.2:latest.") from exc


def _without_source(name: str) -> tuple[str, str | None]:
    """A name in lower case without the suffix that says where it runs, and what the suffix says."""
    front, colon, last = name.rpartition(":")
    last = last.strip()
    if colon and last in ("local", "cloud"):
        return front, last
    if colon and last.endswith("-cloud") and "/" not in last:
        return f"{front}:{last.removesuffix('-cloud')}", "cloud"
    return name, None
