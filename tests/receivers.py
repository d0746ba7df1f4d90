"""Where notices arrive: a mail server and an HTTP server of our own, on ports of their own."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import pytest
from django.test import override_settings

# How often a receiver looks whether it is to end; by default that is every half second, and each test waits.
LOOK_SECONDS = 0.02


@dataclass
class Received:
    """One POST as it came."""

    path: str
    headers: dict[str, str]
    body: bytes


class HttpReceiver:
    """Answers ``statuses`` one after the other, the last one again and again.

    With ``stall`` set it takes requests and never answers; with ``drip`` it says
    again and again that an answer will come.
    """

    def __init__(self) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.received.append(
                    Received(self.path, {k.lower(): v for k, v in self.headers.items()}, body)
                )
                with contextlib.suppress(OSError):
                    while receiver.drip and not receiver.closing.wait(0.05):
                        self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                if receiver.drip:
                    return
                if receiver.stall:
                    receiver.closing.wait()
                    return
                status = receiver.statuses.pop(0) if len(receiver.statuses) > 1 else receiver.statuses[0]
                self.send_response(status)
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.received: list[Received] = []
        self.statuses = [200]
        self.stall = self.drip = False
        self.closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/hook/secret-part?key=secret-too"
        threading.Thread(target=self._server.serve_forever, args=[LOOK_SECONDS], daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


@dataclass
class Mail:
    """One message as the mail server took it."""

    sender: str = ""
    recipients: list[str] = field(default_factory=list)
    content: bytes = b""

    @property
    def message(self) -> Message:
        return message_from_bytes(self.content, policy=default)


class MailServer:
    """As much of SMTP as a client needs to hand over a message; refuses recipients in ``refused``."""

    def __init__(self) -> None:
        server = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                self.say("220 tests")
                mail = Mail()
                while line := self.rfile.readline().decode().strip():
                    verb = line.split(" ", 1)[0].upper()
                    if verb in ("EHLO", "HELO"):
                        self.say("250 tests")
                    elif verb == "MAIL":
                        mail = Mail(sender=line)
                        self.say("250 yes")
                    elif verb == "RCPT":
                        if any(address in line for address in server.refused):
                            self.say("550 nobody here called like in our secret list")
                        else:
                            mail.recipients.append(line.partition("<")[2].partition(">")[0])
                            self.say("250 yes")
                    elif verb == "DATA":
                        self.say("354 go on")
                        while (part := self.rfile.readline()) not in (b".\r\n", b""):
                            mail.content += part
                        server.mails.append(mail)
                        self.say("250 taken")
                    elif verb == "QUIT":
                        self.say("221 bye")
                        return
                    else:
                        self.say("250 yes")

            def say(self, text: str) -> None:
                self.wfile.write(f"{text}\r\n".encode())

        self.mails: list[Mail] = []
        self.refused: set[str] = set()
        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port: int = cast("tuple[str, int]", self._server.server_address)[1]
        threading.Thread(target=self._server.serve_forever, args=[LOOK_SECONDS], daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def mail() -> Iterator[MailServer]:
    """A mail server, to which this process sends its mail."""
    server = MailServer()
    with override_settings(
        EMAIL_URL="smtp://of-the-tests",
        EMAIL_BACKEND="django.core.mail.backends.smtp.EmailBackend",
        EMAIL_HOST="127.0.0.1",
        EMAIL_PORT=server.port,
    ):
        yield server
    server.close()


@pytest.fixture
def http() -> Iterator[HttpReceiver]:
    """A receiver of webhooks, which may be told here."""
    receiver = HttpReceiver()
    with override_settings(WEBHOOK_NETWORKS=["127.0.0.1/32"]):
        yield receiver
    receiver.close()
