"""The one way to Ollama.

Paths are constants and headers are built from nothing: nothing that a client
sent reaches upstream but the body that was written anew. There is no cookie
jar, no proxy from the environment, no redirect and no unpacking.

httpx is the interface; its own transport walks through every connection for
every request, so ``proxy.transport`` carries the bytes (figures in
``docs/decisions/0003-our-own-transport-carries-the-bytes.md``).
"""

from __future__ import annotations

import asyncio
import functools
import weakref
from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson

from proxy.exceptions import UpstreamFailed, UpstreamRefused, UpstreamTimeout, UpstreamUnreachable
from proxy.transport import Transport
from tenants.quick_settings import settings

# What is read of an answer that is not passed on: a listing, or the text of an error.
MAX_LISTING_BYTES = 64 * 2**20
MAX_ERROR_BYTES = 64 * 1024
HEADERS = [(b"Content-Type", b"application/json"), (b"Accept-Encoding", b"identity")]

_transports: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Transport] = weakref.WeakKeyDictionary()


def _transport() -> Transport:
    loop = asyncio.get_running_loop()
    transport = _transports.get(loop)
    if transport is None:
        transport = _transports[loop] = Transport()
    return transport


async def close() -> None:
    """Close the connections of the running event loop."""
    transport = _transports.pop(asyncio.get_running_loop(), None)
    if transport is not None:
        await transport.aclose()


async def open_stream(base_url: str, path: str, body: bytes) -> httpx.Response:
    """Send a call and return the answer, whose head has come and whose body has not been read.

    Waits for the head without end: whoever asks knows how long a model may take
    to load. The answer is a 200; the one who asked closes it. Raises
    ``UpstreamUnreachable`` (nothing was sent), ``UpstreamTimeout``,
    ``UpstreamFailed`` and ``UpstreamRefused`` (any other status, with upstream's
    text where a client may see it).
    """
    response = await _send("POST", base_url, path, body)
    if response.status_code != 200:
        try:
            async with asyncio.timeout(settings.UPSTREAM_CONNECT_SECONDS):
                text = _error_text(await read(response, MAX_ERROR_BYTES))
        except TimeoutError as exc:
            raise UpstreamTimeout from exc
        finally:
            await response.aclose()
        raise UpstreamRefused(response.status_code, text)
    # Asked for by name, httpx packs and compares every header anew.
    if any(
        name.lower() == b"content-encoding" and value != b"identity" for name, value in response.headers.raw
    ):
        await response.aclose()
        raise UpstreamFailed("upstream packed its answer although it was not asked to")
    return response


async def fetch(base_url: str, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ask for a listing and return its JSON object; raises as ``open_stream`` does."""
    content = orjson.dumps(body) if body is not None else b""
    try:
        async with asyncio.timeout(settings.UPSTREAM_CONNECT_SECONDS):
            response = await _send(method, base_url, path, content)
            try:
                if response.status_code != 200:
                    raise UpstreamFailed(f"{path} answered {response.status_code}")
                answer = orjson.loads(await read(response, MAX_LISTING_BYTES))
            finally:
                await response.aclose()
    except TimeoutError as exc:
        raise UpstreamTimeout from exc
    except orjson.JSONDecodeError as exc:
        raise UpstreamFailed(f"{path} answered something that is not JSON") from exc
    if not isinstance(answer, dict):
        raise UpstreamFailed(f"{path} answered something that is not an object")
    return answer


async def read(response: httpx.Response, limit: int) -> bytes:
    """The whole body; raises ``UpstreamFailed`` beyond ``limit`` bytes or when it breaks off."""
    parts = []
    size = 0
    async for part in packets(response):
        size += len(part)
        if size > limit:
            raise UpstreamFailed("the answer was longer than is allowed")
        parts.append(part)
    return b"".join(parts)


async def packets(response: httpx.Response) -> AsyncIterator[bytes]:
    """The body as it comes, each packet at once; raises ``UpstreamFailed`` when it breaks off."""
    assert isinstance(response.stream, httpx.AsyncByteStream)  # noqa: S101 - tells the type checker which of the two
    try:
        async for packet in response.stream:
            yield packet
    except httpx.HTTPError as exc:
        raise UpstreamFailed("the answer broke off") from exc


@functools.lru_cache(maxsize=1024)
def _address(base_url: str, path: str) -> tuple[httpx.URL, list[tuple[bytes, bytes]]]:
    """A door of an upstream and the headers for it; there are few, and reading a URL takes long."""
    url = httpx.URL(base_url + path)
    return url, [(b"Host", url.netloc), *HEADERS]


async def _send(method: str, base_url: str, path: str, body: bytes) -> httpx.Response:
    """Send a request and return the answer once its head has come, however long that takes."""
    try:
        url, headers = _address(base_url, path)
        if body:
            headers = [*headers, (b"Content-Length", b"%d" % len(body))]
        request = httpx.Request(
            method,
            url,
            headers=headers,
            # Given as content, httpx would read and pack it in ways that are not needed here.
            stream=httpx.ByteStream(body),
            extensions={"timeout": {"connect": settings.UPSTREAM_CONNECT_SECONDS}},
        )
        return await _transport().handle_async_request(request)
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.InvalidURL) as exc:
        raise UpstreamUnreachable from exc
    except httpx.HTTPError as exc:
        raise UpstreamFailed("upstream closed the connection without an answer") from exc


def _error_text(body: bytes) -> str:
    """The sentence in an error answer of either dialect, or nothing."""
    try:
        error = orjson.loads(body)["error"]
    except (orjson.JSONDecodeError, KeyError, TypeError, IndexError):
        return ""
    if isinstance(error, dict):
        error = error.get("message")
    return error if isinstance(error, str) else ""
