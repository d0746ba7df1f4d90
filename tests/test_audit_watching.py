"""The worker's looks at the audit: what they find, that the round comes by everything, and who is told."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest
from django.db import connection
from django.utils.timezone import now

from audit import checkpoints, watching
from audit.models import AuditCheck, AuditCheckpoint, AuditEvent, AuditLink
from budgets import alerts
from budgets.models import Delivery, Happening, Notice
from budgets.services import add_recipient
from tests.test_audit_chains import ACME, as_master, happened

pytestmark = pytest.mark.django_db(transaction=True)

# What a master does to the event in the middle, and what a look says of it.
DEEDS = [
    pytest.param(
        "UPDATE audit_auditevent SET actor = 'eve' WHERE id = %s",
        "the event or its place was changed",
        id="changed",
    ),
    pytest.param("DELETE FROM audit_auditevent WHERE id = %s", "the event is gone", id="event taken out"),
    pytest.param(
        "DELETE FROM audit_auditlink WHERE event_id = %s", "the link before it is gone", id="link taken out"
    ),
    pytest.param(
        "UPDATE audit_auditlink SET digest = decode(repeat('00', 32), 'hex') WHERE event_id = %s",
        "the event or its place was changed",
        id="link changed",
    ),
]


def look() -> AuditCheck:
    check = watching.look()
    assert check is not None
    return check


def aged(events: list[AuditEvent]) -> None:
    """Make events older than what a look calls new; their links are written anew."""
    ids = [event.pk for event in events]
    as_master("UPDATE audit_auditevent SET at = %s WHERE id = ANY(%s)", now() - timedelta(days=3), ids)
    before = bytes(32)
    for number, event_id in enumerate(ids, 1):
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT tollgate_audit_digest(%s, %s, event) FROM audit_auditevent event WHERE id = %s",
                [before, number, event_id],
            )
            before = bytes(cursor.fetchone()[0])
        as_master("UPDATE audit_auditlink SET digest = %s WHERE event_id = %s", before, event_id)


def test_an_audit_as_it_was_written_has_no_troubles():
    for _ in range(3):
        happened()
    happened(tenant_id=None)
    happened(tenant_id=uuid4(), nested={"a": [1, 2.5, None], "z": "ß"})
    checkpoints.make()

    check = look()

    assert (check.troubles, check.found, check.events, check.reached) == ([], 0, 5, 0)


@pytest.mark.parametrize(("deed", "expected"), DEEDS)
def test_a_look_finds_what_was_done_to_what_is_new(deed, expected):
    events = [happened() for _ in range(3)]
    as_master(deed, events[1].pk)

    check = look()

    assert expected in " ".join(check.troubles)
    assert check.found >= 1


def test_an_end_that_was_cut_off_is_missed_by_its_checkpoint():
    events = [happened() for _ in range(3)]
    checkpoints.make()
    as_master("DELETE FROM audit_auditlink WHERE event_id = %s", events[-1].pk)
    as_master("DELETE FROM audit_auditevent WHERE id = %s", events[-1].pk)

    check = look()

    assert check.troubles == [f"{ACME} at 3: a checkpoint knows of a link that is gone"]


def test_a_checkpoint_that_somebody_else_wrote_is_found():
    happened()
    digest = AuditLink.objects.get().digest
    AuditCheckpoint.objects.create(at=now(), chain=str(ACME), number=1, digest=digest, signature=bytes(64))

    assert look().troubles[0].endswith("its checkpoint was not signed by this gateway")


def test_the_round_comes_by_what_is_old_a_stretch_at_a_time(monkeypatch):
    monkeypatch.setattr(watching, "STRETCH", 2)
    events = [happened() for _ in range(5)]
    aged(events)
    assert look().found == 0
    as_master("UPDATE audit_auditevent SET actor = 'eve' WHERE id = %s", events[4].pk)

    second, third = look(), look()

    assert (second.found, second.reached) == (0, events[3].pk)
    assert (third.found, third.reached) == (1, 0)
    assert third.troubles == [f"{ACME} at 5 (event {events[4].pk}): the event or its place was changed"]
    assert look().reached == events[1].pk


def test_the_platform_is_told_once_of_a_broken_audit():
    add_recipient(
        tenant=None, kind="email", address="ops@example.org", happenings=["audit_broken"], actor="test"
    )
    event = happened()
    as_master("UPDATE audit_auditevent SET reason = 'another' WHERE id = %s", event.pk)

    alerts.watch_audit()
    alerts.watch_audit()

    notice = Notice.objects.get(happening=Happening.AUDIT_BROKEN)
    assert f"{ACME} at 1 (event {event.pk})" in notice.text
    assert notice.facts["audit"]["found"] == 1
    assert Delivery.objects.get().notice == notice
    assert AuditCheck.objects.count() == 2


def test_whoever_looks_while_another_looks_does_nothing():
    happened()
    another = connection.copy()
    another.set_autocommit(False)
    try:
        with another.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [watching.LOCK])
        assert alerts.watch_audit() is None
    finally:
        another.rollback()
        another.close()

    assert look().events == 1
