"""The data of a quickstart: made once, and made good again when its secrets were lost."""

from __future__ import annotations

import pytest

from budgets.models import Budget
from config.demo import prepare
from keys.models import ApiKey
from proxy.models import Upstream
from tenants.models import Member, User

pytestmark = pytest.mark.django_db

OLLAMA = "http://127.0.0.1:11434"


def test_a_second_run_changes_nothing() -> None:
    first = prepare(ollama_url=OLLAMA, demo_key="", admin_password="")

    second = prepare(ollama_url=OLLAMA, **first)

    assert second == first
    assert (Member.objects.count(), ApiKey.objects.count(), Budget.objects.count()) == (1, 1, 1)
    admin = User.objects.get(username="admin")
    assert admin.is_superuser
    assert admin.check_password(first["admin_password"])


@pytest.mark.parametrize("remembered", ["", "tg_of_another_database", "no secret at all"])
def test_a_key_whose_secret_was_lost_is_revoked_and_replaced(remembered: str) -> None:
    first = prepare(ollama_url=OLLAMA, demo_key="", admin_password="")

    second = prepare(ollama_url=OLLAMA, demo_key=remembered, admin_password=first["admin_password"])

    assert second["demo_key"] not in {first["demo_key"], remembered}
    assert ApiKey.objects.get(revoked_at=None).label == "quickstart"
    assert ApiKey.objects.exclude(revoked_at=None).get().revoked_reason == "its secret was lost"


def test_the_password_of_an_operator_that_somebody_set_is_not_touched() -> None:
    User.objects.create_superuser("admin", password="chosen by hand")

    made = prepare(ollama_url=OLLAMA, demo_key="", admin_password="an old one")

    assert made["admin_password"] == ""
    assert User.objects.get(username="admin").check_password("chosen by hand")


def test_the_upstream_follows_ollama_to_another_address() -> None:
    made = prepare(ollama_url=OLLAMA, demo_key="", admin_password="")

    prepare(ollama_url="http://127.0.0.1:25000", **made)

    assert Upstream.objects.get().base_url == "http://127.0.0.1:25000"


def test_an_upstream_that_is_there_already_is_used() -> None:
    Upstream.objects.create(name="gpu-1", base_url=OLLAMA)

    prepare(ollama_url=OLLAMA, demo_key="", admin_password="")

    assert Upstream.objects.get().name == "gpu-1"
