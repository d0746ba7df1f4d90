"""What browsers are told about every page of ours, refusals included: one policy for each part.

Each part lets through what it needs and no more, and nothing from elsewhere. The
admin alone is built on scripts that evaluate strings and on inline styles; what
it is allowed ends where its paths end.
"""

from __future__ import annotations

from django.http import HttpRequest, HttpResponseBase
from django.utils.deprecation import MiddlewareMixin

# Nothing from elsewhere, nothing inline, in nobody's frame. Scripts ask nobody but us.
EVERYWHERE = {
    "default-src": "'none'",
    "script-src": "'self'",
    "connect-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data:",
    "form-action": "'self'",
    "frame-ancestors": "'none'",
    "base-uri": "'none'",
}
# What a part needs instead, by the beginning of its paths.
PARTS: dict[str, dict[str, str]] = {
    "/portal/": {},
    "/account/": {},
    # Its scripts evaluate what its pages say in attributes, and set styles.
    "/admin/": {
        "script-src": "'self' 'unsafe-eval'",
        "style-src": "'self' 'unsafe-inline'",
        "font-src": "'self'",
    },
}
POLICIES = {
    beginning: "; ".join(f"{directive} {sources}" for directive, sources in (EVERYWHERE | own).items())
    for beginning, own in PARTS.items()
}
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    # Not ``no-referrer``: with it browsers keep from us where a form comes from, and none would be taken.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class PageHeaders(MiddlewareMixin):
    """Puts the headers on whatever is answered under one of the beginnings in ``POLICIES``."""

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        for beginning, policy in POLICIES.items():
            if request.path_info.startswith(beginning):
                response.headers["Content-Security-Policy"] = policy
                for name, value in HEADERS.items():
                    response.headers[name] = value
        return response
