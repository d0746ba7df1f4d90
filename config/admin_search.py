"""What the admin's one search finds: its pages by their names, and a thing by its id, address or name."""

from __future__ import annotations

from collections.abc import Iterator

from django.db.models import Model, Q
from django.http import HttpRequest
from django.urls import reverse
from unfold.dataclasses import SearchResult

from audit.growing import uuid_in
from audit.models import RequestEvent
from budgets.admin.finding import keys_called
from config.admin_menu import GROUPS, may_see
from keys.models import ApiKey
from tenants.models import Tenant, User

MOST_OF_EACH = 8


def found(request: HttpRequest, term: str) -> list[SearchResult]:
    """What ``term`` leads the person to, of what they may see; nothing is kept of it."""
    return [*_pages(request, term), *_things(request, term.strip())]


def _pages(request: HttpRequest, term: str) -> Iterator[SearchResult]:
    for group, pages in GROUPS:
        for label, title, icon in pages:
            if term.lower() in title.lower() and may_see(request, label):
                link = reverse(f"admin:{label.replace('.', '_')}_changelist")
                yield SearchResult(title=title, description=group, link=link, icon=icon)


def _things(request: HttpRequest, term: str) -> Iterator[SearchResult]:
    if may_see(request, "tenants.tenant"):
        tenants = Tenant.objects.filter(Q(slug__startswith=term.lower()) | Q(name__istartswith=term))
        for tenant in tenants[:MOST_OF_EACH]:
            yield _thing("tenants.tenant", tenant, tenant.slug, f"Tenant {tenant.name}", "apartment")
    if may_see(request, "keys.apikey"):
        keys = ApiKey.objects.filter(pk__in=keys_called(term)[:MOST_OF_EACH]).select_related("tenant")
        for key in keys:
            yield _thing("keys.apikey", key, key.label, f"Key of {key.tenant}", "key")
    if may_see(request, "tenants.user") and "@" in term:
        for user in User.objects.filter(email__iexact=term)[:MOST_OF_EACH]:
            yield _thing("tenants.user", user, user.username, user.email, "person")
    request_id = uuid_in(term)
    if request_id and may_see(request, "audit.requestevent"):
        for call in RequestEvent.objects.filter(pk=request_id):
            yield _thing(
                "audit.requestevent",
                call,
                str(call.pk),
                f"Request of {call.tenant or 'nobody known'}",
                "list_alt",
            )


def _thing(label: str, thing: Model, title: str, description: str, icon: str) -> SearchResult:
    link = reverse(f"admin:{label.replace('.', '_')}_change", args=[thing.pk])
    return SearchResult(title=title, description=description, link=link, icon=icon)
