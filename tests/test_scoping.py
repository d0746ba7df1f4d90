"""The first wall: what was forgotten in a view is an exception, never the rows of another tenant."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from django.apps import apps
from django.conf import settings
from django.db.models import F
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import Client, override_settings
from django.urls import include, path

from audit import walls
from audit.walls import ScopeError, Walled, across, closed, within
from budgets.models import Budget, Price
from budgets.services import set_budget, set_price
from config.walls import OF_THE_SYSTEM, SHARED, unclassified, walled_models
from keys.models import ApiKey, KeySecret
from tenants.access import Access
from tenants.models import Member, Team, Tenant
from tenants.portal import tenant_page
from tests.people import a_browser, a_person, furnished

pytestmark = pytest.mark.django_db


# Views as somebody might write them on a bad day. None of them says whose teams it means.


def of_nobody(request: HttpRequest) -> HttpResponse:
    return HttpResponse(", ".join(Team.objects.values_list("name", flat=True)))


@tenant_page
def of_a_tenant(request: HttpRequest, access: Access) -> HttpResponse:
    return HttpResponse(", ".join(Team.objects.values_list("name", flat=True)))


@tenant_page
def sent_piece_by_piece(request: HttpRequest, access: Access) -> StreamingHttpResponse:
    def pieces() -> Iterator[str]:
        yield from Team.objects.values_list("name", flat=True)

    return StreamingHttpResponse(pieces())


urlpatterns = [
    path("portal/<slug:slug>/teams/", of_a_tenant),
    path("portal/<slug:slug>/teams-streamed/", sent_piece_by_piece),
    path("teams/", of_nobody),
    path("manage/v1/forgotten/", of_nobody),
    path("admin/teams/", of_nobody),
    path("", include("config.urls")),
]


@pytest.fixture
def acme() -> Tenant:
    return furnished("acme")


@pytest.fixture
def globex() -> Tenant:
    return furnished("globex")


def test_every_model_is_behind_a_wall_or_on_a_list_that_says_why_not() -> None:
    """A new model gets ``objects = Walled(…)``, or a line in ``config.walls``."""
    assert unclassified() == []


def test_what_is_on_a_list_exists_has_no_wall_and_a_reason() -> None:
    labels = {model._meta.label for model in apps.get_models(include_auto_created=True)}
    walled = {model._meta.label for model in walled_models()}

    named = {name for name in [*SHARED, *OF_THE_SYSTEM] if "." in name}

    assert named <= labels
    assert not named & walled
    assert {name for name in SHARED if "." not in name} <= {app.label for app in apps.get_app_configs()}
    assert all([*OF_THE_SYSTEM.values(), *(why for _, why in SHARED.values())])


def test_whatever_names_a_tenant_is_behind_a_wall() -> None:
    """Also what is called so without a reference; whoever adds such a column cannot forget the wall."""
    walled = {model._meta.label for model in walled_models()}

    naming = {
        model._meta.label
        for model in apps.get_models(include_auto_created=True)
        for field in model._meta.local_concrete_fields
        if field.column == "tenant_id" or field.related_model in (Tenant, Team, Member, ApiKey)
    }

    assert naming - walled == {"budgets.RunningCall"}


@pytest.mark.parametrize("model", walled_models(), ids=lambda model: model._meta.label)
def test_where_nobody_was_named_no_way_leads_to_a_table_of_tenants(model: Any) -> None:
    ways = [
        lambda: list(model.objects.all()),
        model.objects.none,
        lambda: model.objects.count() > 0,
        lambda: model.objects.exclude(pk=None).exists(),
        lambda: model.objects.filter(pk=None).delete(),
        lambda: model.objects.in_bulk([]),
        lambda: Tenant._base_manager.filter(pk__in=model.objects.values("pk")),
    ]

    with closed():
        for way in ways:
            with pytest.raises(ScopeError, match=model._meta.label):
                way()
    with across():
        assert isinstance(model.objects.count(), int)


@pytest.mark.parametrize("model", walled_models(), ids=lambda model: model._meta.label)
def test_within_a_tenant_every_table_can_be_asked_and_locked(model: Any) -> None:
    """Where the tenant is that of another row too: no join is in the way of a lock or a change."""
    with within(UUID(int=7)):
        assert list(model.objects.select_for_update().order_by("pk")[:1]) == []
        assert model.objects.update(**{model.wall.column: F(model.wall.column)}) == 0


def test_within_a_tenant_are_its_rows_and_what_the_platform_shows_to_all(
    acme: Tenant, globex: Tenant
) -> None:
    set_budget(scope="platform", unit="tokens", period="day", limit=9, actor="test")
    set_price(model="tiny:1b", tenant=globex, input_price=1, actor="test")
    set_price(model="tiny:1b", input_price=2, actor="test")

    with within(acme.pk):
        assert list(Tenant.objects.all()) == [acme]
        assert {team.name for team in Team.objects.all()} == {"Team of acme"}
        assert {secret.key.label for secret in KeySecret.objects.all()} == {"key of acme"}
        assert {(budget.scope, budget.tenant_id) for budget in Budget.objects.all()} == {
            ("tenant", acme.pk),
            ("platform", None),
        }
        assert [price.input_price for price in Price.objects.all()] == [2]
        assert not ApiKey.objects.filter(tenant=globex).exists()
        # The managers of relations are the same.
        assert list(globex.teams.all()) == []


def test_a_place_ends_with_its_block_also_by_an_exception(acme: Tenant, globex: Tenant) -> None:
    with pytest.raises(ScopeError), within(acme.pk), closed():
        Team.objects.count()
    with within(acme.pk):
        with across():
            assert Team.objects.count() == 2
        with within(globex.pk):
            assert Team.objects.get().name == "Team of globex"
        assert Team.objects.get().name == "Team of acme"

    assert not walls.walled_off()
    assert Team.objects.count() == 2


@override_settings(ROOT_URLCONF=__name__)
@pytest.mark.parametrize("address", ["/teams/", "/manage/v1/forgotten/"])
def test_a_view_that_forgets_whose_rows_it_means_raises_instead_of_telling_all(
    acme: Tenant, globex: Tenant, address: str
) -> None:
    for who in ("owner", "operator", "stranger"):
        with pytest.raises(ScopeError, match=r"tenants\.Team"):
            a_browser(a_person(who, acme)).get(address)


@override_settings(ROOT_URLCONF=__name__)
def test_what_people_are_shown_then_is_an_error_page_without_a_name(acme: Tenant, globex: Tenant) -> None:
    answer = Client(raise_request_exception=False).get("/teams/")

    assert answer.status_code == 500
    assert b"Team of" not in answer.content
    assert not walls.walled_off()


@override_settings(ROOT_URLCONF=__name__)
@pytest.mark.parametrize("who", ["owner", "member", "auditor", "operator", "superuser"])
def test_a_tenants_page_without_a_filter_shows_its_own_rows(acme: Tenant, globex: Tenant, who: str) -> None:
    answer = a_browser(a_person(who, acme)).get("/portal/acme/teams/")

    assert answer.content == b"Team of acme"


@override_settings(ROOT_URLCONF=__name__)
def test_a_body_that_is_made_while_it_is_sent_is_no_way_around(acme: Tenant, globex: Tenant) -> None:
    answer: Any = a_browser(a_person("owner", acme)).get("/portal/acme/teams-streamed/")

    with pytest.raises(ScopeError):
        b"".join(answer.streaming_content)


@override_settings(ROOT_URLCONF=__name__)
def test_the_admins_addresses_are_open_to_the_staff_alone(acme: Tenant, globex: Tenant) -> None:
    told = a_browser(a_person("staff", acme)).get("/admin/teams/")

    assert told.content == b"Team of acme, Team of globex"
    for who in ("owner", "stranger"):
        with pytest.raises(ScopeError):
            a_browser(a_person(who, acme)).get("/admin/teams/")


def test_the_doors_are_closed_behind_everything_that_finds_out_who_somebody_is() -> None:
    assert settings.MIDDLEWARE[-1] == "config.walls.Doors"


def test_every_manager_of_a_tables_tenant_is_a_wall_too() -> None:
    """A second manager without one would be a way around."""
    for model in walled_models():
        assert all(isinstance(manager, Walled) for manager in model._meta.managers), model
