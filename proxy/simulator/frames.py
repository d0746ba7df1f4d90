"""JSON as Go writes it, framed as Ollama frames it."""

import functools
import json
import re
import time
from email.utils import formatdate
from typing import Any

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_MARKUP = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026"}
_ALL = {**_MARKUP, 0x2028: "\\u2028", 0x2029: "\\u2029"}
_SPECIAL = re.compile("[<>&\u2028\u2029]")
_quote = json.encoder.encode_basestring


def encode(value: Any, *, separators: bool = False) -> bytes:
    """``value`` as compact JSON with Go's escapes; ``separators`` leaves U+2028 and U+2029 as they are."""
    return _escape(_ENCODER.encode(value), separators=separators)


def encode_text(text: str, *, separators: bool = False) -> bytes:
    """The same for a string alone, faster."""
    return _escape(_quote(text), separators=separators)


def _escape(text: str, *, separators: bool) -> bytes:
    if _SPECIAL.search(text):
        text = text.translate(_MARKUP if separators else _ALL)
    return text.encode("utf-8", "replace")


def now() -> str:
    """The present instant as Go prints it: up to nine decimals, without trailing zeros."""
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    decimals = f"{nanoseconds:09d}".rstrip("0")
    return f"{_second(seconds)}.{decimals}Z" if decimals else f"{_second(seconds)}Z"


def http_date() -> str:
    return _http_second(int(time.time()))


@functools.lru_cache(4)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


@functools.lru_cache(4)
def _http_second(seconds: int) -> str:
    return formatdate(seconds, usegmt=True)
