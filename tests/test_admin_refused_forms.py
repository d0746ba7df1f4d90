"""Forms of the admin that a service refuses after the form itself found nothing: nobody types twice."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
from django.contrib.messages import get_messages
from django.core.exceptions import ValidationError
from django.db import connection, models, transaction
from django.test import Client
from django.urls import reverse

from audit.admin_pages import TOO_LATE
from audit.models import AuditEvent
from budgets import services as limits
from budgets.models import Budget, LimitRaise
from keys.models import ApiKey
from tenants import services
from tenants.models import Member, Team, Tenant, User
from tests.conftest import eventually
from tests.people import a_browser, a_member, furnished

pytestmark = pytest.mark.django_db(transaction=True)

PAST = {
    "starts_at_0": "2020-01-30", "starts_at_1": "11:00:00",
    "ends_at_0": "2020-01-31", "ends_at_1": "12:00:00",
}  # fmt: skip
FAR = {"expires_at_0": "2199-12-24", "expires_at_1": "18:00:00"}


@pytest.fixture
def acme() -> Tenant:
    return furnished("acme")


@pytest.fixture
def olga(acme: Tenant) -> Client:
    return a_browser(User.objects.create_superuser("olga"))


def page_of(row: models.Model) -> str:
    return reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_change", args=[row.pk])


def page_for_new(model: type[models.Model]) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_add")


def somebody_waits() -> bool:
    """Whether another connection waits for the end of our transaction."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT 1 FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid))"
        )
        return cursor.fetchone() is not None


def refused(browser: Client, address: str, entered: dict[str, Any]) -> Any:
    """What comes back of a form that is refused; nothing but that has happened."""
    events = AuditEvent.objects.count()

    response = browser.post(address, entered)

    assert response.status_code == 200
    assert AuditEvent.objects.count() == events
    assert list(get_messages(response.wsgi_request)) == []
    return response


def lost(response: Any, entered: dict[str, str]) -> dict[str, str]:
    """What of ``entered`` no field of the page has any more."""
    page = response.content.decode()
    return {
        name: value
        for name, value in entered.items()
        if f'value="{value}"' not in page and not re.search(rf">\s*{re.escape(value)}\s*</textarea>", page)
    }


def test_a_new_row_comes_back_with_all_that_was_entered(olga: Client) -> None:
    entered = {"to": "777", "reason": "the fair of Leipzig", **PAST}

    response = refused(olga, page_for_new(LimitRaise), {"budget": str(Budget.objects.get().pk), **entered})

    assert response.context["adminform"].form.non_field_errors() == ["A raise ends in the future."]
    assert "A raise ends in the future." in response.content.decode()
    assert lost(response, entered) == {}
    assert f'<option value="{Budget.objects.get().pk}" selected' in response.content.decode()
    assert not LimitRaise.objects.exists()


def test_what_a_service_says_of_a_field_stands_at_the_field_and_the_inlines_are_there(
    olga: Client, acme: Tenant
) -> None:
    services.change_tenant(tenant=acme, actor="test", max_key_days=30)
    key = ApiKey.objects.get()
    inlines = {"secrets-TOTAL_FORMS": "1", "secrets-INITIAL_FORMS": "1", "secrets-0-id": ""}
    entered = {"label": "another label", **FAR}

    response = refused(olga, page_of(key), {**entered, "may_call": "silent", **inlines})

    [told] = response.context["adminform"].form.errors["expires_at"]
    assert "works for 30 days at most" in told
    assert response.context["adminform"].form.non_field_errors() == []
    assert lost(response, entered) == {}
    assert key.secrets.get().public_id in response.content.decode()
    key.refresh_from_db()
    assert (key.label, key.expires_at) == ("key of acme", None)


def test_a_new_key_that_is_refused_shows_no_secret(olga: Client, acme: Tenant) -> None:
    services.change_tenant(tenant=acme, actor="test", max_key_days=30)
    entered = {"label": "notebook", **FAR}

    response = refused(olga, page_for_new(ApiKey), {"tenant": str(acme.pk), "may_call": "silent", **entered})

    assert "works for 30 days at most" in response.content.decode()
    assert lost(response, entered) == {}
    assert not re.search(r"tg_\w{58}", response.content.decode())
    assert ApiKey.objects.count() == 1


@pytest.mark.parametrize("again", ["_save", "_continue", "_addanother"])
def test_a_refusal_of_a_column_that_is_not_asked_for_stands_at_the_top(
    olga: Client, acme: Tenant, again: str
) -> None:
    services.create_team(tenant=acme, name="Taken", actor="test")
    team = Team.objects.get(name="Team of acme")

    response = refused(olga, page_of(team), {"name": "Taken", again: "1"})

    [told] = response.context["adminform"].form.non_field_errors()
    assert "The tenant has another" in told
    assert lost(response, {"name": "Taken"}) == {}


def test_who_saves_a_name_a_moment_after_somebody_else_is_told_so(olga: Client) -> None:
    entered = {"username": "mia", "password1": "battery staple", "password2": "battery staple"}

    def save() -> Any:
        with closing(connection):
            return olga.post(page_for_new(User), {**entered, "usable_password": "true"})

    with ThreadPoolExecutor(1) as threads:
        with transaction.atomic():
            first = User.objects.create(username="mia")
            second = threads.submit(save)
            eventually(somebody_waits)
        response = second.result()

    assert response.status_code == 200
    told = response.context["adminform"].form.errors
    assert (told["__all__"], list(told)) == ([TOO_LATE], ["username", "__all__"])
    assert lost(response, {"username": "mia"}) == {}
    assert User.objects.get(username="mia") == first


def test_what_was_chosen_stays_chosen_and_the_second_attempt_is_saved(olga: Client, acme: Tenant) -> None:
    owner = a_member(acme, "ada", "owner")

    response = refused(olga, page_of(owner), {"role": "finance"})

    assert "is the only owner" in response.content.decode()
    assert '<option value="finance" selected' in response.content.decode()
    a_member(acme, "bob", "owner")
    assert olga.post(page_of(owner), {"role": "finance"}).status_code == 302
    assert Member.objects.get(pk=owner.pk).role == "finance"


def test_what_a_service_did_before_another_refused_is_undone_and_not_told(
    olga: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_of_it(**_: Any) -> None:
        raise ValidationError({"period": "No such period.", "thresholds": "Not these."})

    budget = Budget.objects.get()
    monkeypatch.setattr(limits, "set_budget", none_of_it)

    response = refused(olga, page_of(budget), {"limit": "12", "length": "week", "thresholds": "80,95"})

    form = response.context["adminform"].form
    assert form.non_field_errors() == ["No such period."]
    assert form.errors["thresholds"] == ["Not these."]
    assert lost(response, {"limit": "12", "length": "week", "thresholds": "80,95"}) == {}
    budget.refresh_from_db()
    assert budget.length == "day"
