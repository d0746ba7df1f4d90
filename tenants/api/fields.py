"""Fields that most of the management API's bodies have."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from django.db.models import Model, QuerySet
from rest_framework import serializers

from tenants import generations
from tenants.api.programs import tenant_of
from tenants.models import Tenant


class TenantField(serializers.SlugRelatedField):
    """A tenant by its slug. To a key of one tenant every other is as unknown as one that there is not."""

    def __init__(self, **options: Any) -> None:
        super().__init__(slug_field="slug", queryset=Tenant.objects.all(), **options)

    def get_queryset(self) -> QuerySet[Tenant]:
        tenants: QuerySet[Tenant] = super().get_queryset()
        own = tenant_of(self.context["request"].user)
        return tenants if own is None else tenants.filter(pk=own.pk)


class OwnField(serializers.PrimaryKeyRelatedField):
    """A row of a tenant by its id, with the same wall."""

    def __init__(self, model: type[Model], **options: Any) -> None:
        rows = model._default_manager.select_related("tenant")  # noqa: SLF001, of whichever model it is
        super().__init__(queryset=rows, pk_field=serializers.UUIDField(), **options)

    def get_queryset(self) -> QuerySet[Any]:
        rows: QuerySet[Any] = super().get_queryset()
        own = tenant_of(self.context["request"].user)
        return rows if own is None else rows.filter(tenant=own)


class MomentField(serializers.DateTimeField):
    """A moment of RFC 3339, from 1970 to 9998: others are some database's or language's no date at all."""

    def to_internal_value(self, value: Any) -> datetime:
        moment: datetime = super().to_internal_value(value)
        if not 1970 <= moment.year <= 9998:
            raise serializers.ValidationError("A moment is from 1970 to 9998.")
        return moment.astimezone(UTC)


class WithForce(serializers.Serializer):
    """``in_force`` false: it is saved, and not every process obeys it yet."""

    in_force = serializers.SerializerMethodField(
        help_text="False: the newest change is saved, and not every process obeys it yet."
    )

    def subject(self, row: Any) -> UUID | None:
        """The tenant whose settings the row belongs to; None: the platform's."""
        tenant_id: UUID | None = getattr(row, "tenant_id", None)
        return tenant_id

    def get_in_force(self, row: Any) -> bool:
        # A page of a hundred rows asks once for each tenant.
        known: dict[UUID | None, bool] = self.context.setdefault("in_force", {})
        subject = self.subject(row)
        if subject not in known:
            known[subject] = generations.in_force(subject)
        return known[subject]


class ReasonSerializer(serializers.Serializer):
    reason = serializers.CharField(help_text="Why, for the audit.")
