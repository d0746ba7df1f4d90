"""A tenant with something behind every kind of address: what ``benchmarks/pages.py`` looks at.

The database makes up the ledger (``ledger_rows``); people, keys and limits are
made by the services that make them otherwise, so the audit tells of them too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

import orjson

from benchmarks.ledger_rows import FILL, id_of

if TYPE_CHECKING:
    from budgets.models import Budget
    from keys.models import ApiKey
    from tenants.models import Tenant, User

DAYS = 28
SLUG = "acme"
ACTOR = "benchmark"
UPSTREAM = "main"
# As ``ledger_rows`` names them.
TEAMS = tuple(f"team {number}" for number in range(4))
MODELS = tuple(f"model-{number}:latest" for number in range(5))
# So much of every limit is used that each is near its end.
LIMIT, USED = 1_000_000, 850_000
MONTHS_CLOSED, FILES = 3, 2
# Other people than these are no recipients, invite nobody and have no calls stopped.
WITH_EXTRAS = 10

# The call of each entry as it went by, and one refused beside every twentieth.
EVENTS = """
INSERT INTO audit_requestevent (
    request_id, at, tenant_id, tenant, key_id, key, route, dialect, model, upstream, stream, run, status,
    outcome, refusal, refused_by, input_tokens, output_tokens, exact, admitted_at, first_byte_at, ended_at)
SELECT request_id, ended_at, tenant_id, tenant, key_id, key, route, dialect, model, upstream, stream, '', 200,
    'completed', '', '{}'::text[], input_tokens, output_tokens, exact, admitted_at, first_byte_at, ended_at
FROM budgets_ledgerentry
UNION ALL
SELECT overlay(request_id::text PLACING 'b' FROM 20)::uuid, ended_at, tenant_id, tenant, key_id, key, route,
    dialect, model, '', stream, '', 429, 'refused', 'budget_exhausted', '{}'::text[], 0, 0, true,
    NULL, NULL, ended_at
FROM budgets_ledgerentry WHERE id % 20 = 0
"""

# What was known when these were refused: one limit, of the tenant.
REFUSED = """
INSERT INTO budgets_refusedcall (request_id, at, tenant_id, key_id, member_id, refusal, facts)
SELECT request_id, at, tenant_id, key_id, md5(replace(key, 'key', 'member'))::uuid, refusal, %(facts)s::jsonb
FROM audit_requestevent WHERE refusal <> ''
"""


def furnish(rows: int, people: int = 40) -> None:
    """One tenant with so many entries, and so many people with keys and limits of their own."""
    from django.db import connection

    from audit import months
    from budgets import rollups
    from budgets.booking import BY_MONTH
    from budgets.month_closing import close_month
    from budgets.rebuild import ensure_epoch
    from budgets.rollups import Part
    from tenants import generations, services
    from tenants.models import Team, User

    tenant = services.create_tenant(slug=SLUG, name="ACME", actor=ACTOR, allow_all_models=True)
    Team.objects.bulk_create(Team(pk=id_of(name), tenant=tenant, name=name) for name in TEAMS)
    tight = _limit_all(tenant)
    generations.project()
    ensure_epoch()
    first_day = first_day_of_entries()
    with connection.cursor() as cursor:
        for table in BY_MONTH:
            months.ensure(table, months.months_from(first_day, 2))
        cursor.execute(FILL, {"rows": rows, "tenant_id": tenant.pk, "tenant": SLUG, "first_day": first_day})
        cursor.execute(EVENTS)
        cursor.execute(REFUSED, {"facts": json.dumps({"limits": [_as_noted(tight)]})})
    rollups.rebuild(part=Part(), actor=ACTOR, write=True)
    _offer_models(tenant)
    User.objects.create(username="operator", is_staff=True, is_superuser=True)
    month = first_day
    for _ in range(MONTHS_CLOSED):
        month = (month.replace(day=1) - timedelta(days=1)).replace(day=1)
        close_month(tenant=tenant, month=month, actor=ACTOR)
    add_people(tenant, range(people))
    _export(tenant, User.objects.get(username="member-0"))


def add_people(tenant: Tenant, numbers: Iterable[int]) -> None:
    """People, each with a key and a service account with another, limits on each, and what comes of them."""
    from budgets.models import Budget, RaiseRequest
    from budgets.services import set_budget, set_rate_limit
    from tenants import generations, services
    from tenants.models import Member, Team, User

    for number in numbers:
        user = User.objects.create(username=f"member-{number}", email=f"member-{number}@example.org")
        team = Team.objects.get(pk=id_of(TEAMS[number % len(TEAMS)]))
        role = Member.Role.OWNER if number == 0 else Member.Role.MEMBER
        member = Member.objects.create(
            pk=id_of(f"member {number}"), tenant=tenant, user=user, role=role, team=team
        )
        account = services.create_service_account(tenant=tenant, name=f"account {number}", actor=ACTOR)
        keys = [
            _a_key(tenant, f"key {number}", number, member=member),
            _a_key(tenant, f"nightly {number}", number, service_account=account),
        ]
        budgets = [
            set_budget(scope="member", member=member, unit="tokens", period="month", limit=LIMIT, actor=ACTOR)
        ]
        for key in keys:
            for unit, period in (("tokens", "day"), ("micro_usd", "month")):
                budgets.append(
                    set_budget(scope="key", key=key, unit=unit, period=period, limit=LIMIT, actor=ACTOR)
                )
            for measure in ("requests_per_minute", "concurrent_requests"):
                set_rate_limit(scope="key", key=key, measure=measure, limit=60, actor=ACTOR)
        RaiseRequest.objects.create(
            tenant=tenant, budget=budgets[0], asked_by=user, to=2 * LIMIT, reason="the month is long",
            until=datetime.now(UTC) + timedelta(days=7),
        )  # fmt: skip
        if number < WITH_EXTRAS:
            _extras(tenant, number, user, keys[0])
    generations.project()
    _use(Budget.objects.exclude(limit=None).select_related("tenant"))


def first_day_of_entries() -> date:
    """Today is the last one."""
    return datetime.now(UTC).date() - timedelta(days=DAYS - 1)


def _a_key(tenant: Tenant, label: str, number: int, **whose: Any) -> ApiKey:
    """A key that was issued long ago; some expire soon, and half of them were used today."""
    from keys.models import ApiKey, KeySecret, SecretUse

    moment = datetime.now(UTC)
    ends = moment + timedelta(days=7) if number % 5 == 0 else None
    key = ApiKey.objects.create(
        pk=id_of(label), tenant=tenant, label=label, expires_at=ends,
        created_at=moment - timedelta(days=200), **whose,
    )  # fmt: skip
    secret = KeySecret.objects.create(
        public_id=id_of(f"secret of {label}").hex[:12], key=key, digest="0" * 64
    )
    if number % 2 == 0:
        SecretUse.objects.create(
            secret=secret, used_at=moment, model=MODELS[0], address_block=ip_network("192.0.2.0/24"),
            noted_at=moment,
        )  # fmt: skip
    return key


def _extras(tenant: Tenant, number: int, user: User, key: ApiKey) -> None:
    """An invitation, a recipient to whom something did not arrive, a stop of the key."""
    from budgets.models import Delivery, Notice
    from budgets.services import add_recipient, arm_kill_switch
    from tenants.invitations import invite

    invite(tenant=tenant, email=f"guest-{number}@example.org", role="member", invited_by=user)
    recipient = add_recipient(tenant=tenant, kind="email", address=f"told-{number}@example.org", actor=ACTOR)
    notice = Notice.objects.create(
        happening="threshold", subject=str(key.pk), tenant_id=tenant.pk, text="a share is used", facts={}
    )
    Delivery.objects.create(
        notice=notice, recipient=recipient, to=recipient.address, state=Delivery.State.DEAD,
        attempts=[{"at": "", "status": None, "error": "nobody listens there"}],
    )  # fmt: skip
    arm_kill_switch(scope="key", key=key, actor=ACTOR, reason="to be seen")


def _limit_all(tenant: Tenant) -> Budget:
    """Limits from the platform down to the teams, one of them in shadow mode; returns that of the tenant."""
    from budgets.services import set_budget, set_rate_limit
    from tenants.models import Team

    def budget(**whose: Any) -> Budget:
        return set_budget(period="month", limit=LIMIT, actor=ACTOR, **whose)

    budget(scope="platform", unit="tokens")
    for team in Team.objects.filter(tenant=tenant):
        budget(scope="team", team=team, unit="tokens")
    budget(scope="tenant", tenant=tenant, unit="requests", shadow=True)
    set_rate_limit(scope="tenant", tenant=tenant, measure="requests_per_minute", limit=LIMIT, actor=ACTOR)
    budget(scope="tenant", tenant=tenant, unit="micro_usd")
    return budget(scope="tenant", tenant=tenant, unit="tokens")


def _as_noted(budget: Budget) -> dict[str, Any]:
    """A limit as a refused call tells of it."""
    figures = {"limit": LIMIT, "used": LIMIT, "held": 0, "needed": 100, "hard": True, "refused": True}
    names = {"kind": "budget", "name": "tenant-tokens-month", "scope": "tenant", "unit": "tokens"}
    return (
        {"id": budget.pk.hex, "window": "month", "model": "", "upstream": "", "back_at": None}
        | names
        | figures
    )


def _offer_models(tenant: Tenant) -> None:
    """The models of the ledger, as web processes publish what they found, and what each costs."""
    from budgets.services import set_price
    from proxy.catalog import published_at
    from proxy.models import Upstream
    from proxy.services import save_upstream
    from tenants.redis import redis_now

    save_upstream(upstream=Upstream(name=UPSTREAM, base_url="http://127.0.0.1:1"), actor=ACTOR)
    found = []
    for model in MODELS:
        set_price(model=model, tenant=tenant, input_price=300_000, output_price=1_000_000, actor=ACTOR)
        details = {"family": "llama", "parameter_size": "8.0B", "quantization_level": "Q4_K_M"}
        entry = {"name": model, "size": 5_000_000_000, "details": details}
        shown = {"capabilities": ["completion"]}
        found.append({"entry": entry, "shown": shown, "overhead_tokens": 20, "context_tokens": 8192})
    redis_now().set(published_at(UPSTREAM), orjson.dumps(found))


def _export(tenant: Tenant, owner: User) -> None:
    """Files that were made in the background, and one that waits."""
    from budgets.exports.jobs import make_exports, order_export
    from budgets.exports.orders import Order
    from budgets.usage import Selection

    first_day = first_day_of_entries()
    order = Order(Selection(tenant.pk, first_day, first_day + timedelta(days=DAYS)), "day")
    for _ in range(FILES):
        order_export(order=order, user=owner)
        make_exports()
    order_export(order=order, user=owner)


def _use(budgets: Iterable[Budget]) -> None:
    """Let the counters of these budgets say that most of each is used."""
    from budgets.counters import Counter
    from budgets.schedules import schedules_of
    from tenants.redis import redis_now

    rows = list(budgets)
    schedules, moment = schedules_of(rows), datetime.now(UTC).timestamp()
    pipeline = redis_now().pipeline(transaction=False)
    for row in rows:
        period = schedules[row.pk].period(moment)
        counter = Counter("budget", row.pk.hex, row.unit, period.start, period.end)
        pipeline.hset(counter.key, mapping={"used": USED, "held": 0})
    pipeline.execute()
