"""What the admin makes of filters, searches and forms that nobody fills in by hand: no faults."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from django.contrib import admin
from django.db import models
from django.test import Client, RequestFactory
from django.urls import reverse

from budgets.models import Budget, KillSwitch, RunningCall
from keys.models import ApiKey, ManagementKey, PolicyRule
from keys.services import issue_management_key
from proxy.models import ModelAlias
from tenants.models import Member, Team, Tenant, User
from tenants.services import create_service_account, create_team
from tests.people import a_browser, furnished

pytestmark = pytest.mark.django_db(transaction=True)

ODD_IDS = ["none", "9" * 30]
ODD_VALUES = ["none", "-1", "9" * 30]


@pytest.fixture
def olga() -> Client:
    furnished("acme")
    issue_management_key(label="terraform", scopes=["tenants:read"], actor="test")
    return a_browser(User.objects.create_superuser("olga"))


def address_of(model: type[models.Model], page: str) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{page}")


def parameters_of(page: admin.ModelAdmin[Any]) -> list[str]:
    """What an address may say to a list: what its filters read, and what belongs to every list."""
    asked = RequestFactory().get("/")
    asked.user = User.objects.get(username="olga")
    names = ["q", "p", "o", "all", "e", "pk", "pk__in"]
    for one in page.get_list_filter(asked):
        name = one[0] if isinstance(one, tuple) else one
        if not isinstance(name, str):
            names.append(getattr(name, "parameter_name", ""))
            continue
        dated = isinstance(page.model._meta.get_field(name), models.DateField)
        names += [f"{name}__{lookup}" for lookup in (("year",) if dated else ("exact", "isempty"))]
    if page.date_hierarchy:
        names += [f"{page.date_hierarchy}__{part}" for part in ("year", "month", "day")]
    return names


def pages() -> list[tuple[type[models.Model], admin.ModelAdmin[Any]]]:
    """What the admin shows of the database, once the addresses are known; running calls lie in Redis."""
    reverse("admin:index")
    return [(model, page) for model, page in admin.site._registry.items() if model is not RunningCall]


def test_no_filter_breaks_a_list(olga: Client) -> None:
    broken = [
        (model, name, value)
        for model, page in pages()
        for name in parameters_of(page)
        for value in ODD_VALUES
        if olga.get(address_of(model, "changelist"), {name: value}).status_code not in (200, 302, 400)
    ]

    assert broken == []


def test_a_list_is_asked_for_nothing_but_what_it_offers(olga: Client) -> None:
    for model, column in [
        (ManagementKey, "digest__startswith"),
        (ApiKey, "tenant__max_key_days__gt"),
        (Member, "user__password__startswith"),
        (User, "password__startswith"),
        (KillSwitch, "reason__contains"),
        (Budget, "limit__gt"),
    ]:
        assert olga.get(address_of(model, "changelist"), {column: "1"}).status_code == 400, column


def test_the_page_of_a_tenant_still_leads_to_what_it_has(olga: Client) -> None:
    there, elsewhere = Tenant.objects.get(slug="acme"), furnished("globex")

    for model in (ApiKey, Budget, Member):
        for tenant in (there, elsewhere):
            page = olga.get(address_of(model, "changelist"), {"tenant__id__exact": str(tenant.pk)})
            assert page.context["cl"].result_count == model._default_manager.filter(tenant=tenant).count()


def test_a_nul_is_refused_before_anything_is_asked(olga: Client) -> None:
    chosen = {"app_label": "tenants", "model_name": "team", "field_name": "tenant", "term": "\0"}

    for address, fields in [
        ("/admin/budgets/killswitch/", {"scope__exact": "a\0b"}),
        ("/admin/audit/auditevent/", {"q": "\0"}),
        ("/admin/search/", {"s": "\0"}),
        ("/admin/autocomplete/", chosen),
    ]:
        assert olga.get(address, fields).status_code == 400, address


def test_a_nul_in_a_form_is_refused(olga: Client) -> None:
    tenant = Tenant.objects.get()

    sent = olga.post(
        f"/admin/tenants/tenant/{tenant.pk}/change/", {"name": "A\0B", "slug": "acme", "time_zone": "UTC"}
    )

    assert sent.status_code == 400
    assert Tenant.objects.get().name == "acme"


def test_a_form_with_an_id_that_is_none_comes_back_and_says_so(olga: Client) -> None:
    choices = {model: page.autocomplete_fields for model, page in pages() if page.autocomplete_fields}
    assert sum(map(len, choices.values())) > 15

    for model, names in choices.items():
        for odd in ODD_IDS:
            chosen = dict.fromkeys(names, odd)
            sent = olga.post(address_of(model, "add"), chosen)
            assert sent.status_code == 200, (model, odd)
            assert set(names) <= sent.context["adminform"].form.errors.keys(), (model, odd)
            # The same in the address, where Django takes it for what to begin with.
            assert olga.get(address_of(model, "add"), chosen).status_code == 200, (model, odd)


def test_a_slug_that_is_none_is_put_right_on_the_page_of_its_tenant(olga: Client) -> None:
    tenant = Tenant.objects.get()

    sent = olga.post(
        f"/admin/tenants/tenant/{tenant.pk}/change/", {"slug": "no slug!", "name": "ACME", "time_zone": "UTC"}
    )

    assert sent.status_code == 200
    assert "slug" in sent.context["adminform"].form.errors
    assert f"/portal/{tenant.slug}/" in sent.content.decode()


def test_a_name_that_another_has_is_told_and_nothing_renamed(olga: Client) -> None:
    tenant = Tenant.objects.get()
    team, account = Team.objects.get(), create_service_account(tenant=tenant, name="one", actor="test")
    create_team(tenant=tenant, name="Taken", actor="test")
    create_service_account(tenant=tenant, name="taken", actor="test")

    for row, name in ((team, "Taken"), (account, "taken")):
        before = row.name
        address = reverse(f"admin:tenants_{row._meta.model_name}_change", args=[row.pk])
        page = olga.post(address, {"name": name}, follow=True)
        row.refresh_from_db()
        assert (page.status_code, row.name) == (200, before)
        assert "The tenant has another" in page.content.decode()


def test_an_action_on_ids_that_are_none_does_nothing_and_says_so(olga: Client) -> None:
    for model, action in [(ApiKey, "revoke"), (Tenant, "suspend"), (Team, "delete_selected")]:
        chosen = {"action": action, "_selected_action": ["none", "9" * 30], "answered": "1", "reason": "x"}
        page = olga.post(address_of(model, "changelist"), chosen, follow=True)
        assert page.status_code == 200, model
        assert "is not a valid UUID" in page.content.decode(), model

    assert not ApiKey.objects.exclude(revoked_at=None).exists()


def test_what_was_chosen_stays_chosen_when_a_form_comes_back(olga: Client) -> None:
    tenant = Tenant.objects.get()

    sent = olga.post(address_of(PolicyRule, "add"), {"tenant": str(tenant.pk), "option": "none"})

    assert f'<option value="{tenant.pk}" selected' in sent.content.decode()


def test_a_time_at_the_end_of_the_calendar_finds_nothing(olga: Client) -> None:
    for model in [model for model, page in pages() if hasattr(page, "newest_by")]:
        for time in ("9999-12-31", "9999-12", "9999-12-31T23"):
            page = olga.get(address_of(model, "changelist"), {"when": time})
            assert (page.status_code, page.context["cl"].result_count) == (200, 0), (model, time)


class Written(list[str]):
    """A stream that keeps what is written into it."""

    write = list.append

    def flush(self) -> None: ...


def test_a_fault_of_a_page_is_in_the_log_and_a_refusal_is_not(
    olga: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("the page that broke")

    olga.raise_request_exception = False
    written = Written()
    [handler] = logging.getLogger("django.request").handlers
    monkeypatch.setattr(handler, "stream", written)

    assert olga.get("/admin/proxy/upstream/?q=%00").status_code == 400
    assert written == []

    monkeypatch.setattr(type(admin.site._registry[ModelAlias]), "get_queryset", broken)
    assert olga.get(address_of(ModelAlias, "changelist")).status_code == 500
    assert "the page that broke" in "".join(written)
