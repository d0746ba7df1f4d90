"""How the management API tells what went wrong: problem details (RFC 9457)."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from django.core.exceptions import ValidationError
from django.db import DataError, IntegrityError
from django.db import Error as DatabaseError
from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from rest_framework.exceptions import APIException
from rest_framework.exceptions import ValidationError as InvalidData
from rest_framework.response import Response
from rest_framework.serializers import as_serializer_error
from rest_framework.views import exception_handler

from tenants.redis import RedisError

PROBLEM = "application/problem+json"

logger = logging.getLogger(__name__)


def problem(exc: Exception, context: dict[str, Any]) -> Response | None:
    """The answer for an exception of a view; None for a fault of ours (``config.broken``).

    ``errors`` has what is wrong with each field. When a store cannot be asked
    the answer is 503: nobody knows, which is neither yes nor no.
    """
    if isinstance(exc, ValidationError):
        found = as_serializer_error(exc)
        # Django's and the framework's names for what is wrong with no field alone.
        exc = InvalidData({"non_field_errors" if name == "__all__" else name: found[name] for name in found})
    if isinstance(exc, DataError):
        return _response(400, "Something in the request is no text or number that can be kept.")
    if isinstance(exc, IntegrityError):
        return _response(409, "Somebody else has changed at the same time what this needs. Look again.")
    if isinstance(exc, DatabaseError | RedisError):
        logger.warning("a store could not be asked: %r", exc)
        return _response(503, "A store that knows the answer cannot be reached. Try again.")
    told = exception_handler(exc, context)
    if told is None:
        return None
    if isinstance(exc, InvalidData):
        answer = _response(told.status_code, "Something in the request is not valid.", errors=exc.detail)
    else:
        answer = _response(told.status_code, str(exc.detail) if isinstance(exc, APIException) else "")
    for name, value in told.items():
        if name != "Content-Type":
            answer[name] = value
    return answer


@csrf_exempt
def nothing_there(request: HttpRequest) -> JsonResponse:
    """A path under ``/manage/`` that is none: a program is not told in a page for people."""
    told = described(404, "There is nothing at this address. Every address ends with a slash.")
    return JsonResponse(told, status=404, content_type=PROBLEM)


def described(status: int, detail: str, **more: Any) -> dict[str, Any]:
    """The body of a problem; without ``detail`` what the status says."""
    title = HTTPStatus(status).phrase
    return {"type": "about:blank", "title": title, "status": status, "detail": detail or title, **more}


def _response(status: int, detail: str, **more: Any) -> Response:
    return Response(described(status, detail, **more), status=status, content_type=PROBLEM)
