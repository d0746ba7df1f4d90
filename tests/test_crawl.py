"""Two tenants: at no address does anybody of the one learn of the other, not even that it is there."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from django.http import HttpRequest, HttpResponse
from django.test import Client, override_settings
from django.urls import include, path

from audit.walls import across, rows_of
from budgets.models import LedgerEntry
from config.walls import walled_models
from tenants.access import Access
from tenants.models import Member, Team, Tenant, User
from tenants.portal import tenant_page
from tenants.services import add_member
from tests.accounts import quiet_counters
from tests.crawling import IDS, OF_NO_TENANT, Address, Belongings, Unclassified, addresses
from tests.managing import manager

pytestmark = pytest.mark.timeout(300)

ADDRESSES = addresses()
# So an address answers that is closed to who asks, or that nothing is read from.
CLOSED = (403, 405)
VISITORS = [*Member.Role.values, "owner on the staff", "key of a tenant"]
# In every page that has a form, and different each time.
TOKEN = re.compile(r'(csrfmiddlewaretoken" value=")[^"]+')


@tenant_page
def leaking(request: HttpRequest, access: Access, team_id: Any) -> HttpResponse:
    """What the crawl has to find: somebody has opened the walls and forgotten to ask."""
    with across():
        team = Team.objects.filter(pk=team_id).first()
    return HttpResponse(team.name if team else "none")


@tenant_page
def refusing(request: HttpRequest, access: Access, team_id: Any) -> HttpResponse:
    """The smaller mistake: it shows nothing, and tells what is there from what is not."""
    with across():
        return HttpResponse(status=403 if Team.objects.filter(pk=team_id).exists() else 404)


@tenant_page
def listing(request: HttpRequest, access: Access) -> HttpResponse:
    with across():
        return HttpResponse(", ".join(str(team.pk) for team in Team.objects.all()))


@tenant_page
def hinting(request: HttpRequest, access: Access) -> HttpResponse:
    """Closed to everybody, with another word where a filter finds something."""
    with across():
        wanted = request.GET.get("request")
        there = wanted is not None and LedgerEntry.objects.filter(request_id=wanted).exists()
    return HttpResponse("not here" if there else "no", status=403)


urlpatterns = [
    path("portal/<slug:slug>/leaking/<uuid:team_id>/", leaking),
    path("portal/<slug:slug>/refusing/<uuid:team_id>/", refusing),
    path("portal/<slug:slug>/listing/", listing),
    path("portal/<slug:slug>/hinting/", hinting),
    path("", include("config.urls")),
]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Thousands of refusals, each with its traceback, take longer to write down than to get."""
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def site(transactional_db: None, settings: Any, tmp_path: Path) -> None:
    settings.SPOOL_DIR, settings.EXPORT_DIR = tmp_path / "spool", tmp_path / "exports"
    settings.MANAGEMENT_REQUESTS_PER_MINUTE = 10**6
    quiet_counters()


@pytest.fixture
def acme(site: None) -> Belongings:
    return Belongings("acme")


@pytest.fixture
def globex(site: None) -> Belongings:
    return Belongings("globex")


@dataclass(frozen=True)
class Visitor:
    """Somebody of a tenant, and how they ask."""

    browser: Client
    headers: Mapping[str, str]

    def ask(self, method: str, address: str, body: Mapping[str, Any] | None = None) -> tuple[int, str, str]:
        """Status, where it leads, and all that is told."""
        if address.startswith("/manage/"):
            sent, kind = json.dumps(body or {}, default=str), "application/json"
        else:
            sent, kind = urlencode(body or {}), "application/x-www-form-urlencoded"
        extra: dict[str, Any] = {} if method == "GET" else {"data": sent, "content_type": kind}
        answer: Any = self.browser.generic(method, address, headers=dict(self.headers), **extra)
        # What is said on the next page would be said on one of them, and is no difference between them.
        self.browser.cookies.pop("messages", None)
        content = b"" if answer.streaming else answer.content
        return answer.status_code, answer.headers.get("Location", ""), content.decode(errors="replace")


def a_visitor(who: str, tenant: Tenant) -> Visitor:
    if who == "key of a tenant":
        secret = manager(tenant=tenant).secret
        return Visitor(Client(raise_request_exception=False), {"Authorization": f"Bearer {secret}"})
    user = User.objects.create(username="visitor", is_staff="staff" in who)
    add_member(tenant=tenant, user=user, role=who.partition(" ")[0], actor="test")
    browser = Client(raise_request_exception=False)
    browser.force_login(user)
    return Visitor(browser, {})


def methods_of(address: Address) -> tuple[str, ...]:
    # Done by a POST, these end the visit.
    if "logout" in address.route or address.route.endswith("/leave/"):
        return ("GET",)
    return address.methods


@dataclass(frozen=True)
class Pair:
    """The same question about what is another tenant's, and about what is nobody's."""

    method: str
    theirs: str
    nobodys: str
    bodies: tuple[Mapping[str, Any], Mapping[str, Any]]


def pairs_of(
    address: Address, own: Belongings, foreign: Belongings, nobody: Mapping[str, Any], *, closed: bool
) -> Iterator[Pair]:
    of_portal = address.route.startswith("portal/<slug:slug>/")
    bodies = (dict(foreign), dict(nobody))
    for method in methods_of(address):
        if of_portal:
            theirs, nobodys = address.filled(foreign.slug, foreign), address.filled(nobody["slug"], nobody)
            yield Pair(method, theirs, nobodys, bodies)
        theirs, nobodys = address.filled(own.slug, foreign), address.filled(own.slug, nobody)
        if theirs != nobodys or method != "GET":
            yield Pair(method, theirs, nobodys, bodies)
    filters = address.filters()
    # An open page may let one filter hide what another shows; a closed one may look at any of them at most.
    asked = [filters] if closed else [{name: of} for name, of in filters.items()]
    for some in asked:
        theirs, nobodys = (address.narrowed(own, some, whose) for whose in (foreign, nobody))
        yield Pair("GET", theirs, nobodys, ({}, {}))


def troubles_with(
    address: Address, visitor: Visitor, own: Belongings, foreign: Belongings, nobody: Mapping[str, Any]
) -> Iterator[str]:
    """What somebody learns at an address, or what goes wrong there."""
    status, _, told = visitor.ask("GET", address.filled(own.slug, own))
    if status >= 500 or _marks_in(told, foreign):
        yield f"GET /{address}: {status}, tells {_marks_in(told, foreign)}"
    filters = address.filters()
    closed = bool(filters) and status in CLOSED
    closed = closed and visitor.ask("GET", address.narrowed(own, filters, own))[0] == status
    for pair in pairs_of(address, own, foreign, nobody, closed=closed):
        theirs = visitor.ask(pair.method, pair.theirs, pair.bodies[0])
        nobodys = visitor.ask(pair.method, pair.nobodys, pair.bodies[1])
        sent_back = _any_of(_in_words(foreign) | _in_words(nobody))
        shown = [
            _without_what_was_sent(theirs, pair.theirs, sent_back),
            _without_what_was_sent(nobodys, pair.nobodys, sent_back),
        ]
        if theirs[0] >= 500:
            yield f"{pair.method} {pair.theirs}: {theirs[0]}"
        if shown[0] != shown[1]:
            yield f"{pair.method} {pair.theirs} is told from {pair.nobodys}: {theirs[:2]} and {nobodys[:2]}"
        if marks := _marks_in("".join(map(str, shown[0])), foreign):
            yield f"{pair.method} {pair.theirs} tells {marks}"


def _marks_in(told: str, foreign: Belongings) -> list[str]:
    return [mark for mark in foreign.marks if mark in told]


def _without_what_was_sent(answer: tuple[int, str, str], address: str, sent_back: re.Pattern[str]) -> Any:
    """An answer without the address and the ids that it repeats, and without what is new each time."""
    texts = list(answer[1:])
    for echo in (address, quote(address, safe=""), quote(address), address.replace("&", "&amp;")):
        texts = [text.replace(echo, "?") for text in texts]
    return answer[0], *(TOKEN.sub(r"\1", sent_back.sub("?", text)) for text in texts)


def _in_words(sent: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(map(str, sent.values()))


@cache
def _any_of(values: frozenset[str]) -> re.Pattern[str]:
    """What is sent in a body and told back as it came, in a field or a sentence about it.

    Of both questions at once: a number that is an id in one of them may be a year in the answers to both.
    """
    # Numbers of a few digits stand everywhere.
    longest_first = sorted((value for value in values if len(value) > 3), key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")


def all_of(belongings: Belongings) -> dict[str, list[Any]]:
    """All rows of a tenant, in all tables."""
    tenant_id = belongings.tenant.pk
    return {
        model._meta.label: list(model._base_manager.filter(rows_of(model, tenant_id)).order_by("pk").values())
        for model in walled_models()
    }


@pytest.mark.parametrize("address", ADDRESSES, ids=str)
def test_every_address_is_classified(address: Address) -> None:
    """Whoever adds one is told what to do: a line in ``tests.crawling.IDS``."""
    assert isinstance(address.ids(), dict)


def test_a_new_address_with_an_id_fails_with_words_that_say_what_to_do() -> None:
    new = Address("portal/<slug:slug>/invoices/<uuid:invoice_id>/", "portal-invoice")

    with pytest.raises(
        Unclassified, match=r"what invoice_id of /portal/.* Add a line to IDS in tests/crawling\.py"
    ):
        new.ids()


def test_no_line_is_about_an_address_that_there_is_not() -> None:
    routes = [address.route for address in ADDRESSES]

    assert [
        line for line in (*IDS, *OF_NO_TENANT) if not any(route.startswith(line) for route in routes)
    ] == []


def test_endpoints_are_asked_by_the_methods_that_they_have_and_pages_by_both() -> None:
    methods = {address.route: methods_of(address) for address in ADDRESSES}

    assert methods["manage/v1/teams/<uuid:pk>/"] == ("GET", "PATCH", "DELETE")
    assert methods["manage/v1/keys/<uuid:pk>/revoke/"] == ("POST",)
    assert methods["portal/<slug:slug>/team/"] == ("GET", "POST")
    assert methods["portal/<slug:slug>/team/leave/"] == ("GET",)


@pytest.mark.parametrize("who", VISITORS)
def test_nobody_learns_of_another_tenant_at_any_address(
    acme: Belongings, globex: Belongings, who: str
) -> None:
    visitor, nobody = a_visitor(who, acme.tenant), globex.of_nobody()
    before = all_of(globex)
    door = "manage/" if who == "key of a tenant" else ""
    # Of the people of a tenant none gets into the admin, so two stand for all.
    admin = who in ("owner", "owner on the staff")

    troubles = [
        trouble
        for address in ADDRESSES
        if address.route.startswith(door) and (admin or not address.route.startswith("admin/"))
        for trouble in troubles_with(address, visitor, acme, globex, nobody)
    ]

    assert troubles == []
    assert all_of(globex) == before


@override_settings(ROOT_URLCONF=__name__)
@pytest.mark.parametrize(
    ("route", "found"),
    [
        ("portal/<slug:slug>/leaking/<uuid:team_id>/", "is told from"),
        ("portal/<slug:slug>/refusing/<uuid:team_id>/", "is told from"),
        ("portal/<slug:slug>/listing/", "tells"),
        ("portal/<slug:slug>/hinting/", "is told from"),
    ],
)
def test_the_crawl_finds_what_it_is_there_to_find(
    acme: Belongings, globex: Belongings, monkeypatch: pytest.MonkeyPatch, route: str, found: str
) -> None:
    monkeypatch.setitem(IDS, "portal/<slug:slug>/", {"team_id": "team"})
    visitor = a_visitor("member", acme.tenant)

    troubles = list(troubles_with(Address(route, None), visitor, acme, globex, globex.of_nobody()))

    assert any(found in trouble for trouble in troubles), troubles


def test_the_crawl_gets_behind_the_doors(acme: Belongings) -> None:
    """Answers that are all the same would be the same if nobody got in."""
    owner, key = a_visitor("owner", acme.tenant), a_visitor("key of a tenant", acme.tenant)

    inside = {
        str(address)
        for address in ADDRESSES
        for visitor, door in ((owner, "portal/"), (key, "manage/"))
        if address.route.startswith(door)
        and visitor.ask("GET", address.filled(acme.slug, acme))[0] in (200, 302, 405)
    }

    of_doors = {str(address) for address in ADDRESSES if address.route.startswith(("portal/", "manage/"))}
    # The platform's own.
    assert of_doors - inside <= {
        "manage/v1/upstreams/<uuid:pk>/",
        "manage/v1/exports/<uuid:pk>/",
        "manage/v1/exports/files/<slug:link>/",
        "manage/v1/exports/estimate/",
        "portal/<slug:slug>/exports/<uuid:export_id>/",
        "portal/<slug:slug>/exports/files/<slug:link>/",
        "portal/<slug:slug>/exports/files/<slug:link>/sidecar/",
    }
