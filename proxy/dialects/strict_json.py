"""Read a request body so that Ollama cannot read it differently.

Ollama's reader is Go's: it ignores the letter case of field names (and takes
U+017F for s and U+212A for k), lets the last of several win, stops after the
first value and knows nothing of NaN or UTF-16. Python's differs in each of
these. So what the two could read differently is refused here, and what was read
is written anew before it is sent.

Two kinds of objects have to be told apart. Where the fields are known, as in a
message, two names that differ only in case are one field to Go, so they are
refused (``read_object``). Where they are the client's own, as in a JSON schema
or the arguments of a tool, ``Name`` and ``name`` are two names to Go as well,
and only a name that is there twice is refused (``loads``, for every object).
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from proxy.exceptions import BadRequest

MAX_DEPTH = 64
# A list of this many small numbers takes about a tenth of a second to read.
MAX_VALUES = 500_000
MAX_INTEGER = 2**63

_MAX_DIGITS = len(str(MAX_INTEGER))
_SURROGATE = re.compile("[\ud800-\udfff]")

# What reads one field: takes its value and its name in messages, returns what is sent, raises BadRequest.
Reader = Callable[[Any, str], Any]


def loads(body: bytes) -> dict[str, Any]:
    """The JSON object in ``body``; raises ``BadRequest`` for anything that is not exactly one.

    It is UTF-8 without a byte order mark, no object in it has the same name
    twice, integers lie within 64 bits, other numbers are finite, nothing is
    nested deeper than ``MAX_DEPTH``. A lone half of a surrogate pair, as editors
    send them when they cut a text in two, becomes U+FFFD, as in Go.
    """
    if not body.strip():
        raise BadRequest("missing request body")
    # All but the first value of a list or an object have a comma before them.
    if body.count(b",") > MAX_VALUES:
        raise BadRequest(f"The request body has more than {MAX_VALUES} values.")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise BadRequest("The request body is not valid UTF-8.") from None
    value = _parse(text)
    # A lone surrogate can only come from an escape, for UTF-8 has none.
    if "\\ud" in text or "\\uD" in text:
        written = json.dumps(value, ensure_ascii=False)
        if _SURROGATE.search(written):
            value = _parse(_SURROGATE.sub("\ufffd", written))
    if not isinstance(value, dict):
        raise BadRequest("The request body must be a JSON object.")
    # Counting brackets, those inside strings too, spares most bodies the walk.
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise _too_deep()
    return value


def read_object(value: Any, where: str, known: Mapping[str, Reader | None]) -> dict[str, Any]:
    """The fields of an object that are in ``known``, each as its reader returns it.

    ``where`` names the object in messages, and is empty for the body itself. A
    null counts as absent, as in Go. A field without a reader is dropped, and so
    is one that is not known, unless some other letter case would make it known
    or the same as another: Go would read it as that one.
    """
    if not isinstance(value, dict):
        raise wrong(where, "an object")
    kept = {}
    unknown: set[str] | None = None
    for name, item in value.items():
        if name in known:
            reader = known[name]
            if reader is not None and item is not None:
                kept[name] = reader(item, f"{where}.{name}" if where else name)
            continue
        folded = name.casefold()
        if unknown is None:
            unknown = set()
        if folded in known or folded in unknown:
            raise BadRequest(
                f"The field {name[:100]!r} differs only in letter case from another one.",
                f"{where}.{folded[:100]}" if where else folded[:100],
            )
        unknown.add(folded)
    return kept


def wrong(param: str, expected: str) -> BadRequest:
    """The refusal of a value that is not what it should be."""
    return BadRequest(f"{param} must be {expected}.", param)


def _parse(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise _too_deep() from None
    except json.JSONDecodeError as exc:
        raise BadRequest(f"The request body is not valid JSON: {exc.msg} at character {exc.pos}.") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise BadRequest(f"The field {twice[:100]!r} is there more than once.", twice[:100])
    return fields


def _integer(digits: str) -> int:
    if len(digits) <= _MAX_DIGITS + 1:
        number = int(digits)
        if -MAX_INTEGER <= number <= MAX_INTEGER:
            return number
    raise BadRequest("A number in the request body does not fit into 64 bits.")


def _fraction(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise BadRequest("A number in the request body is too large.")
    return number


def _constant(name: str) -> Any:
    raise BadRequest(f"The request body is not valid JSON: {name} is not a JSON value.")


def _depth(value: Any) -> int:
    """How deep lists and objects are nested, up to the first depth that is too much."""
    depth = 0
    level = [value]
    while level and depth <= MAX_DEPTH:
        depth += 1
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
    return depth


def _too_deep() -> BadRequest:
    return BadRequest(f"The request body is nested deeper than {MAX_DEPTH} levels.")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_fraction, parse_constant=_constant
)
