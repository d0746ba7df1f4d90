"""JSON as Go reads it into Ollama's request structures.

Field names match in any letter case (the long s counts as s, the Kelvin sign as k),
the last of several wins, repeated objects are merged, ``null`` leaves a plain
field alone, and only the first value of a body is read.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class BadJson(ValueError):
    """The text is Go's, as far as clients can tell."""


class Members(list[tuple[str, Any]]):
    """The members of a JSON object in the order of the text, repeated ones included."""


@dataclass(frozen=True, slots=True)
class Struct:
    """A Go struct: ``fields`` maps each name to what it holds."""

    name: str
    fields: Mapping[str, "Kind"]


@dataclass(frozen=True, slots=True)
class ListOf:
    item: "Kind"


@dataclass(frozen=True, slots=True)
class Pointer:
    """A field that ``null`` sets to nothing."""

    to: "Kind"


@dataclass(frozen=True, slots=True)
class Either:
    """Text, or what ``other`` says: for fields with a reader of their own."""

    other: "Kind"


# ``str``, ``bool``, ``int`` and ``float`` are Go's plain types, ``dict`` is a map
# with exact keys, ``object`` is anything.
Kind = type | Struct | ListOf | Pointer | Either

_GO_TYPE = {str: "string", bool: "bool", int: "int", float: "float64", dict: "map[string]interface {}"}


def _no_constant(text: str) -> Any:
    raise BadJson(f"invalid character {text[0]!r} looking for beginning of value")


_DECODER = json.JSONDecoder(object_pairs_hook=Members, parse_constant=_no_constant)


def first_value(body: bytes) -> Any:
    """The first JSON value of ``body``; objects are ``Members``. An empty body is ``BadJson("EOF")``."""
    text = body.decode("utf-8", "replace").lstrip(" \t\r\n")
    if not text:
        raise BadJson("EOF")
    try:
        return _DECODER.raw_decode(text)[0]
    except json.JSONDecodeError as exc:
        if exc.pos >= len(text) or exc.msg.startswith("Unterminated"):
            raise BadJson("unexpected EOF") from None
        raise BadJson(f"invalid character {text[exc.pos]!r} looking for beginning of value") from None
    except (RecursionError, ValueError) as exc:
        raise exc if isinstance(exc, BadJson) else BadJson("exceeded max depth") from None


def plain(value: Any) -> Any:
    """``value`` with ordinary dictionaries; the last of several equal keys wins."""
    if isinstance(value, Members):
        return {key: plain(item) for key, item in value}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def read(struct: Struct, body: bytes) -> dict[str, Any]:
    """The fields of ``struct`` in ``body``; absent ones are left out."""
    try:
        return _into(struct, first_value(body), {}, struct.name) or {}
    except RecursionError:
        raise BadJson("exceeded max depth") from None


def fold(key: str) -> str:
    """``key`` as Go compares field names: each letter by its simple folding."""
    return "".join(folded if len(folded := letter.casefold()) == 1 else letter for letter in key)


def _into(kind: Kind, value: Any, old: Any, where: str) -> Any:
    """``value`` read as ``kind`` over ``old``, which is what an earlier field of that name left."""
    if isinstance(kind, Pointer):
        return None if value is None else _into(kind.to, value, old, where)
    if kind is object:
        return plain(value)
    if isinstance(kind, Either):
        return value if value is None or isinstance(value, str) else _into(kind.other, value, None, where)
    if value is None:
        return None if isinstance(kind, ListOf) or kind is dict else old
    if isinstance(kind, Struct):
        if not isinstance(value, Members):
            raise _wrong(value, where, kind.name)
        return _into_struct(kind, value, old)
    if isinstance(kind, ListOf):
        if not isinstance(value, list) or isinstance(value, Members):
            raise _wrong(value, where, "[]" + _type_name(kind.item))
        # Go decodes into the elements an earlier array left behind, so fields survive there too.
        earlier = old or []
        return [
            _into(kind.item, item, earlier[n] if n < len(earlier) else None, where)
            for n, item in enumerate(value)
        ]
    if kind is dict:
        if not isinstance(value, Members):
            raise _wrong(value, where, _type_name(kind))
        return {**(old or {}), **plain(value)}
    return _scalar(kind, value, where)


def _into_struct(struct: Struct, members: Members, old: Any) -> dict[str, Any]:
    result = dict(old or {})
    for key, value in members:
        field = key if key in struct.fields else fold(key)
        if field in struct.fields:
            read_value = _into(struct.fields[field], value, result.get(field), f"{struct.name}.{field}")
            if read_value is not None or field in result:
                result[field] = read_value
    return result


def _scalar(kind: type, value: Any, where: str) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind or (type(value) is int and not -(2**63) <= value < 2**63):
        raise _wrong(value, where, _type_name(kind))
    return value


def _type_name(kind: Kind) -> str:
    return _GO_TYPE.get(kind, "object") if isinstance(kind, type) else getattr(kind, "name", "object")


def _wrong(value: Any, where: str, wanted: str) -> BadJson:
    if isinstance(value, bool):
        found = "bool"
    elif isinstance(value, str):
        found = "string"
    elif isinstance(value, Members):
        found = "object"
    elif isinstance(value, list):
        found = "array"
    elif isinstance(value, int):
        found = "number"
    else:
        found = f"number {value}"
    return BadJson(f"json: cannot unmarshal {found} into Go struct field {where} of type {wanted}")
