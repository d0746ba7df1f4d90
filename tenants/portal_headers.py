"""What browsers are told about every page of the portal, refusals included."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponseBase
from django.utils.deprecation import MiddlewareMixin

HEADERS = {
    # No script at all, nothing from elsewhere, nothing inline, in nobody's frame.
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; "
        "frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    # Not ``no-referrer``: with it browsers keep from us where a form comes from, and none would be taken.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class PortalHeaders(MiddlewareMixin):
    """Puts the headers on whatever is answered under ``/portal/``."""

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        if request.path_info.startswith("/portal/"):
            for name, value in HEADERS.items():
                response.headers[name] = value
        return response
