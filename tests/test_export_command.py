"""``manage.py export_usage``: files with their sidecars, what it refuses, and what it leaves in the audit."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from datetime import date
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from audit import months
from audit.models import AuditEvent
from benchmarks.ledger_rows import FILL
from budgets.exports import PROFILES
from tenants.models import Tenant
from tests.exporting import an_entry, an_order, written
from tests.gateway import ROOT, environment

pytestmark = pytest.mark.django_db(transaction=True)

MONTH = ("--from", "2026-10-01", "--before", "2026-11-01")


def export_usage(*arguments: str) -> str:
    said = StringIO()
    call_command("export_usage", *MONTH, *arguments, stdout=said)
    return said.getvalue().strip()


def exported() -> list[AuditEvent]:
    return list(AuditEvent.objects.filter(action="usage.exported").order_by("id"))


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ([], {}),
        (["--gzip"], {"gzip": True}),
        (["--layout", "spreadsheet"], {"layout": "spreadsheet", "separator": "semicolon"}),
        (
            ["--layout", "spreadsheet", "--separator", "tab", "--decimal-comma"],
            {"layout": "spreadsheet", "separator": "tab", "decimal_comma": True},
        ),
        (["--layout", "xlsx"], {"layout": "xlsx"}),
    ],
    ids=["csv", "gzip", "spreadsheet", "choices", "xlsx"],
)
@pytest.mark.parametrize("profile", PROFILES)
def test_it_writes_a_file_and_its_sidecar(
    acme: Tenant, tmp_path: Path, profile: str, arguments: list[str], options: dict[str, Any]
) -> None:
    an_entry(acme)
    file = tmp_path / "usage"

    said = json.loads(
        export_usage("--tenant", "acme", "--profile", profile, *arguments, "--output", str(file), "--json")
    )

    content, sidecar = written(an_order(acme, profile, **options))
    assert file.read_bytes() == content
    beside = json.loads((tmp_path / "usage.json").read_text())
    assert said == {"path": str(file), **beside}
    assert (beside["sha256"], beside["bytes"]) == (hashlib.sha256(content).hexdigest(), len(content))
    assert beside["totals"] == sidecar["totals"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["usage", "usage.json"]


def test_it_names_the_file_by_what_is_in_it(
    acme: Tenant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    said = export_usage("--all", "--profile", "focus", "--gzip")

    name = "all-tenants-focus-2026-10-01-before-2026-11-01.csv.gz"
    assert said.startswith(f"{name}: 0 rows, ")
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, f"{name}.json"]


def test_who_exported_what_is_in_the_audit(acme: Tenant, tmp_path: Path) -> None:
    an_entry(acme)

    export_usage("--tenant", "acme", "--profile", "day", "--output", str(tmp_path / "usage.csv"))

    [event] = exported()
    content = (tmp_path / "usage.csv").read_bytes()
    assert (event.subject, event.tenant_id, event.actor.endswith("(manage.py)")) == ("acme", acme.pk, True)
    assert event.details == {
        "rows": 1,
        "sha256": hashlib.sha256(content).hexdigest(),
        "order": an_order(acme, "day").as_json(),
    }


def test_nothing_is_written_that_cannot_be_audited(
    acme: Tenant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise RuntimeError("no audit")

    monkeypatch.setattr("budgets.exports.jobs.record", refuse)

    with pytest.raises(RuntimeError, match="no audit"):
        export_usage("--tenant", "acme", "--output", str(tmp_path / "usage.csv"))

    assert list(tmp_path.iterdir()) == []


def test_what_was_there_is_replaced_only_by_a_whole_file(
    acme: Tenant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "usage.csv"
    file.write_text("the last one")

    def break_off(*_: Any) -> Any:
        raise RuntimeError("the database is gone")

    monkeypatch.setattr("budgets.exports.writing.calendars_for", break_off)
    with pytest.raises(RuntimeError, match="gone"):
        export_usage("--tenant", "acme", "--output", str(file))

    assert [path.read_text() for path in tmp_path.iterdir()] == ["the last one"]
    assert exported() == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tenant", "nobody"], "There is no tenant 'nobody'."),
        (["--tenant", "acme", "--from", "yesterday"], "'yesterday' is no day."),
        (["--tenant", "acme", "--before", "2026-10-01"], "The range is empty"),
        (["--tenant", "acme", "--decimal-comma"], "for the spreadsheet layout"),
        (
            ["--tenant", "acme", "--output", "/nowhere/at/all"],
            "/nowhere/at/all cannot be written: No such file",
        ),
    ],
)
def test_it_says_in_a_line_what_it_cannot_do(acme: Tenant, arguments: list[str], said: str) -> None:
    with pytest.raises(CommandError, match=said) as told:
        export_usage(*arguments)

    assert "\n" not in str(told.value)
    assert exported() == []


@pytest.mark.parametrize("whose", [[], ["--all", "--tenant", "acme"]], ids=["nobody's", "both"])
def test_it_is_told_whose_usage(acme: Tenant, whose: list[str]) -> None:
    with pytest.raises(CommandError):
        export_usage(*whose)


def test_an_estimate_writes_nothing(acme: Tenant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    an_entry(acme)

    said = export_usage("--tenant", "acme", "--estimate")
    told = json.loads(export_usage("--tenant", "acme", "--estimate", "--json"))

    assert said.startswith("1 rows from 1 entries of the ledger, about ")
    assert (told["rows"], told["exact"]) == (1, True)
    assert list(tmp_path.iterdir()) == []
    assert exported() == []


def a_process(*arguments: str) -> tuple[bytes, int]:
    """What the command writes in a process of its own, and the most memory that this had, in bytes."""
    command = [sys.executable, str(ROOT / "manage.py"), "export_usage", *arguments]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, resources = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return said, resources.ru_maxrss * 1024


def test_standard_output_gets_the_bytes_alone(acme: Tenant) -> None:
    an_entry(acme)

    said, _ = a_process("--tenant", "acme", *MONTH, "--output", "-")

    assert said == written(an_order(acme))[0]
    assert [event.subject for event in exported()] == ["acme"]


MANY = 100_000
FLAT_BYTES = 12 * 2**20
# Options, and the rows that come of the entries.
KINDS = {
    "csv": (["--profile", "requests"], MANY),
    "focus": (["--profile", "focus", "--gzip"], 8960),
}


@pytest.mark.slow
def test_memory_is_flat_however_many_rows_there_are(acme: Tenant, tmp_path: Path) -> None:
    months.ensure("budgets_ledgerentry", [date(2026, 10, 1)])
    with connection.cursor() as cursor:
        cursor.execute(
            FILL, {"rows": MANY, "tenant_id": acme.pk, "tenant": "acme", "first_day": date(2026, 10, 1)}
        )

    for kind, (options, rows) in KINDS.items():
        common = ["--tenant", "acme", "--output", str(tmp_path / "usage"), "--json", *options]
        _, nothing = a_process(*common, "--from", "2026-09-01", "--before", "2026-10-01")
        said, all_of_it = a_process(*common, *MONTH)

        told = json.loads(said)
        assert (told["rows"], told["totals"]["requests"]) == (rows, MANY), kind
        assert all_of_it - nothing < FLAT_BYTES, kind
