"""Readers of single fields: each takes a value and its name, returns what is sent, or refuses.

A number without a fraction is an integer here as in Go; true is no number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from proxy.dialects.strict_json import Reader, read_object, wrong
from proxy.exceptions import BadRequest

# A grammar made from a schema grows faster than the schema.
MAX_SCHEMA_BYTES = 64 * 1024
# Each repetition that a schema allows becomes a rule of the grammar before the first token.
MAX_REPETITIONS = 100_000
MAX_STOPS = 64
MAX_TOP_LOGPROBS = 20
# Of names of roles, models, tools and calls, which are not text.
MAX_NAME_CHARACTERS = 1024


def text(value: Any, param: str) -> str:
    if not isinstance(value, str):
        raise wrong(param, "a string")
    return value


def name(value: Any, param: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_NAME_CHARACTERS:
        raise wrong(param, f"a string of at most {MAX_NAME_CHARACTERS} characters")
    return value


def flag(value: Any, param: str) -> bool:
    if not isinstance(value, bool):
        raise wrong(param, "true or false")
    return value


def integer(value: Any, param: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise wrong(param, "an integer")
    return value


def number(value: Any, param: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise wrong(param, "a number")
    return value


def positive(value: Any, param: str) -> int:
    if integer(value, param) < 1:
        raise wrong(param, "an integer above 0")
    return int(value)


def top_logprobs(value: Any, param: str) -> int:
    if not 0 <= integer(value, param) <= MAX_TOP_LOGPROBS:
        raise BadRequest(f"{param} must be between 0 and {MAX_TOP_LOGPROBS}", param)
    return int(value)


def mapping(value: Any, param: str) -> dict[str, Any]:
    """A free-form object: its names are the client's own."""
    if not isinstance(value, dict):
        raise wrong(param, "an object")
    return value


def schema(value: Any, param: str) -> dict[str, Any]:
    if len(orjson.dumps(mapping(value, param))) > MAX_SCHEMA_BYTES:
        raise BadRequest(f"{param} is a schema of more than {MAX_SCHEMA_BYTES} bytes.", param)
    return dict(value)


def format_schema(value: Any, param: str) -> dict[str, Any]:
    """A schema that the answer has to follow, of which upstream makes a grammar."""
    checked = schema(value, param)
    if sum(_repetitions(checked)) > MAX_REPETITIONS:
        raise BadRequest(f"{param} allows for more than {MAX_REPETITIONS} repetitions.", param)
    return checked


_REPEATING = ("minItems", "maxItems", "minLength", "maxLength")
_BRACES = re.compile(r"\{\s*(\d*)\s*,?\s*(\d*)\s*\}", re.ASCII)


def _repetitions(part: Any) -> Iterator[float]:
    """How often a schema says that something may or must be repeated, wherever it says so."""
    if isinstance(part, list):
        for inner in part:
            yield from _repetitions(inner)
    elif isinstance(part, dict):
        for name, inner in part.items():
            if name in _REPEATING and isinstance(inner, (int, float)):
                yield max(inner, 0)
            elif name == "pattern" and isinstance(inner, str):
                yield from (float(number) for pair in _BRACES.findall(inner) for number in pair if number)
            else:
                yield from _repetitions(inner)


def stops(value: Any, param: str) -> str | list[str]:
    """One string that ends the answer, or several."""
    if isinstance(value, str):
        return value
    return stop_list(value, param)


def stop_list(value: Any, param: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise wrong(param, "a list of strings")
    if len(value) > MAX_STOPS:
        raise wrong(param, f"a list of at most {MAX_STOPS} strings")
    return value


def items(value: Any, param: str, read: Reader, limit: int) -> list[Any]:
    """A list of at most ``limit`` items, each as ``read`` returns it."""
    if not isinstance(value, list):
        raise wrong(param, "a list")
    if len(value) > limit:
        raise BadRequest(f"{param} has {len(value)} items; at most {limit} are allowed.", param)
    return [read(item, f"{param}[{index}]") for index, item in enumerate(value)]


def fields(known: Mapping[str, Reader | None]) -> Reader:
    """A reader of an object of which only the fields in ``known`` are kept."""
    return lambda value, param: read_object(value, param, known)


def one_of(*words: str) -> Reader:
    """A reader of a word out of a list."""
    listed = ", ".join(words)

    def read(value: Any, param: str) -> str:
        if value not in words or not isinstance(value, str):
            raise wrong(param, f"one of {listed}")
        return value

    return read


def single(value: Any, param: str) -> None:
    """One choice, which is what Ollama gives whatever it is asked for."""
    if integer(value, param) != 1:
        raise BadRequest(f"{param} must be 1: there is one answer to a request.", param)


def output_limit(value: Any, param: str) -> int | None:
    """The most tokens that the client wants; None for a negative number, which means no limit.

    Zero is refused: Ollama takes it for no limit in some places and for nothing in others.
    """
    if integer(value, param) == 0:
        raise BadRequest(f"{param} must not be 0: leave it out, or ask for at least one token.", param)
    return value if value > 0 else None


def take_model(kept: dict[str, Any]) -> str:
    """Take the model's name out of the fields of a body; raises ``BadRequest`` when there is none."""
    model: str = kept.pop("model", "")
    if not model:
        raise BadRequest("model is required", "model")
    return model
