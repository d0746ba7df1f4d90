"""What the audit's chains show of those who may do everything in the database."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connection, transaction

from audit import chains, checkpoints
from audit.models import AuditCheckpoint, AuditEvent, AuditLink
from audit.recording import record

pytestmark = pytest.mark.django_db(transaction=True)

ACME = uuid4()


def happened(what: str = "key.issued", tenant_id: UUID | None = ACME, **details: Any) -> AuditEvent:
    with transaction.atomic():
        return record(action=what, actor="ada", subject="k1", tenant_id=tenant_id, reason="Grüße", **details)


def as_master(statement: str, *values: Any) -> None:
    """What somebody does who may do everything, triggers or not."""
    with transaction.atomic(), connection.cursor() as cursor:
        for table in ("audit_auditevent", "audit_auditlink"):
            cursor.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        cursor.execute(statement, values)
        for table in ("audit_auditevent", "audit_auditlink"):
            cursor.execute(f"ALTER TABLE {table} ENABLE TRIGGER USER")


def troubles(marks: chains.Marks | None = None) -> list[str]:
    return [trouble.what for trouble in chains.verify(marks).troubles]


def rewritten() -> None:
    """The chain of ACME made anew over what stands in the table now, as a master could."""
    as_master("DELETE FROM audit_auditlink WHERE chain = %s", str(ACME))
    before = chains.BEFORE_THE_FIRST
    for number, event in enumerate(AuditEvent.objects.filter(tenant_id=ACME).order_by("id"), 1):
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT tollgate_audit_digest(%s, %s, event) FROM audit_auditevent event WHERE id = %s",
                [before, number, event.pk],
            )
            before = bytes(cursor.fetchone()[0])
        AuditLink.objects.create(event_id=event.pk, chain=str(ACME), number=number, digest=before)


def test_every_tenant_has_a_chain_and_so_has_the_platform():
    for _ in range(3):
        happened()
    happened(tenant_id=None)
    happened(tenant_id=uuid4(), nested={"a": [1, 2.5, None], "z": "ß"})

    found = chains.verify()

    assert found.troubles == []
    assert found.events == 5
    assert sorted(number for number, _ in found.ends.values()) == [1, 1, 3]
    assert found.ends["platform"][0] == 1


def test_what_is_rolled_back_leaves_no_link_and_no_gap():
    happened()
    with transaction.atomic():
        record(action="key.issued", actor="ada", subject="k2", tenant_id=ACME)
        transaction.set_rollback(True)
    happened()

    assert chains.verify().troubles == []
    assert list(AuditLink.objects.order_by("number").values_list("number", flat=True)) == [1, 2]


@pytest.mark.parametrize(
    "column",
    ["actor", "origin", "action", "subject", "reason"],
)
def test_a_changed_column_is_found(column):
    happened()
    changed = happened()
    happened()

    as_master(f"UPDATE audit_auditevent SET {column} = 'other' WHERE id = %s", changed.pk)  # noqa: S608

    assert troubles() == ["the event or its place was changed"]


@pytest.mark.parametrize(
    "change",
    [
        "at = at + interval '1 microsecond'",
        "details = '{\"limit\": 5}'",
        "actor = 'ad', origin = 'a'",
        "tenant_id = NULL",
    ],
)
def test_any_other_change_is_found(change):
    happened(limit=4)

    as_master(f"UPDATE audit_auditevent SET {change}")  # noqa: S608

    assert "the event or its place was changed" in troubles()


def test_a_missing_event_is_found():
    happened()
    gone = happened()
    happened()

    as_master("DELETE FROM audit_auditevent WHERE id = %s", gone.pk)

    assert troubles() == ["the event is gone"]


def test_an_event_that_went_with_its_link_is_found():
    happened()
    gone = happened()
    happened()

    as_master("DELETE FROM audit_auditevent WHERE id = %s", gone.pk)
    as_master("DELETE FROM audit_auditlink WHERE event_id = %s", gone.pk)

    assert troubles() == ["links are gone, from 2 on"]


def test_events_that_changed_places_are_found():
    first, second = happened("key.issued"), happened("key.revoked")

    # Through negative ids, because no moment may have two links of one event.
    as_master("UPDATE audit_auditlink SET event_id = -event_id")
    as_master("UPDATE audit_auditlink SET event_id = event_id + %s", first.pk + second.pk)

    assert troubles() == ["the event or its place was changed"] * 2


def test_an_event_that_was_slipped_in_is_found():
    happened()

    as_master(
        "INSERT INTO audit_auditevent (at, actor, action, subject, reason, details) "
        "VALUES (now(), 'eve', 'key.issued', 'k', '', '{}')"
    )

    assert troubles() == ["the event has no link"]


def test_plain_sql_that_adds_an_event_links_it():
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO audit_auditevent (at, actor, action, subject, reason, details) "
            "VALUES (now(), 'ada', 'key.issued', 'k', '', '{}')"
        )

    assert chains.verify().ends["platform"][0] == 1
    assert troubles() == []


@pytest.mark.parametrize("table", ["audit_auditevent", "audit_auditlink", "audit_auditcheckpoint"])
@pytest.mark.parametrize("statement", ["DELETE FROM {}", "UPDATE {} SET {} = {}"])
def test_the_application_cannot_change_what_is_written(table, statement):
    happened()
    checkpoints.make()
    column = "event_id" if table == "audit_auditlink" else "id"

    with pytest.raises(IntegrityError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement.format(table, column, column))


def test_a_chain_that_was_cut_off_or_written_anew_is_found_by_a_checkpoint_kept_elsewhere():
    happened()
    last = happened()
    checkpoints.make()
    kept = checkpoints.marks_in(checkpoints.lines())
    assert troubles(kept) == []

    as_master("UPDATE audit_auditevent SET actor = 'eve' WHERE id = %s", last.pk)
    rewritten()
    assert troubles() == []
    assert troubles(kept) == ["a checkpoint says otherwise"]

    as_master("DELETE FROM audit_auditevent WHERE id = %s", last.pk)
    rewritten()
    assert troubles() == []
    assert troubles(kept) == ["a checkpoint knows of a link that is gone"]


def test_only_chains_that_have_grown_get_a_new_checkpoint():
    happened()
    happened(tenant_id=None)

    assert checkpoints.make() == 2
    assert checkpoints.make() == 0
    happened()
    assert checkpoints.make() == 1
    assert AuditCheckpoint.objects.count() == 3


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"number": 7}, "not signed by this gateway"),
        ({"digest": "00" * 32}, "not signed by this gateway"),
        ({"chain": "platform"}, "not signed by this gateway"),
        ({"signature": "00" * 64}, "not signed by this gateway"),
        ({"digest": "no digits"}, "no checkpoint"),
        ({"at": "yesterday"}, "no checkpoint"),
    ],
)
def test_a_forged_line_is_no_checkpoint(change, told):
    happened()
    checkpoints.make()
    (line,) = checkpoints.lines()

    with pytest.raises(checkpoints.Forged, match=told):
        checkpoints.marks_in([json.dumps(json.loads(line) | change)])


def test_those_who_write_at_once_wait_for_each_other_and_never_for_ever():
    tenants, workers = [uuid4(), uuid4(), None], 8
    together = threading.Barrier(workers)

    def write(worker: int) -> None:
        try:
            together.wait(20)
            for number in range(10):
                with transaction.atomic():
                    for tenant_id in tenants if worker % 2 else reversed(tenants):
                        record(
                            action="limit.set", actor=f"w{worker}", subject=str(number), tenant_id=tenant_id
                        )
        finally:
            connection.close()

    with ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(write, worker) for worker in range(workers)]:
            done.result()

    found = chains.verify()
    assert found.troubles == []
    assert [number for number, _ in found.ends.values()] == [workers * 10] * 3


def test_the_commands_make_keep_and_check(tmp_path, capsys):
    happened()
    file = tmp_path / "checkpoints.jsonl"

    call_command("audit_checkpoints", output=str(file))
    call_command("verify_audit", checkpoints=str(file), json=True)
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["events"], told["checkpoints"], told["troubles"]) == (1, 1, [])

    as_master("UPDATE audit_auditevent SET actor = 'eve'")
    with pytest.raises(CommandError, match="not as it was written"):
        call_command("verify_audit")
    assert "the event or its place was changed" in capsys.readouterr().out

    file.write_text("{}\n")
    with pytest.raises(CommandError, match="line 1 is no checkpoint"):
        call_command("verify_audit", checkpoints=str(file))
    with pytest.raises(CommandError, match="cannot be read"):
        call_command("verify_audit", checkpoints=str(tmp_path / "none"))
