"""The pytest plugin that starts PostgreSQL and Valkey when no address of one is given.

Named in ``addopts``, because pytest-django reads the settings, and with them
the addresses, before any conftest is loaded. The servers and all they wrote
are thrown away at the end.

The whole suite runs in several workers, other runs with ``-n 2`` do. They share
the servers: pytest-django gives each a database, a copy of ``TEMPLATE``, and each
gets a Redis database number of its own here.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import os
import tempfile
from collections.abc import Generator
from pathlib import Path

import psycopg
import pytest

from config.embedded import Postgres, Valkey, remove_directory
from config.loading import loading
from config.trial_secrets import make_trial_secret

PREFIX = "tollgate-test-"

# The database that the first worker migrates and all copy.
TEMPLATE = "test_tollgate_template"

# Under a load of other work a healthy server may take longer than production allows it. And operators
# of most tests are made on the spot; those about signing in switch their second factor on.
RELAXED = {"REDIS_TIMEOUT_SECONDS": "2", "OPERATORS_NEED_SECOND_FACTOR": "false"}

# With more the servers, which all share, become what is waited for.
MOST_WORKERS = 4


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None]:
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is None:
        cleanup = contextlib.ExitStack()
        early_config.add_cleanup(cleanup.close)
        _prepare(cleanup)
    elif "TOLLGATE_TEST_REDIS" in os.environ:
        _take_own_share(int(worker.removeprefix("gw")))
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Collect as code is loaded: to look for garbage takes half of the time, and all of it stays."""
    with loading():
        if session.config.args == session.config.getini("testpaths"):
            _load_own_share()
        collected = yield
    # Each test leaves thousands of objects, so by default all are looked through again every dozen tests.
    gc.set_threshold(10_000)
    return collected


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None) and "TOLLGATE_TEST_REDIS" not in os.environ:
        raise pytest.UsageError("with -n leave REDIS_URL unset: the workers would share one database of it")


@pytest.hookimpl(tryfirst=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """How many workers the whole suite gets; a part of it is done before they would have started.

    A Redis that was given has only the one database that was named.
    """
    # Two more than there are cores: tests wait for processes, streams and browsers half of their time.
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return (
        min((os.cpu_count() or 1) + 2, MOST_WORKERS) if whole and "TOLLGATE_TEST_REDIS" in os.environ else 0
    )


def _prepare(cleanup: contextlib.ExitStack) -> None:
    """Start what is missing and put addresses and secrets into the environment."""
    directory = _throw_away_directory(cleanup)
    postgres, valkey = _servers(directory)
    if "DATABASE_URL" not in os.environ:
        os.environ["DATABASE_URL"] = cleanup.enter_context(postgres).url
    else:
        cleanup.callback(_drop_template, os.environ["DATABASE_URL"])
    if "REDIS_URL" not in os.environ:
        os.environ["REDIS_URL"] = os.environ["TOLLGATE_TEST_REDIS"] = cleanup.enter_context(valkey).url
    defaults = {
        "SECRET_KEY": make_trial_secret(),
        "KEY_PEPPER": make_trial_secret(),
        "SPOOL_DIR": str(directory / "spool"),
        "EXPORT_DIR": str(directory / "exports"),
        **RELAXED,
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _servers(directory: Path) -> tuple[Postgres, Valkey]:
    return (
        Postgres(directory / "postgres", log=directory / "postgres.log", durable=False),
        Valkey(directory / "valkey", log=directory / "valkey.log", durable=False),
    )


def _drop_template(address: str) -> None:
    with psycopg.connect(address, autocommit=True) as server:
        server.execute(f'DROP DATABASE IF EXISTS "{TEMPLATE}"')


def _take_own_share(number: int) -> None:
    """Move this xdist worker to a Redis database and directories of its own."""
    os.environ["REDIS_URL"] = os.environ["TOLLGATE_TEST_REDIS"].removesuffix("/0") + f"/{number + 1}"
    for name in ("SPOOL_DIR", "EXPORT_DIR"):
        os.environ[name] += f"-{number}"


def _load_own_share() -> None:
    """Load every fourth test file, if this is one of four workers; then the four collect.

    They collect the same files in the same order, and in a new checkout each would compile each of them. So
    each finds most of them compiled by others.
    """
    worker, count = os.environ.get("PYTEST_XDIST_WORKER"), os.environ.get("PYTEST_XDIST_WORKER_COUNT")
    if worker is not None and count is not None:
        files = sorted(Path(__file__).parent.glob("test_*.py"))
        for file in files[int(worker.removeprefix("gw")) :: int(count)]:
            # What is wrong with a file is told when it is collected.
            with contextlib.suppress(Exception):
                importlib.import_module(f"{__package__}.{file.stem}")


def _throw_away_directory(cleanup: contextlib.ExitStack) -> Path:
    """A new directory, locked while we live, so that a later run can tell it from a leftover."""
    for leftover in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        _remove_unless_in_use(leftover)
    new = Path(tempfile.mkdtemp(prefix="new-"))
    # The account under which root's PostgreSQL runs passes through here to its data.
    new.chmod(0o711)
    fcntl.flock(cleanup.enter_context((new / "lock").open("w")), fcntl.LOCK_EX)
    # Named so only now: whoever finds it under this name finds it locked.
    directory = new.rename(new.with_name(new.name.replace("new-", PREFIX, 1)))
    cleanup.callback(_remove, directory)
    return directory


def _remove_unless_in_use(directory: Path) -> None:
    # The run whose it is may end, and remove it, at any moment.
    with contextlib.suppress(FileNotFoundError, BlockingIOError):
        if directory.lstat().st_uid != os.geteuid():
            return
        with (directory / "lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # They end with the run that was killed, and write until they have.
            for server in _servers(directory):
                server.stop_leftover()
            _remove(directory)


def _remove(directory: Path) -> None:
    remove_directory(directory / "postgres")
    remove_directory(directory)
