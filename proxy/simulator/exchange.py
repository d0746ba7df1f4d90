"""One request and its answer: the path that all dialects share."""

import abc
import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from proxy.simulator import names
from proxy.simulator.faults import NO_FAULT, Fault
from proxy.simulator.frames import encode
from proxy.simulator.generation import (
    BreakOff,
    Ended,
    Final,
    Garbage,
    Piece,
    Refused,
    StreamFailed,
    Wish,
    generate,
)
from proxy.simulator.library import Library, Model
from proxy.simulator.script import Script
from proxy.simulator.settings import Settings
from proxy.simulator.truth import Record
from proxy.simulator.wire import Headers, Reply, Request

GARBAGE = b"this line is not what you expect\n"


class Bare(Exception):
    """An answer without a body: a panic, a redirect, a refused Origin."""

    def __init__(self, status: int, headers: Headers = ()) -> None:
        super().__init__(status)
        self.status = status
        self.headers = headers


class CloudRefused(Exception):
    """A cloud name while the cloud is off or signed out; told in the native shape on every route."""

    def __init__(self, setting: str) -> None:
        super().__init__(setting)
        self.signed_out = setting == "unauthorized"


@dataclass(slots=True)
class Exchange:
    """A request on its way, with all that its answer needs."""

    request: Request
    reply: Reply
    record: Record
    library: Library
    settings: Settings
    script: Script
    fault: Fault = NO_FAULT

    async def send_json(self, value: Any, *, status: int = 200, newline: bool = False) -> None:
        """Answer with a whole JSON body: with a newline at its end on the v1 side."""
        body = encode(value, separators=self.fault.separators)
        await self.send_body(body + b"\n" if newline else body, status=status, newline=newline)

    async def send_body(self, body: bytes, *, status: int = 200, newline: bool) -> None:
        self.record.status = status
        await self.reply.whole(status, [("Content-Type", json_type(newline=newline))], body)

    async def send_text(self, status: int, text: str, headers: Headers = ()) -> None:
        self.record.status = status
        await self.reply.whole(status, [("Content-Type", "text/plain"), *headers], text.encode())

    async def send_nothing(self, status: int, headers: Headers = ()) -> None:
        self.record.status = status
        await self.reply.whole(status, headers, b"")

    async def meet_faults(self, model: Model | None = None, spelling: str = "") -> None:
        """Find the faults meant for this request and raise those that replace its answer."""
        name = model.name if model else None
        self.fault, words = self.script.pick(self.record.path, name, self.record.body)
        self.record.fault = self.record.fault or words
        fault, reply = self.fault, self.reply
        reply.packet, reply.split, reply.gzip = fault.packet, fault.split_utf8, fault.gzip
        if fault.cookie:
            reply.extra += [("Set-Cookie", "upstream=1; Path=/"), ("X-Upstream-Secret", "heron")]
        if model is None:
            await asyncio.sleep(fault.first_ms / 1000)
            if 0 in (fault.reset_after, fault.cut_after):
                break_off(reply, BreakOff(reset=fault.reset_after == 0))
        if fault.panic:
            raise Bare(500)
        if fault.redirect:
            raise Bare(302, [("Location", "/api/version?followed")])
        if fault.not_found:
            raise Refused(404, _not_found(fault.not_found, spelling, model))
        if fault.busy:
            raise Refused(503, "server busy, please try again.  maximum pending requests exceeded")
        if fault.status is not None:
            raise Refused(fault.status, "simulated fault")

    async def model(self, spelling: str, *, embedding: bool = False) -> Model:
        """The model that ``spelling`` means; raise what Ollama answers when there is none."""
        if not spelling:
            raise Refused(404, "model '' not found")
        try:
            name = names.parse(spelling)
        except names.BadName as exc:
            raise Refused(400, str(exc)) from None
        self.record.model, self.record.cloud = name.short, name.cloud
        if name.cloud and self.settings.cloud != "answer":
            raise CloudRefused(self.settings.cloud)
        model = self.library.find(name)
        if model is None:
            raise Refused(404, _not_found("pull" if embedding else "plain", spelling, None))
        self.record.model = model.name.short
        await self.meet_faults(model, spelling)
        return model


class Dialect(abc.ABC):
    """How one route writes an answer. One object serves one request.

    A frame is what goes out as one packet; ``start`` is asked for before the
    first piece, ``failed`` when the model breaks down after it.
    """

    content_type = "text/event-stream"
    headers: Headers = ()
    newline = True

    def start(self) -> list[bytes]:
        return []

    @abc.abstractmethod
    def piece(self, piece: Piece) -> list[bytes]: ...

    @abc.abstractmethod
    def final(self, final: Final) -> list[bytes]: ...

    def failed(self, text: str) -> list[bytes]:
        return []

    @abc.abstractmethod
    def whole(self, answer: Piece, final: Final | None) -> Any:
        """The answer that is not streamed; no ``final`` when the model just stopped."""


async def answer(exchange: Exchange, wish: Wish, dialect: Dialect) -> None:
    """Generate for ``wish`` and send it in the words of ``dialect``."""
    exchange.record.stream, exchange.record.prompt = wish.stream, wish.prompt
    await (_stream if wish.stream else _whole)(exchange, wish, dialect)


async def send_final(exchange: Exchange, wish: Wish, dialect: Dialect, final: Final) -> None:
    """Answer with the end alone, for there was nothing to generate."""
    exchange.record.stream = wish.stream
    if not wish.stream:
        await exchange.send_json(dialect.whole(Piece(), final), newline=dialect.newline)
        return
    exchange.record.status = 200
    await exchange.reply.begin(200, [("Content-Type", dialect.content_type), *dialect.headers])
    for frame in dialect.final(final):
        await exchange.reply.send(frame)
    await exchange.reply.end()


async def _stream(exchange: Exchange, wish: Wish, dialect: Dialect) -> None:
    reply, fault = exchange.reply, exchange.fault
    head = [("Content-Type", dialect.content_type), *dialect.headers]

    async def send(frames: Sequence[bytes]) -> None:
        if not reply.begun:
            exchange.record.status = 200
            await reply.begin(200, head)
        for frame in frames:
            await reply.send(frame.replace(b"\n", b"\r\n") if fault.crlf else frame)

    if fault.silence_after == 0:
        await send([])
    started = False
    try:
        async for step in generate(wish, fault, exchange.settings, exchange.library, exchange.record):
            if not started:
                started = True
                await send(dialect.start())
            if isinstance(step, Final):
                exchange.record.complete = not reply.connection.closed
                await send(dialect.final(step))
            else:
                await send(dialect.piece(step))
    except StreamFailed as failure:
        await send(dialect.failed(str(failure)))
    except Garbage:
        await send([GARBAGE])
    except Ended:
        await send([])
    except BreakOff as how:
        break_off(reply, how)
    await asyncio.sleep(fault.linger_ms / 1000)
    await reply.end()


async def _whole(exchange: Exchange, wish: Wish, dialect: Dialect) -> None:
    fault = exchange.fault
    thinking: list[str] = []
    content: list[str] = []
    calls: list[dict[str, Any]] = []
    final: Final | None = None
    broken: BreakOff | None = None
    body = b""
    try:
        async for step in generate(wish, fault, exchange.settings, exchange.library, exchange.record):
            calls += step.calls
            if isinstance(step, Final):
                final = step
            else:
                thinking.append(step.thinking)
                content.append(step.content)
    except StreamFailed as failure:
        raise Refused(500, str(failure)) from None
    except BreakOff as how:
        broken = how
    except Garbage:
        body = GARBAGE
    except Ended:
        pass

    piece = Piece("".join(content), "".join(thinking), calls)
    body = body or encode(dialect.whole(piece, final), separators=fault.separators) + b"\n" * dialect.newline
    if broken is None:
        exchange.record.complete = final is not None and not exchange.reply.connection.closed
        await exchange.send_body(body, newline=dialect.newline)
        return
    exchange.record.status = 200
    await exchange.reply.half(200, [("Content-Type", json_type(newline=dialect.newline))], body)
    break_off(exchange.reply, broken)


def break_off(reply: Reply, how: BreakOff) -> None:
    """Break the connection; raises ``Broken``."""
    if how.reset:
        reply.reset()
    reply.cut()


def json_type(*, newline: bool) -> str:
    """The content type of a whole answer: v1 answers, with their newline, name no character set."""
    return "application/json" if newline else "application/json; charset=utf-8"


def _not_found(which: str, spelling: str, model: Model | None) -> str:
    if which == "pull":
        return f'model "{spelling}" not found, try pulling it first'
    if which == "tag" and model is not None:
        return f"model '{model.name.short}' not found"
    return f"model '{spelling}' not found"
