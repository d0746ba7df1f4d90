"""What processes have read from PostgreSQL, kept in Redis for those that start while it is away.

Each process that reads a caller, its limits or the upstreams from PostgreSQL
leaves a copy in Redis. It is taken only when PostgreSQL does not answer, and
only while the generations it was read at are the newest.

A copy is sealed: with the HMAC, under ``KEY_PEPPER``, of its name and content.
Whoever can write to Redis can delete a copy or put back an older one, but can
neither make one nor give it to another name, so no key, limit or address of an
upstream comes from Redis that was not once in PostgreSQL.
"""

from __future__ import annotations

import dataclasses
import functools
import hmac
import logging
import typing
from collections.abc import Callable
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin
from uuid import UUID
from zoneinfo import ZoneInfo

import orjson
from django.conf import settings

from tenants.database import READ_SECONDS, DatabaseError, read_aside
from tenants.redis import PARTITION, RedisError, redis_async

logger = logging.getLogger(__name__)

KEPT_SECONDS = 30 * 86_400
# How long PostgreSQL is waited for when there is a copy of what it would say.
PATIENCE_SECONDS = 0.5
SEAL_BYTES = 32

Value = TypeVar("Value")
Kept = TypeVar("Kept")


async def read_or_kept(
    read: Callable[[], Value], kept: Kept | None, seconds: float = READ_SECONDS
) -> Value | Kept:
    """What ``read`` finds in PostgreSQL; if that does not answer, ``kept``, which is as new as can be.

    Raises as ``read_aside`` does when nothing is kept.
    """
    try:
        return await read_aside(read, seconds if kept is None else PATIENCE_SECONDS)
    except (DatabaseError, TimeoutError) as exc:
        if kept is None:
            raise
        logger.warning("PostgreSQL does not answer, so what Redis has of it is used: %r", exc)
        return kept


async def keep(kind: str, name: str, value: object, seconds: int = KEPT_SECONDS) -> None:
    """Keep a copy of ``value``, a dataclass; trouble with Redis is logged, for another may keep one."""
    try:
        await redis_async().call("SET", _key(kind, name), sealed(kind, name, value), "EX", seconds)
    except RedisError as exc:
        logger.warning("no copy of %s %s is kept: %s", kind, name, exc)


async def kept(kind: str, name: str, shape: type[Value]) -> Value | None:
    """The copy kept under this name; None if there is none, or none of ours. Raises ``RedisError``."""
    found: bytes | None = await redis_async().call("GET", _key(kind, name))
    return None if found is None else opened(kind, name, found, shape)


def _key(kind: str, name: str) -> str:
    return f"{PARTITION}:snapshot:{kind}:{name}"


def sealed(kind: str, name: str, value: object) -> bytes:
    """``value`` as it lies in Redis; ``opened`` reads it."""
    content = orjson.dumps(_plain(value))
    return _seal(kind, name, content) + content


def opened(kind: str, name: str, found: bytes, shape: type[Value]) -> Value | None:
    """The value in ``found``; None when we have not sealed it for this name, or another release has."""
    seal, content = found[:SEAL_BYTES], found[SEAL_BYTES:]
    if not hmac.compare_digest(seal, _seal(kind, name, content)):
        logger.critical("the copy of %s %s in Redis is forged or spoilt", kind, name)
        return None
    try:
        value: Value = _shaped(shape, orjson.loads(content))
    except (TypeError, ValueError, KeyError):
        logger.info("the copy of %s %s in Redis is of another release", kind, name)
        return None
    return value


def _seal(kind: str, name: str, content: bytes) -> bytes:
    text = f"snapshot:{kind}:{name}:".encode() + content
    return hmac.digest(settings.KEY_PEPPER.encode(), text, "sha256")


def _plain(value: Any) -> Any:
    """``value`` in the types of JSON: dataclasses by field, dicts as pairs."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(getattr(value, name)) for name in _fields(type(value))}
    if isinstance(value, dict):
        return [[_plain(key), _plain(one)] for key, one in value.items()]
    if isinstance(value, frozenset | set):
        return sorted(map(_plain, value))
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, UUID):
        return value.hex
    if isinstance(value, ZoneInfo):
        return value.key
    return value


@functools.cache
def _fields(kind: type) -> dict[str, Any]:
    """The fields of a dataclass with their types, without those that only remember what was worked out."""
    types = typing.get_type_hints(kind)
    return {
        field.name: types[field.name]
        for field in dataclasses.fields(kind)
        if field.init and not field.name.startswith("_")
    }


def _shaped(shape: Any, found: Any) -> Any:
    """What ``_plain`` made ``found`` of; raises ``TypeError``, ``ValueError`` or ``KeyError`` if nothing."""
    if dataclasses.is_dataclass(shape) and isinstance(shape, type):
        fields = _fields(shape)
        if found.keys() != fields.keys():
            raise TypeError(f"not the fields of {shape.__name__}")
        return shape(**{name: _shaped(kind, found[name]) for name, kind in fields.items()})
    of, kind = get_args(shape), get_origin(shape)
    if kind is None:
        if shape in (UUID, ZoneInfo):
            return shape(found)
        if type(found) is not shape:
            raise TypeError(f"{found!r} is no {shape}")
        return found
    if kind is Literal:
        if found not in of:
            raise TypeError(f"{found!r} is none of {of}")
        return found
    if kind is dict:
        return {_shaped(of[0], key): _shaped(of[1], one) for key, one in found}
    if kind in (list, frozenset) or of[-1] is Ellipsis:
        return kind(_shaped(of[0], one) for one in found)
    if kind is tuple:
        return tuple(_shaped(one, part) for one, part in zip(of, found, strict=True))
    if NoneType in of:
        (other,) = (one for one in of if one is not NoneType)
        return None if found is None else _shaped(other, found)
    raise TypeError(f"{shape} cannot be kept")
