"""In which language the pages for people are, and whose clock they go by."""

from __future__ import annotations

from django.conf import settings
from django.http import HttpRequest, HttpResponseBase
from django.utils import translation
from django.utils.cache import patch_vary_headers
from django.utils.deprecation import MiddlewareMixin

from tenants.models import User

# The admin and the API are in English.
IN_ONES_LANGUAGE = ("/portal/", "/account/", "/live/portal/")


class Language(MiddlewareMixin):
    """Speaks the language that a person chose, else one that their browser asks for, else English."""

    def process_request(self, request: HttpRequest) -> None:
        translation.activate(language_for(request))

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        response.headers.setdefault("Content-Language", translation.get_language() or settings.LANGUAGE_CODE)
        if request.path_info.startswith(IN_ONES_LANGUAGE):
            patch_vary_headers(response, ("Accept-Language",))
        # What the thread does next is nobody's page.
        translation.deactivate()
        return response


def language_for(request: HttpRequest) -> str:
    """The code of the language in which this request is answered."""
    if not request.path_info.startswith(IN_ONES_LANGUAGE):
        return settings.LANGUAGE_CODE
    if isinstance(request.user, User) and request.user.language:
        return request.user.language
    return translation.get_language_from_request(request)
