"""The same request twice is carried out once: ``Idempotency-Key``.

All of a request with a key is one transaction, and its answer is kept in that
transaction too: either the change and its answer are both there or neither is,
whenever a process dies. Whoever repeats it meanwhile finds the lock held.
"""

from __future__ import annotations

import json
import re
from datetime import timedelta
from hashlib import sha256
from typing import Any

from django.db import connection
from django.utils.timezone import now
from rest_framework.exceptions import APIException, ValidationError
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from audit.walls import across
from tenants.api.programs import actor_of
from tenants.models import KeptAnswer

HEADER = "Idempotency-Key"
KEPT_FOR = timedelta(hours=24)
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


class StillRunning(APIException):
    status_code = 409
    default_detail = "The first request with this Idempotency-Key is still running."


class ShownBefore(APIException):
    status_code = 409
    default_detail = (
        "This request was carried out before, and the secret that it showed is kept nowhere. "
        "If it was lost, revoke what was issued and issue another one."
    )


class OtherRequest(APIException):
    status_code = 422
    default_detail = "Another request came with this Idempotency-Key before."


class AnsweredBefore(Exception):
    """The request was carried out before; ``response`` is what it was answered."""

    def __init__(self, response: Response) -> None:
        super().__init__()
        self.response = response


class Attempt:
    """A request with a key that is carried out now, in the transaction that runs.

    Raises, when it is begun, what says that it need not be or cannot be.
    """

    def __init__(self, request: Request) -> None:
        self._key = request.headers[HEADER]
        if _KEY.fullmatch(self._key) is None:
            raise ValidationError({HEADER: ["1 to 255 printable characters of ASCII without spaces."]})
        self._actor = actor_of(request.user)
        parts = (request.method.encode(), request.get_full_path().encode(), request.body)
        self._digest = sha256(b"\0".join(parts)).hexdigest()
        if not self._locked():
            raise StillRunning
        # Answers of all lie together, each found by who asked.
        with across():
            KeptAnswer.objects.filter(at__lte=now() - KEPT_FOR).delete()
            kept = KeptAnswer.objects.filter(actor=self._actor, key=self._key).first()
        if kept is None:
            return
        if kept.request_digest != self._digest:
            raise OtherRequest
        if kept.body is None:
            raise ShownBefore
        raise AnsweredBefore(
            Response(json.loads(kept.body), status=kept.status, headers={"Idempotent-Replayed": "true"})
        )

    def keep(self, response: Response, *, shows_secret: bool) -> None:
        """Keep an answer for whoever repeats the request; of a secret only that it was shown."""
        body = None if shows_secret else JSONRenderer().render(response.data).decode()
        with across():
            KeptAnswer.objects.create(
                actor=self._actor,
                key=self._key,
                request_digest=self._digest,
                status=response.status_code,
                body=body or (None if shows_secret else "null"),
            )

    def _locked(self) -> bool:
        """Whether nobody else is at it; until the transaction ends."""
        name = sha256(f"{self._actor} {self._key}".encode()).digest()
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [int.from_bytes(name[:8], signed=True)])
            locked: Any = cursor.fetchone()
        return bool(locked[0])
