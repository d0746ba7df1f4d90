import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connection, transaction
from django.utils.timezone import now
from psycopg.sql import SQL, Identifier

from audit.models import AuditEvent
from keys import secrets, services
from keys.models import ApiKey, KeySecret
from tenants import services as tenant_services


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
