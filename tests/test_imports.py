"""Imports go down only; see docs/architecture.md."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ["audit", "tenants", "keys", "budgets", "proxy", "config"]


def imported(tree: ast.AST) -> set[str]:
    """The top-level names of all imports, also of those inside functions."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            names.add((node.module or "").partition(".")[0])
    return names


def upward(layer: str) -> list[str]:
    above = set(LAYERS[LAYERS.index(layer) + 1 :])
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted((ROOT / layer).rglob("*.py"))
        for name in sorted(imported(ast.parse(path.read_text())) & above)
    ]


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_go_down_only(layer):
    assert (ROOT / layer).is_dir()
    assert upward(layer) == []


@pytest.mark.parametrize("layer", LAYERS)
def test_nothing_that_runs_imports_the_tests(layer):
    assert [p for p in (ROOT / layer).rglob("*.py") if "tests" in imported(ast.parse(p.read_text()))] == []


def test_the_simulated_ollama_knows_nothing_of_the_gateway():
    """Its reading of names and bodies is its own, so that tests compare two."""
    simulator = (ROOT / "proxy" / "simulator").rglob("*.py")
    ours = {*LAYERS, "django"}

    imported_from = {
        (path.name, node.module or "")
        for path in simulator
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
    }
    foreign = {
        (name, module)
        for name, module in imported_from
        if module.partition(".")[0] in ours and not module.startswith("proxy.simulator")
    }

    assert imported_from
    assert foreign == set()


def test_every_advisory_lock_has_a_number_of_its_own():
    """Two that share one would wait for each other without anybody knowing why."""
    holders = {
        path: number
        for layer in LAYERS
        for path in (ROOT / layer).rglob("*.py")
        for number in re.findall(r"^LOCK = (\w+)$", path.read_text(), re.MULTILINE)
    }

    assert len(holders) > 3
    assert len(set(holders.values())) == len(holders), holders


def test_commands_do_not_load_the_server_or_what_writes_papers_and_workbooks():
    """Each of these takes as long to load as all of ours together."""
    loads = "import django, sys; django.setup(); print(*sorted(sys.modules))"

    done = subprocess.run(
        [sys.executable, "-c", loads], cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "config.settings"},
    )  # fmt: skip

    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert {"daphne", "budgets"} <= loaded
    assert loaded & {"twisted", "autobahn", "reportlab", "xlsxwriter"} == set()
