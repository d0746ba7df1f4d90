"""Between tests the tables become empty, those too whose triggers keep every row, and the triggers stay."""

from __future__ import annotations

import pytest
from django.db import DatabaseError, connection
from django.test import TransactionTestCase

from audit.models import AuditEvent
from tenants.models import Generation, Tenant
from tenants.services import create_tenant
from tests import emptying

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize("may", [True, False], ids=["as ours", "of a server that was given"])
def test_rows_that_nobody_may_delete_are_gone_and_the_next_are_kept_again(monkeypatch, may):
    monkeypatch.setattr(emptying, "_may_switch_triggers_off", lambda: may)
    create_tenant(slug="acme", name="ACME", actor="test")

    emptying.empty_tables(TransactionTestCase())

    assert [model.objects.exists() for model in (AuditEvent, Tenant, Generation)] == [False] * 3
    create_tenant(slug="acme", name="ACME", actor="test")
    with pytest.raises(DatabaseError), connection.cursor() as cursor:
        cursor.execute("DELETE FROM audit_auditevent")
    assert AuditEvent.objects.exists()
    assert Generation.objects.exists()
