"""What is kept of refused calls, so that people can be told why."""

from __future__ import annotations

from django.core.serializers.json import DjangoJSONEncoder
from django.db import models

from audit.walls import Walled


class RefusedCall(models.Model):
    """What was known when a call was refused: the values that the ordered questions of admission looked at.

    Beside its ``RequestEvent``, and only of calls that were refused before
    anything was asked of a model. ``facts`` is what ``budgets.refusals.facts_of``
    and the gateway noted; never anything that a prompt said. Rows are deleted
    when they are old (``budgets.refused_calls.forget``); the event stays.
    """

    request_id = models.UUIDField(primary_key=True)
    at = models.DateTimeField()
    tenant_id = models.UUIDField(null=True)
    key_id = models.UUIDField(null=True)
    member_id = models.UUIDField(null=True, help_text="Whose key it was; null: nobody's own.")
    refusal = models.TextField(help_text="The code that the client was given.")
    facts = models.JSONField(default=dict, encoder=DjangoJSONEncoder)

    objects = Walled("tenant_id")

    class Meta:
        ordering = ["-at"]
        indexes = [
            models.Index(fields=["tenant_id", "-at"], name="budgets_refusedcall_of_tenant"),
            models.Index(fields=["member_id", "-at"], name="budgets_refusedcall_of_member"),
            models.Index(fields=["at"], name="budgets_refusedcall_oldest"),
        ]

    def __str__(self) -> str:
        return str(self.request_id)
