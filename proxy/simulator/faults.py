"""Faults, named by words: ``reset-3``, ``counters-missing.packet-1``.

One fault is a word and its arguments, joined by ``-``; several faults are joined
by ``.``. A model called ``fault-<faults>`` answers with them, and the control
route sets the same words for other models. ``docs/simulator.md`` explains each.
Durations are milliseconds.
"""

from dataclasses import dataclass, replace
from typing import Any

COUNTERS = ("missing", "zero", "negative", "huge", "text")
NOT_FOUND = ("plain", "pull", "tag")
TOOL_PLACES = ("early", "done")


class BadFault(ValueError):
    """A word, an argument or a number of arguments that the grammar does not know."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one answer; the default is nothing.

    ``*_after`` count the pieces sent before it happens, ``*_ms`` are milliseconds.
    """

    pieces: int | None = None
    thinking: int | None = None
    endless: bool = False
    repeat: bool = False
    error_after: int | None = None
    reset_after: int | None = None
    cut_after: int | None = None
    end_after: int | None = None
    garbage_after: int | None = None
    silence_after: int | None = None
    silence_ms: int = 0
    first_ms: int = 0
    load_ms: int = 0
    slow_ms: int | None = None
    linger_ms: int = 0
    status: int | None = None
    panic: bool = False
    busy: bool = False
    not_found: str = ""
    old_status: bool = False
    redirect: bool = False
    counters: str = ""
    cached: int | None = None
    no_reason: bool = False
    packet: int | None = None
    split_utf8: bool = False
    crlf: bool = False
    separators: bool = False
    line_mib: int = 0
    context: int | None = None
    gzip: bool = False
    cookie: bool = False
    tool: str = ""
    logprobs: bool = False
    old_chunks: bool = False


NO_FAULT = Fault()

# word: the fields its arguments fill; a field with a tuple takes one of these words.
_NUMBERS: dict[str, tuple[str, ...]] = {
    "pieces": ("pieces",),
    "think": ("thinking",),
    "error": ("error_after",),
    "reset": ("reset_after",),
    "cut": ("cut_after",),
    "end": ("end_after",),
    "garbage": ("garbage_after",),
    "silence": ("silence_after", "silence_ms"),
    "first": ("first_ms",),
    "load": ("load_ms",),
    "slow": ("slow_ms",),
    "linger": ("linger_ms",),
    "status": ("status",),
    "cached": ("cached",),
    "packet": ("packet",),
    "line": ("line_mib",),
    "context": ("context",),
}
_CHOICES: dict[str, tuple[str, tuple[str, ...]]] = {
    "counters": ("counters", COUNTERS),
    "notfound": ("not_found", NOT_FOUND),
    "tool": ("tool", TOOL_PLACES),
}
_SWITCHES: dict[str, str] = {
    "endless": "endless",
    "repeat": "repeat",
    "panic": "panic",
    "busy": "busy",
    "oldstatus": "old_status",
    "redirect": "redirect",
    "noreason": "no_reason",
    "utf8": "split_utf8",
    "crlf": "crlf",
    "u2028": "separators",
    "gzip": "gzip",
    "cookie": "cookie",
    "logprobs": "logprobs",
    "oldchunks": "old_chunks",
}
WORDS = frozenset(_NUMBERS) | frozenset(_CHOICES) | frozenset(_SWITCHES)

STOCK = (
    "error-3",
    "reset-0",
    "reset-3",
    "cut-3",
    "end-3",
    "repeat",
    "garbage-3",
    "silence-3-1000",
    "first-1000",
    "load-1000",
    "slow-50",
    "endless",
    "status-500",
    "panic",
    "busy",
    "notfound-plain",
    "notfound-pull",
    "notfound-tag",
    "oldstatus",
    "redirect",
    "counters-missing",
    "counters-zero",
    "counters-negative",
    "counters-huge",
    "packet-1",
    "packet-65536",
    "utf8",
    "crlf",
    "u2028",
    "line-4",
    "gzip",
    "cookie",
    "tool-early",
    "tool-done",
    "logprobs",
    "oldchunks",
)


def parse(words: str, onto: Fault = NO_FAULT) -> Fault:
    """``onto`` with the faults of ``words`` added; raise ``BadFault``."""
    changes: dict[str, Any] = {}
    for fault in words.split("."):
        word, *arguments = fault.split("-")
        if word in _NUMBERS and len(arguments) == len(_NUMBERS[word]) and all(map(str.isdecimal, arguments)):
            changes |= zip(_NUMBERS[word], map(int, arguments), strict=True)
        elif word in _CHOICES and len(arguments) == 1 and arguments[0] in _CHOICES[word][1]:
            changes[_CHOICES[word][0]] = arguments[0]
        elif word in _SWITCHES and not arguments:
            changes[_SWITCHES[word]] = True
        else:
            raise BadFault(f"no such fault: {fault!r}")
    if changes.get("packet") == 0:
        raise BadFault("a packet holds at least one byte")
    return replace(onto, **changes)


def of_model(name: str) -> Fault | None:
    """The faults that the model part of a name asks for, if it asks for any."""
    if not name.lower().startswith("fault-"):
        return None
    try:
        return parse(name.lower().removeprefix("fault-"))
    except BadFault:
        return None
