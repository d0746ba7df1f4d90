"""The OpenAPI document of the management API, and a running gateway that is asked what it says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from django.core.management import call_command
from django.test import Client

from budgets.services import arm_kill_switch, set_budget, set_price, set_rate_limit
from proxy.models import ModelAlias
from proxy.services import save_alias
from tenants.services import add_member, create_team, create_user
from tests.conftest import House, furnish
from tests.gateway import Gateway
from tests.managing import endpoints, manager

if TYPE_CHECKING:
    import schemathesis

EXAMPLES = 10
METHODS = {"get", "post", "patch", "delete"}


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The document as the command makes it; a warning or a mistake in it fails."""
    file = tmp_path_factory.mktemp("document") / "openapi.json"
    call_command(
        "spectacular", "--validate", "--fail-on-warn", format="openapi-json", file=str(file),
        urlconf="config.urls",
    )  # fmt: skip
    made: dict[str, Any] = json.loads(file.read_text())
    return made


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert method in METHODS
            yield path, method, operation


def test_the_document_names_every_endpoint_once(document):
    told = [operation["operationId"] for _, _, operation in operations(document)]

    assert len(set(told)) == len(told) == len(endpoints())


def test_each_operation_says_what_it_is_who_may_and_what_can_go_wrong(document):
    for path, method, operation in operations(document):
        what = f"{method} {path}"
        assert operation["description"].strip(), what
        assert operation["tags"] == [path.split("/")[3]], what
        assert {name for one in operation["security"] for name in one} == {"managementKey", "cookieAuth"}, (
            what
        )
        assert {"400", "401", "403", "429", "503"} <= set(operation["responses"]), what
        assert sum(status.startswith("2") for status in operation["responses"]) == 1, what
        if method in ("post", "patch") and "raises" not in path:
            assert "requestBody" in operation, what
        if method == "post":
            assert "Idempotency-Key" in {one["name"] for one in operation["parameters"]}, what
        for status, response in operation["responses"].items():
            if status >= "400":
                assert list(response["content"]) == ["application/problem+json"], what


def test_every_list_is_a_page_with_a_cursor(document):
    lists = [one for _, _, one in operations(document) if one["operationId"].endswith("_list")]

    assert len(lists) >= 12
    for operation in lists:
        assert {"cursor", "page_size"} <= {one["name"] for one in operation["parameters"]}


def test_no_field_of_an_answer_is_a_fraction(document):
    """Money and amounts are whole numbers, or decimal strings."""
    assert '"type": "number"' not in json.dumps(document)


@pytest.mark.django_db(transaction=True)
def test_the_document_is_served_to_those_who_may_ask(document):
    served = manager("audit:read").get("openapi.json")

    assert served.status_code == 200
    assert served.json()["paths"].keys() == document["paths"].keys()
    assert Client().get("/manage/v1/openapi.json").status_code == 401


def try_out(operation: Any, ask: Callable[[schemathesis.Case[Any]], None]) -> None:
    """Call ``ask`` with some requests that are made from what is said of ``operation``, always the same."""
    given = hypothesis.given(operation.as_strategy())
    bounded = hypothesis.settings(
        max_examples=EXAMPLES,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    hypothesis.seed(20261127)(bounded(given(ask)))()


@pytest.fixture(scope="module")
def patient_gateway(django_db_setup: None) -> Iterator[Gateway]:
    """A gateway that lets one key ask as often as a test does, and that no other file finds running."""
    with Gateway(MANAGEMENT_REQUESTS_PER_MINUTE="1000000") as running:
        yield running


@pytest.fixture
def furnished(transactional_db: None, ollama: Any, patient_gateway: Gateway) -> Iterator[House]:
    """A house with one of everything that there is to manage."""
    furnish(ollama)
    with House(patient_gateway, ollama).opened() as house:
        team = create_team(tenant=house.acme, name="Research", actor="test")
        user = create_user(username="bob", email="bob@example.org", actor="test")
        add_member(tenant=house.acme, user=user, team=team, actor="test")
        set_budget(scope="tenant", tenant=house.acme, unit="micro_usd", period="day", limit=10, actor="test")
        set_rate_limit(
            scope="tenant", tenant=house.acme, measure="requests_per_minute", limit=600, actor="test"
        )
        set_price(model="tiny:1b", input_price=150_000, actor="test")
        save_alias(alias=ModelAlias(alias="default:latest", model="tiny:1b"), actor="test")
        arm_kill_switch(scope="model", model="other:latest", actor="test", reason="fire")
        yield house


# Every address is asked many times over.
@pytest.mark.timeout(360)
def test_a_gateway_answers_as_the_document_says_whatever_it_is_asked(document, furnished):
    """What is sent is made from the document: what it allows, and what it does not."""
    # The other workers collect these tests too, and never need it.
    import schemathesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.config import SchemathesisConfig
    from schemathesis.specs.openapi import checks

    schema = schemathesis.openapi.from_dict(document, config=SchemathesisConfig())
    schema.config.update(base_url=furnished.gateway.url)
    asked: list[tuple[str, int]] = []
    secret = manager().secret
    rules = [
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
    ]

    def answered_as_it_says(case: schemathesis.Case[Any]) -> None:
        response = case.call(headers={"Authorization": f"Bearer {secret}"})
        asked.append((case.operation.label, response.status_code))
        case.validate_response(response, checks=rules)

    for result in schema.get_all_operations():
        operation: Any = result.ok()  # type: ignore[union-attr]  # what is wrong in the document raises here
        try_out(operation, answered_as_it_says)

    assert len({label for label, _ in asked}) == len(endpoints())
    assert {200, 201, 400, 404} <= {status for _, status in asked}
    assert all(status not in (401, 429) for _, status in asked)
