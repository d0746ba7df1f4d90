import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import hypothesis
import pytest
import time_machine
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connection, transaction
from django.db.models import Q
from django.utils.timezone import now
from hypothesis import given
from hypothesis import strategies as st
from psycopg.sql import SQL, Identifier

from audit.models import AuditEvent
from keys import secrets, services
from keys.lifetimes import Grace
from keys.models import ApiKey, KeySecret
from tenants import services as tenant_services
from tenants.models import Member


@pytest.fixture
def acme(db):
    return tenant_services.create_tenant(slug="acme", name="ACME", actor="root")


@pytest.fixture
def globex(db):
    return tenant_services.create_tenant(slug="globex", name="Globex", actor="root")


@pytest.fixture
def ada(acme):
    user = tenant_services.create_user(username="ada", email="ada@example.org", actor="root")
    return tenant_services.add_member(tenant=acme, user=user, actor="root")


def test_of_a_secret_only_public_id_and_digest_are_stored(acme):
    key, secret = services.issue_key(tenant=acme, label="nightly", actor="ada")

    stored = KeySecret.objects.get()
    assert (stored.key, stored.public_id, stored.retires_at) == (key, secrets.public_id_of(secret), None)
    assert stored.digest == secrets.digest(secret)
    event = AuditEvent.objects.get(action="key.issued")
    assert (event.actor, event.subject, event.tenant_id) == ("ada", str(key.pk), acme.pk)
    assert event.details["public_id"] == stored.public_id


@pytest.mark.django_db
def test_no_table_holds_a_secret(acme, ada):
    random_parts = []
    for label in ("a", "b"):
        key, secret = services.issue_key(tenant=acme, member=ada, label=label, actor="ada")
        services.revoke_key(key=key, actor="ada", reason="test")
        random_parts.append(secret[15:55])

    with connection.cursor() as cursor:
        for table in connection.introspection.table_names():
            found = SQL("SELECT count(*) FROM {} AS line WHERE line::text ~ %s").format(Identifier(table))
            cursor.execute(found, ["|".join(random_parts)])
            assert cursor.fetchone() == (0,), table


@pytest.mark.parametrize("holder", ["tenant", "member"])
def test_two_live_keys_of_one_holder_cannot_share_a_label(holder, acme, ada):
    member = ada if holder == "member" else None
    key, _ = services.issue_key(tenant=acme, member=member, label="nightly", actor="root")
    with pytest.raises(ValidationError, match="another live key with this label"):
        services.issue_key(tenant=acme, member=member, label="nightly", actor="root")
    with (
        pytest.raises(IntegrityError, match=f"keys_apikey_live_label_once_per_{holder}"),
        transaction.atomic(),
    ):
        ApiKey.objects.create(tenant=acme, member=member, label="nightly")

    services.revoke_key(key=key, actor="root", reason="lost")
    services.issue_key(tenant=acme, member=member, label="nightly", actor="root")

    assert ApiKey.objects.filter(label="nightly", revoked_at=None).count() == 1


def test_different_holders_may_use_one_label(acme, globex, ada):
    for tenant, member in [(acme, None), (acme, ada), (globex, None)]:
        services.issue_key(tenant=tenant, member=member, label="nightly", actor="root")

    assert ApiKey.objects.count() == 3


def test_a_key_never_belongs_to_a_member_of_another_tenant(globex, ada):
    with pytest.raises(ValidationError, match="belongs to another tenant"):
        services.issue_key(tenant=globex, member=ada, label="nightly", actor="root")

    key, _ = services.issue_key(tenant=globex, label="nightly", actor="root")
    ApiKey.objects.filter(pk=key.pk).update(member=ada)
    with (
        pytest.raises(IntegrityError, match="keys_apikey_member_of_same_tenant"),
        transaction.atomic(),
        connection.cursor() as cursor,
    ):
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
    ApiKey.objects.filter(pk=key.pk).update(member=None)


def test_a_key_cannot_expire_before_it_is_created(acme):
    with pytest.raises(ValidationError, match="cannot expire before it is created"):
        services.issue_key(
            tenant=acme, label="nightly", actor="root", expires_at=now() - timedelta(seconds=1)
        )

    assert not ApiKey.objects.exists()
    assert not AuditEvent.objects.filter(action="key.issued").exists()


def test_a_change_of_a_key_is_recorded_with_before_and_after(acme):
    key, _ = services.issue_key(tenant=acme, label="nightly", actor="root", models=["tiny:latest"])

    services.change_key(key=key, actor="ada", label="weekly", models=[])

    key.refresh_from_db()
    event = AuditEvent.objects.get(action="key.changed")
    assert (key.label, key.models) == ("weekly", [])
    assert event.details["before"] == {"label": "nightly", "models": ["tiny:latest"]}
    assert event.details["after"] == {"label": "weekly", "models": []}


def test_a_key_is_revoked_once(acme):
    key, _ = services.issue_key(tenant=acme, label="nightly", actor="root")

    assert services.revoke_key(key=key, actor="ada", reason="lost") is True
    key.refresh_from_db()
    first = key.revoked_at
    assert services.revoke_key(key=key, actor="eve", reason="also lost") is False

    key.refresh_from_db()
    assert (key.revoked_at, key.revoked_reason) == (first, "lost")
    assert AuditEvent.objects.filter(action="key.revoked").count() == 1


def test_without_its_audit_event_a_key_is_not_revoked(acme):
    key, _ = services.issue_key(tenant=acme, label="nightly", actor="root")

    with pytest.raises(IntegrityError, match="audit_auditevent_says_who_did_what"), transaction.atomic():
        services.revoke_key(key=key, actor="", reason="lost")

    key.refresh_from_db()
    assert key.revoked_at is None


def at_once(*works):
    """The results of ``works``, started in threads at the same moment; an exception counts as its class."""
    start = threading.Barrier(len(works))

    def run(work):
        try:
            start.wait(10)
            return work()
        except Exception as exc:  # noqa: BLE001 - told to the test
            return type(exc)
        finally:
            connection.close()

    with ThreadPoolExecutor(len(works)) as threads:
        return list(threads.map(run, works))


@pytest.mark.django_db(transaction=True)
def test_of_many_who_revoke_a_key_at_once_one_did_it(acme):
    key, _ = services.issue_key(tenant=acme, label="nightly", actor="root")

    results = at_once(*[lambda: services.revoke_key(key=key, actor="ada", reason="lost")] * 8)

    assert sorted(results) == [False] * 7 + [True]
    assert AuditEvent.objects.filter(action="key.revoked").count() == 1


@pytest.mark.django_db(transaction=True)
def test_of_many_who_issue_one_label_at_once_one_gets_the_key(acme):
    results = at_once(*[lambda: services.issue_key(tenant=acme, label="nightly", actor="ada")] * 8)

    assert len([result for result in results if isinstance(result, tuple)]) == 1
    assert set(results) - {result for result in results if isinstance(result, tuple)} <= {
        ValidationError,
        IntegrityError,
    }
    assert ApiKey.objects.count() == KeySecret.objects.count() == 1
    assert AuditEvent.objects.filter(action="key.issued").count() == 1


@pytest.mark.django_db(transaction=True)
def test_revoking_and_changing_at_once_leaves_the_key_revoked(acme):
    for round_ in range(5):
        key, _ = services.issue_key(tenant=acme, label=f"nightly {round_}", actor="root")
        at_once(
            lambda key=key: services.revoke_key(key=key, actor="ada", reason="lost"),
            lambda key=key: services.change_key(key=key, actor="eve", label="still here"),
        )
        key.refresh_from_db()
        assert key.revoked_at is not None
        assert key.revoked_reason == "lost"


def alive(key):
    """How many secrets of a key work now."""
    ends = Q(retires_at=None) | Q(retires_at__gt=now())
    return key.secrets.filter(ends).count()


@pytest.mark.parametrize("grace", Grace)
def test_a_rotation_keeps_the_key_and_lets_the_old_secret_work_for_its_grace(acme, grace):
    key, first = services.issue_key(tenant=acme, label="nightly", actor="ada")
    with time_machine.travel(now(), tick=False):
        began = now()
        rotated, second = services.rotate_key(key=key, actor="olga", grace=grace)

    old = KeySecret.objects.get(pk=secrets.public_id_of(first))
    new = KeySecret.objects.get(pk=secrets.public_id_of(second))
    lasts = {"now": 0, "1h": 3600, "24h": 86_400, "7d": 604_800}.get(grace)
    assert rotated == key
    assert (new.key, new.retires_at, new.retires_on_use) == (key, None, False)
    assert old.retires_on_use is (lasts is None)
    assert old.retires_at == (None if lasts is None else began + timedelta(seconds=lasts))
    event = AuditEvent.objects.get(action="key.rotated")
    assert (event.actor, event.details["grace"], event.details["before"]) == ("olga", grace, [old.pk])
    assert second not in str(event.details)


@pytest.mark.parametrize("end", ["revoked", "expired"])
def test_a_key_that_is_over_is_not_rotated(acme, end):
    key, _ = services.issue_key(tenant=acme, label="nightly", actor="ada")
    if end == "revoked":
        services.revoke_key(key=key, actor="ada", reason="lost")
    else:
        ApiKey.objects.update(created_at=now() - timedelta(2), expires_at=now() - timedelta(1))

    with pytest.raises(ValidationError, match="Issue a new one"):
        services.rotate_key(key=key, actor="ada", grace=Grace.NOW)

    assert KeySecret.objects.count() == 1


# Rotations with any grace, uses of the newest secret, ends of a grace, and pauses of so many hours.
STEPS = st.lists(
    st.one_of(
        st.sampled_from(Grace),
        st.just("use"),
        st.just("end"),
        st.integers(1, 200),
    ),
    max_size=12,
)


@given(STEPS)
@hypothesis.settings(max_examples=40, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_whatever_happens_the_newest_secret_works_and_one_beside_it_at_most(acme, steps):
    with transaction.atomic():
        key, secret = services.issue_key(tenant=acme, label="nightly", actor="ada")
        moment = now()
        for step in steps:
            if isinstance(step, int):
                moment += timedelta(hours=step)
            with time_machine.travel(moment, tick=False):
                if isinstance(step, Grace):
                    _, secret = services.rotate_key(key=key, actor="ada", grace=step)
                elif step == "use":
                    services.retire_succeeded(public_id=secret[3:15])
                elif step == "end":
                    services.end_grace(key=key, actor="ada")
                newest = KeySecret.objects.get(pk=secret[3:15])
                assert (newest.retires_at, newest.retires_on_use) == (None, False)
                assert 1 <= alive(key) <= 2
                if step in ("end", Grace.NOW):
                    assert alive(key) == 1
        transaction.set_rollback(True)


@pytest.mark.django_db(transaction=True)
def test_of_many_rotations_at_once_each_leaves_one_newest_secret(acme):
    key, _ = services.issue_key(tenant=acme, label="nightly", actor="root")

    results = at_once(*[lambda: services.rotate_key(key=key, actor="ada", grace=Grace.DAY)] * 6)

    assert all(isinstance(result, tuple) for result in results)
    assert KeySecret.objects.filter(key=key, retires_at=None, retires_on_use=False).count() == 1
    assert alive(key) == 2


def test_the_database_keeps_one_secret_without_an_end(acme):
    key, _ = services.issue_key(tenant=acme, label="nightly", actor="root")

    with pytest.raises(IntegrityError, match="keys_keysecret_one_without_an_end"):
        KeySecret.objects.create(public_id="0" * 12, key=key, digest="0" * 64)


@pytest.mark.parametrize(
    ("columns", "constraint"),
    [
        ({"scopes": []}, "keys_apikey_scopes_are_known"),
        ({"scopes": ["everything"]}, "keys_apikey_scopes_are_known"),
        ({"address_blocks": []}, "keys_apikey_may_be_used_somewhere"),
        ({"disabled_reason": "odd"}, "keys_apikey_reason_only_when_disabled"),
    ],
)
def test_the_database_refuses_a_key_limited_to_what_there_is_not(acme, columns, constraint):
    services.issue_key(tenant=acme, label="nightly", actor="root")

    with pytest.raises(IntegrityError, match=constraint):
        ApiKey.objects.update(**columns)


def test_a_key_belongs_to_a_member_or_to_a_service_account(acme, ada):
    account = tenant_services.create_service_account(tenant=acme, name="build", actor="root")

    with pytest.raises(ValidationError, match="not to both"):
        services.issue_key(tenant=acme, label="nightly", actor="root", member=ada, service_account=account)


def test_a_service_account_of_another_tenant_gets_no_key(acme, globex):
    foreign = tenant_services.create_service_account(tenant=globex, name="build", actor="root")

    with pytest.raises(ValidationError, match="belongs to another tenant"):
        services.issue_key(tenant=acme, label="nightly", actor="root", service_account=foreign)
    services.issue_key(tenant=acme, label="weekly", actor="root")

    def give_it_a_key():
        with transaction.atomic(), connection.cursor() as cursor:
            ApiKey.objects.update(service_account=foreign)
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")

    with pytest.raises(IntegrityError, match="keys_apikey_service_account_of_same_tenant"):
        give_it_a_key()


def test_closing_a_service_account_revokes_its_keys_and_frees_its_name(acme):
    account = tenant_services.create_service_account(tenant=acme, name="build", actor="root")
    for label in ("a", "b"):
        services.issue_key(tenant=acme, label=label, actor="root", service_account=account)
    services.issue_key(tenant=acme, label="a", actor="root")

    closed = tenant_services.close_service_account(account=account, actor="olga", reason="over")
    again = tenant_services.close_service_account(account=account, actor="olga", reason="over")
    tenant_services.create_service_account(tenant=acme, name="build", actor="root")

    assert (closed, again) == (2, None)
    assert ApiKey.objects.filter(revoked_at=None).count() == 1
    event = AuditEvent.objects.get(action="service_account.closed")
    assert (event.reason, event.details["revoked_keys"]) == ("over", 2)
    with pytest.raises(ValidationError, match="is closed"):
        services.issue_key(tenant=acme, label="c", actor="root", service_account=account)


def test_who_leaves_loses_their_keys_in_the_same_transaction(acme, ada):
    mine, _ = services.issue_key(tenant=acme, label="laptop", actor="ada", member=ada)
    lost, _ = services.issue_key(tenant=acme, label="old", actor="ada", member=ada)
    services.revoke_key(key=lost, actor="ada", reason="lost")
    theirs, _ = services.issue_key(tenant=acme, label="laptop", actor="root")

    revoked = tenant_services.remove_member(member=ada, actor="olga")

    mine.refresh_from_db()
    assert revoked == 1
    assert (mine.revoked_reason, mine.member) == ("ada left the tenant", None)
    assert ApiKey.objects.get(pk=theirs.pk).revoked_at is None
    event = AuditEvent.objects.get(action="member.removed")
    assert (event.actor, event.details["revoked_keys"]) == ("olga", 1)
    assert not Member.objects.exists()


def test_a_member_whose_keys_cannot_be_revoked_does_not_leave(acme, ada, monkeypatch):
    services.issue_key(tenant=acme, label="laptop", actor="ada", member=ada)

    def refuse(**_):
        raise IntegrityError("the audit takes nothing")

    monkeypatch.setattr("keys.services.revoke_key", refuse)
    with pytest.raises(IntegrityError), transaction.atomic():
        tenant_services.remove_member(member=ada, actor="olga")

    assert Member.objects.get() == ada
    assert not AuditEvent.objects.filter(action="member.removed").exists()


@pytest.mark.parametrize("goes", ["leaves", "becomes a member"])
def test_the_last_owner_who_can_sign_in_stays_one(acme, goes):
    def person(name, role):
        user = tenant_services.create_user(username=name, email="", actor="root")
        return tenant_services.add_member(tenant=acme, user=user, role=role, actor="root")

    def go(member):
        if goes == "leaves":
            tenant_services.remove_member(member=member, actor="root")
        else:
            tenant_services.change_member(member=member, actor="root", role="member", team=None)

    olga, otto, gone = person("olga", "owner"), person("otto", "owner"), person("gone", "owner")
    type(gone.user).objects.filter(pk=gone.user_id).update(is_active=False)

    go(otto)
    with pytest.raises(ValidationError, match="olga is the only owner") as refused:
        go(olga)

    assert refused.value.code == "last_owner"
    olga.refresh_from_db()
    assert olga.role == "owner"


@pytest.mark.django_db(transaction=True)
def test_of_two_owners_who_leave_at_once_one_stays(acme):
    owners = []
    for name in ("olga", "otto"):
        user = tenant_services.create_user(username=name, email="", actor="root")
        owners.append(tenant_services.add_member(tenant=acme, user=user, role="owner", actor="root"))

    results = at_once(
        *[lambda one=one: tenant_services.remove_member(member=one, actor="root") for one in owners]
    )

    assert sorted(map(str, results)) == sorted(["0", str(ValidationError)])
    assert Member.objects.filter(role="owner").count() == 1


@pytest.mark.parametrize(
    ("days", "fits"),
    [(None, False), (31, False), (30.01, False), (29.99, True)],
)
def test_a_key_ends_within_what_its_tenant_allows(acme, days, fits):
    tenant_services.change_tenant(tenant=acme, actor="root", max_key_days=30)
    acme.refresh_from_db()
    ends = None if days is None else now() + timedelta(days=days)

    if fits:
        key, _ = services.issue_key(tenant=acme, label="nightly", actor="root", expires_at=ends)
        assert key.expires_at == ends
    else:
        with pytest.raises(ValidationError, match="30 days at most"):
            services.issue_key(tenant=acme, label="nightly", actor="root", expires_at=ends)


def test_a_rotation_lets_a_key_live_on(acme):
    tenant_services.change_tenant(tenant=acme, actor="root", max_key_days=30)
    acme.refresh_from_db()
    start = now()
    key, _ = services.issue_key(
        tenant=acme, label="nightly", actor="root", expires_at=start + timedelta(days=30)
    )

    with time_machine.travel(start + timedelta(days=20), tick=False):
        later = now() + timedelta(days=30)
        with pytest.raises(ValidationError, match="30 days at most"):
            services.change_key(key=key, actor="root", expires_at=later)
        services.rotate_key(key=key, actor="root", grace=Grace.DAY)
        assert services.change_key(key=key, actor="root", expires_at=later).expires_at == later
