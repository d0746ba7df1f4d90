"""``manage.py quickstart`` and ``reset``: from nothing to a proven gateway, and back to nothing."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from config import children, proof, quickstart
from config.data_directory import ROOT, DataDirectory, InUseError, join_running_quickstart
from config.supervisor import PartError, Supervisor
from config.trial_secrets import is_trial_secret

# What the tests' own servers are named by; a quickstart has to begin without them.
OURS = ("DATABASE_URL", "REDIS_URL", "OLLAMA_URL", "SECRET_KEY", "KEY_PEPPER", "SPOOL_DIR", "EXPORT_DIR")


@pytest.fixture
def data() -> Iterator[DataDirectory]:
    """A data directory that the account of root's PostgreSQL can enter."""
    with tempfile.TemporaryDirectory(prefix="quickstart-") as name:
        Path(name).chmod(0o711)
        data = DataDirectory(Path(name) / "data")
        yield data
        if data.exists():
            data.delete()


def command(*arguments: str | Path) -> list[str | Path]:
    return [sys.executable, "manage.py", *arguments]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in OURS}


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@contextlib.contextmanager
def running(data: DataDirectory) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A quickstart that has shown its box, and what it said until then."""
    started = subprocess.Popen(
        command("quickstart", "--port", "0", "--data-dir", data.path),
        cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=children.tether(signal.SIGTERM),  # noqa: PLW1509 - as in ``children.start``
    )  # fmt: skip
    assert started.stdout is not None
    said = ""
    try:
        for line in started.stdout:
            said += line
            if "curl -sN" in line:
                break
        assert started.poll() is None, said
        yield started, said
    finally:
        started.terminate()
        started.communicate()


def descendants(pid: int) -> set[int]:
    """The processes below one, by what the kernel says now."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = {pid}
    while new := {child for child, parent in parents.items() if parent in found} - found:
        found |= new
    return found - {pid}


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    return bool(children.command_of(pid))


def answers(url: str) -> bool:
    address = urlsplit(url)
    with contextlib.suppress(OSError), socket.create_connection((address.hostname, address.port), timeout=1):
        return True
    return False


SECRETS = ("DEMO_KEY", "ADMIN_PASSWORD", "SECRET_KEY", "KEY_PEPPER")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_quickstart_is_proven_continued_killed_continued_stopped_and_deleted(data: DataDirectory) -> None:
    proven = run("quickstart", "--check", "--port", "0", "--data-dir", data.path)

    assert proven.returncode == 0, proven.stdout + proven.stderr
    assert re.search(r"proof .* tokens in, \d+ out", proven.stdout)
    assert re.search(r"ledger .* entry 1: demo, quickstart, .* completed", proven.stdout)
    assert data.environment_file.stat().st_mode & 0o777 == 0o600
    known = data.remembered()
    assert list(known) == quickstart.REMEMBERED
    assert all(is_trial_secret(known[name]) for name in ("SECRET_KEY", "KEY_PEPPER"))
    assert not any(answers(known[name]) for name in ("GATEWAY_URL", "DATABASE_URL", "REDIS_URL"))

    with running(data) as (process, said):
        now = data.remembered()
        assert [now[name] for name in SECRETS] == [known[name] for name in SECRETS]
        assert f"{now['GATEWAY_URL']}/admin/" in said
        _refuse_others(data, process.pid)
        below = descendants(process.pid)
        # PostgreSQL, Valkey, web with a worker, Celery's worker and beat at the least.
        assert len(below) >= 6
        process.kill()
        process.wait()
        wait_until(lambda: not any(is_alive(pid) for pid in below))

    with running(data) as (process, said):
        # What the killed one had booked is there.
        assert re.search(r"ledger .* entry [3-9]: ", said)
        below = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        last_words, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    stopped = re.findall(r"stop (\S+)", last_words)
    assert [name for name in stopped if name != "ollama"] == ["web", "worker", "beat", "Valkey", "PostgreSQL"]
    assert "killed" not in last_words
    assert not any(is_alive(pid) for pid in below)

    deleted = run("reset", "--yes", "--data-dir", data.path)
    assert deleted.returncode == 0
    assert not data.path.exists()


def _refuse_others(data: DataDirectory, pid: int) -> None:
    second = run("quickstart", "--port", "0", "--data-dir", data.path)
    assert second.returncode == 1
    assert f"a quickstart runs in {data.path} already (process {pid})" in second.stdout
    kept = run("reset", "--yes", "--data-dir", data.path)
    assert kept.returncode == 1
    assert "Stop it first" in kept.stdout


@pytest.mark.slow
def test_a_start_on_a_port_in_use_says_so_and_leaves_nothing(data: DataDirectory) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = run("quickstart", "--port", str(port), "--data-dir", data.path)

    assert refused.returncode == 1
    assert f"Cannot listen at 127.0.0.1 port {port}" in refused.stdout
    assert "Traceback" not in refused.stderr


EVERYWHERE = "0.0.0.0"  # noqa: S104 - who may listen there is what is tested


@pytest.mark.parametrize("host", [EVERYWHERE, "::"])
def test_others_reach_no_gateway_with_secrets_of_a_trial(data: DataDirectory, host: str) -> None:
    refused = run("quickstart", "--host", host, "--port", "0", "--data-dir", data.path)

    assert refused.returncode == 1
    assert f"At {host} others reach the gateway, and SECRET_KEY and KEY_PEPPER" in refused.stdout
    assert "Traceback" not in refused.stderr
    assert not data.postgres.exists()


@pytest.mark.parametrize(
    ("set_now", "remembered"),
    [
        pytest.param({"SECRET_KEY": "mine", "KEY_PEPPER": "too"}, {}, id="set"),
        pytest.param({}, {"SECRET_KEY": "unmarked", "KEY_PEPPER": "unmarked, too"}, id="made before marks"),
        pytest.param({"SECRET_KEY": "mine"}, {"SECRET_KEY": "trial-x", "KEY_PEPPER": "old"}, id="both"),
    ],
)
def test_others_reach_a_gateway_with_secrets_that_are_somebodys(
    data: DataDirectory, monkeypatch: pytest.MonkeyPatch, set_now: dict[str, str], remembered: dict[str, str]
) -> None:
    for name in OURS:
        monkeypatch.delenv(name, raising=False)
    for name, value in set_now.items():
        monkeypatch.setenv(name, value)

    made = quickstart._environment(quickstart._parse(["--host", EVERYWHERE, "--port", "0"]), data, remembered)

    assert {name: made[name] for name in ("SECRET_KEY", "KEY_PEPPER")} == {**remembered, **set_now}


@pytest.mark.slow
def test_an_ollama_that_was_named_has_to_answer(data: DataDirectory) -> None:
    with socket.socket() as ours:
        # Nobody else gets this port, and nobody listens at it.
        ours.bind(("127.0.0.1", 0))
        silent = f"http://127.0.0.1:{ours.getsockname()[1]}"
        ran = subprocess.run(
            command("quickstart", "--check", "--port", "0", "--data-dir", data.path),
            cwd=ROOT, env={**environment(), "OLLAMA_URL": silent}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    assert ran.returncode == 1
    assert f"OLLAMA_URL names {silent}, but no Ollama answers there." in ran.stdout
    assert "Traceback" not in ran.stdout + ran.stderr


@pytest.mark.parametrize("known", [True, False])
def test_a_secret_is_shown_only_when_it_is_new(
    data: DataDirectory, capsys: pytest.CaptureFixture[str], known: bool
) -> None:
    made = {"GATEWAY_URL": "http://gateway", "DEMO_KEY": "tg_key", "ADMIN_PASSWORD": "swordfish"}

    quickstart._show_box(made, made if known else {}, data, "tiny:1b")

    said = capsys.readouterr().out
    assert ("tg_key" in said, "swordfish" in said) == (not known, not known)
    assert str(data.environment_file) in said


def test_reset_asks_and_takes_silence_for_a_no(data: DataDirectory) -> None:
    with data.lock():
        pass

    asked = run("reset", "--data-dir", data.path)

    assert asked.returncode == 1
    assert f"Delete {data.path}" in asked.stdout
    assert data.path.exists()


def test_reset_leaves_a_directory_alone_in_which_no_quickstart_ran(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("work")

    ran = run("reset", "--yes", "--data-dir", tmp_path)

    assert ran.returncode == 0
    assert (tmp_path / "precious").exists()


def test_the_environment_file_reads_the_same_for_a_shell_and_for_us(data: DataDirectory) -> None:
    values = {
        "DATABASE_URL": "postgres://u:p'w@h/d?a=1&b=$HOME",
        "EMPTY": "",
        "ADMIN_PASSWORD": '- x="y" `z`',
    }
    with data.lock():
        data.remember({"DATABASE_URL": "old"})
        data.remember(values)

    script = '. "$0"; printf "%s\n" "$DATABASE_URL" "$EMPTY" "$ADMIN_PASSWORD"'
    shell = subprocess.run(
        ["sh", "-c", script, data.environment_file], capture_output=True, text=True, check=True
    )

    assert shell.stdout.splitlines() == list(values.values())
    assert data.remembered() == values
    assert data.environment_file.stat().st_mode & 0o777 == 0o600


def test_a_second_owner_is_refused_and_told_of_the_first(data: DataDirectory) -> None:
    with data.lock():
        assert data.in_use()
        with pytest.raises(InUseError, match=str(os.getpid())), data.lock():
            pass
        assert data.in_use()

    assert not data.in_use()


def test_commands_join_a_running_quickstart_but_no_stopped_one(
    data: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("config.data_directory.DataDirectory", lambda: data)
    stopped: dict[str, str] = {}
    beside: dict[str, str] = {"REDIS_URL": "mine"}
    elsewhere: dict[str, str] = {"DATABASE_URL": "elsewhere"}

    with data.lock():
        data.remember({"DATABASE_URL": "postgres", "REDIS_URL": "redis", "SECRET_KEY": "secret"})
        join_running_quickstart(beside)
        join_running_quickstart(elsewhere)
    join_running_quickstart(stopped)

    assert beside == {"DATABASE_URL": "postgres", "REDIS_URL": "mine", "SECRET_KEY": "secret"}
    assert elsewhere == {"DATABASE_URL": "elsewhere"}
    assert stopped == {}


def test_a_part_that_dies_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    with Supervisor(tmp_path) as supervisor:
        supervisor.start("worker", ["-c", "print('out of paper'); exit(3)"], dict(os.environ), patience=5)

        with pytest.raises(PartError, match=r"worker ended with status 3(?s:.*)out of paper"):
            supervisor.watch()


def test_parts_are_stopped_in_reverse_order_and_the_deaf_are_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deaf = "from signal import *; signal(SIGTERM, SIG_IGN); print('deaf', flush=True); pause()"
    with Supervisor(tmp_path) as supervisor:
        supervisor.start("first", ["-c", "import signal; signal.pause()"], dict(os.environ), patience=20)
        supervisor.start("second", ["-c", deaf], dict(os.environ), patience=0.2)
        wait_until(lambda: supervisor.log_of("second").read_text() == "deaf\n")

    said = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in said] == ["second", "first"]
    assert "had to be killed" in said[0]
    assert "had to be killed" not in said[1]


def test_the_smallest_model_that_can_chat_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {
        "http://ollama/api/tags": {
            "models": [
                {"name": "big:latest", "size": 9},
                {"name": "cloud:latest", "size": 1, "remote_host": "https://ollama.com"},
                {"name": "embed:latest", "size": 2},
                {"name": "small:latest", "size": 3},
            ]
        }
    }
    abilities = {"embed:latest": ["embedding"], "small:latest": ["completion", "tools"]}

    def ask(url: str, body: dict[str, str] | None = None) -> object:
        return told[url] if body is None else {"capabilities": abilities.get(body["model"], ["completion"])}

    monkeypatch.setattr(proof, "_ask", ask)

    assert proof.chat_model_of("http://ollama") == "small:latest"
