import datetime
from uuid import uuid4

import pytest
from django.db import IntegrityError, connection, transaction
from django.db.transaction import TransactionManagementError
from django.urls import reverse
from django.utils.timezone import now

from audit.growing import NewestPaginator
from audit.models import AuditEvent, RequestEvent
from audit.recording import person_at_the_shell, record


def an_audit_event(**fields):
    with transaction.atomic():
        return record(**{"action": "key.revoked", "actor": "ada", "subject": "some key"} | fields)


def a_request_event(**fields):
    usual = {
        "request_id": uuid4(),
        "at": now(),
        "tenant_id": uuid4(),
        "tenant": "acme",
        "key_id": uuid4(),
        "key": "nightly",
        "route": "chat",
        "dialect": "ollama",
        "model": "tiny:latest",
        "status": 200,
        "outcome": "completed",
        "input_tokens": 3,
        "output_tokens": 5,
    }
    return RequestEvent.objects.create(**usual | fields)


@pytest.mark.django_db
def test_an_audit_event_says_who_did_what_to_whom_and_why():
    tenant_id, at = uuid4(), datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)

    an_audit_event(tenant_id=tenant_id, reason="left", label="x", expires_at=at, member=tenant_id)

    event = AuditEvent.objects.get()
    assert (event.action, event.actor, event.subject, event.reason) == (
        "key.revoked",
        "ada",
        "some key",
        "left",
    )
    assert event.tenant_id == tenant_id
    assert event.details == {"label": "x", "expires_at": "2026-01-02T00:00:00Z", "member": str(tenant_id)}


@pytest.mark.django_db(transaction=True)
def test_outside_a_transaction_nothing_is_recorded():
    with pytest.raises(TransactionManagementError):
        record(action="key.revoked", actor="ada", subject="some key")

    assert not AuditEvent.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_an_audit_event_goes_when_its_change_is_rolled_back():
    def change_and_fail():
        with transaction.atomic():
            record(action="key.revoked", actor="ada", subject="some key")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        change_and_fail()

    assert not AuditEvent.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize("missing", ["actor", "action", "subject"])
def test_an_audit_event_without_actor_action_or_subject_is_refused(missing):
    with pytest.raises(IntegrityError, match="audit_auditevent_says_who_did_what"):
        an_audit_event(**{missing: ""})


@pytest.mark.django_db
def test_a_request_event_with_negative_tokens_is_refused():
    with pytest.raises(IntegrityError, match="audit_requestevent_tokens_not_negative"):
        a_request_event(output_tokens=-1)


@pytest.mark.django_db
def test_a_request_event_is_written_once_whoever_repeats_it():
    event = a_request_event()

    RequestEvent.objects.bulk_create([event], ignore_conflicts=True)

    assert RequestEvent.objects.count() == 1


@pytest.mark.django_db
@pytest.mark.parametrize("an_event", [an_audit_event, a_request_event])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda event: event.save(), id="save"),
        pytest.param(lambda event: event.delete(), id="delete"),
        pytest.param(lambda event: type(event).objects.update(at=now()), id="bulk update"),
        pytest.param(lambda event: type(event).objects.all().delete(), id="bulk delete"),
        pytest.param(lambda event: sql("UPDATE {table} SET at = now()", event), id="SQL update"),
        pytest.param(lambda event: sql("DELETE FROM {table}", event), id="SQL delete"),
    ],
)
def test_the_database_refuses_to_change_or_delete_an_event(an_event, change):
    event = an_event()

    with pytest.raises(IntegrityError, match="can be added but not changed or deleted"), transaction.atomic():
        change(event)

    assert type(event).objects.get().at == event.at


def sql(statement, event):
    with connection.cursor() as cursor:
        cursor.execute(statement.format(table=event._meta.db_table))


@pytest.mark.django_db(transaction=True)
def test_tests_can_empty_the_tables():
    event = an_audit_event()

    sql("TRUNCATE {table}", event)

    assert not AuditEvent.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize("an_event", [an_audit_event, a_request_event])
def test_a_superuser_may_look_at_events_and_nothing_else(an_event, admin_client):
    event = an_event()
    page = f"admin:audit_{event._meta.model_name}_"

    assert admin_client.get(reverse(page + "changelist")).status_code == 200
    assert admin_client.get(reverse(page + "change", args=[event.pk])).status_code == 200
    assert admin_client.get(reverse(page + "add")).status_code == 403
    assert admin_client.post(reverse(page + "change", args=[event.pk]), {"outcome": "x"}).status_code == 403
    assert admin_client.post(reverse(page + "delete", args=[event.pk]), {"post": "yes"}).status_code == 403
    assert type(event).objects.count() == 1


@pytest.mark.django_db
@pytest.mark.parametrize("field", ["request_id", "key_id", "tenant_id", "tenant", "key", "model"])
def test_a_request_is_found_by_its_ids_and_names(field, admin_client):
    wanted = a_request_event(tenant="wanted", key="wanted", model="wanted")
    other = a_request_event()

    page = admin_client.get(
        reverse("admin:audit_requestevent_changelist"), {"q": str(getattr(wanted, field))}
    )

    assert str(wanted.request_id) in page.content.decode()
    assert str(other.request_id) not in page.content.decode()


@pytest.mark.django_db
def test_requests_are_filtered_by_the_first_digit_of_their_status(admin_client):
    answered, refused = a_request_event(), a_request_event(status=429, refusal="rate_limited")

    page = admin_client.get(reverse("admin:audit_requestevent_changelist"), {"status_class": "4"})

    assert str(refused.request_id) in page.content.decode()
    assert str(answered.request_id) not in page.content.decode()


@pytest.mark.django_db
def test_a_list_of_events_counts_no_more_than_it_can_show(monkeypatch):
    monkeypatch.setattr(NewestPaginator, "LIMIT", 2)
    for _ in range(3):
        a_request_event()

    assert NewestPaginator(RequestEvent.objects.all(), 100).count == 2


def test_the_person_at_the_shell_is_the_account_of_the_system(monkeypatch):
    monkeypatch.setenv("LOGNAME", "ada")

    assert person_at_the_shell() == "ada (manage.py)"
