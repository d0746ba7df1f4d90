"""Copies of settings in Redis: they come back as they were, and only sealed by us for their own name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
from django.test import override_settings

from budgets.epochs import Vouched
from budgets.limits import Limits, _Kept
from budgets.pricing import PinnedPrice
from keys.verification import Caller
from proxy.catalog import _Kept as _KeptRows
from tenants.snapshots import _fields, opened, sealed
from tests.counting import a_budget, a_rate, ada, counter_of


@dataclass(frozen=True)
class Everything:
    text: str
    number: int
    truth: bool
    word: Literal["a", "b"]
    nothing: str | None
    id: UUID
    zone: ZoneInfo | None
    names: frozenset[str]
    pair: tuple[int, str]
    row: tuple[int, ...]
    rows: list[UUID]
    by: dict[tuple[UUID | None, str], list[tuple[int, PinnedPrice]]]


SOME_ID = UUID("01a1fc70-19cf-7b35-80e7-abbcb8bcafe2")
EVERYTHING = Everything(
    "ü", 2**53, False, "b", None, SOME_ID, ZoneInfo("Europe/Berlin"), frozenset({"x", "y"}), (1, "one"),
    (1, 2, 3), [SOME_ID], {(None, "a"): [], (SOME_ID, "b"): [(0, PinnedPrice("p", 1, 2, 3))]},
)  # fmt: skip


def test_what_is_kept_comes_back_as_it_was() -> None:
    assert opened("kind", "name", sealed("kind", "name", EVERYTHING), Everything) == EVERYTHING


def test_a_caller_and_its_limits_can_be_kept() -> None:
    """Whatever is added to them has to be of a type that can be."""
    budget = a_budget(10)
    counter_of(budget)
    caller = ada(
        models=frozenset({"tiny:1b"}),
        team_id=uuid4(),
        member_id=uuid4(),
        expires_at_ms=1,
        allow_all_models=False,
    )
    kept = _Kept((1, 2), Limits((budget, a_rate(None)), {"tiny:1b": [(5, PinnedPrice("p", 1, 2, 3))]}))

    assert opened("caller", "ada", sealed("caller", "ada", caller), Caller) == caller
    assert opened("limits", "ada", sealed("limits", "ada", kept), _Kept) == kept


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(lambda found: found[:-1] + b" ", id="changed"),
        pytest.param(lambda found: bytes(32) + found[32:], id="sealed by nobody"),
        pytest.param(lambda found: found[32:], id="not sealed"),
        pytest.param(lambda _: b"", id="empty"),
        pytest.param(lambda _: sealed("kind", "another", EVERYTHING), id="of another name"),
        pytest.param(lambda _: sealed("another", "name", EVERYTHING), id="of another kind"),
    ],
)
def test_what_we_have_not_sealed_for_this_name_is_not_opened(
    forge: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    assert opened("kind", "name", forge(sealed("kind", "name", EVERYTHING)), Everything) is None
    assert "forged" in caplog.text


def test_a_copy_sealed_under_another_pepper_is_not_opened() -> None:
    with override_settings(KEY_PEPPER="another"):
        found = sealed("kind", "name", EVERYTHING)

    assert opened("kind", "name", found, Everything) is None


@dataclass(frozen=True)
class Next:
    """As another release might have it."""

    text: str


@pytest.mark.parametrize(
    "changes",
    [{"text": 5}, {"number": True}, {"word": "c"}, {"id": "no id"}, {"zone": "Nowhere/Land"}, {"pair": (1,)}],
)
def test_what_has_another_shape_is_not_opened(changes: dict[str, Any]) -> None:
    assert opened("k", "n", sealed("k", "n", dataclasses.replace(EVERYTHING, **changes)), Everything) is None


def test_what_another_release_has_kept_is_not_opened() -> None:
    assert opened("k", "n", sealed("k", "n", Next("x")), Everything) is None
    assert opened("k", "n", sealed("k", "n", EVERYTHING), Next) is None


def unkeepable(shape: Any, seen: set[Any]) -> list[str]:
    """What is in a type that cannot be kept, by looking at all that it is made of."""
    if shape in seen:
        return []
    seen.add(shape)
    if dataclasses.is_dataclass(shape) and isinstance(shape, type):
        return [found for part in _fields(shape).values() for found in unkeepable(part, seen)]
    if get_origin(shape) is None:
        return [] if shape in (str, int, bool, float, UUID, ZoneInfo, NoneType) else [repr(shape)]
    if get_origin(shape) is Literal:
        return []
    assert get_origin(shape) in (list, tuple, dict, frozenset, Union, UnionType), shape
    parts = [part for part in get_args(shape) if part is not Ellipsis]
    if NoneType in parts:
        assert len(parts) == 2, f"{shape} may be more than one thing"
    return [found for part in parts for found in unkeepable(part, seen)]


@pytest.mark.parametrize("shape", [Caller, _Kept, Vouched, _KeptRows], ids=lambda shape: shape.__qualname__)
def test_all_that_is_kept_is_of_types_that_can_be(shape: type) -> None:
    """Whoever adds a field of another type to these has to teach ``tenants.snapshots`` that type."""
    assert unkeepable(shape, set()) == []
