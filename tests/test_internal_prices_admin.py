"""Costs, the report of a month, and decisions on prices, in the admin."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
import time_machine
from django.contrib.auth.models import Permission
from django.test import Client
from django.urls import reverse

from audit.models import AuditEvent
from budgets.internal_prices import LEAST_TIMED_CALLS
from budgets.models import Price, PriceProposal
from budgets.price_proposals import propose
from tenants.models import User
from tests.measuring import LLAMA, OCTOBER, a_dollar_an_hour, book, calls

pytestmark = pytest.mark.django_db(transaction=True)

DECEMBER = datetime(2026, 12, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _november() -> Iterator[None]:
    with time_machine.travel(datetime(2026, 11, 3, 9, tzinfo=UTC)):
        yield


@pytest.fixture
def proposal() -> PriceProposal:
    a_dollar_an_hour()
    book(*calls(LEAST_TIMED_CALLS))
    propose(month=OCTOBER, actor="test")
    return PriceProposal.objects.get()


@pytest.fixture
def operator() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("olga", "olga@example.org", "a long enough password"))
    return client


PROPOSALS, MONTH = (
    reverse("admin:budgets_priceproposal_changelist"),
    reverse("admin:budgets_upstreamcost_month"),
)


def act(client: Client, action: str, *proposals: PriceProposal, **fields: str) -> str:
    """What the page answers to an action; where it leads elsewhere, what is said there."""
    body = {"action": action, "_selected_action": [str(one.pk) for one in proposals], **fields}
    return client.post(PROPOSALS, body, follow=True).content.decode()


def test_an_operator_sees_what_accepting_changes_and_then_accepts(
    proposal: PriceProposal, operator: Client
) -> None:
    asked = act(operator, "accept", proposal)
    assert "From 2026-12-01 00:00 UTC on: $0.138889 in, $0 cached" in asked
    assert "Until then there is no price." in asked
    assert PriceProposal.objects.get().state == "open"

    shown = {"starts_at": "2026-12-01 00:00:00", "shown": "2026-12-01T00:00:00+00:00"}
    said = act(operator, "accept", proposal, reason="as measured", **shown)

    assert f"Accepted: {proposal}." in said
    assert Price.objects.get().starts_at == DECEMBER
    assert AuditEvent.objects.get(action="price_proposal.accepted").actor == "olga"


def test_another_start_is_shown_before_it_is_accepted(proposal: PriceProposal, operator: Client) -> None:
    other = {"reason": "soon", "starts_at": "2026-11-15 00:00:00", "shown": "2026-12-01T00:00:00+00:00"}

    asked = act(operator, "accept", proposal, **other)

    assert "look at what it changes, and confirm" in asked
    assert "From 2026-11-15 00:00 UTC on" in asked
    assert 'name="shown" value="2026-11-15T00:00:00+00:00"' in asked
    assert not Price.objects.exists()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        pytest.param({"reason": ""}, "This field is required", id="no reason"),
        pytest.param({"starts_at": "soon"}, "Enter a valid date/time", id="no moment"),
        pytest.param(
            {"starts_at": "2026-01-01 00:00:00", "shown": "2026-01-01T00:00:00+00:00"},
            "starts now or later",
            id="the past",
        ),
    ],
)
def test_the_page_says_why_it_does_not_accept(
    proposal: PriceProposal, operator: Client, fields: dict[str, str], said: str
) -> None:
    whole = {"reason": "yes", "starts_at": "2026-12-01 00:00:00", "shown": "2026-12-01T00:00:00+00:00"}

    assert said in act(operator, "accept", proposal, **(whole | fields))
    assert PriceProposal.objects.get().state == "open"


def test_an_operator_declines_and_is_told_that_it_was_decided_before(
    proposal: PriceProposal, operator: Client
) -> None:
    assert "The price stays as it is." in act(operator, "decline", proposal)

    first = act(operator, "decline", proposal, reason="too dear")
    second = act(operator, "decline", proposal, reason="too dear")
    asked = act(operator, "accept", proposal)

    assert f"Declined: {proposal}." in first
    assert f"Not done, {proposal}: it was declined before." in second
    assert "nothing becomes of it: declined by olga" in asked


def test_who_may_only_look_may_not_decide_nor_propose(proposal: PriceProposal) -> None:
    viewer = User.objects.create_user("vera", "vera@example.org", "a long enough password")
    viewer.is_staff = True
    viewer.save()
    viewer.user_permissions.set(
        Permission.objects.filter(codename__in=["view_priceproposal", "view_upstreamcost"])
    )
    client = Client()
    client.force_login(viewer)

    assert client.get(PROPOSALS).status_code == client.get(MONTH).status_code == 200
    act(client, "decline", proposal, reason="I would")
    assert client.post(MONTH).status_code == 403
    viewer.user_permissions.clear()
    assert client.get(MONTH).status_code == 403
    assert PriceProposal.objects.get().state == "open"


def test_the_page_of_a_month_shows_its_report_and_proposes(operator: Client) -> None:
    empty = operator.get(MONTH).content.decode()
    a_dollar_an_hour()
    book(*calls(LEAST_TIMED_CALLS))

    before = operator.get(f"{MONTH}?month=2026-10").content.decode()
    said = operator.post(f"{MONTH}?month=2026-10", follow=True).content.decode()

    assert "No upstream has a cost, and none was used." in empty
    for shown in ("gpu-1", LLAMA, "$743.987500", "$0.0125", "Propose prices from this month"):
        assert shown in before
    assert "New proposals: 1." in said
    assert "proposed, open" in said
    unfinished = operator.get(f"{MONTH}?month=2026-11").content.decode()
    assert "November 2026 is not over" in unfinished
    assert "Propose prices from this month" not in unfinished
    assert "is not over." in operator.post(f"{MONTH}?month=2026-11", follow=True).content.decode()
    assert operator.get(f"{MONTH}?month=soon").status_code == 404


def test_a_cost_is_entered_and_removed_in_the_admin_through_the_service(operator: Client) -> None:
    body = {
        "upstream": "gpu-1", "hardware_price": "24000000000", "life_months": "48", "busy_watts": "1400",
        "idle_watts": "180", "kwh_price": "300000", "other_per_month": "120000000", "gpus": "2",
        "starts_at_0": "2026-10-01", "starts_at_1": "00:00:00",
    }  # fmt: skip
    address = reverse("admin:budgets_upstreamcost_add")

    assert operator.post(address, body).status_code == 302
    swapped = operator.post(address, body | {"idle_watts": "1401"}).content.decode()
    listed = operator.get(reverse("admin:budgets_upstreamcost_changelist")).content.decode()

    assert "Idle it cannot draw more than busy." in swapped
    assert AuditEvent.objects.filter(action="upstream_cost.set", actor="olga").count() == 1
    # 24,000 / 48 + 120 dollars over 720 hours, and 1.4 or 0.18 kW at $0.30.
    for shown in ("$24,000.00", "$120.00", "$1.281111", "$0.915111", "Report of a month"):
        assert shown in listed
