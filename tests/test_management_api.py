"""The management API: who may do what, what they are told, and what a repeat does."""

from __future__ import annotations

import re
import threading
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.db import connection, transaction
from django.test import Client
from django.utils.timezone import now

from audit.models import AuditEvent
from budgets.limits import limit_now
from budgets.models import Budget, KillSwitch, Price, RateLimit
from budgets.services import (
    arm_kill_switch,
    raise_limit,
    set_budget,
    set_price,
    set_rate_limit,
)
from keys import secrets
from keys.models import ApiKey, KeySecret
from keys.scopes import SCOPES
from keys.services import issue_key, revoke_management_key
from proxy.models import ModelAlias, Upstream
from proxy.services import save_alias, save_upstream
from tenants.api.managed import Managed
from tenants.api.paging import MOST
from tenants.models import KeptAnswer, Member, ServiceAccount, Team, Tenant, User
from tenants.redis import RedisError
from tenants.services import add_member, create_service_account, create_team, create_tenant, create_user
from tests.counting import NOWHERE
from tests.managing import BY_PLACE, Endpoint, endpoints, manager
from tests.test_stops_by_operators import signed_in

pytestmark = pytest.mark.django_db(transaction=True)

ENDPOINTS = endpoints()
# What a key of one tenant is refused for, before anybody looks at ids.
OF_PLATFORM = {
    "POST tenants/",
    "POST tenants/<uuid:pk>/suspend/",
    "POST tenants/<uuid:pk>/resume/",
    "POST members/",
    "POST upstreams/",
}


# Behind the word of what a raise is of.
RAISE = " raised"


@transaction.atomic
def create_all(slug: str) -> dict[str, Any]:
    """A tenant with one of everything, by the first word of the path that leads to it.

    In one transaction, so that it is put in force once.
    """
    tenant = create_tenant(slug=slug, name=slug, actor="test")
    team = create_team(tenant=tenant, name="Research", actor="test")
    user = create_user(username=f"bob-{slug}", email=f"bob@{slug}.example", actor="test")
    key, _ = issue_key(tenant=tenant, label="nightly", actor="test")
    budget = set_budget(scope="tenant", tenant=tenant, unit="tokens", period="day", limit=9, actor="test")
    rate_limit = set_rate_limit(
        scope="tenant", tenant=tenant, measure="requests_per_minute", limit=9, actor="test"
    )
    return {
        "tenants": tenant,
        "teams": team,
        "members": add_member(tenant=tenant, user=user, actor="test"),
        "keys": key,
        "service-accounts": create_service_account(tenant=tenant, name="build", actor="test"),
        "budgets": budget,
        "budgets" + RAISE: raise_limit(
            row=budget, by=1, ends_at=now() + timedelta(hours=1), reason="test", actor="test"
        ),
        "rate-limits": rate_limit,
        "rate-limits" + RAISE: raise_limit(
            row=rate_limit, by=1, ends_at=now() + timedelta(hours=1), reason="test", actor="test"
        ),
        "prices": set_price(model="tiny:1b", tenant=tenant, input_price=1, actor="test"),
        "kill-switches": arm_kill_switch(scope="tenant", tenant=tenant, actor="test", reason="fire"),
        "aliases": save_alias(
            alias=ModelAlias(tenant=tenant, alias="default:latest", model="tiny:1b"), actor="test"
        ),
        "audit-events": AuditEvent.objects.get(action="tenant.created", tenant_id=tenant.pk),
    }


@pytest.fixture
def acme() -> dict[str, Any]:
    return create_all("acme")


@pytest.fixture
def globex() -> dict[str, Any]:
    return create_all("globex")


def address(endpoint: Endpoint, rows: dict[str, Any], stranger: bool = False) -> str:
    """The path of an endpoint with the ids of ``rows``; of a stranger, with ids that there are not."""
    row: Any = rows.get(endpoint.route.partition("/")[0])
    known = row is not None and not stranger
    pk: Any = row.pk if known else uuid.UUID(int=7)
    if "<int:" in endpoint.route and not known:
        pk = 10**9
    its_raise = rows.get(endpoint.route.partition("/")[0] + RAISE)
    raised = uuid.UUID(int=8) if stranger or its_raise is None else its_raise.pk
    return endpoint.path(pk=pk, raise_id=raised, number="ST-2026-000001", link="nothing")


WORDS = {
    "reason": "because",
    "name": "Other",
    "label": "other",
    "model": "other:latest",
    "ends_at": "2999-01-01T00:00:00Z",
    "by": 1,
}


def everything(rows: dict[str, Any]) -> tuple[Any, ...]:
    """All that can be changed of these rows, as it is now."""
    kinds = (
        Tenant,
        Team,
        Member,
        ServiceAccount,
        ApiKey,
        KeySecret,
        Budget,
        RateLimit,
        Price,
        ModelAlias,
        KillSwitch,
    )
    return (
        *(list(kind._default_manager.order_by("pk").values()) for kind in kinds),
        AuditEvent.objects.count(),
    )


def test_a_key_of_one_tenant_finds_of_another_what_it_finds_of_nobody(acme, globex):
    ours = manager(tenant=acme["tenants"])
    before = everything(globex)
    with_ids = [one for one in ENDPOINTS if "<" in one.route]
    assert len(with_ids) > 40

    for endpoint in with_ids:
        foreign = ours.ask(endpoint.method, address(endpoint, globex), WORDS)
        unknown = ours.ask(endpoint.method, address(endpoint, globex, stranger=True), WORDS)

        assert foreign.status_code == (403 if str(endpoint) in OF_PLATFORM else 404), endpoint
        assert (foreign.status_code, foreign.json()) == (unknown.status_code, unknown.json()), endpoint
        assert everything(globex) == before, endpoint


def test_a_key_of_one_tenant_lists_that_tenant_alone(acme, globex):
    save_upstream(upstream=Upstream(name="gpu-1", base_url="http://127.0.0.1:1"), actor="test")
    set_price(model="tiny:1b", input_price=1, actor="test")
    ours, everybodys = manager(tenant=acme["tenants"]), manager()
    mine = str(acme["tenants"].pk)
    lists = [one for one in ENDPOINTS if one.action == "list"]
    assert len(lists) > 12

    for endpoint in lists:
        listed = ours.get(endpoint.route).json()["results"]
        foreign = ours.get(f"{endpoint.route}?tenant=globex").json()
        whole = everybodys.get(endpoint.route).json()["results"]

        name = endpoint.route.strip("/")
        tenant_field = "id" if name == "tenants" else "tenant_id"
        assert {row.get(tenant_field) for row in listed} <= {mine}, endpoint
        if "tenant" in endpoint.view.filters:
            assert foreign["results"] == [], endpoint
        if name in acme:
            assert {row[tenant_field] for row in whole} >= {mine, str(globex["tenants"].pk)}, endpoint
            assert [row["id"] for row in listed if row["id"] in (acme[name].pk, str(acme[name].pk))], endpoint


BODIES: dict[str, dict[str, Any]] = {
    "POST teams/": {"name": "Another"},
    "POST keys/": {"label": "another"},
    "POST service-accounts/": {"name": "another"},
    # Without a limit, which is not the same as one that is left out.
    "POST budgets/": {"scope": "tenant", "unit": "requests", "period": "day", "limit": None},
    "POST rate-limits/": {"scope": "tenant", "measure": "tokens_per_minute", "limit": 1},
    "POST prices/": {"model": "tiny:1b", "input_price": 1},
    "POST kill-switches/": {"scope": "tenant", "reason": "fire"},
    "POST running-calls/stop/": {"reason": "fire"},
    "POST aliases/": {"alias": "other:latest", "model": "tiny:1b"},
    "POST exports/": {"from_day": "2026-10-01", "before_day": "2026-11-01", "profile": "day"},
}


def test_every_endpoint_that_writes_for_a_tenant_is_tried():
    """A new endpoint is classified here, by adding it to one of the tables."""
    creating = {str(one) for one in ENDPOINTS if one.method == "POST" and "<" not in one.route}

    assert creating - OF_PLATFORM == set(BODIES)


def test_a_key_of_one_tenant_writes_for_no_other(acme, globex):
    ours = manager(tenant=acme["tenants"])
    before = everything(globex)

    for endpoint, body in BODIES.items():
        method, path = endpoint.split()
        foreign = ours.ask(method, path, body | {"tenant": "globex"})
        unknown = ours.ask(method, path, body | {"tenant": "nobody"})

        assert foreign.status_code == unknown.status_code == 400, endpoint
        assert foreign.content.replace(b"globex", b"nobody") == unknown.content, endpoint
        assert everything(globex) == before, endpoint


def test_a_key_of_one_tenant_need_not_name_it(acme):
    ours = manager(tenant=acme["tenants"])

    for endpoint, body in BODIES.items():
        method, path = endpoint.split()
        if "running" not in path:
            made = ours.ask(method, path, body)

            assert made.status_code == 201, (endpoint, made.content)
            assert made.json()["tenant"] == "acme", endpoint


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("budgets/", {"scope": "platform", "unit": "tokens", "period": "day", "limit": 0}),
        ("kill-switches/", {"scope": "platform", "reason": "fire"}),
        ("kill-switches/", {"scope": "upstream", "upstream": "gpu-1", "reason": "fire"}),
    ],
)
def test_a_key_of_one_tenant_touches_nothing_of_the_platform(acme, path, body):
    switches, limits = KillSwitch.objects.count(), Budget.objects.count()

    assert manager(tenant=acme["tenants"]).post(path, **body).status_code == 400
    assert (KillSwitch.objects.count(), Budget.objects.count()) == (switches, limits)


@pytest.mark.parametrize("part", ["team", "member", "key"])
def test_parts_of_another_tenant_are_as_unknown_as_those_that_there_are_not(acme, globex, part):
    ours = manager(tenant=acme["tenants"])
    body = {"scope": part, "unit": "tokens", "period": "day", "limit": 1}

    foreign = ours.post("budgets/", **body, **{part: str(globex[f"{part}s"].pk)})
    unknown = ours.post("budgets/", **body, **{part: str(uuid.UUID(int=7))})

    assert foreign.status_code == unknown.status_code == 400
    assert re.sub(r"[0-9a-f-]{36}", "", foreign.content.decode()) == re.sub(
        r"[0-9a-f-]{36}", "", unknown.content.decode()
    )


# Who may ask is found out before anybody looks whether there still is what is asked for, so that the
# endpoints can be asked one after the other.
def test_every_endpoint_asks_for_its_scope(acme):
    with_all_but = {scope: manager(*(set(SCOPES) - {scope})) for scope in SCOPES}
    with_only = {scope: manager(scope) for scope in SCOPES}

    for endpoint in ENDPOINTS:
        assert issubclass(endpoint.view, Managed), endpoint
        scope = f"{endpoint.view.scope}:{'read' if endpoint.method == 'GET' else 'write'}"
        path = address(endpoint, acme)

        refused = with_all_but[scope].ask(endpoint.method, path, {})
        allowed = with_only[scope].ask(endpoint.method, path, {})

        assert refused.status_code == 403, endpoint
        assert scope in refused.json()["detail"], endpoint
        assert allowed.status_code not in (401, 403), endpoint


def test_every_endpoint_asks_people_for_its_permission(acme):
    nobody = signed_in(is_staff=True)
    people: dict[tuple[str, ...], Client] = {}

    for endpoint in ENDPOINTS:
        if endpoint.view in BY_PLACE:
            continue
        needed = endpoint.view.needs[endpoint.action]
        names = (needed,) if isinstance(needed, str) else needed
        if names not in people:
            people[names] = signed_in(*(name.partition(".")[2] for name in names), is_staff=True)
        path = f"/manage/v1/{address(endpoint, acme)}"

        looking = nobody.generic(endpoint.method, path)
        permitted = people[names].generic(endpoint.method, path, "{}", content_type="application/json")

        assert looking.status_code == 403, endpoint
        assert permitted.status_code not in (401, 403), endpoint


def test_every_scope_opens_something():
    asked = {f"{one.view.scope}:{'read' if one.method == 'GET' else 'write'}" for one in ENDPOINTS}

    assert asked == set(SCOPES)


def test_what_opens_nothing_gets_one_answer():
    good, revoked = manager("audit:read"), manager("audit:read")
    revoke_management_key(key=revoked.key, actor="test", reason="lost")
    over = manager("audit:read", expires_at=now() + timedelta(hours=1))
    calling, secret = issue_key(
        tenant=create_tenant(slug="acme", name="ACME", actor="test"), label="x", actor="test"
    )
    body = good.secret[:16] + "0" * 40
    guessed = body + secrets._checksum(body)

    with time_machine.travel(now() + timedelta(hours=1), tick=False):
        answers = [
            Client().get("/manage/v1/audit-events/", headers={"Authorization": authorization})
            for authorization in (
                f"Bearer {revoked.secret}",
                f"Bearer {over.secret}",
                f"Bearer {secret}",
                f"Bearer {guessed}",
                "Bearer nonsense",
                f"Basic {good.secret}",
                "",
            )
        ]
        assert good.get("audit-events/").status_code == 200

    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.content for answer in answers}) == 1
    assert {answer["WWW-Authenticate"] for answer in answers} == {"Bearer"}
    assert calling.pk


@pytest.mark.parametrize("mark", ["tg_", "tgm_"])
def test_a_secret_in_the_address_is_refused(mark):
    answer = manager().get(f"tenants/?key={mark}abcdefghijkl")

    assert answer.status_code == 400
    assert "address holds a secret" in answer.json()["detail"]


def test_last_use_is_noted_once_a_minute():
    one = manager("tenants:read")
    start = datetime(2026, 11, 27, 12, tzinfo=UTC)
    noted = []

    for seconds in (0, 59, 60):
        with time_machine.travel(start + timedelta(seconds=seconds), tick=False):
            one.get("tenants/")
        one.key.refresh_from_db()
        noted.append(one.key.last_used_at)

    assert noted == [start, start, start + timedelta(seconds=60)]


def test_pages_follow_each_other_and_are_not_moved_by_what_is_added():
    tenants = [create_tenant(slug=f"t{number}", name="T", actor="test") for number in range(5)]
    one = manager("tenants:read")

    first = one.get("tenants/?page_size=2").json()
    create_tenant(slug="late", name="T", actor="test")
    second = one.get(first["next"].partition("/manage/v1/")[2]).json()
    third = one.get(second["next"].partition("/manage/v1/")[2]).json()
    back = one.get(second["previous"].partition("/manage/v1/")[2]).json()

    pages = [[row["slug"] for row in page["results"]] for page in (first, second, third)]
    assert pages == [["t4", "t3"], ["t2", "t1"], ["t0"]]
    assert third["next"] is None
    assert back["results"] == first["results"]
    assert first["results"][0]["id"] == str(tenants[-1].pk)


def test_a_change_stands_in_the_audit_with_what_was_so_before() -> None:
    asking = manager()
    create_tenant(slug="acme", name="ACME", actor="test")
    alias = asking.post("aliases/", tenant="acme", alias="small:latest", model="tiny:1b").json()["id"]
    asking.ask("PATCH", f"aliases/{alias}/", {"model": "big:70b"})
    price = {"model": "tiny:1b", "starts_at": "2027-01-01T00:00:00Z", "output_price": 0}
    for cost in (1, 2):
        price_id = asking.post("prices/", **price, input_price=cost).json()["id"]
    asking.ask("DELETE", f"prices/{price_id}/")

    def newest(action: str) -> dict[str, Any]:
        details = AuditEvent.objects.filter(action=action).latest("id").details
        assert isinstance(details, dict)
        return details

    assert (newest("alias.added")["before"], newest("alias.changed")["before"]["model"]) == (None, "tiny:1b")
    assert (newest("price.set")["before"]["input_price"], newest("price.set")["input_price"]) == (1, 2)
    assert newest("price.removed")["before"]["input_price"] == 2


ODD_BODIES = {
    "lists in lists": b"[" * 2000,
    "half a character": b'{"name": "\\ud800", "scope": "\\ud800", "tenant": "\\ud800", "profile": "\\ud800"}',
    "no number": b'{"limit": NaN}',
    "no UTF-8": b'{"name": "\xff"}',
    "a second value": b"{} {}",
    "nothing": b"",
}


def test_a_body_that_is_no_json_is_refused_at_every_address() -> None:
    asking, nobody = manager(), uuid.uuid4()

    for endpoint in [one for one in ENDPOINTS if one.method in ("POST", "PATCH")]:
        for odd, body in ODD_BODIES.items():
            answer = Client().generic(
                endpoint.method,
                f"/manage/v1/{endpoint.path(pk=nobody, raise_id=nobody)}",
                body,
                content_type="application/json",
                headers={"Authorization": f"Bearer {asking.secret}"},
            )
            assert answer.status_code in (400, 404), (endpoint, odd)
            assert answer["Content-Type"] == "application/problem+json", (endpoint, odd)


def test_an_order_of_an_export_that_cannot_be_read_is_refused() -> None:
    asking = manager()
    order = {"from_day": "2026-10-01", "before_day": "2026-11-01", "profile": "day"}
    odd: list[Any] = [True, 10**30, [], {"a": 1}]

    for field in ("from_day", "before_day", "profile", "layout", "separator", "tenant"):
        for value in odd:
            answer = asking.post("exports/", **{**order, field: value})
            assert (answer.status_code, list(answer.json()["errors"])) == (400, [field]), value


def test_what_an_order_says_of_compression_is_heard() -> None:
    order = {"from_day": "2026-10-01", "before_day": "2026-11-01", "profile": "day"}

    for compressed in (True, False):
        answer = manager().post("exports/", **order, gzip=compressed)
        assert (answer.status_code, answer.json()["order"]["gzip"]) == (201, compressed)


def test_a_page_has_a_most_and_a_wrong_cursor_is_told():
    one = manager("tenants:read", "audit:read", "calls:read")
    Tenant.objects.bulk_create([Tenant(slug=f"t{number}", name="T") for number in range(MOST + 1)])

    assert len(one.get("tenants/?page_size=100000").json()["results"]) == MOST
    for path in ("tenants/?cursor=cD14", "audit-events/?cursor=cD14"):
        assert one.get(path).status_code in (400, 404), path
    assert one.get("running-calls/?cursor=x").status_code == 400


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("action=team.created", 1),
        ("tenant=acme&action=team.created", 1),
        ("tenant=nobody", 0),
        ("actor=nobody", 0),
        ("until=2001-01-01T00:00:00Z", 0),
        ("since=2001-01-01T00:00:00Z&action=team.created", 1),
    ],
)
def test_the_audit_is_asked_by_what_happened(acme, query, found):
    results = manager("audit:read").get(f"audit-events/?{query}").json()["results"]

    assert len(results) == found
    for row in results:
        assert (row["tenant"], row["actor"], row["details"]["name"]) == ("acme", "test", "Research")


def test_a_whole_house_is_set_up_and_every_change_names_the_key():
    one = manager(label="terraform")

    tenant = one.post("tenants/", slug="acme", name="ACME", time_zone="Europe/Berlin").json()
    team = one.post("teams/", tenant="acme", name="Research").json()
    User.objects.create(username="bob", email="bob@example.org")
    member = one.post("members/", tenant="acme", user="bob", role="admin", team=team["id"]).json()
    key = one.post("keys/", tenant="acme", label="nightly", models=["tiny:1b"]).json()
    budget = one.post(
        "budgets/", scope="key", key=key["id"], unit="micro_usd", period="month", limit=1_500_000
    ).json()
    price = one.post("prices/", model="tiny:1b", input_price=150_000, output_price=600_000).json()
    upstream = one.post("upstreams/", name="gpu-1", base_url="http://127.0.0.1:11434").json()
    alias = one.post("aliases/", alias="default:latest", model="tiny:1b").json()

    assert (tenant["time_zone"], tenant["in_force"]) == ("Europe/Berlin", True)
    assert (member["role"], member["team_id"], member["username"]) == ("admin", team["id"], "bob")
    assert re.fullmatch(r"tg_\w{58}", key["secret"])
    assert key["public_ids"] == [key["secret"][3:15]]
    assert "secret" not in one.get(f"keys/{key['id']}/").json()
    assert (budget["limit"], budget["limit_usd"], budget["tenant"]) == (1_500_000, "1.500000", "acme")
    assert (price["input_price"], price["input_price_usd"]) == (150_000, "0.150000")
    assert upstream["enabled"] is True
    assert alias["tenant"] is None
    by_the_key = AuditEvent.objects.filter(actor=f"management key terraform ({one.key.public_id})")
    assert set(by_the_key.values_list("action", flat=True)) == {
        "tenant.created", "team.created", "member.added", "key.issued", "budget.set", "price.set",
        "upstream.added", "alias.added",
    }  # fmt: skip
    assert {event.origin for event in by_the_key} == {"manage from 127.0.0.1"}


def test_what_is_there_is_changed_and_ended(acme):
    one = manager()

    def path(name: str) -> str:
        return f"{name}/{acme[name].pk}/"

    assert one.ask("PATCH", path("tenants"), {"week_start": 7}).json()["week_start"] == 7
    assert one.ask("PATCH", path("tenants"), {"language": "de"}).json()["language"] == "de"
    assert one.post(f"{path('tenants')}suspend/", reason="unpaid").json()["state"] == "suspended"
    assert one.post(f"{path('tenants')}suspend/", reason="unpaid").json()["changed_now"] is False
    assert one.post(f"{path('tenants')}resume/", reason="paid").json()["state"] == "active"
    assert one.ask("PATCH", path("teams"), {"name": "Sales"}).json()["name"] == "Sales"
    assert one.ask("PATCH", path("members"), {"role": "finance"}).json()["role"] == "finance"
    assert one.ask("PATCH", path("keys"), {"label": "daily"}).json()["label"] == "daily"
    assert one.ask("PATCH", path("aliases"), {"model": "big:1b"}).json()["model"] == "big:1b"
    disabled = one.post(f"{path('keys')}disable/", reason="odd calls").json()
    assert (disabled["changed_now"], disabled["disabled_reason"], disabled["running_calls"]) == (
        True,
        "odd calls",
        0,
    )
    assert one.post(f"{path('keys')}disable/", reason="odd calls").json()["changed_now"] is False
    assert one.post(f"{path('keys')}enable/", reason="explained").json()["disabled_at"] is None
    limited = {"scopes": ["chat"], "address_blocks": ["192.0.2.7", "2001:DB8::/32"]}
    assert one.ask("PATCH", path("keys"), limited).json()["address_blocks"] == [
        "192.0.2.7/32",
        "2001:db8::/32",
    ]
    rotated = one.post(f"{path('keys')}rotate/", grace="24h").json()
    assert rotated["public_ids"][0] == rotated["secret"][3:15]
    assert rotated["secrets"][1]["retires_at"] is not None
    assert one.post(f"{path('keys')}end-grace/", reason="done").json()["ended_now"] is True
    assert one.post(f"{path('keys')}end-grace/", reason="done").json()["ended_now"] is False
    foretold = one.get(f"{path('keys')}preview/").json()
    assert (foretold["scopes"], foretold["refused"]) == (["chat"], ["kill_switch_tenant", "no_models"])
    assert [(limit["name"], limit["left"]) for limit in foretold["limits"]] == [
        ("tenant-tokens-day", 10),
        ("tenant-requests-minute", None),
    ]
    assert one.post(f"{path('keys')}revoke/", reason="lost").json()["revoked_now"] is True
    assert one.ask("PATCH", path("keys"), {"label": "hourly"}).status_code == 400
    assert one.ask("PATCH", path("service-accounts"), {"name": "deploy"}).json()["name"] == "deploy"
    closed = one.post(f"{path('service-accounts')}close/", reason="over").json()
    assert (closed["closed_now"], closed["revoked_keys"]) == (True, 0)
    standing = one.get(f"{path('budgets')}standing/").json()
    assert (standing["limit"], standing["used"], standing["left"]) == (10, 0, 10)
    assert one.ask("PATCH", path("budgets"), {"period": "90m"}).json()["period"] == "90m"
    assert one.ask("PATCH", path("budgets"), {"period": "soon"}).status_code == 400
    for name, its_id in (("budgets", "budget_id"), ("rate-limits", "rate_limit_id")):
        raises = f"{path(name)}raises/"
        taken_back = f"{raises}{acme[name + RAISE].pk}/take-back/"
        assert one.post(taken_back, reason="done").json()["taken_back_at"], name
        more = one.post(raises, to=99, ends_at="2999-01-01T00:00:00Z", reason="deadline")
        assert (more.status_code, more.json()["to"], more.json()[its_id]) == (201, 99, str(acme[name].pk))
        assert limit_now(acme[name]) == 99
    # The raise of one is none of the other.
    other = f"{path('budgets')}raises/{acme['rate-limits' + RAISE].pk}/take-back/"
    assert one.post(other, reason="done").status_code == 404
    for name in ("aliases", "prices", "rate-limits", "budgets", "members", "teams"):
        assert one.ask("DELETE", path(name)).status_code == 204, name
        assert one.get(path(name)).status_code == 404, name


def test_a_key_lives_no_longer_than_its_tenant_allows(acme):
    one = manager()
    tenant = acme["tenants"]
    one.ask("PATCH", f"tenants/{tenant.pk}/", {"max_key_days": 30})
    ends = (now() + timedelta(days=31)).isoformat()

    forever = one.post("keys/", tenant="acme", label="for ever")
    long = one.post("keys/", tenant="acme", label="long", expires_at=ends)
    short = one.post("keys/", tenant="acme", label="short", expires_at=(now() + timedelta(29)).isoformat())
    longer = one.ask("PATCH", f"keys/{short.json()['id']}/", {"expires_at": ends})

    assert [answer.status_code for answer in (forever, long, short, longer)] == [400, 400, 201, 400]
    assert "30 days at most" in longer.json()["errors"]["expires_at"][0]
    # What was issued before keeps its end.
    assert one.ask("PATCH", f"keys/{acme['keys'].pk}/", {"label": "as ever"}).status_code == 200


def test_who_leaves_loses_their_keys_and_the_last_owner_stays(acme):
    one, member = manager(), acme["members"]
    key, _ = issue_key(tenant=acme["tenants"], label="laptop", member=member, actor="test")
    one.ask("PATCH", f"members/{member.pk}/", {"role": "owner"})

    kept = one.ask("DELETE", f"members/{member.pk}/")
    user = create_user(username="olga", email="", actor="test")
    add_member(tenant=acme["tenants"], user=user, role="owner", actor="test")
    gone = one.ask("DELETE", f"members/{member.pk}/")

    assert (kept.status_code, gone.status_code) == (400, 204)
    assert "only owner" in kept.json()["errors"]["non_field_errors"][0]
    assert one.get(f"keys/{key.pk}/").json()["revoked_at"] is not None


def test_what_something_belongs_to_is_not_deleted(acme):
    one = manager()
    team, member = acme["teams"], acme["members"]
    one.ask("PATCH", f"members/{member.pk}/", {"team": str(team.pk)})

    refused = one.ask("DELETE", f"teams/{team.pk}/")

    assert refused.status_code == 409
    assert Team.objects.filter(pk=team.pk).exists()


def test_without_redis_a_change_is_saved_and_pending_and_nobody_is_throttled(acme, settings):
    settings.CACHES = NOWHERE
    settings.MANAGEMENT_REQUESTS_PER_MINUTE = 0

    armed = manager().post("kill-switches/", scope="platform", reason="fire")

    assert (armed.status_code, armed.json()["in_force"]) == (201, False)


def test_who_asks_too_often_waits_and_nobody_else_does(settings):
    settings.MANAGEMENT_REQUESTS_PER_MINUTE = 2
    eager, other = manager("tenants:read"), manager("tenants:read")

    with time_machine.travel(datetime(2026, 11, 27, 12, 0, 50, tzinfo=UTC), tick=False):
        statuses = [eager.get("tenants/").status_code for _ in range(2)]
        refused = eager.get("tenants/")
        others = other.get("tenants/").status_code
    with time_machine.travel(datetime(2026, 11, 27, 12, 1, 0, tzinfo=UTC), tick=False):
        later = eager.get("tenants/").status_code

    assert statuses == [200, 200]
    assert (refused.status_code, refused["Retry-After"]) == (429, "10")
    assert refused["Content-Type"] == "application/problem+json"
    assert (others, later) == (200, 200)


def test_a_path_that_is_none_is_a_problem_and_no_page():
    for path in ("nothing/", "tenants", "audit-events/-1/"):
        answer = manager().get(path)

        assert answer.status_code == 404
        assert answer["Content-Type"] == "application/problem+json"


TEAM = {"tenant": "acme", "name": "Sales"}


def test_the_same_request_twice_is_carried_out_once(acme):
    one = manager()

    first = one.ask("POST", "teams/", TEAM, **{"Idempotency-Key": "k1"})
    again = one.ask("POST", "teams/", TEAM, **{"Idempotency-Key": "k1"})

    assert first.status_code == again.status_code == 201
    assert first.json() == again.json()
    assert first.json()["in_force"] is True
    assert (first.headers.get("Idempotent-Replayed"), again["Idempotent-Replayed"]) == (None, "true")
    assert Team.objects.filter(name="Sales").count() == 1
    assert AuditEvent.objects.filter(action="team.created", details__name="Sales").count() == 1


def test_another_request_with_the_same_key_is_refused(acme):
    one = manager()
    one.ask("POST", "teams/", TEAM, **{"Idempotency-Key": "k1"})

    others = [
        one.ask("POST", "teams/", TEAM | {"name": "Law"}, **{"Idempotency-Key": "k1"}),
        one.ask("POST", "keys/", {"tenant": "acme", "label": "x"}, **{"Idempotency-Key": "k1"}),
    ]

    assert [answer.status_code for answer in others] == [422, 422]
    assert not Team.objects.filter(name="Law").exists()
    # The keys of another actor are others.
    assert (
        manager().ask("POST", "teams/", TEAM | {"name": "Law"}, **{"Idempotency-Key": "k1"}).status_code
        == 201
    )


def test_what_was_refused_changes_nothing_and_may_be_tried_again(acme):
    one = manager()

    refused = one.ask("POST", "teams/", {"tenant": "acme"}, **{"Idempotency-Key": "k1"})
    taken = one.ask("POST", "teams/", TEAM, **{"Idempotency-Key": "k1"})

    assert (refused.status_code, taken.status_code) == (400, 201)


def test_a_request_that_fails_in_the_end_takes_its_change_back(acme, monkeypatch):
    """A store is lost between the change and the answer."""
    one = manager()

    with monkeypatch.context() as patch:
        patch.setattr("tenants.api.tenants.TeamViewSet.told", lost)
        failed = one.ask("POST", "teams/", TEAM, **{"Idempotency-Key": "k1"})
        there_is = Team.objects.filter(name="Sales").exists()
    again = one.ask("POST", "teams/", TEAM, **{"Idempotency-Key": "k1"})

    assert (failed.status_code, there_is, again.status_code) == (503, False, 201)
    assert Team.objects.filter(name="Sales").count() == 1


def lost(*_: Any, **__: Any) -> Any:
    raise RedisError


def test_after_a_day_the_answer_is_forgotten(acme):
    one = manager()
    body = {"scope": "tenant", "tenant": "acme", "unit": "tokens", "period": "day", "limit": 5}
    start = now()
    with time_machine.travel(start, tick=False):
        one.ask("POST", "budgets/", body, **{"Idempotency-Key": "k1"})
    with time_machine.travel(start + timedelta(hours=24, seconds=-1), tick=False):
        kept = one.ask("POST", "budgets/", body, **{"Idempotency-Key": "k1"})
    with time_machine.travel(start + timedelta(hours=24), tick=False):
        anew = one.ask("POST", "budgets/", body, **{"Idempotency-Key": "k1"})

    assert "Idempotent-Replayed" in kept.headers
    assert "Idempotent-Replayed" not in anew.headers
    assert KeptAnswer.objects.count() == 1


def test_a_secret_is_shown_once_and_never_kept(acme):
    one = manager()
    body = {"tenant": "acme", "label": "once"}

    first = one.ask("POST", "keys/", body, **{"Idempotency-Key": "k1"})
    again = one.ask("POST", "keys/", body, **{"Idempotency-Key": "k1"})

    secret = first.json()["secret"]
    assert again.status_code == 409
    assert "kept nowhere" in again.json()["detail"]
    assert secret not in again.content.decode()
    assert KeptAnswer.objects.get().body is None
    assert ApiKey.objects.filter(label="once").count() == 1
    assert first["Cache-Control"] == "no-store"


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "ü"])
def test_a_key_that_cannot_be_one_is_refused(acme, key):
    answer = manager().ask("POST", "teams/", TEAM, **{"Idempotency-Key": key})

    assert answer.status_code == 400
    assert "Idempotency-Key" in answer.json()["errors"]


def test_while_the_first_runs_the_second_is_told_so(acme, monkeypatch):
    """The first waits inside its transaction, on a thread and a connection of its own."""
    one = manager()
    begun, go_on = threading.Event(), threading.Event()
    create = create_team

    def slowly(**settings: Any) -> Team:
        begun.set()
        assert go_on.wait(30)
        return create(**settings)

    answers = []

    def first() -> None:
        try:
            answers.append(one.ask("POST", "teams/", TEAM, **{"Idempotency-Key": "k1"}).status_code)
        finally:
            connection.close()

    with monkeypatch.context() as patch:
        patch.setattr("tenants.services.create_team", slowly)
        thread = threading.Thread(target=first)
        thread.start()
        assert begun.wait(30)
        second = one.ask("POST", "teams/", TEAM, **{"Idempotency-Key": "k1"})
        go_on.set()
        thread.join()

    assert second.status_code == 409
    assert "still running" in second.json()["detail"]
    assert answers == [201]
    assert one.ask("POST", "teams/", TEAM, **{"Idempotency-Key": "k1"}).status_code == 201
    assert Team.objects.filter(name="Sales").count() == 1


@pytest.mark.parametrize("text", ["\0", "a\0b", "\ud800"])
def test_what_is_no_text_for_the_database_is_a_mistake_of_the_client(acme, text):
    one = manager()

    answers = [
        one.post("teams/", tenant=text, name="Sales"),
        one.post("teams/", tenant="acme", name=text),
        one.post("members/", tenant="acme", user=text),
        one.get("tenants/?slug=%00"),
        one.get("statements/a%00b/"),
    ]

    assert {answer.status_code for answer in answers} == {400}


def test_of_two_who_take_a_name_at_once_one_is_told(acme, monkeypatch):
    """The check comes too early, as if the other one had not yet committed."""
    monkeypatch.setattr(Team, "full_clean", lambda self: None)

    answer = manager().post("teams/", tenant="acme", name="Research")

    assert answer.status_code == 409
    assert answer["Content-Type"] == "application/problem+json"
