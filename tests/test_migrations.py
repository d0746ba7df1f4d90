"""The migrations are those of the models, and hold nobody up."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from io import StringIO

import pytest
from django.contrib.auth.models import Permission
from django.core.management import call_command
from django.core.management.commands.migrate import Command as DjangoCommand
from django.db import OperationalError, connection, transaction
from django.db.migrations.executor import MigrationExecutor
from django.utils.timezone import now

from budgets.limits import limit_now
from budgets.models import OutageCredit
from budgets.services import set_budget
from tenants.models import User


@pytest.mark.django_db
def test_no_migration_is_missing() -> None:
    told = StringIO()

    try:
        call_command("makemigrations", check=True, dry_run=True, stdout=told)
    except SystemExit:
        pytest.fail(told.getvalue())


@pytest.mark.django_db(transaction=True)
def test_raises_of_budgets_and_the_right_to_grant_them_outlive_that_there_are_others() -> None:
    budget = set_budget(scope="platform", unit="tokens", period="day", limit=100, actor="test")
    granting = User.objects.create(username="ops")
    call_command("migrate", "budgets", "0030_pages_of_a_key", verbosity=0)
    try:
        before = MigrationExecutor(connection).loader.project_state(("budgets", "0030_pages_of_a_key")).apps
        before.get_model("budgets", "BudgetRaise").objects.create(
            budget_id=budget.pk, by=5, ends_at=now() + timedelta(hours=1), reason="x", granted_by="ops"
        )
        granting.user_permissions.add(Permission.objects.get(codename="add_budgetraise"))
    finally:
        call_command("migrate", verbosity=0)

    assert limit_now(budget) == 105
    assert granting.has_perm("budgets.add_limitraise")
    assert not Permission.objects.filter(codename__endswith="_budgetraise").exists()


@pytest.mark.django_db(transaction=True)
def test_a_migration_that_cannot_have_its_lock_gives_up_and_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """F5: somebody reads for long; a migration waits behind them, and new readers must not wait behind it."""

    def migrate(*_: object, **__: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE budgets_outagecredit ADD COLUMN more int")

    monkeypatch.setattr(DjangoCommand, "handle", migrate)
    monkeypatch.setattr("config.management.commands.migrate.LOCK_TIMEOUT", "300ms")
    reading, done = threading.Event(), threading.Event()

    def read_for_long() -> None:
        try:
            with transaction.atomic():
                list(OutageCredit.objects.all())
                reading.set()
                done.wait(30)
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as reader:
        long = reader.submit(read_for_long)
        try:
            assert reading.wait(10)
            with pytest.raises(OperationalError, match="lock timeout"):
                call_command("migrate")
        finally:
            done.set()
        long.result()

    # What the command set for itself ends with its connection.
    connection.close()
    assert not OutageCredit.objects.exists()
