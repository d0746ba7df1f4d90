"""Looks at the counters every few milliseconds, and keeps every usage record that ever was."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from budgets.counters import USAGE, redis_in_bytes
from tenants.redis import PARTITION

PAUSE_SECONDS = 0.005

# One step, so that no figure is older than another.
LOOK = """
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
local seen = {}
for _, key in ipairs(redis.call('KEYS', ARGV[1] .. ':budget:*')) do
  local figures = redis.call('HMGET', key, 'used', 'held')
  table.insert(seen, {key, tonumber(figures[1] or 0), tonumber(figures[2] or 0)})
end
for _, key in ipairs(redis.call('KEYS', ARGV[1] .. ':leases:*')) do
  table.insert(seen, {key, redis.call('ZCOUNT', key, '(' .. now, '+inf'), 0})
end
return seen
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """A counter at a moment (Unix seconds); ``id`` is the hex id of its budget or limit."""

    at: float
    id: str
    used: int
    held: int

    @property
    def total(self) -> int:
        return self.used + self.held


class Watcher(threading.Thread):
    """Looks until told to stop. ``samples`` are the changes; ``records`` the stream, flushed or not."""

    def __init__(self) -> None:
        super().__init__(name="watcher")
        self.looks = 0
        self.samples: list[Sample] = []
        self.records: dict[bytes, dict[bytes, bytes]] = {}
        self._last: dict[bytes, tuple[int, int]] = {}
        self._read_to = b"0-0"
        self._stopping = threading.Event()

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        while not self._stopping.wait(PAUSE_SECONDS):
            self.look()

    def look(self) -> None:
        """Look once."""
        redis = redis_in_bytes()
        at = time.time()
        for key, used, held in redis.eval(LOOK, 0, PARTITION):
            if self._last.get(key) != (used, held):
                self._last[key] = (used, held)
                self.samples.append(Sample(at, key.split(b":")[2].decode(), used, held))
        for stream_id, fields in redis.xrange(USAGE, b"(" + self._read_to):
            self.records[stream_id] = fields
            self._read_to = stream_id
        self.looks += 1
