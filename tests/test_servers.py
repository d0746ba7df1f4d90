"""The plugin that starts servers for the tests: everything it starts ends, everything it wrote goes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from config import children
from config.data_directory import ROOT

NAMES = ("DATABASE_URL", "REDIS_URL", "SECRET_KEY", "KEY_PEPPER", "SPOOL_DIR", "TOLLGATE_TEST_REDIS")


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    """A test that tells where the servers are and which processes serve."""
    file = tmp_path / "test_probe.py"
    file.write_text(
        textwrap.dedent("""
        import os
        from pathlib import Path
        import pytest
        from django.db import connection
        from tenants.redis import redis_now

        @pytest.mark.django_db
        @pytest.mark.parametrize("number", range(2))
        def test_servers_are_real(number):
            with connection.cursor() as cursor:
                cursor.execute("SELECT current_database()")
                database = cursor.fetchone()[0]
            info = redis_now().info("server")
            place = Path(os.environ["SPOOL_DIR"]).parent
            with open(os.environ["PROBE"], "a") as told:
                told.write(f"{database} {os.environ['REDIS_URL'][-2:]} {info['process_id']} {place}\\n")
            if "PROBE_DIES" in os.environ:
                os.kill(os.getpid(), 9)
        """)
    )
    return file


def run(
    probe: Path, *arguments: str, **variables: str
) -> tuple[subprocess.CompletedProcess[str], list[list[str]]]:
    """What pytest said, and what each probe told: database, Redis number, Valkey's process, directory."""
    told = probe.with_name("told")
    told.write_text("")
    temporary = probe.with_name("temporary")
    temporary.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    # The tables are none of these tests' business; migrations take longer than all else here.
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", ROOT / "pyproject.toml", "--rootdir", ROOT, "-p",
         "no:cacheprovider", "--no-migrations", *arguments, probe],
        cwd=ROOT, env={**environment, "PROBE": str(told), "TMPDIR": str(temporary), **variables},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return ran, [line.split() for line in told.read_text().splitlines()]


def test_workers_share_the_servers_and_nothing_in_them(probe: Path) -> None:
    ran, told = run(probe, "-n", "2", "--dist", "each")

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert {(database, number) for database, number, *_ in told} == {
        ("test_tollgate_gw0", "/1"),
        ("test_tollgate_gw1", "/2"),
    }
    assert len({process for _, _, process, _ in told}) == 1


def test_servers_live_as_long_as_the_tests_and_what_a_killed_run_left_is_removed_by_the_next(
    probe: Path,
) -> None:
    killed, told = run(probe, PROBE_DIES="yes")
    assert killed.returncode == -9
    assert Path(told[0][3]).exists()

    ran, again = run(probe)

    assert ran.returncode == 0, ran.stdout + ran.stderr
    (database, number, process, place), _ = again
    assert (database, number) == ("test_tollgate", "/0")
    for server in (told[0][2], process):
        assert not children.command_of(int(server))
    assert not Path(told[0][3]).exists()
    assert not Path(place).exists()
    assert list(probe.with_name("temporary").iterdir()) == []


def test_workers_do_not_share_a_redis_that_was_given(probe: Path) -> None:
    # Not our database server too: that run would drop the template there, which other workers may want.
    ran, told = run(probe, "-n", "2", REDIS_URL=os.environ["REDIS_URL"])

    assert ran.returncode == pytest.ExitCode.USAGE_ERROR
    assert "leave REDIS_URL unset" in ran.stderr
    assert told == []
