"""How an HTTP/1.1 answer is read: bytes in, its head and the pieces of its body out.

Nothing here waits or sends. What is no plain answer raises
``httpx.RemoteProtocolError`` instead of being guessed at: a connection serves
one caller after the other, and a second reading of where an answer ends would
hand the rest of one to the next.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import httpx

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 128
# The line before a chunk, and all that follows the last one.
MAX_FRAMING_BYTES = 4096

_FIELD = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[^\r\n\0]*\r\n"
_HEAD = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [^\r\n\0]*)?\r\n((?:" + _FIELD + rb")*+)\r\n")
_NAME_AND_VALUE = re.compile(rb"([^:\r\n]+):([^\r\n]*)\r\n")
_LENGTH = re.compile(rb"[0-9]{1,15}")

# The end of a chunk and the size of the next, and each beginning of that.
_SIZE = re.compile(rb"\r\n([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n")
_SIZE_BEGUN = re.compile(rb"\r(?:\n(?:[0-9A-Fa-f]{1,15}[ \t]*(?:;[^\r\n]*)?\r?)?)?")
_TRAILERS = re.compile(rb"(?:[^\r\n]+\r\n)*+\r\n")
_TRAILERS_BEGUN = re.compile(rb"(?:[^\r\n]+\r\n)*+(?:[^\r\n]+\r?|\r)?")


class Body:
    """What follows a head.

    ``ended`` says that it is whole, ``surplus`` that bytes followed it.
    """

    __slots__ = ("ended", "surplus")

    def __init__(self) -> None:
        self.ended = False
        self.surplus = False

    def feed(self, data: bytes, pieces: list[bytes]) -> None:
        """Append what ``data`` has of the body to ``pieces``, also when it then raises."""
        raise NotImplementedError

    def close(self) -> None:
        """Take note that nothing will follow."""


class Sized(Body):
    """A body whose length was told."""

    __slots__ = ("_left",)

    def __init__(self, length: int) -> None:
        super().__init__()
        self._left = length
        self.ended = length == 0

    def feed(self, data: bytes, pieces: list[bytes]) -> None:
        piece = data[: self._left]
        self.surplus = len(piece) < len(data)
        if piece:
            pieces.append(piece)
            self._left -= len(piece)
            self.ended = self._left == 0


class Chunked(Body):
    """A body in chunks, each behind its size. Extensions and trailers are skipped."""

    __slots__ = ("_held", "_last", "_left")

    def __init__(self) -> None:
        super().__init__()
        # As if a chunk had just ended, so that the first size is read like every other.
        self._held = b"\r\n"
        self._left = 0
        self._last = False

    def feed(self, data: bytes, pieces: list[bytes]) -> None:
        data = self._held + data
        self._held = b""
        at = 0
        while at < len(data):
            if self._left:
                piece = data[at : at + self._left]
                pieces.append(piece)
                self._left -= len(piece)
                at += len(piece)
                if at + 2 == len(data) and data.endswith(b"\r\n"):
                    # A packet mostly ends where its chunk does.
                    self._held = b"\r\n"
                    return
            elif self.ended:
                self.surplus = True
                return
            elif framing := (_TRAILERS if self._last else _SIZE).match(data, at):
                at = framing.end()
                if self._last:
                    self.ended = True
                else:
                    self._left = int(framing[1], 16)
                    self._last = self._left == 0
            else:
                self._hold(data[at:])
                return

    def _hold(self, begun: bytes) -> None:
        """Keep the beginning of what stands between chunks until the rest of it comes."""
        shape = _TRAILERS_BEGUN if self._last else _SIZE_BEGUN
        if len(begun) > MAX_FRAMING_BYTES or not shape.fullmatch(begun):
            raise httpx.RemoteProtocolError("the chunks of the answer are broken")
        self._held = begun


class UntilClose(Body):
    """A body that ends with its connection."""

    __slots__ = ()

    def feed(self, data: bytes, pieces: list[bytes]) -> None:
        if data:
            pieces.append(data)

    def close(self) -> None:
        self.ended = True


class Head(NamedTuple):
    """Status and headers. ``persistent``: the connection may serve again when the body has ended."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: Body
    persistent: bool


class AnswerReader:
    """One answer to a request with ``method``; ``head`` is there as soon as all of it has come."""

    __slots__ = ("_held", "_method", "_skipped", "head")

    def __init__(self, method: str) -> None:
        self.head: Head | None = None
        self._method = method
        self._held = bytearray()
        self._skipped = 0

    def feed(self, data: bytes, pieces: list[bytes]) -> None:
        """Read on; append what ``data`` has of the body to ``pieces``."""
        if self.head is None:
            data = self._feed_head(data)
        if data and self.head is not None:
            self.head.body.feed(data, pieces)

    def _feed_head(self, data: bytes) -> bytes:
        """Read the head, over those that only announce it; return what follows."""
        held = self._held
        at = max(len(held) - 3, 0)
        held += data
        while (at := held.find(b"\r\n\r\n", at)) >= 0:
            at += 4
            self._check_size(at)
            head = read_head(bytes(held[:at]), self._method)
            del held[:at]
            if head.status >= 200:
                self.head = head
                return bytes(held)
            self._skipped += at
            at = 0
        self._check_size(len(held))
        return b""

    def _check_size(self, size: int) -> None:
        if self._skipped + size > MAX_HEAD_BYTES:
            raise httpx.RemoteProtocolError("the head of the answer is too long")

    @property
    def ended(self) -> bool:
        return self.head is not None and self.head.body.ended

    @property
    def reusable(self) -> bool:
        """Whether another request may follow on the same connection."""
        head = self.head
        return head is not None and head.persistent and head.body.ended and not head.body.surplus

    def close(self) -> None:
        """Take note that nothing will follow; whether the answer is whole then says ``ended``."""
        if self.head is not None:
            self.head.body.close()


def read_head(head: bytes, method: str) -> Head:
    """Read a head, with the empty line at its end."""
    match = _HEAD.fullmatch(head)
    if match is None:
        raise httpx.RemoteProtocolError("the answer does not begin as HTTP/1.1 does")
    status = int(match[2])
    headers = [(name, value.strip(b" \t")) for name, value in _NAME_AND_VALUE.findall(match[3])]
    if len(headers) > MAX_HEADERS:
        raise httpx.RemoteProtocolError("the answer has too many headers")
    if status == 101:
        raise httpx.RemoteProtocolError("upstream changes to a protocol that it was not asked for")
    persistent = match[1] == b"1"
    lengths: set[bytes] = set()
    codings: list[bytes] = []
    for name, value in headers:
        match name.lower():
            case b"content-length":
                lengths.add(value)
            case b"transfer-encoding":
                codings.append(value.lower())
            case b"connection" if b"close" in [option.strip() for option in value.lower().split(b",")]:
                persistent = False
    body: Body
    if method == "HEAD" or status < 200 or status in (204, 304):
        body = Sized(0)
    elif codings:
        if lengths or codings != [b"chunked"] or match[1] == b"0":
            raise httpx.RemoteProtocolError("where the answer ends is told in a way that is not taken")
        body = Chunked()
    elif lengths:
        length = lengths.pop()
        if lengths or not _LENGTH.fullmatch(length):
            raise httpx.RemoteProtocolError("the length of the answer is not told plainly")
        body = Sized(int(length))
    else:
        body = UntilClose()
        persistent = False
    return Head(status, headers, body, persistent)
