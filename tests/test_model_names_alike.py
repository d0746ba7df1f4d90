"""The names of models in settings: every door takes every spelling for the same model."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import reverse

from budgets.models import Budget, KillSwitch, Price, RateLimit
from budgets.services import set_budget, set_price, set_rate_limit
from config.declared import document
from config.declared.kinds import SHAPES, present
from config.declared.plan import apply, plan
from proxy.models import ModelAlias
from tenants.models import User
from tests.managing import manager
from tests.people import a_browser

pytestmark = pytest.mark.django_db(transaction=True)

SPELLINGS = [
    "tiny",
    "TINY:latest",
    "library/Tiny",
    "https://registry.ollama.ai/library/tiny:latest",
    " tiny ",
]
UNREADABLE = ["ti ny", "tiny:cloud", "a/b/c/d"]
BUDGET: dict[str, Any] = {"scope": "model", "unit": "tokens", "period": "day", "limit": 5}
RATE: dict[str, Any] = {"scope": "model", "measure": "requests_per_minute", "limit": 5}


@pytest.fixture
def olga() -> Client:
    return a_browser(User.objects.create_superuser("olga"))


def said(command: str, *arguments: str) -> Any:
    output = StringIO()
    call_command(command, *arguments, "--json", stdout=output)
    return json.loads(output.getvalue())


def by_command(model: str) -> None:
    said("set_budget", "--model", model, "--unit", "tokens", "--period", "day", "--limit", "5")
    said("set_rate_limit", "--model", model, "--measure", "requests_per_minute", "--limit", "5")
    said("set_price", "--model", model, "--input", "1")
    said("kill", "model", model, "--reason", "a test")


def by_api(model: str) -> None:
    one = manager()
    for path, body in (
        ("budgets/", BUDGET),
        ("rate-limits/", RATE),
        ("prices/", {"input_price": 1000000}),
        ("kill-switches/", {"scope": "model", "reason": "a test"}),
    ):
        answer = one.post(path, **body, model=model)
        assert answer.status_code == 201, (path, answer.content)


def by_file(model: str) -> None:
    text = f"""
version: 1
budgets: [{{scope: model, model: "{model}", unit: tokens, period: day, limit: 5}}]
rate_limits: [{{scope: model, model: "{model}", measure: requests_per_minute, limit: 5}}]
prices: [{{model: "{model}", starts_at: 2026-01-01T00:00:00+00:00, input_price: 1000000}}]
aliases: [{{alias: small, model: "{model}"}}]
"""
    apply(plan(document.read(text, SHAPES), prune=False), actor="ops")
    assert plan(document.read(text, SHAPES), prune=True) == []


DOORS = [by_command, by_api, by_file]


def named() -> set[str]:
    kinds: list[Any] = [Budget, RateLimit, Price, KillSwitch, ModelAlias]
    return {model for kind in kinds for model in kind.objects.values_list("model", flat=True)}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_setting_is_of_the_model_however_its_name_is_spelled(
    door: Callable[[str], None], spelling: str
) -> None:
    door(spelling)

    assert named() == {"tiny:latest"}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_another_spelling_changes_the_limit_that_is_there(spelling: str) -> None:
    set_budget(**BUDGET, model="tiny:latest", actor="test")
    set_rate_limit(**RATE, model="tiny:latest", actor="test")
    said("kill", "model", "tiny:latest", "--reason", "a test")
    where = ["--model", spelling]

    said("set_budget", *where, "--unit", "tokens", "--period", "day", "--limit", "7")
    said("raise_budget", *where, "--unit", "tokens", "--period", "day", "--by", "1", "--until", "1h",
         "--reason", "a test")  # fmt: skip
    manager().post("rate-limits/", **RATE | {"limit": 8}, model=spelling)
    lifted = said("unkill", "model", spelling, "--reason", "over")

    assert (Budget.objects.get().limit, Budget.objects.get().raises.count()) == (7, 1)
    assert RateLimit.objects.get().limit == 8
    assert len(lifted["lifted"]) == 1


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_forms_of_the_admin_take_the_spellings_too(olga: Client, spelling: str) -> None:
    for address, fields in (
        ("budgets_budget_add", {**BUDGET, "length": "day", "thresholds": "80"}),
        ("budgets_ratelimit_add", RATE),
        ("budgets_price_add", {"input_price": 1, "cached_price": 1, "output_price": 1, "gpu_price": 0,
                               "starts_at_0": "2026-01-01", "starts_at_1": "00:00:00"}),
        ("proxy_modelalias_add", {"alias": "Small"}),
        ("budgets_killswitch_add", {"scope": "model", "reason": "a test", "until_0": "2199-01-01",
                                    "until_1": "00:00:00", "confirmation": "model tiny:latest"}),
    ):  # fmt: skip
        sent = olga.post(reverse(f"admin:{address}"), {**fields, "model": spelling})
        assert sent.status_code == 302, (address, sent.context["adminform"].form.errors)

    assert named() == {"tiny:latest"}
    assert ModelAlias.objects.get().alias == "small:latest"


def test_an_alias_is_kept_in_the_form_in_which_names_are_compared() -> None:
    alias = manager().post("aliases/", alias="Default", model="library/Tiny").json()
    manager().ask("PATCH", f"aliases/{alias['id']}/", {"model": "Big"})

    assert ModelAlias.objects.values_list("alias", "model").get() == ("default:latest", "big:latest")


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_no_name_of_a_local_model_is_refused_at_every_door(olga: Client, name: str) -> None:
    told = f"“{name}” is not the name of a local model"

    for command, *arguments in (
        ("set_budget", "--model", name, "--unit", "tokens", "--period", "day", "--limit", "5"),
        ("set_rate_limit", "--model", name, "--measure", "requests_per_minute", "--limit", "5"),
        ("set_price", "--model", name, "--input", "1"),
        ("kill", "model", name, "--reason", "a test"),
        ("unkill", "model", name, "--reason", "a test"),
        ("show_estimators", "--model", name),
    ):
        with pytest.raises(CommandError, match=told):
            call_command(command, *arguments)
    for path, body in (
        ("budgets/", BUDGET),
        ("rate-limits/", RATE),
        ("prices/", {"input_price": 1}),
        ("kill-switches/", {"scope": "model", "reason": "a test"}),
        ("aliases/", {"alias": "small"}),
    ):
        answer = manager().post(path, **body, model=name)
        assert (answer.status_code, list(answer.json()["errors"])) == (400, ["model"]), path
        assert told in answer.json()["errors"]["model"][0]
    form = olga.post(reverse("admin:budgets_price_add"), {"model": name}).context["adminform"].form
    assert told in form.errors["model"][0]
    assert named() == set()


def test_what_is_there_is_written_into_a_file_as_it_is_read_from_it() -> None:
    set_price(model="Tiny", input_price=1, actor="test")

    assert [row["model"] for row in present()["prices"].values()] == ["tiny:latest"]
