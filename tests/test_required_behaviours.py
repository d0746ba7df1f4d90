"""The page of required behaviours lists every row, and every test that it names is there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "required-behaviours.md"
LAST = {"N": 38, "S": 32, "B": 28, "W": 23, "G": 34}
ROW = re.compile(r"^\| ([NSBWG]\d+)( \*\*Beat\*\*)? \| (.+?) \| (.+?) \|$", re.MULTILINE)


def rows() -> list[tuple[str, str, str, list[str]]]:
    """Name, mark, text and tests of each row."""
    return [
        (name, mark, text, re.findall(r"`([^`]+)`", tests))
        for name, mark, text, tests in ROW.findall(PAGE.read_text())
    ]


@cache
def functions_of(file: str) -> set[str]:
    tree = ast.parse((TESTS / file).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def is_there(test: str) -> bool:
    """A function of a file, or a whole file: what hypothesis makes of a state machine is a class."""
    file, _, name = test.partition("::")
    return (TESTS / file).is_file() and (not name or name in functions_of(file))


@pytest.mark.parametrize("system", LAST)
def test_every_row_is_listed_once(system):
    listed = [name for name, *_ in rows() if name.startswith(system)]

    assert sorted(listed) == sorted(f"{system}{number}" for number in range(1, LAST[system] + 1))


def test_every_test_that_is_named_exists():
    named = {test for *_, tests in rows() for test in tests}

    assert len(named) > 100
    assert [test for test in sorted(named) if not is_there(test)] == []


def test_every_fault_to_be_beaten_has_a_test_and_every_other_row_too():
    assert [name for name, _, _, tests in rows() if not tests] == []
    assert sum(bool(mark) for _, mark, *_ in rows()) >= 25
