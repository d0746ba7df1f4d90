"""From a bare Python to the environment: built once, by one process, from what the hashes say."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from config import bootstrap
from config.data_directory import DataDirectory

ROOT = Path(__file__).resolve().parent.parent
# The Python that .venv was made of: what a person calls.
OUTER_PYTHON = Path(sys.executable).resolve()

# As on Debian without python3-venv.
NO_ENSUREPIP = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "ensurepip" else find(name, *rest)
"""
OUTER_HAS_PIP = (
    subprocess.run([OUTER_PYTHON, "-c", "import pip"], capture_output=True, check=False).returncode == 0
)


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return a_lock(tmp_path)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lock with its environment beside it, for tests that leave both whole: a build takes a second."""
    lock = a_lock(tmp_path_factory.mktemp("built"))
    first = build(lock)
    assert first.returncode == 0, first.stdout + first.stderr
    return lock


def a_lock(directory: Path) -> Path:
    """A lock of one package, which lies beside it."""
    wheel = directory / "tollgate_sample-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        info = "tollgate_sample-1.0.dist-info"
        archive.writestr("tollgate_sample.py", "answer = 42\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tollgate-sample\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    lock = directory / "lock.txt"
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    lock.write_text(f"--no-index\n--find-links {directory}\ntollgate-sample==1.0 --hash=sha256:{digest}\n")
    return lock


def building(lock: Path, *, ensurepip: bool = not OUTER_HAS_PIP) -> list[str | Path]:
    """The command of a process that builds the environment beside ``lock``, as a bare Python would.

    Without ensurepip where that is possible, because it is much quicker.
    """
    program = f"""
import os
from pathlib import Path
from config.bootstrap import build_environment
# No uv, whatever this machine has.
os.environ["PATH"] = "/usr/bin:/bin"
build_environment(Path({str(lock.parent / "environment")!r}), Path({str(lock)!r}))
"""
    return [OUTER_PYTHON, "-c", program if ensurepip else NO_ENSUREPIP + program]


def build(lock: Path, **how: bool) -> subprocess.CompletedProcess[str]:
    return subprocess.run(building(lock, **how), cwd=ROOT, capture_output=True, text=True, check=False)


def answer_in(lock: Path) -> str:
    """What the sample package says in the environment, and whether the project can be imported there."""
    python = lock.parent / "environment" / "bin" / "python"
    program = "import tollgate_sample, config; print(tollgate_sample.answer)"
    ran = subprocess.run([python, "-c", program], cwd="/", capture_output=True, text=True, check=False)
    return ran.stdout.strip() or ran.stderr


def test_the_environment_is_built_once(lock: Path) -> None:
    first = build(lock, ensurepip=True)
    second = build(lock, ensurepip=True)

    assert (first.returncode, second.returncode) == (0, 0), first.stdout + first.stderr
    assert "installed with pip" in first.stdout
    assert second.stdout == ""
    assert answer_in(lock) == "42"


@pytest.mark.skipif(not OUTER_HAS_PIP, reason="the Python that .venv is made of has no pip")
def test_without_ensurepip_the_outer_pip_installs(built: Path) -> None:
    assert not (built.parent / "environment" / "bin" / "pip").exists()
    assert answer_in(built) == "42"


def test_two_at_once_build_one_environment(lock: Path) -> None:
    builders = [
        subprocess.Popen(
            building(lock), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(2)
    ]

    said = [builder.communicate(timeout=90)[0] for builder in builders]

    assert [builder.returncode for builder in builders] == [0, 0], said
    assert "".join(said).count("installed with pip") == 1
    assert answer_in(lock) == "42"


def test_a_file_that_does_not_match_its_hash_is_not_installed(lock: Path) -> None:
    lock.write_text(lock.read_text().replace("sha256:", "sha256:" + "0" * 8)[:-9] + "\n")

    refused = build(lock)

    assert refused.returncode == 1
    assert "hash" in refused.stderr.lower()
    assert "DATABASE_URL" in refused.stderr
    assert not (lock.parent / "environment" / "tollgate.stamp").exists()


def test_an_attempt_cut_short_is_repeated(built: Path) -> None:
    (built.parent / "environment" / "tollgate.stamp").unlink()
    for file in built.parent.glob("environment/lib/python3*/site-packages/tollgate_sample*"):
        subprocess.run(["rm", "-r", str(file)], check=True)
    assert answer_in(built) != "42"

    again = build(built)

    assert again.returncode == 0, again.stdout + again.stderr
    assert answer_in(built) == "42"


def test_an_environment_that_was_moved_here_is_built_anew(built: Path, lock: Path) -> None:
    shutil.copytree(built.parent / "environment", lock.parent / "environment", symlinks=True)

    again = build(lock)

    assert again.returncode == 0, again.stdout + again.stderr
    assert str(lock.parent) in (lock.parent / "environment" / "bin" / "activate").read_text()
    assert answer_in(lock) == "42"


def test_a_changed_lock_is_installed(built: Path) -> None:
    built.write_text(built.read_text() + "# changed\n")

    again = build(built)

    assert "installed with pip" in again.stdout


def test_an_old_python_is_told_so_in_one_sentence() -> None:
    program = "import runpy, sys; sys.version_info = (3, 10, 4); sys.version = '3.10.4 (old)'; "
    program += "runpy.run_path('manage.py', run_name='__main__')"

    old = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert old.returncode == 1
    assert old.stderr == f"Tollgate needs Python 3.11 or newer; {sys.executable} is 3.10.4.\n"


@pytest.mark.skipif(
    not Path(sys.prefix).samefile(bootstrap.ENVIRONMENT), reason="the tests do not run in the project's .venv"
)
def test_any_python_goes_on_in_the_environment(tmp_path: Path) -> None:
    command = ["shell", "--no-imports", "--command", "import sys; print(sys.prefix)"]

    shown = subprocess.run(
        [OUTER_PYTHON, ROOT / "manage.py", *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert shown.stdout.strip() == str(bootstrap.ENVIRONMENT), shown.stderr


def test_what_is_started_keeps_what_it_compiles_where_python_is_told_not_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.delenv("PYTHONPYCACHEPREFIX", raising=False)
    (tmp_path / "part.py").write_text("answer = 42\n")

    bootstrap.keep_compiled()
    subprocess.run([sys.executable, "-c", "import part"], cwd=tmp_path, check=True)

    assert len(list((tmp_path / "__pycache__").glob("part.*.pyc"))) == 1


@pytest.mark.skipif(DataDirectory().in_use(), reason="a quickstart runs beside the tests")
@pytest.mark.parametrize("command", ["check", "serve"])
def test_a_command_without_settings_says_what_is_missing(command: str) -> None:
    bare = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME"}}

    told = subprocess.run(
        [sys.executable, "manage.py", command],
        cwd=ROOT, env=bare, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert told.returncode == 1
    assert told.stderr.startswith("Set the SECRET_KEY environment variable. No quickstart runs here")
