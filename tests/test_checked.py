"""Rows are refused for their constraints as Django refuses them, and asked about in one query."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from allauth.account.models import EmailAddress
from django.apps import apps
from django.contrib.postgres.fields import ArrayField
from django.core.exceptions import ValidationError
from django.db import connection, models
from django.test.utils import CaptureQueriesContext

from audit import checked
from audit.checked import Checked
from audit.walls import ScopeError, closed, within
from budgets.models import Budget, KillSwitch, LimitRaise, Price
from keys.models import ApiKey, KeySecret
from keys.networks import NetworkField
from tenants.ids import new_id
from tenants.models import Invitation, Member, ServiceAccount, Team, Tenant, User
from tenants.services import create_tenant
from tests.accounts import quiet_counters
from tests.crawling import Belongings

pytestmark = pytest.mark.django_db

CHECKED = [model for model in apps.get_models() if issubclass(model, Checked)]
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
# Of every kind of field: what it often has, what is at its end, and what no row may have.
ODD: dict[type[models.Field[Any, Any]], list[Any]] = {
    models.BinaryField: [b"", b"\\x00"],
    models.BooleanField: [True, False],
    models.CharField: ["tenant", "", "Not plain%s", "open", "secret", "a" * 64],
    # Before days, which it is a kind of.
    models.DateTimeField: [NOON, NOON - timedelta(days=900), NOON + timedelta(days=900)],
    models.DateField: [date(2026, 1, 1), date(2026, 1, 31)],
    models.DecimalField: [Decimal("1.5"), Decimal(0), Decimal(-1)],
    models.DurationField: [timedelta(0), timedelta(days=-1)],
    models.GenericIPAddressField: ["192.0.2.1", "2001:db8::1"],
    models.IntegerField: [1, 0, -1, 10**15, 10**30],
    models.JSONField: [{}, {"a": "%s"}, [], "", 0],
    models.UUIDField: [UUID(int=1), UUID(int=2)],
    models.TextField: ["", "some text"],
    NetworkField: ["192.0.2.0/24", "2001:db8::/32"],
}


def odd_values(field: models.Field[Any, Any]) -> list[Any]:
    """What to put into a field: nothing, of a few one that is known, and what is odd."""
    if isinstance(field, models.ForeignKey):
        return odd_values(field.target_field)
    if isinstance(field, ArrayField):
        some = odd_values(field.base_field)[1:3]
        return [None, [], some[:1], some]
    known = [value for value, _ in field.flatchoices][:2]
    return [None, *known, *next(values for kind, values in ODD.items() if isinstance(field, kind))]


def odd_row(model: type[models.Model], draw: random.Random) -> models.Model:
    return model(
        **{field.attname: draw.choice(odd_values(field)) for field in model._meta.local_concrete_fields}
    )


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


def test_every_model_with_several_constraints_asks_once():
    several = [model for model in apps.get_models() if len(model._meta.constraints) > 1]
    # Of others' applications.
    several.remove(EmailAddress)

    assert len(several) > 25
    assert [model._meta.label for model in several if not issubclass(model, Checked)] == []


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


@pytest.mark.parametrize("model", CHECKED, ids=lambda model: model._meta.label)
def test_an_empty_row_of_any_model_is_refused_for_what_django_refuses_it_for(model):
    named = {field.name for field in model._meta.local_concrete_fields}

    for exclude in (None, set(sorted(named)[::2]), set(sorted(named)[1::2]), named):
        ours, djangos = both_refusals(model(), exclude)
        assert ours == djangos, exclude


@pytest.mark.parametrize("model", CHECKED, ids=lambda model: model._meta.label)
def test_an_odd_row_of_any_model_is_refused_for_what_django_refuses_it_for(model):
    # The same rows in every run.
    draw = random.Random(model._meta.label)

    for _ in range(12):
        row = odd_row(model, draw)
        row._state.adding = draw.random() < 0.5
        exclude = {name for name in sorted(row.__dict__) if draw.random() < 0.1}

        ours, djangos = both_refusals(row, exclude)

        assert ours == djangos, (row.__dict__, exclude)


@pytest.fixture
def rows(settings: Any, tmp_path: Path) -> list[models.Model]:
    """Rows of many tables, as they stand in them."""
    settings.SPOOL_DIR, settings.EXPORT_DIR = tmp_path / "spool", tmp_path / "exports"
    quiet_counters()
    Belongings("acme")
    return [row for model in CHECKED for row in model._base_manager.all()]


def test_rows_that_others_are_like_are_refused_for_what_django_refuses_them_for(rows):
    """Every row as it stands, added again, and added again as another of its kind."""
    taken: Counter[type[models.Model]] = Counter()
    for row in rows:
        assert both_refusals(row) == (None, None)
        row._state.adding = True
        for pk in (row.pk, new_id()) if isinstance(row.pk, UUID) else (row.pk,):
            row.pk = pk
            ours, djangos = both_refusals(row)
            assert ours == djangos, row.__dict__
            taken[type(row)] += ours is not None

    assert {Tenant, User, Team, Member, ServiceAccount, Invitation, ApiKey, KeySecret, Budget} <= set(+taken)


def test_a_row_that_holds_is_asked_about_once(rows):
    for row in rows:
        with CaptureQueriesContext(connection) as asked:
            row.validate_constraints()

        statements = [query["sql"].split(" ", 1)[0] for query in asked.captured_queries]
        assert statements == ["SAVEPOINT", "SELECT", "RELEASE"], row._meta.label


def test_nothing_is_asked_about_a_row_where_nobody_may_ask_for_its_table():
    with closed(), pytest.raises(ScopeError):
        Team(name="Research").validate_constraints()


def test_a_row_of_one_tenant_is_not_measured_by_what_another_has():
    acme, globex = (create_tenant(slug=slug, name=slug, actor="test") for slug in ("acme", "globex"))
    Team.objects.create(tenant=globex, name="Research")

    # What is asked is built by who asks first: here within a tenant.
    checked._questions.cache_clear()
    for tenant, troubles in ((acme, 0), (globex, 1), (acme, 0)):
        with within(tenant.pk):
            ours, djangos = both_refusals(Team(tenant=tenant, name="Research"))
        assert ours == djangos
        assert sum(map(len, (ours or {}).values())) == troubles


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
