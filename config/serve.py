"""One worker process: ``python -m config.serve HOST PORT READY_FD``.

A module of its own, started afresh by ``manage.py serve``: the event loop has to
be chosen before anything imports Daphne.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import socket
import sys

# The kernel cuts it to its own limit (net.core.somaxconn).
BACKLOG = 4096


def listen(host: str, port: int) -> socket.socket:
    """A listening socket that shares its port with the other workers.

    Each has a queue of its own, among which the kernel spreads the
    connections. One inherited socket for all is emptied by whoever wakes first.
    """
    listener = bind(host, port)
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address, which only processes of the same user may share."""
    bound = socket.socket(family_of(host), socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind((host, port))
    return bound


def family_of(host: str) -> socket.AddressFamily:
    """IPv6 for an address with colons, else IPv4."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def main(host: str, port: int, ready_fd: int) -> int:
    """Serve until told to stop; return the exit status."""
    from django.conf import settings

    if settings.SERVE_UVLOOP:
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    # A stream needs two: one to the client, one to Ollama.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # macOS tells a limit that it does not grant.
    with contextlib.suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    from django.utils.module_loading import import_string

    from config.loading import loading

    with loading():
        application = import_string(settings.ASGI_APPLICATION)
        from config.daphne_server import GatewayServer

    def ready() -> None:
        os.write(ready_fd, b"r")
        os.close(ready_fd)

    server = GatewayServer(application, listen(host, port))
    return 0 if server.run(ready) else 1


if __name__ == "__main__":
    status = main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    logging.shutdown()
    # All is settled by now. A thread may still wait for a database that hangs; nobody waits for the thread.
    os._exit(status)
