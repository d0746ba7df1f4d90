"""A small OpenID Connect provider, with one person who is signed in there already."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

CLIENT = "tollgate"


class Provider:
    """What the provider says of its person; changed by tests between sign-ins."""

    def __init__(self) -> None:
        self.claims: dict[str, Any] = {}
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.url = ""

    def answer(self, path: str, query: dict[str, list[str]]) -> dict[str, Any]:
        """The answer to a request: JSON, or where to go under ``Location``."""
        if path == "/.well-known/openid-configuration":
            return {
                "issuer": self.url,
                "authorization_endpoint": f"{self.url}/authorize",
                "token_endpoint": f"{self.url}/token",
                "userinfo_endpoint": f"{self.url}/userinfo",
                "jwks_uri": f"{self.url}/jwks",
                "token_endpoint_auth_methods_supported": ["client_secret_post"],
            }
        if path == "/authorize":
            back = {"code": "a-code", "state": query["state"][0]}
            return {"Location": f"{query['redirect_uri'][0]}?{urlencode(back)}"}
        if path == "/token":
            now = int(time.time())
            told = {"iss": self.url, "aud": CLIENT, "iat": now, "exp": now + 60, **self.claims}
            signed = jwt.encode(told, self._key, algorithm="RS256", headers={"kid": "1"})
            return {"access_token": "t", "token_type": "Bearer", "expires_in": 60, "id_token": signed}
        if path == "/jwks":
            key = jwt.algorithms.RSAAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
            return {"keys": [key | {"kid": "1", "alg": "RS256", "use": "sig"}]}
        return self.claims


@contextmanager
def running_provider() -> Iterator[Provider]:
    """A provider on a free port."""
    provider = Provider()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._answer()

        def _answer(self) -> None:
            url = urlsplit(self.path)
            told = provider.answer(url.path, parse_qs(url.query))
            body = json.dumps(told).encode()
            self.send_response(302 if "Location" in told else 200)
            if "Location" in told:
                self.send_header("Location", told["Location"])
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, the name that it has
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        provider.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield provider
        finally:
            server.shutdown()
            thread.join()
