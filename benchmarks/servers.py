"""What a run starts: the upstream, nginx in front of it, and the gateway in front of it.

Each is started on given cores, listens on loopback only, writes its output to a
file in the run's directory, and ends with the harness.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.native import NotMeasuredError
from benchmarks.processes import on_cores, tree
from config import children
from config.embedded import free_port

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 60
STOP_SECONDS = 40
# Longer than any run, should the harness be unable to end it.
UPSTREAM_LIFETIME_SECONDS = 7200

NGINX = """\
daemon off;
master_process off;
worker_processes 1;
error_log {directory}/nginx.error.log warn;
pid {directory}/nginx.pid;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {directory}/nginx-body;
    proxy_temp_path {directory}/nginx-proxy;
    fastcgi_temp_path {directory}/nginx-fastcgi;
    uwsgi_temp_path {directory}/nginx-uwsgi;
    scgi_temp_path {directory}/nginx-scgi;
    client_max_body_size 32m;
    client_body_buffer_size 2m;
    tcp_nodelay on;
    keepalive_timeout 600s;
    keepalive_requests 1000000000;
    upstream ollama {{
        server 127.0.0.1:{upstream};
        keepalive 1024;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://ollama;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_read_timeout 600s;
        }}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: its port and the process that was started for it."""

    name: str
    port: int
    pid: int

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(tree(self.pid))


def get(port: int, path: str) -> tuple[int, bytes]:
    """Status and body of a GET on loopback. Raises ``OSError`` when nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        with connection.getresponse() as response:
            return response.status, response.read()
    finally:
        connection.close()


@contextlib.contextmanager
def running(
    name: str,
    command: list[str],
    port: int,
    ready: Callable[[], bool],
    *,
    cores: Collection[int],
    log: Path,
    env: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Run ``command`` on ``cores`` until the block ends; in it, ``ready`` has said so.

    Raises ``RuntimeError`` with the end of its log if it does not come up.
    """
    with on_cores(cores):
        process = children.start(command, log=log, env=env, directory=ROOT)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _quietly(ready):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} does not come up; its log ends with:\n{children.tail(log)}")
            time.sleep(0.05)
        yield Server(name, port, process.pid)
    finally:
        children.stop(process, seconds=STOP_SECONDS)


def _quietly(ready: Callable[[], bool]) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return ready()
    return False


@contextlib.contextmanager
def upstream(directory: Path, cores: Collection[int]) -> Iterator[Server]:
    """The C upstream."""
    port = free_port()
    with running(
        "the upstream",
        [str(directory / "upstream"), str(port), str(UPSTREAM_LIFETIME_SECONDS)],
        port,
        lambda: get(port, "/api/version")[0] == 200,
        cores=cores,
        log=directory / "upstream.log",
    ) as server:
        yield server


def upstream_stats(server: Server) -> dict[str, int]:
    """Counters of the upstream: ``requests``, ``streams_open``, ``pieces``, ``stream_bytes``."""
    stats: dict[str, int] = json.loads(get(server.port, "/bench/stats")[1])
    return stats


def upstream_hangups(server: Server) -> dict[int, int]:
    """When (monotonic ns) the upstream saw that the reader of a stream was gone, by the stream's tag."""
    seen: list[tuple[int, int]] = json.loads(get(server.port, "/bench/hangups")[1])
    return dict(seen)


@contextlib.contextmanager
def nginx(directory: Path, upstream_port: int, cores: Collection[int]) -> Iterator[Server]:
    """One nginx process, unbuffered, with kept-alive connections on both sides."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        raise NotMeasuredError("nginx is not installed (on Debian: nginx-light)")
    port = free_port()
    config = directory / "nginx.conf"
    config.write_text(NGINX.format(directory=directory, port=port, upstream=upstream_port))
    with running(
        "nginx",
        [program, "-c", str(config), "-p", str(directory)],
        port,
        lambda: get(port, "/api/version")[0] == 200,
        cores=cores,
        log=directory / "nginx.log",
    ) as server:
        yield server


@contextlib.contextmanager
def gateway(
    directory: Path,
    environment: Mapping[str, str],
    secret: str,
    *,
    cores: Collection[int],
    workers: int = 1,
) -> Iterator[Server]:
    """``manage.py serve``, ready to answer ``secret``."""
    port = free_port()
    with running(
        "the gateway",
        [sys.executable, "manage.py", "serve", "--port", str(port), "--workers", str(workers)],
        port,
        lambda: answers(port, secret),
        cores=cores,
        log=directory / "gateway.log",
        env=environment,
    ) as server:
        yield server


def answers(port: int, secret: str) -> bool:
    """Whether a whole call goes through: the key is known and the model is discovered."""
    call: dict[str, Any] = {"model": "bench:1b", "messages": [{"role": "user", "content": "bench pieces=1"}]}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(
            "POST",
            "/v1/chat/completions",
            json.dumps(call),
            {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"},
        )
        with connection.getresponse() as response:
            return response.status == 200
    finally:
        connection.close()


def manage(environment: Mapping[str, str], *command: str) -> str:
    """Run a Python program of the project to its end and return what it printed."""
    ran = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        cwd=ROOT,
        check=False,
    )
    if ran.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with status {ran.returncode}:\n{ran.stderr.strip()}")
    return ran.stdout
