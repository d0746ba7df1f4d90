"""The simulator itself: a server on a port, in this loop or in a thread of its own."""

import asyncio
import threading
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self
from urllib.parse import unquote

from proxy.simulator import routing
from proxy.simulator.control import control
from proxy.simulator.errors import send_cloud_refusal, send_refusal
from proxy.simulator.exchange import Bare, CloudRefused, Exchange
from proxy.simulator.generation import Refused
from proxy.simulator.library import Library, Model
from proxy.simulator.script import Script
from proxy.simulator.settings import Settings
from proxy.simulator.truth import Record, TruthLog
from proxy.simulator.wire import Broken, Connection, Reply, Request


class Simulator:
    """A simulated Ollama.

    ``models`` are installed beside the usual ones, by name; names of fault
    models too. Everything may be steered while it runs, from any thread:
    ``settings``, ``script`` (faults) and ``library`` are read afresh by each request.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, *, models: Iterable[str] = ()) -> None:
        self.host = host
        self.port = port
        self._models = tuple(models)
        self.reset()
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def requests(self) -> list[Record]:
        """Everything received, control routes aside, oldest first."""
        return list(self.log)

    @property
    def calls(self) -> list[Record]:
        """The requests to routes that run a model."""
        return [record for record in self.log if record.path in routing.INFERENCE]

    def find(self, marker: str) -> list[Record]:
        """The requests with ``marker`` in their body."""
        return [record for record in self.log if marker in record.body]

    def reset(self) -> None:
        """Start anew: first settings and models, no faults, an empty log. Running requests keep theirs."""
        self.settings = Settings()
        self.script = Script()
        self.log = TruthLog()
        self.library = Library()
        for name in self._models:
            self.install(name)

    def install(self, name: str) -> Model:
        """Add a model to the lists; raise ``BadName``."""
        return self.library.add(name)

    def fault(
        self,
        words: str,
        *,
        model: str | None = None,
        marker: str | None = None,
        path: str | None = None,
        times: int | None = None,
    ) -> None:
        """Script a fault; see ``script.Rule`` for which requests it hits. Raise ``BadFault``."""
        self.script.add(words, model=model, marker=marker, path=path, times=times)

    async def start(self) -> None:
        """Listen; ``port`` is the real one afterwards. Raise ``OSError`` if it is taken."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self._serve, self._connections), self.host, self.port, backlog=1024
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and break what is still open."""
        if self._server is None:
            return
        self._server.close()
        tasks = [connection.drop() for connection in tuple(self._connections)]
        await asyncio.gather(*filter(None, tasks), return_exceptions=True)
        self._server = None

    async def _serve(self, request: Request, reply: Reply) -> None:
        raw, query = routing.path_of(request.target)
        path = unquote(raw, errors="replace")
        if path.startswith("/_sim/"):
            await control(self, request, reply, path, query)
            return
        record = self.log.add(
            connection=reply.connection.serial,
            method=request.method,
            target=request.target,
            path=path,
            headers=request.headers,
            body=request.body.decode("utf-8", "backslashreplace"),
        )

        def ending(how: str) -> None:
            record.sent_bytes, record.first_byte_at = reply.sent_bytes, reply.first_byte_at
            record.end(how)

        reply.ending = ending
        exchange = Exchange(request, reply, record, self.library, self.settings, self.script)
        try:
            await self._answer(exchange)
        except Broken:
            pass
        except asyncio.CancelledError:
            record.client_closed_at = time.time()
            ending("finished" if record.complete else "aborted")
            raise

    async def _answer(self, exchange: Exchange) -> None:
        request = exchange.request
        origin = request.header("origin")
        if not routing.origin_allowed(origin) or not routing.host_allowed(request.header("host")):
            await exchange.send_nothing(403)
            return
        if origin:
            exchange.reply.extra.append(("Access-Control-Allow-Origin", origin))
            if request.method == "OPTIONS":
                await exchange.send_nothing(204, routing.preflight_headers(origin))
                return
        found = routing.find(request)
        if found.redirect:
            status, location = found.redirect
            await exchange.send_nothing(status, [("Location", location)])
        elif found.handler is None:
            await self._send_plain_refusal(exchange, found)
        else:
            await self._handle(exchange, found.handler)

    async def _handle(self, exchange: Exchange, handler: routing.Handler) -> None:
        path = exchange.record.path
        exchange.record.route = path
        try:
            if path not in routing.INFERENCE:
                await exchange.meet_faults()
            if exchange.request.header("content-encoding") == "zstd" and path in routing.ZSTD:
                await exchange.send_json(
                    {"error": "zstd body received, the simulator does not unpack it"}, status=400
                )
                return
            await handler(exchange)
        except Refused as refusal:
            await send_refusal(exchange, refusal)
        except CloudRefused as refusal:
            await send_cloud_refusal(exchange, refusal)
        except Bare as bare:
            await exchange.send_nothing(bare.status, bare.headers)

    async def _send_plain_refusal(self, exchange: Exchange, found: routing.Found) -> None:
        if found.status == 405:
            await exchange.send_text(405, "405 method not allowed", [("Allow", found.allow)])
        else:
            await exchange.send_text(404, "404 page not found")


class SimulatorThread(Simulator):
    """A simulator in a thread, for synchronous tests: ``with SimulatorThread() as ollama: …``"""

    def __init__(self, host: str = "127.0.0.1", port: int = 0, *, models: Sequence[str] = ()) -> None:
        super().__init__(host, port, models=models)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="simulated-ollama", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.start(), self._loop).result(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self.stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
