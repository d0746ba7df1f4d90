"""What browsers are told about every page of the portal, refusals included."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponseBase
from django.utils.deprecation import MiddlewareMixin

# Nothing from elsewhere, nothing inline, in nobody's frame. Scripts ask nobody but us.
POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'self'; img-src 'self' data:; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    # Not ``no-referrer``: with it browsers keep from us where a form comes from, and none would be taken.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
COVERED = ("/portal/", "/account/")


class PortalHeaders(MiddlewareMixin):
    """Puts the headers on whatever is answered under ``/portal/`` and ``/account/``."""

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        if request.path_info.startswith(COVERED):
            response.headers["Content-Security-Policy"] = POLICY
            for name, value in HEADERS.items():
                response.headers[name] = value
        return response
