"""The clock that decides, Redis' own, as this process knows it, and when neither is to be believed.

Periods, leases, rates and the end of a key go by the clock of Redis. A process
guesses what it says from a clock of its own that only runs forward and is never
set; so both a step of Redis' clock and a process whose clock is wrong show as a
difference. While there is a large one nothing is admitted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from tenants.redis import RedisError, redis_async

logger = logging.getLogger(__name__)

# More than any correction in small steps, and less than any period.
TOLERANCE_MS = 10_000
# How long both clocks have to agree with each other after a step until they are believed.
DOUBT_SECONDS = 60.0
LOOK_SECONDS = 5.0

# It goes on while the machine sleeps, where there is such a one.
_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class ClockError(Exception):
    """The clock of Redis and that of this process differ, or Redis' has gone back."""


def _steady_ms() -> float:
    return time.clock_gettime(_STEADY) * 1000


class RedisClock:
    """Redis' time, guessed; at first it is taken to be that of this machine."""

    def __init__(self) -> None:
        self._ahead_ms = time.time() * 1000 - _steady_ms()
        self._agreed_since: float | None = None

    def now_ms(self) -> float:
        return _steady_ms() + self._ahead_ms

    def learn(self, now_ms: int) -> bool:
        """Take over what Redis has just told; return whether the guess was near it.

        A step is not taken over before this machine's own clock has said the
        same for a minute, so somebody who is wrong has time to be corrected.
        """
        step_ms = now_ms - self.now_ms()
        if abs(step_ms) <= TOLERANCE_MS:
            self._ahead_ms += step_ms
            self._agreed_since = None
            return True
        if abs(now_ms - time.time() * 1000) > TOLERANCE_MS:
            self._agreed_since = None
        elif self._agreed_since is None:
            self._agreed_since = _steady_ms()
        elif _steady_ms() - self._agreed_since >= DOUBT_SECONDS * 1000:
            logger.warning("the clock of Redis went %.1f s ahead and is believed now", step_ms / 1000)
            self._ahead_ms += step_ms
            self._agreed_since = None
            return True
        logger.error("nothing is admitted: the clock of Redis is %.1f s ahead of ours", step_ms / 1000)
        return False

    async def look(self) -> int:
        """What Redis' clock says now, in ms; raises ``ClockError`` if that is not to be believed.

        Raises ``RedisError`` if Redis cannot be asked.
        """
        seconds, micros = await redis_async().call("TIME")
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        if not self.learn(now_ms):
            raise ClockError(f"Redis' clock is {(now_ms - self.now_ms()) / 1000:.1f} s ahead of ours")
        return now_ms

    async def keep_looking(self) -> None:
        """Follow Redis' clock, for ever, also while nobody calls."""
        while True:
            with contextlib.suppress(RedisError, ClockError):
                await self.look()
            await asyncio.sleep(LOOK_SECONDS)


clock = RedisClock()
