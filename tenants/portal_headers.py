"""What browsers are told about every page of the portal, refusals included."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponseBase
from django.utils.deprecation import MiddlewareMixin

# Nothing from elsewhere, nothing inline, in nobody's frame.
POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    # Not ``no-referrer``: with it browsers keep from us where a form comes from, and none would be taken.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
# By the beginning of the path. Passkeys need a script; the portal has none.
POLICIES = {"/portal/": POLICY, "/account/": f"script-src 'self'; {POLICY}"}


class PortalHeaders(MiddlewareMixin):
    """Puts the headers on whatever is answered under ``/portal/`` and ``/account/``."""

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        for beginning, policy in POLICIES.items():
            if request.path_info.startswith(beginning):
                response.headers["Content-Security-Policy"] = policy
                for name, value in HEADERS.items():
                    response.headers[name] = value
        return response
