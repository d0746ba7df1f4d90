"""The counters in Redis: their names, and the scripts that are the only ones to change them.

Each script is described at its head, in ``budgets/lua/``. The path of a request
runs one with ``run``, blocking code with ``run_now``; both send the same. The two
that every call needs take many calls at once, of which each is a ``CallOfScript``.
"""

from __future__ import annotations

import hashlib
import struct
import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self
from uuid import UUID

from redis.exceptions import NoScriptError, ResponseError

from tenants.redis import PARTITION, Part, redis_async, redis_now

EPOCH = f"{PARTITION}:epoch"
GENERATIONS = f"{PARTITION}:generations"
HOLDS = f"{PARTITION}:holds"
STOPS = f"{PARTITION}:stops"
USAGE = f"{PARTITION}:usage"
REFUSALS = f"{PARTITION}:refusals"
SETTLED = f"{PARTITION}:settled"
DRAINED = f"{PARTITION}:drained"
CLOCK = f"{PARTITION}:clock"
DRAINED_AT = f"{PARTITION}:drained-at"
TALLIES = f"{PARTITION}:tallies"
PACES = f"{PARTITION}:paces"

# Long enough for every late settlement of a period to meet its counter.
GRACE_SECONDS = 35 * 86_400

Kind = Literal["budget", "rate", "leases"]
# What reserve.lua and settle.lua call the kinds.
NUMBERS_OF_KINDS: dict[Kind, int] = {"budget": 0, "rate": 1, "leases": 2}
# What stands there for a number that is missing or endless.
NONE = -1


def hold_key(request_id: UUID | str) -> str:
    return f"{PARTITION}:hold:{request_id}"


@dataclass(frozen=True, slots=True)
class Counter:
    """The counter of one budget in one period, or of one rate limit.

    ``id`` is the row's, in hex, and ``key`` the name in Redis. ``start`` and ``end`` are the period of a
    budget in seconds since 1970 and None otherwise; a period without ``end``
    lasts for ever. ``run``: of which run. ``expires``: at which second the
    counter may go, False for never. That of a run without an end may go when
    nobody has used it for as long as others stay after their end.
    """

    kind: Kind
    id: str
    unit: str
    start: int | None
    end: int | None
    run: str = ""
    key: str = field(init=False, compare=False)
    expires: int | Literal[False] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        name = f"{self.kind}:{self.id}" if self.kind != "budget" else f"budget:{self.id}:{self.start}"
        if self.run:
            name += f":{self.run}"
        # Asked for several times in every call; the instance itself is used for a whole period.
        object.__setattr__(self, "key", f"{PARTITION}:{name}")
        last = int(time.time()) if self.is_put_off else self.end
        object.__setattr__(self, "expires", False if last is None else last + GRACE_SECONDS)

    @property
    def is_put_off(self) -> bool:
        """Whether each call puts off when the counter may go."""
        return bool(self.run) and self.kind == "budget" and self.end is None

    def as_list(self) -> list[Any]:
        """For JSON; ``Counter(*…)`` reads it back."""
        return [self.kind, self.id, self.unit, self.start, self.end, self.run]


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script and the digest under which Redis keeps it."""

    text: str
    sha: str


def _read(*names: str) -> Script:
    """A script of one text, or of several that stand one behind the other."""
    text = "".join((Path(__file__).parent / "lua" / f"{name}.lua").read_text() for name in names)
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


RESERVE = _read("holds", "reserve")
HEARTBEAT = _read("holds", "heartbeat")
PROLONG = _read("holds", "prolong")
RESTORE = _read("holds", "restore")
SETTLE = _read("holds", "settle")
STOP = _read("holds", "stop")
ACKNOWLEDGE = _read("acknowledge")
REBUILD = _read("rebuild")
SURVEY = _read("survey")
TALLY = _read("tally")

SCRIPTS = (RESERVE, HEARTBEAT, PROLONG, RESTORE, SETTLE, STOP, ACKNOWLEDGE, REBUILD, SURVEY, TALLY)


def packed(numbers: Sequence[float]) -> bytes:
    """Numbers as the scripts unpack them: little-endian doubles, exact for whole ones below 2^53."""
    return struct.pack(f"<{len(numbers)}d", *numbers)


async def run(script: Script, keys: list[str], *arguments: Any) -> Any:
    """Run a script on the path of a request; raises ``RedisError``."""
    redis = redis_async()
    try:
        return await redis.call("EVALSHA", script.sha, len(keys), *keys, *arguments)
    except NoScriptError:
        # Redis has restarted. Nothing was run, so this is no second time.
        return await redis.call("EVAL", script.text, len(keys), *keys, *arguments)


def redis_in_bytes() -> Any:
    """The blocking connection, without redis-py's types: they allow for every protocol and decoding."""
    return redis_now()


def run_now(script: Script, keys: list[str], *arguments: Any) -> Any:
    """Run a script where blocking does no harm; raises ``RedisError``."""
    redis = redis_in_bytes()
    try:
        return redis.execute_command("EVALSHA", script.sha, len(keys), *keys, *arguments)
    except NoScriptError:
        return redis.execute_command("EVAL", script.text, len(keys), *keys, *arguments)


class CallOfScript(Part):
    """What a script has to do for one call; it does what is asked at the same moment together."""

    __slots__ = ()
    script: ClassVar[Script]

    @classmethod
    @abstractmethod
    def keys_and_arguments(cls, calls: Sequence[Self]) -> tuple[list[str], list[Any]]:
        """What the script takes for these calls, in their order; those of one kin stand side by side."""

    @classmethod
    def command(cls, parts: Sequence[Self]) -> tuple[Any, ...]:
        keys, arguments = cls.keys_and_arguments(parts)
        return ("EVALSHA", cls.script.sha, len(keys), *keys, *arguments)

    async def run(self) -> Any:
        """What the script says of this call, on the path of a request; raises ``RedisError``."""
        try:
            return await redis_async().call_with_others(self)
        except ResponseError:
            # Redis has restarted and knows no script, or one of the others asked for what cannot be
            # done. The scripts write nothing until all is read, so this is no second time.
            keys, arguments = self.keys_and_arguments([self])
            reply = await redis_async().call("EVAL", self.script.text, len(keys), *keys, *arguments)
            return self.replies([self], reply)[0]

    def run_now(self) -> Any:
        """``run`` where blocking does no harm."""
        keys, arguments = self.keys_and_arguments([self])
        return self.replies([self], run_now(self.script, keys, *arguments))[0]
