"""The view on which every part of the management API is built."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from typing import Any, ClassVar
from uuid import UUID

from django.db import transaction
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from rest_framework import serializers
from rest_framework.exceptions import ParseError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from audit.walls import across, within
from tenants import generations
from tenants.api.fields import MomentField
from tenants.api.idempotency import HEADER, AnsweredBefore, Attempt
from tenants.api.programs import tenant_of
from tenants.secret_marks import MARKS


class Managed(GenericViewSet):
    """Rows of tenants, or of the platform, to read and to change through services.

    Who may do it is told by ``scope``, ``needs`` and ``platform_actions``
    (``tenants.api.permissions``), who asks and how often by the settings of the
    framework. ``of_tenant`` is the lookup of the tenant that a row belongs to,
    None if rows belong to the platform: a key of one tenant finds no other
    rows. ``filters`` are parameters of lists and the lookups that they are.
    """

    scope: ClassVar[str]
    needs: ClassVar[dict[str, str | tuple[str, ...]]]
    platform_actions: ClassVar[frozenset[str]] = frozenset()
    of_tenant: ClassVar[str | None] = "tenant"
    filters: ClassVar[dict[str, str]] = {"tenant": "tenant__slug"}
    # Actions whose answer shows a secret, so that it is kept nowhere.
    showing_secrets: ClassVar[frozenset[str]] = frozenset()
    # The field of an answer that has the tenant whose settings it tells of.
    subject_field: ClassVar[str] = "tenant_id"
    lookup_value_converter = "uuid"

    def get_queryset(self) -> QuerySet[Any]:
        rows: QuerySet[Any] = super().get_queryset()
        own = tenant_of(self.request.user)
        if own is not None:
            rows = rows.none() if self.of_tenant is None else rows.filter(**{self.of_tenant: own.pk})
        if self.action != "list":
            return rows
        given = self.request.query_params
        return rows.filter(
            **{
                lookup: _compared(lookup, given[name])
                for name, lookup in self.filters.items()
                if name in given
            }
        )

    def read(self, kind: type[serializers.Serializer]) -> dict[str, Any]:
        """What the body says. A key of one tenant need not name it."""
        data, own = self.request.data, tenant_of(self.request.user)
        if own is not None and isinstance(data, dict) and "tenant" in kind().fields:
            data = data | {"tenant": data.get("tenant") or own.slug}
        given = kind(data=data, context=self.get_serializer_context())
        given.is_valid(raise_exception=True)
        said: dict[str, Any] = given.validated_data
        return said

    def told(self, row: Model, status: int = 200, **more: Any) -> Response:
        """The answer that tells of a row."""
        return Response({**self.get_serializer(row).data, **more}, status=status)

    @property
    def actor(self) -> str:
        """Who asks, as the audit calls them."""
        return str(self.request.user)

    def opened(self, request: Request) -> AbstractContextManager[None]:
        """What whoever asks, and has been let in, sees: one tenant, or all."""
        own = tenant_of(request.user)
        return across() if own is None else within(own.pk)

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as self._walls:
            return self._once(request, *args, **kwargs)

    def _once(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        if request.method != "POST" or HEADER not in request.headers:
            return super().dispatch(request, *args, **kwargs)
        with transaction.atomic():
            answer: Response = super().dispatch(request, *args, **kwargs)
            if answer.status_code >= 400:
                transaction.set_rollback(True)
        # Only what is committed can be in force.
        if isinstance(answer.data, dict) and "in_force" in answer.data:
            subject = answer.data.get(self.subject_field)
            answer.data["in_force"] = generations.in_force(UUID(str(subject)) if subject else None)
        return answer

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        query = request.META["QUERY_STRING"]
        # Addresses end up in logs.
        if any(mark in query for mark in MARKS):
            raise ParseError("The address holds a secret. Send it as Authorization: Bearer, and replace it.")
        if any("\0" in value for values in request.query_params.lists() for value in values[1]):
            raise ParseError("The address holds a character that no text has.")
        super().initial(request, *args, **kwargs)
        if request.method == "POST" and HEADER in request.headers:
            self._attempt: Attempt | None = Attempt(request)
        self._walls.enter_context(self.opened(request))

    def handle_exception(self, exc: Exception) -> Response:
        if isinstance(exc, AnsweredBefore):
            return exc.response
        self._attempt = None
        answer: Response = super().handle_exception(exc)
        return answer

    def finalize_response(self, request: Request, response: Any, *args: Any, **kwargs: Any) -> Any:
        attempt = getattr(self, "_attempt", None)
        if attempt is not None:
            attempt.keep(response, shows_secret=self.action in self.showing_secrets)
        final = super().finalize_response(request, response, *args, **kwargs)
        final["Cache-Control"] = "no-store"
        return final


def _compared(lookup: str, text: str) -> Any:
    """What a parameter of a list is compared as."""
    return MomentField().run_validation(text) if lookup.startswith("at__") else text
