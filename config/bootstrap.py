"""From a bare Python to the environment in ``.venv``. Standard library only.

There is one environment, for ``quickstart`` and ``test`` alike: everything in
``requirements-dev.txt``, which is the runtime, the two embedded servers, the
tests and the tools. Production installs ``requirements.txt`` in its own way
and has no ``.venv`` here; then the Python that runs ``manage.py`` is used.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from config.progress import say, step

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv"
LOCK = ROOT / "requirements-dev.txt"

OWN_SERVERS = (
    "Where a package has no build for this platform, install requirements.txt yourself and set "
    "DATABASE_URL, REDIS_URL, SECRET_KEY and KEY_PEPPER: every command but quickstart and test then works."
)


def build_environment(environment: Path = ENVIRONMENT, lock: Path = LOCK) -> None:
    """Make ``environment`` hold what ``lock`` says; nothing is done when it does already.

    Of several at once one builds and the others wait. An attempt cut short is
    repeated by the next call. Ends the process with a message if it fails.
    """
    stamp = environment / "tollgate.stamp"
    wanted = f"{hashlib.sha256(lock.read_bytes()).hexdigest()} {environment}\n"
    with _alone(lock):
        if _read(stamp) == wanted and _python_of(environment).exists():
            return
        say(f"Installing {lock.name} into {environment}. The first time takes up to a minute.")
        with step("environment") as current:
            stamp.unlink(missing_ok=True)
            if not _is_usable(environment):
                _create(environment)
            current.result = _install(lock, environment)
            _make_importable(environment)
        stamp.write_text(wanted)


def enter_environment(environment: Path = ENVIRONMENT) -> None:
    """Go on under the Python of ``environment``, from the start of the program; return if that is so already.

    Without an environment the running Python is used.
    """
    inside = Path(sys.prefix).resolve() == environment.resolve()
    python = _python_of(environment)
    if not inside and python.exists():
        os.execv(python, [str(python), *sys.orig_argv[1:]])  # noqa: S606


def keep_compiled() -> None:
    """Let the processes that are started from here keep what they compile, also where Python is told not to.

    There are many of them, and each would compile every module again. It lies in ``__pycache__``, as usual.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def run_tests(arguments: Sequence[str]) -> None:
    """Become pytest. Its plugin ``tests.servers`` starts and removes the servers."""
    os.chdir(ROOT)
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *arguments])  # noqa: S606


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    # The lock file for requirements serves as one for processes too: it is there before all else.
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Waiting for another process that is building the environment.")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_usable(environment: Path) -> bool:
    """Whether the environment has a Python that is new enough and was made for this place.

    Programs in an environment name it by its full path, so it cannot be moved.
    """
    python = _python_of(environment)
    if not python.exists() or str(environment) not in (_read(environment / "bin" / "activate") or ""):
        return False
    newer = "import sys; sys.exit(sys.version_info < (3, 11))"
    return subprocess.run([python, "-c", newer], check=False).returncode == 0


def _create(environment: Path) -> None:
    if uv := shutil.which("uv"):
        shutil.rmtree(environment, ignore_errors=True)
        _run([uv, "venv", "--quiet", "--python", sys.executable, environment])
        return
    command: list[str | Path] = [sys.executable, "-m", "venv", "--clear", environment]
    # Debian keeps ensurepip in a package of its own; without it the outer pip installs into the environment.
    without_pip = ["--without-pip"] if importlib.util.find_spec("ensurepip") is None else []
    _run([*command, *without_pip])


def _install(lock: Path, environment: Path) -> str:
    """Install ``lock``, each file against its hash; returns with what."""
    hashed: list[str | Path] = ["--quiet", "--require-hashes", "--requirement", lock]
    if uv := shutil.which("uv"):
        # Compiled now: the parts of a quickstart start at the same time, and each would do it for itself.
        _run([uv, "pip", "install", "--compile-bytecode", "--python", _python_of(environment), *hashed])
        return "installed with uv"
    _run([*_pip_for(environment), "install", "--disable-pip-version-check", "--no-input", *hashed])
    return "installed with pip"


def _pip_for(environment: Path) -> list[str | Path]:
    """The command of a pip that installs into ``environment``: its own, else its maker's."""
    python = _python_of(environment)
    own: list[str | Path] = [python, "-m", "pip"]
    outer: list[str | Path] = [python.resolve(), "-m", "pip", "--python", python]
    for pip in (own, outer):
        if subprocess.run([*pip, "--version"], capture_output=True, check=False).returncode == 0:
            return pip
    sys.exit("There is no pip here. Install python3-venv or python3-pip (Debian's names), or uv, and repeat.")


def _run(command: Sequence[str | Path]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip()
        sys.exit(f"{' '.join(map(str, command))} failed:\n{said}\n\n{OWN_SERVERS}")


def _make_importable(environment: Path) -> None:
    """Let programs of the environment, such as ``.venv/bin/pytest``, import the project."""
    for packages in environment.glob("lib/python3*/site-packages"):
        (packages / "tollgate.pth").write_text(f"{ROOT}\n")


def _python_of(environment: Path) -> Path:
    return environment / "bin" / "python"


def _read(file: Path) -> str | None:
    try:
        return file.read_text()
    except FileNotFoundError:
        return None
