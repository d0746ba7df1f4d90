"""Telling the audit where a request of the site came from."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponseBase
from django.utils.deprecation import MiddlewareMixin

from audit.origins import origin
from proxy.addresses import client_of


class Origins(MiddlewareMixin):
    """Sets the origin of whatever a request changes: its first path segment and the client's address."""

    def process_request(self, request: HttpRequest) -> None:
        door = request.path_info.split("/")[1]
        origin.set(f"{door} from {client_of(request.headers, request.META)}")

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        origin.set("")
        return response
