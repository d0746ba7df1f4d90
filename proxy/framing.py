"""Cut a stream of bytes into whole frames, however the network split it.

Native streams are lines (NDJSON): a frame ends with a line feed. OpenAI's and
Anthropic's are server-sent events: a frame ends with a blank line, written with
line feeds or with carriage returns before them. Only bytes are looked at:
U+2028, a character split between two packets and other line ends of Unicode
mean nothing here.
"""

from __future__ import annotations

from proxy.exceptions import UpstreamFailed


class Frames:
    """The frames of one stream, and the unfinished rest of the last packet.

    ``end`` is ``b"\\n"`` for lines and ``b"\\n\\n"`` for events. ``limit`` is the
    most bytes that one frame may have.
    """

    __slots__ = ("_end", "_events", "_limit", "_rest")

    def __init__(self, end: bytes, limit: int) -> None:
        self._end = end
        # Of a line, a carriage return is simply the last byte but one.
        self._events = end == b"\n\n"
        self._limit = limit
        self._rest = b""

    def feed(self, packet: bytes) -> list[bytes]:
        """Take a packet; return the frames it completes, each with its end.

        Raises ``UpstreamFailed`` when a frame grows beyond the limit.
        """
        data = self._rest + packet if self._rest else packet
        end = self._end
        if self._events and b"\r" in data:
            frames = self._split_events(data)
        elif data.endswith(end) and data.count(end) == 1:
            # The usual case: a packet is a frame.
            self._rest = b""
            frames = [data]
        else:
            parts = data.split(end)
            self._rest = parts.pop()
            frames = [part + end for part in parts]
        if len(self._rest) > self._limit or any(len(frame) > self._limit for frame in frames):
            raise UpstreamFailed("a line of the answer was longer than is allowed")
        return frames

    def _split_events(self, data: bytes) -> list[bytes]:
        frames = []
        start = 0
        while True:
            plain = data.find(self._end, start)
            crlf = data.find(b"\r\n\r\n", start)
            if plain < 0 and crlf < 0:
                break
            stop = plain + 2 if crlf < 0 or 0 <= plain < crlf else crlf + 4
            frames.append(data[start:stop])
            start = stop
        self._rest = data[start:]
        return frames

    @property
    def rest(self) -> bytes:
        """Bytes of a frame that has not ended."""
        return self._rest
