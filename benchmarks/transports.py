"""What the way to a server costs under httpx' interface: ``python3 benchmarks/transports.py``.

Compares ``proxy.transport`` with httpx' own transport, and with httpx-aiohttp
where that is installed beside the locked packages. Prints processor time in
microseconds for a short answer (16 callers) and for a paced piece (32 streams),
medians over rounds in which each takes its turn.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import bootstrap

if __name__ == "__main__":
    bootstrap.build_environment()
    bootstrap.enter_environment()

import httpx
import uvloop

from benchmarks import native, servers
from benchmarks.processes import on_cores
from proxy.transport import Transport

ROUNDS = 7
ANSWERS, CALLERS = 3000, 16
PIECES, STREAMS, EVERY_US = 100, 32, 10_000

Transports = dict[str, Callable[[], httpx.AsyncBaseTransport]]


def main() -> int:
    transports: Transports = {"ours": Transport, "httpx": httpx_own}
    if importlib.util.find_spec("httpx_aiohttp"):
        transports["httpx-aiohttp"] = with_aiohttp
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in transports}
    with tempfile.TemporaryDirectory() as directory, on_cores({0}):
        native.build(Path(directory))
        with servers.upstream(Path(directory), {1}) as upstream:
            for _ in range(ROUNDS):
                for name, make in transports.items():
                    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                        spent[name].append(runner.run(measured(make(), upstream.port)))
    sys.stdout.write(f"{'':16}{'µs an answer':>14}{'µs a piece':>14}\n")
    for name, rounds in spent.items():
        answer, piece = (statistics.median(figures) for figures in zip(*rounds, strict=True))
        sys.stdout.write(f"{name:16}{answer:14.1f}{piece:14.1f}\n")
    return 0


def httpx_own() -> httpx.AsyncBaseTransport:
    return httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=None))


def with_aiohttp() -> httpx.AsyncBaseTransport:
    # Neither is one of ours, so neither is there for the type checker.
    aiohttp = importlib.import_module("aiohttp")
    made: httpx.AsyncBaseTransport = importlib.import_module("httpx_aiohttp").AiohttpTransport(
        client=lambda: aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent",),
        )
    )
    return made


async def measured(transport: httpx.AsyncBaseTransport, port: int) -> tuple[float, float]:
    """Processor time of this process in µs, an answer and a piece."""
    url = httpx.URL(f"http://127.0.0.1:{port}/api/chat")

    async def ask(prompt: str, stream: str) -> None:
        body = b'{"model":"bench:1b","messages":[{"role":"user","content":"%b"}],"stream":%b}' % (
            prompt.encode(),
            stream.encode(),
        )
        headers = [
            (b"Host", url.netloc),
            (b"Content-Type", b"application/json"),
            (b"Content-Length", b"%d" % len(body)),
        ]
        request = httpx.Request("POST", url, headers=headers, stream=httpx.ByteStream(body))
        response = await transport.handle_async_request(request)
        assert isinstance(response.stream, httpx.AsyncByteStream)  # noqa: S101 - tells the type checker which
        async for _ in response.stream:
            pass
        await response.aclose()

    async def caller(answers: int) -> None:
        for _ in range(answers):
            await ask("bench pieces=1", "false")

    async def answers(count: int) -> None:
        await asyncio.gather(*(caller(count // CALLERS) for _ in range(CALLERS)))

    async def streams() -> None:
        prompt = f"bench pieces={PIECES} every_us={EVERY_US} bytes=16"
        await asyncio.gather(*(ask(prompt, "true") for _ in range(STREAMS)))

    await answers(ANSWERS // 10)
    begun = time.process_time()
    await answers(ANSWERS)
    between = time.process_time()
    await streams()
    ended = time.process_time()
    await transport.aclose()
    return (between - begun) / ANSWERS * 1e6, (ended - between) / (PIECES * STREAMS) * 1e6


if __name__ == "__main__":
    sys.exit(main())
