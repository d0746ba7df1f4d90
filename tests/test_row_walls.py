"""The second wall: PostgreSQL leaves a door nothing but the rows of its tenant, whatever it is asked."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from django.contrib.auth.models import AnonymousUser
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import ProgrammingError, connection, transaction

from audit import months, walled_role
from audit.models import AuditEvent, AuditLink
from audit.walled_role import ROLE
from audit.walls import Walled, across, closed, within
from budgets.models import Budget, LedgerEntry, LimitRaise, RateLimit, UsageRollup
from budgets.services import raise_limit, set_budget, set_rate_limit
from budgets.usage import Selection, breakdown
from config.walls import shared_tables, walled_models
from keys.models import ApiKey, KeySecret
from keys.services import issue_key, revoke_key
from tenants.access import access_to
from tenants.generations import in_force
from tenants.models import Generation, KeptAnswer, Member, Team, Tenant
from tenants.services import change_member, create_team, rename_team
from tests import ledgers
from tests.ledgers import book
from tests.people import a_browser, a_person, furnished

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def acme() -> Tenant:
    return booked("acme")


@pytest.fixture
def globex() -> Tenant:
    return booked("globex")


def booked(slug: str) -> Tenant:
    tenant = furnished(slug)
    book(ledgers.of(tenant))
    return tenant


def asked(sql: str, *parameters: Any) -> list[Any]:
    """What plain SQL finds; no manager is in between."""
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return [value for (value,) in cursor.fetchall()] if cursor.description else []


def whoami() -> tuple[str, str]:
    return asked("SELECT current_user::text")[0], asked("SELECT current_setting('tollgate.tenant', true)")[
        0
    ] or ""


OF_A_TENANT = {
    "tenants_tenant": "slug = 'globex'",
    "tenants_team": "name = 'Team of globex'",
    "keys_apikey": "label = 'key of globex'",
    "keys_keysecret": "key_id IN (SELECT id FROM keys_apikey)",
    "budgets_budget": "true",
    "budgets_ledgerentry": "tenant = 'globex'",
    "budgets_usagerollup": "tenant = 'globex'",
    "audit_auditevent": "true",
}


@pytest.mark.parametrize("table", OF_A_TENANT)
def test_plain_sql_within_a_tenant_finds_and_changes_nothing_of_another(
    acme: Tenant, globex: Tenant, table: str
) -> None:
    assert asked(f"SELECT count(*) FROM {table} WHERE {OF_A_TENANT[table]}")[0] > 0  # noqa: S608

    with within(UUID(int=7)):
        assert asked(f"SELECT count(*) FROM {table}") == [0]  # noqa: S608
        assert asked(f"WITH gone AS (DELETE FROM {table} RETURNING 1) SELECT count(*) FROM gone") == [0]  # noqa: S608
    with within(acme.pk):
        assert asked(f"SELECT count(*) FROM {table}")[0] >= 1  # noqa: S608
        if "globex" in OF_A_TENANT[table]:
            assert asked(f"SELECT count(*) FROM {table} WHERE {OF_A_TENANT[table]}") == [0]  # noqa: S608


def test_it_holds_alone_where_no_manager_narrows_anything(acme: Tenant, globex: Tenant) -> None:
    """Managers that ask for all, as a query does that was made before there was a tenant."""
    of_all = {
        model: model._base_manager.all()
        for model in (Team, ApiKey, KeySecret, Budget, LedgerEntry, AuditEvent)
    }
    whole = {model: rows.count() for model, rows in of_all.items()}

    with within(acme.pk):
        narrowed = {model: rows.all().count() for model, rows in of_all.items()}
    with closed():
        nothing = {model: rows.all().count() for model, rows in of_all.items()}

    assert all(0 < narrowed[model] < whole[model] for model in of_all), (narrowed, whole)
    assert set(nothing.values()) == {0}


def test_the_first_wall_holds_alone_where_the_database_holds_nobody(
    acme: Tenant, globex: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walled_role, "become", lambda session: None)

    with within(acme.pk):
        assert whoami()[0] != ROLE
        assert asked("SELECT count(*) FROM tenants_team") == [2]
        assert [team.name for team in Team.objects.all()] == ["Team of acme"]
        assert LedgerEntry.objects.count() == 1


@pytest.mark.parametrize("model", walled_models(), ids=lambda model: model._meta.label)
def test_every_table_of_tenants_has_its_policies_and_nothing_for_others(model: Any) -> None:
    table = model._meta.db_table

    [walled] = asked("SELECT relrowsecurity FROM pg_class WHERE oid = %s::regclass", table)
    policies = set(asked("SELECT polname::text FROM pg_policy WHERE polrelid = %s::regclass", table))
    roles = asked(
        "SELECT DISTINCT unnest(polroles)::regrole::text FROM pg_policy WHERE polrelid = %s::regclass", table
    )

    assert walled
    assert policies == set(walled_role.policies_of(model))
    assert roles == [ROLE]


def test_what_the_role_may_touch_is_what_has_a_wall_or_is_shared() -> None:
    """A table that somebody adds and says nothing of is closed; so is every partition by its own name."""
    reached = set(
        asked(
            "SELECT relname::text FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm') "
            "AND relnamespace = current_schema()::regnamespace AND has_table_privilege(%s, oid, 'SELECT')",
            ROLE,
        )
    )

    assert reached == {model._meta.db_table for model in walled_models()} | set(shared_tables())


@pytest.mark.parametrize("table", ["budgets_ledgerentry", "audit_requestevent"])
def test_a_partition_can_be_reached_through_its_table_alone_new_ones_too(acme: Tenant, table: str) -> None:
    month = months.months_from(datetime.now(UTC).date(), months.MONTHS_AHEAD + 1)[-1]
    made = months.ensure(table, [month])
    partitions = months.partitions(table).values()

    try:
        assert made == 1
        for partition in [*partitions, f"{table}_rest"]:
            with within(acme.pk), pytest.raises(ProgrammingError, match="permission denied"):
                asked(f'SELECT count(*) FROM "{partition}"')  # noqa: S608
    finally:
        asked(f'DROP TABLE "{months.partition_of(table, month)}"')
        months.forget_what_is_known()


def test_no_door_reaches_what_is_the_systems(acme: Tenant) -> None:
    with within(acme.pk):
        for model in (KeptAnswer, AuditLink):
            with pytest.raises(ProgrammingError, match="permission denied"):
                model._default_manager.count()
        with pytest.raises(ProgrammingError, match="must be owner"):
            asked("ALTER TABLE tenants_team DISABLE ROW LEVEL SECURITY")
        with pytest.raises(ProgrammingError):
            asked("CREATE TABLE mine (id int)")


def test_rows_cannot_be_written_for_another_tenant_nor_for_the_platform(acme: Tenant, globex: Tenant) -> None:
    platforms = set_budget(scope="platform", unit="tokens", period="day", limit=9, actor="test")

    with within(acme.pk):
        for tenant in (globex, None):
            with pytest.raises(ProgrammingError, match="row-level security"):
                Budget._base_manager.create(
                    scope="tenant" if tenant else "platform",
                    tenant=tenant,
                    unit="requests",
                    period="day",
                    limit=1,
                )
        with pytest.raises(ProgrammingError, match="row-level security"):
            Team._base_manager.filter(tenant=acme).update(tenant=globex)
        # What the platform shows can be read and not be changed.
        assert Budget.objects.filter(pk=platforms.pk).exists()
        assert Budget.objects.filter(pk=platforms.pk).update(limit=1) == 0
        assert Budget.objects.filter(pk=platforms.pk).delete()[0] == 0


def test_services_work_within_a_tenant_with_all_that_triggers_do(acme: Tenant, globex: Tenant) -> None:
    member = a_member(acme)
    before = Generation.objects.get(subject=acme.pk.hex).number

    with within(acme.pk):
        team = create_team(tenant=acme, name="Second", actor="ada")
        rename_team(team=team, name="Third", actor="ada")
        change_member(member=member, role="auditor", team=team, actor="ada")
        key, _ = issue_key(tenant=acme, label="second", actor="ada")
        set_budget(scope="tenant", tenant=acme, unit="tokens", period="day", limit=1, actor="ada")
        assert revoke_key(key=key, actor="ada", reason="test")
        assert in_force(acme.pk)

    assert Generation.objects.get(subject=acme.pk.hex).number > before
    events = AuditEvent.objects.filter(actor="ada")
    assert {event.action for event in events} >= {"team.renamed", "key.issued", "key.revoked", "budget.set"}
    assert AuditLink.objects.filter(event_id__in=[event.pk for event in events]).count() == events.count()
    call_command("verify_audit")


def a_member(tenant: Tenant) -> Member:
    person = a_person("member", tenant)
    assert not isinstance(person, AnonymousUser)
    return Member.objects.get(user=person)


def test_the_system_is_held_by_nothing_and_pays_nothing(acme: Tenant, globex: Tenant) -> None:
    with within(acme.pk):
        assert whoami() == (ROLE, str(acme.pk))
        with across():
            assert whoami()[1] == ""
            assert whoami()[0] != ROLE
        assert whoami() == (ROLE, str(acme.pk))

    assert whoami()[0] != ROLE
    assert Team.objects.count() == 2
    plan = "\n".join(asked("EXPLAIN SELECT * FROM tenants_team"))
    assert "Filter" not in plan


class Broken(Exception):
    """Something that goes wrong in the middle."""


def test_a_transaction_that_is_taken_back_leaves_the_connection_who_it_should_be(
    acme: Tenant, globex: Tenant
) -> None:
    """PostgreSQL takes the role back too, and tells nobody."""
    with suppress(Broken), transaction.atomic():
        Team.objects.count()
        with within(acme.pk):
            assert whoami()[0] == ROLE
            raise Broken
    assert Team.objects.count() == 2
    with within(acme.pk):
        with suppress(Broken), transaction.atomic():
            assert whoami()[0] == ROLE
            with across():
                assert whoami()[0] != ROLE
                raise Broken
        assert asked("SELECT name FROM tenants_team") == ["Team of acme"]
    assert Team.objects.count() == 2


def test_a_savepoint_that_is_taken_back_does_so_too(acme: Tenant, globex: Tenant) -> None:
    with transaction.atomic():
        with within(acme.pk):
            with suppress(Broken), transaction.atomic():
                assert whoami()[0] == ROLE
                raise Broken
            assert asked("SELECT name FROM tenants_team") == ["Team of acme"]
            with pytest.raises(ProgrammingError), transaction.atomic():
                asked("SELECT nothing FROM nowhere")
            assert asked("SELECT name FROM tenants_team") == ["Team of acme"]
        assert len(asked("SELECT name FROM tenants_team")) == 2


def test_a_connection_that_goes_round_is_each_time_whose_it_is_now(acme: Tenant, globex: Tenant) -> None:
    """Two tenants and the system take turns on connections of the pool, from many threads."""
    everybody = {acme.pk: ["Team of acme"], globex.pk: ["Team of globex"]}
    barrier = threading.Barrier(4)

    def visit(number: int) -> list[bool]:
        barrier.wait(30)
        right = []
        for turn in range(25):
            tenant = [acme.pk, globex.pk, None][(number + turn) % 3]
            try:
                if tenant is None:
                    right.append(len(asked("SELECT name FROM tenants_team")) == 2)
                else:
                    with within(tenant):
                        right.append(asked("SELECT name FROM tenants_team") == everybody[tenant])
            finally:
                # Back into the pool, while it is still whoever it was.
                connection.close()
        return right

    with ThreadPoolExecutor(4) as threads:
        results = [right for result in threads.map(visit, range(4)) for right in result]

    assert len(results) == 100
    assert all(results)


def test_pages_run_behind_it_and_finding_out_who_somebody_is_does_not(
    acme: Tenant, globex: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str]] = []

    def look_and_fail(*_: Any, **__: Any) -> None:
        seen.append(whoami())
        raise ZeroDivisionError

    monkeypatch.setattr("budgets.portal.explain", look_and_fail)
    browser = a_browser(a_person("owner", acme))

    with pytest.raises(ZeroDivisionError):
        browser.get("/portal/acme/usage/")

    assert seen == [(ROLE, str(acme.pk))]
    assert whoami()[0] != ROLE
    with closed():
        owner = Member._base_manager.all()
        assert list(owner) == []
    person = Member.objects.get().user
    with closed():
        access = access_to(person, "acme")
    assert access is not None


def test_big_reports_keep_their_indexes(acme: Tenant) -> None:
    """The tenant is worked out once for the statement, so it is a value and no question for each row."""
    # Of few rows any index is as good, and what PostgreSQL believes of a table depends on tests before.
    book(*[ledgers.an_entry(tenant_id=uuid4()) for _ in range(300)])
    asked("ANALYZE budgets_ledgerentry, budgets_usagerollup")
    with within(acme.pk), transaction.atomic():
        asked("SET LOCAL enable_seqscan = off")
        entries = Selection(tenant_id=acme.pk, from_day=date(2026, 1, 1)).entries()
        for rows in (entries, UsageRollup.objects.filter(day__gte=date(2026, 1, 1))):
            plan = rows.explain()
            assert "InitPlan" in plan, plan
            assert "SubPlan" not in plan, plan
            # By the tenant in the index, and not by a filter behind one.
            assert "Index Cond: ((tenant_id" in plan or "Index Cond: (tenant_id" in plan, plan
    assert breakdown(Selection(tenant_id=acme.pk), ["key"]).total["requests"] == 1


def test_building_again_changes_nothing_and_mends_what_was_broken(acme: Tenant, globex: Tenant) -> None:
    before = asked("SELECT oid FROM pg_policy ORDER BY oid")
    walled_role.build(walled_models(), shared_tables())
    again = asked("SELECT oid FROM pg_policy ORDER BY oid")
    asked('DROP POLICY tollgate_wall ON "tenants_team"')
    asked('CREATE POLICY anybody ON "tenants_team" USING (true)')
    # Of a version that listed it, or by hand.
    asked(f"GRANT SELECT, DELETE ON audit_auditlink TO {ROLE}")

    walled_role.build(walled_models(), shared_tables())

    assert before == again
    with within(acme.pk):
        assert asked("SELECT name FROM tenants_team") == ["Team of acme"]
        for statement in ("SELECT count(*) FROM audit_auditlink", "DELETE FROM audit_auditlink"):
            with pytest.raises(ProgrammingError, match="permission denied"):
                asked(statement)


def test_triggers_of_ours_run_as_their_owner_with_a_path_that_is_fixed() -> None:
    loose = asked(
        "SELECT proname::text FROM pg_proc "
        "WHERE proname LIKE 'tollgate%%' AND prorettype = 'trigger'::regtype AND NOT (prosecdef "
        " AND coalesce(array_to_string(proconfig, ','), '') LIKE '%%search_path=%%')"
    )

    assert loose == []


def test_who_may_not_make_the_role_is_told_what_an_administrator_has_to_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As for a user of a database that somebody else looks after."""
    monkeypatch.setattr(walled_role, "ROLE", "tollgate_walled_elsewhere")

    with pytest.raises(ImproperlyConfigured) as told:
        walled_role._ensure_role()

    assert "CREATE ROLE tollgate_walled_elsewhere NOLOGIN;" in str(told.value)
    assert f'GRANT tollgate_walled_elsewhere TO "{asked("SELECT current_user::text")[0]}";' in str(told.value)


def test_many_databases_of_a_server_may_build_at_once(acme: Tenant) -> None:
    """The role is one for all of them."""

    def build(_: int) -> None:
        try:
            walled_role.build(walled_models(), shared_tables())
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(build, range(4))) == [None] * 4


def test_a_walled_session_cannot_become_the_owner_by_a_forgotten_parameter(acme: Tenant) -> None:
    """No tenant, an empty one, or one that is none: no rows, or an error; never all."""
    with within(acme.pk):
        whoami()
        session = connection.connection
        for setting in ("''", "DEFAULT"):
            session.execute(f"SET tollgate.tenant = {setting}")
            assert session.execute("SELECT count(*) FROM tenants_team").fetchone() == (0,)
        session.execute("SET tollgate.tenant = 'acme'")
        with pytest.raises(psycopg.DataError):
            session.execute("SELECT count(*) FROM tenants_team")
    connection.close()


def test_a_raise_is_behind_the_wall_of_its_limit_whichever_kind_it_is(acme: Tenant, globex: Tenant) -> None:
    for tenant in (acme, globex, None):
        scope = "platform" if tenant is None else "tenant"
        for row in (
            set_budget(scope=scope, tenant=tenant, unit="requests", period="day", limit=9, actor="test"),
            set_rate_limit(scope=scope, tenant=tenant, measure="concurrent_requests", limit=9, actor="test"),
        ):
            raise_limit(
                row=row, by=1, ends_at=datetime(2999, 1, 1, tzinfo=UTC), reason=row.whose, actor="test"
            )
    readable = ["platform", "platform", "tenant acme", "tenant acme"]

    with within(acme.pk):
        assert sorted(asked("SELECT reason FROM budgets_limitraise")) == readable
        assert sorted(LimitRaise.objects.values_list("reason", flat=True)) == readable
        # What the platform has raised can be read by all, and be taken back by none of them.
        changed = "UPDATE budgets_limitraise SET taken_back_at = now() RETURNING reason"
        assert sorted(asked(changed)) == ["tenant acme", "tenant acme"]
        theirs = (
            "INSERT INTO budgets_limitraise (id, rate_limit_id, by, starts_at, ends_at, reason, granted_by, "
            "granted_at) SELECT gen_random_uuid(), %s, 1, now(), '2999-01-01', 'x', 'x', now()"
        )
        with across():
            foreign = RateLimit.objects.get(tenant=globex).pk
        with pytest.raises(ProgrammingError, match="row-level security"), transaction.atomic():
            asked(theirs, foreign)


def test_every_walled_model_says_how_its_tenant_is_found() -> None:
    for model in walled_models():
        wall: Walled[Any] = model.wall  # type: ignore[attr-defined]
        assert "::uuid)" in walled_role.condition(model), model
        assert getattr(model._meta.get_field(wall.column), "column", ""), model
