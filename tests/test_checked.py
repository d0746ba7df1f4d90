"""Rows are refused for their constraints as Django refuses them, and asked about in one query."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.apps import apps
from django.core.exceptions import ValidationError
from django.db import connection, models
from django.test.utils import CaptureQueriesContext

from audit.checked import Checked
from budgets.models import Budget, KillSwitch, LimitRaise, Price
from tenants.models import Tenant
from tenants.services import create_tenant

pytestmark = pytest.mark.django_db

SEVERAL = [
    model
    for model in apps.get_models()
    if sum(isinstance(one, models.CheckConstraint) for one in model._meta.constraints) > 1
]


def refusal(validate: Callable[[], None]) -> Any:
    """What is wrong, by field, with codes and in order; None: nothing."""
    try:
        validate()
    except ValidationError as exc:
        return {
            name: [(error.message, error.code) for error in errors] for name, errors in exc.error_dict.items()
        }
    return None


def both_refusals(row: models.Model, exclude: set[str] | None = None) -> tuple[Any, Any]:
    """What the row is refused for, and what Django alone would refuse it for."""
    return (
        refusal(lambda: row.validate_constraints(exclude)),
        refusal(lambda: models.Model.validate_constraints(row, exclude)),
    )


def test_every_model_with_several_checks_asks_once():
    assert len(SEVERAL) > 15
    assert [model._meta.label for model in SEVERAL if not issubclass(model, Checked)] == []


@pytest.mark.parametrize(
    ("row", "exclude", "troubles"),
    [
        (Tenant(slug="acme-lab", name="ACME"), None, 0),
        (Tenant(slug="Not plain", name="ACME"), None, 1),
        (Tenant(slug="Not plain", week_start=9, max_key_days=0, state="odd"), None, 4),
        # Neither a field that is left out counts, nor what a constraint cannot tell.
        (Tenant(slug="Not plain", week_start=9), ["slug"], 1),
        (Tenant(slug="Not plain", week_start=9), ["slug", "week_start"], 0),
        (Tenant(slug="acme-lab", week_start=None, max_key_days=None), None, 0),  # type: ignore[misc]
        # What others see to stands among it, in its place.
        (Tenant(slug="taken", week_start=9), None, 2),
        (Tenant(slug="taken"), None, 1),
        # The database cannot even look at this one.
        (KillSwitch(scope="odd", reason="zero\0", armed_by="ada"), None, 1),
        (Budget(scope="tenant", unit="tokens", period="day", limit=9), None, 1),
        (Budget(scope="platform", unit="tokens", period="day", limit=9), None, 0),
        (Budget(scope="platform", model="x", unit="odd", period="odd", limit=-1), None, 5),
        (LimitRaise(by=0), None, 3),
        (KillSwitch(scope="odd"), None, 2),
        (Price(model="tiny:1b", input_price=-1, output_price=-1), None, 2),
    ],
    ids=lambda value: str(type(value).__name__) if isinstance(value, models.Model) else str(value),
)
def test_a_row_is_refused_for_what_django_refuses_it_for(row, exclude, troubles):
    create_tenant(slug="taken", name="Taken", actor="test")

    ours, djangos = both_refusals(row, exclude and set(exclude))

    assert ours == djangos
    assert sum(map(len, (ours or {}).values())) == troubles


@pytest.mark.parametrize("model", SEVERAL, ids=lambda model: model._meta.label)
def test_an_empty_row_of_any_model_is_refused_for_what_django_refuses_it_for(model):
    named = {field.name for field in model._meta.local_concrete_fields}

    for exclude in (None, set(sorted(named)[::2]), set(sorted(named)[1::2]), named):
        ours, djangos = both_refusals(model(), exclude)
        assert ours == djangos, exclude


def test_a_row_that_holds_is_asked_about_once():
    with CaptureQueriesContext(connection) as asked:
        Tenant(slug="acme-lab", name="ACME").validate_constraints()

    statements = [query["sql"].split(" ", 1)[0] for query in asked.captured_queries]
    # All checks in a savepoint, and whether the slug is taken.
    assert statements == ["SAVEPOINT", "SELECT", "RELEASE", "SELECT"]


def test_a_row_knows_all_of_its_constraints_after_it_was_refused():
    tenant = Tenant(slug="taken", name="ACME")
    create_tenant(slug="taken", name="Taken", actor="test")

    for _ in range(2):
        with pytest.raises(ValidationError, match="Another tenant has this slug"):
            tenant.validate_constraints()
        tenant.week_start = 9
        with pytest.raises(ValidationError, match="A week starts on a day"):
            tenant.validate_constraints()
        tenant.week_start = 1

    assert tenant.get_constraints() == [(Tenant, Tenant._meta.constraints)]
