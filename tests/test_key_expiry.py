"""Who is told, and when, that a key expires soon."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
import time_machine
from django.core import mail
from django.db import connection
from hypothesis import given
from hypothesis import strategies as st

from budgets import deliveries, key_expiry
from budgets.models import Delivery, Notice, Recipient
from budgets.services import add_recipient
from keys.models import ApiKey
from keys.services import change_key, issue_key, revoke_key
from tenants.models import Tenant
from tenants.services import create_service_account, create_tenant, suspend_tenant
from tests.people import a_member
from tests.test_keys_services import at_once

pytestmark = pytest.mark.django_db

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
ENDS = START + timedelta(days=90)


@pytest.fixture
def acme() -> Tenant:
    return create_tenant(slug="acme", name="ACME", actor="test", time_zone="Asia/Tokyo")


def a_key(tenant: Tenant, **options: Any) -> ApiKey:
    with time_machine.travel(START, tick=False):
        key, _ = issue_key(tenant=tenant, label="nightly", expires_at=ENDS, actor="test", **options)
    return key


def warned(before: timedelta) -> list[int]:
    """Look, so long before the end of the key; of which thresholds that told anybody."""
    with time_machine.travel(ENDS - before, tick=False):
        key_expiry.warn()
    return [notice.threshold or 0 for notice in Notice.objects.filter(deliveries__isnull=False).distinct()]


def told_people() -> list[str]:
    return sorted(Delivery.objects.values_list("to", flat=True))


@pytest.mark.parametrize(
    ("left", "lifetime", "expected"),
    [
        (timedelta(days=14, seconds=1), timedelta(days=90), []),
        (timedelta(days=14), timedelta(days=90), [14]),
        (timedelta(days=7), timedelta(days=90), [14, 7]),
        (timedelta(hours=24), timedelta(days=90), [14, 7, 1]),
        (timedelta(seconds=1), timedelta(days=90), [14, 7, 1]),
        (timedelta(0), timedelta(days=90), []),
        (timedelta(days=7), timedelta(days=10), [7]),
        (timedelta(days=7), timedelta(days=7), []),
        (timedelta(hours=3), timedelta(hours=12), []),
    ],
)
def test_which_thresholds_are_reached(left: timedelta, lifetime: timedelta, expected: list[int]) -> None:
    assert key_expiry.reached(ENDS - lifetime, ENDS, ENDS - left) == expected


@given(st.lists(st.integers(0, 20 * 86_400), min_size=1, max_size=30))
def test_however_often_somebody_looks_each_threshold_is_reached_in_its_order(seconds: list[int]) -> None:
    moments = sorted(ENDS - timedelta(seconds=one) for one in seconds)
    seen: list[list[int]] = [key_expiry.reached(START, ENDS, moment) for moment in moments if moment < ENDS]

    for before, after in pairwise(seen):
        assert after[: len(before)] == before


def test_the_holder_of_a_key_and_the_recipients_are_told_once_at_each_threshold(acme: Tenant) -> None:
    ada = a_member(acme, "ada")
    a_member(acme, "olga", "owner")
    add_recipient(tenant=acme, kind=Recipient.Kind.EMAIL, address="ops@example.org", actor="test")
    a_key(acme, member=ada)

    rounds = [warned(timedelta(days=days)) for days in (15, 14, 13, 7, 7, 2, 1, 0.5)]

    assert [len(one) for one in rounds] == [0, 1, 1, 2, 2, 2, 3, 3]
    assert told_people() == ["email ada@example.org"] * 3 + ["email ops@example.org"] * 3


@pytest.mark.parametrize("of_account", [True, False])
def test_of_a_key_that_is_nobodys_own_owners_and_admins_are_told(acme: Tenant, of_account: bool) -> None:
    for name, role in (("olga", "owner"), ("adam", "admin"), ("bob", "member"), ("fin", "finance")):
        a_member(acme, name, role)
    account = create_service_account(tenant=acme, name="build", actor="test") if of_account else None
    a_key(acme, service_account=account)

    warned(timedelta(days=7))

    assert told_people() == ["email adam@example.org", "email olga@example.org"]


def test_after_a_long_pause_only_the_nearest_threshold_is_told(acme: Tenant) -> None:
    a_key(acme, member=a_member(acme, "ada"))

    assert warned(timedelta(hours=5)) == [1]
    assert set(Notice.objects.values_list("threshold", flat=True)) == {1, 7, 14}


def test_another_end_is_told_of_anew(acme: Tenant) -> None:
    key = a_key(acme, member=a_member(acme, "ada"))
    warned(timedelta(days=7))

    change_key(key=key, expires_at=ENDS + timedelta(days=30), actor="test")

    assert len(warned(timedelta(days=6))) == 1
    assert len(warned(timedelta(days=-24))) == 2


SILENCE: dict[str, Callable[[ApiKey], Any]] = {
    "revoked": lambda key: revoke_key(key=key, actor="test", reason="lost"),
    "of a suspended tenant": lambda key: suspend_tenant(tenant=key.tenant, actor="test", reason="unpaid"),
    "without an end": lambda key: change_key(key=key, expires_at=None, actor="test"),
    "of a disabled user": lambda key: type(key.member.user).objects.update(is_active=False),  # type: ignore[union-attr]
}


@pytest.mark.parametrize("why", SILENCE)
def test_nobody_is_told_of_a_key_that_is(acme: Tenant, why: str) -> None:
    key = a_key(acme, member=a_member(acme, "ada"))
    SILENCE[why](key)

    warned(timedelta(days=3))

    assert not Notice.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_of_many_workers_that_look_at_once_one_tells(acme: Tenant) -> None:
    a_key(acme, member=a_member(acme, "ada"))

    with time_machine.travel(ENDS - timedelta(days=7), tick=False):
        at_once(*[key_expiry.warn] * 6)
    connection.close()

    assert Delivery.objects.count() == 1
    assert Notice.objects.count() == 2


@pytest.mark.django_db(transaction=True)
def test_the_mail_says_which_key_ends_when_in_the_zone_of_its_tenant(acme: Tenant, settings: Any) -> None:
    settings.EMAIL_URL = "memory:"
    settings.EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
    a_key(acme, member=a_member(acme, "ada"))
    warned(timedelta(days=7))

    with time_machine.travel(ENDS - timedelta(days=7) + timedelta(seconds=1), tick=False):
        assert deliveries.deliver() == 1

    [message] = mail.outbox
    assert message.to == ["ada@example.org"]
    assert "Key nightly of ACME expires on 2026-05-30 21:00 JST, in less than 7 days." in message.body
    assert Delivery.objects.get().state == Delivery.State.DELIVERED
