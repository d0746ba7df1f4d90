"""``show_usage`` and ``explain_usage``: the same figures, told apart and explained at the shell."""

from __future__ import annotations

import json
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from keys.services import issue_key
from tenants.ids import new_id
from tenants.models import Member, Team, Tenant, User
from tenants.services import add_member, create_team
from tests import ledgers
from tests.ledgers import NOON, an_entry, book

pytestmark = pytest.mark.django_db


@pytest.fixture
def research(acme: Tenant) -> Team:
    return create_team(tenant=acme, name="Research", actor="test")


@pytest.fixture
def mia(acme: Tenant) -> Member:
    user = User.objects.create(username="mia", email="mia@example.org")
    return add_member(tenant=acme, user=user, actor="test")


def said(*arguments: str) -> str:
    output = StringIO()
    call_command(*arguments, stdout=output)
    return output.getvalue()


def told(*arguments: str) -> Any:
    return json.loads(said(*arguments, "--json"))


@pytest.mark.parametrize("by", [["--by", "tenant,model"], ["--by", "tenant", "--by", "model"]])
def test_usage_of_all_tenants_is_shown_by_several_parts(acme: Tenant, by: list[str]) -> None:
    book(ledgers.of(acme), ledgers.of(acme, model="big:70b"), an_entry(tenant="globex"))

    found = told("show_usage", "--all", *by)

    rows = [(row["tenant"], row["model"], row["requests"], row["deleted"]) for row in found["rows"]]
    assert rows == [
        ("acme", "big:70b", 1, []),
        ("acme", "tiny:1b", 1, []),
        ("globex", "tiny:1b", 1, ["tenant"]),
    ]
    assert (found["total"]["requests"], found["tenant"], found["time_zone"]) == (3, None, "UTC")


def test_usage_of_one_tenant_is_nobody_elses(acme: Tenant) -> None:
    book(ledgers.of(acme), an_entry(tenant="globex", output_tokens=500))

    assert told("show_usage", "--tenant", "acme")["total"]["output_tokens"] == 20


def test_each_thing_is_selected_by_what_people_call_it_or_by_its_id(
    acme: Tenant, research: Team, mia: Member
) -> None:
    key, secret = issue_key(tenant=acme, label="nightly", actor="test")
    book(
        ledgers.of(acme, key_id=key.pk, team_id=research.pk, team="Research", member_id=mia.pk, member="mia"),
        ledgers.of(acme, model="big:70b", upstream="gpu-2", operation="embed", route="/api/embed", run="one"),
    )

    def requests(*arguments: str) -> int:
        return int(told("show_usage", "--tenant", "acme", *arguments)["total"]["requests"])

    assert requests("--key", secret[3:15]) == requests("--key", str(key.pk)) == 1
    assert requests("--team", "Research") == requests("--team", str(research.pk)) == 1
    assert requests("--member", "mia@example.org") == requests("--member", str(mia.pk)) == 1
    for option, value in (
        ("model", "big:70b"), ("upstream", "gpu-2"), ("operation", "embed"), ("route", "/api/embed"),
        ("run", "one"), ("run", ""),
    ):  # fmt: skip
        assert requests(f"--{option}", value) == 1
    assert requests("--run", "one", "--model", "tiny:1b") == 0


def test_days_are_those_of_the_tenant_and_instants_those_of_the_clock(acme: Tenant) -> None:
    book(ledgers.of(acme, ended_at=NOON.replace(hour=23, minute=30)))

    def requests(*arguments: str) -> int:
        return int(told("show_usage", "--tenant", "acme", *arguments)["total"]["requests"])

    # Half past eleven at night of the 10th in UTC is the 11th in Berlin.
    assert requests("--from", "2026-03-11", "--before", "2026-03-12") == 1
    assert requests("--before", "2026-03-11") == 0
    assert requests("--since", "2026-03-10T23:30Z", "--until", "2026-03-10T23:31Z") == 1
    assert requests("--until", "2026-03-11") == 0


def test_the_table_flags_what_is_gone_and_tells_the_share_of_estimates(acme: Tenant) -> None:
    book(ledgers.of(acme, key="old one"), ledgers.of(acme, key="old one", exact=False), an_entry())

    head, row, total = said("show_usage", "--tenant", "acme", "--by", "key,model").splitlines()

    assert head.split()[:3] == ["key", "model", "requests"]
    assert head.split()[-1] == "estimated"
    assert row.startswith("old one (deleted)  tiny:1b")
    assert row.endswith("50.0 %")
    assert total.split()[:2] == ["total", "2"]


def test_a_limited_table_ends_with_the_rest_and_the_whole(acme: Tenant) -> None:
    for model, tokens in (("a", 1), ("b", 5), ("c", 3)):
        book(ledgers.of(acme, model=model, output_tokens=tokens))
    most = ["show_usage", "--tenant", "acme", "--by", "model", "--most", "output_tokens", "--limit", "1"]

    table, found = said(*most), told(*most)

    assert [line[:6].strip() for line in table.splitlines()] == ["model", "b", "2 more", "total"]
    assert (found["left_out"], found["rest"]["output_tokens"]) == (2, 4)


@pytest.mark.parametrize("command", ["show_usage", "explain_usage"])
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param([], id="whose"),
        pytest.param(["--tenant", "acme", "--all"], id="one and all"),
        pytest.param(["--tenant", "nobody"], id="no such tenant"),
        pytest.param(["--tenant", "acme", "--by", "planet"], id="no such part"),
        pytest.param(["--tenant", "acme", "--from", "yesterday"], id="no day"),
        pytest.param(["--tenant", "acme", "--since", "soon"], id="no moment"),
        pytest.param(["--tenant", "acme", "--team", "Nobody"], id="no such team"),
        pytest.param(["--all", "--key", "nosuchkey000"], id="a key of whom"),
        pytest.param(["--all", "--from", "2027-01-31", "--before", "2027-01-31"], id="no day in between"),
        pytest.param(["--all", "--since", "2027-01-31", "--until", "2027-01-30"], id="the wrong way around"),
    ],
)
def test_the_commands_say_what_is_wrong(acme: Tenant, command: str, arguments: list[str]) -> None:
    with pytest.raises(CommandError):
        call_command(command, *arguments)


@pytest.mark.parametrize("limit", ["0", "-1"])
def test_no_table_has_less_than_a_line(acme: Tenant, limit: str) -> None:
    with pytest.raises(CommandError, match="one line or more"):
        call_command("show_usage", "--all", f"--limit={limit}")


def test_a_total_is_explained_as_a_tree_that_adds_up(acme: Tenant) -> None:
    for model, days in (("a", 0), ("a", 1), ("b", 1), ("b", 40)):
        book(ledgers.of(acme, model=model, ended_at=NOON + timedelta(days=days), exact=model == "a"))

    tree = told("explain_usage", "--tenant", "acme")
    by_model = said("explain_usage", "--tenant", "acme", "--by", "model,day")

    assert tree["by"] == ["month", "key", "model", "day"]
    assert leaves(tree["total"]) == 4
    lines = by_model.splitlines()
    assert [line.split("  ")[0].strip() or line.strip().split("  ")[0] for line in lines] == [
        "total", "model a", "day 2026-03-10", "day 2026-03-11", "model b", "day 2026-03-11", "day 2026-04-19",
    ]  # fmt: skip
    assert [line.split("  ")[-1].strip() for line in lines] == [
        "0.000088 USD", "0.000044 USD", "0.000022 USD", "0.000022 USD",
        "0.000044 USD", "0.000022 USD", "0.000022 USD",
    ]  # fmt: skip


def leaves(node: dict[str, Any]) -> int:
    """How many leaves a tree has whose parts add up everywhere."""
    if not node["parts"]:
        return 1
    for figure in ("requests", "output_tokens", "estimated_tokens", "cost_micro_usd"):
        assert sum(part[figure] for part in node["parts"]) == node[figure]
    return sum(leaves(part) for part in node["parts"])


def test_a_request_is_explained_line_by_line_with_what_was_put_right(acme: Tenant) -> None:
    request_id = new_id()
    differing: dict[str, Any] = {"requests": 0, "input_tokens": 0, "cached_tokens": 0, "gpu_ms": 0}
    book(ledgers.of(acme, request_id=request_id, exact=False, estimator="learned:3"))
    book(
        ledgers.of(acme, request_id=request_id, kind="adjustment", output_tokens=-4, **differing),
        ledgers.of(
            acme, kind="correction", corrects=request_id, actor="olga", reason="wrong rate", output_tokens=0,
            cost_micro_usd=-3, **differing,
        ),
    )  # fmt: skip

    explained = said("explain_usage", "--tenant", "acme", "--request", str(request_id))
    found = told("explain_usage", "--all", "--request", str(request_id))

    assert "estimated by learned:3" in explained
    assert "output: 20 tokens at 1.000000 a million" in explained
    assert "0.000020000000" in explained
    assert "by olga: wrong rate" in explained
    assert "total 0.000015 USD" in explained
    assert "NOT" not in explained
    assert [entry["kind"] for entry in found["entries"]] == ["usage", "adjustment", "correction"]
    assert [line["usd"] for line in found["entries"][0]["lines"]] == [
        "0.000001500000", "0.000000060000", "0.000020000000", "0.000000330000", "0.000000110000",
    ]  # fmt: skip


def test_a_cost_that_its_rates_do_not_give_is_pointed_out(acme: Tenant) -> None:
    [entry] = book(ledgers.of(acme, cost_micro_usd=99))

    assert "NOT what its rates give" in said("explain_usage", "--all", "--request", str(entry.request_id))


@pytest.mark.parametrize("named", ["no-id", "01a21c87-5ab9-7a67-bdf4-0c5f98d02841"])
def test_a_request_that_is_not_there_is_not_explained(acme: Tenant, named: str) -> None:
    with pytest.raises(CommandError):
        call_command("explain_usage", "--tenant", "acme", "--request", named)


def test_a_request_of_another_tenant_is_not_explained(acme: Tenant) -> None:
    [entry] = book(an_entry(tenant="globex"))

    with pytest.raises(CommandError):
        call_command("explain_usage", "--tenant", "acme", "--request", str(entry.request_id))
