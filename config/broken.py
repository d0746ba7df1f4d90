"""What is told where something of ours broke: problem details to programs, a page to people."""

from __future__ import annotations

import sys

from django.db import Error as DatabaseError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template.loader import render_to_string

from config.problems import PROBLEM, described
from tenants.redis import RedisError

RETRY_SECONDS = 5


def broken(request: HttpRequest) -> HttpResponse:
    """Django's ``handler500``: 503 where a store cannot be asked, else 500, and never why.

    The reason is in the log. The page reads nothing: whatever it would ask may be what broke.
    """
    store_is_away = isinstance(sys.exc_info()[1], DatabaseError | RedisError)
    status = 503 if store_is_away else 500
    headers = {"Retry-After": str(RETRY_SECONDS)} if store_is_away else {}
    if request.path_info.startswith("/manage/"):
        detail = "A fault of ours, which is in the log. Nothing is known of whether it was done."
        if store_is_away:
            detail = "A store that knows the answer cannot be reached. Try again."
        return JsonResponse(described(status, detail), status=status, content_type=PROBLEM, headers=headers)
    page = render_to_string("500.html", {"store_is_away": store_is_away})
    return HttpResponse(page, status=status, headers=headers)
