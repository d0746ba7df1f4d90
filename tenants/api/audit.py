"""Who changed what, under ``/manage/v1/audit-events/``."""

from __future__ import annotations

from django.db.models import OuterRef, Subquery
from rest_framework import mixins, serializers

from audit.models import AuditEvent
from tenants.api.managed import Managed
from tenants.models import Tenant


class AuditEventSerializer(serializers.ModelSerializer):
    """A change: who did what to whom, and why. ``tenant`` is null where there is none any more."""

    tenant = serializers.CharField(allow_null=True)
    tenant_id = serializers.UUIDField(allow_null=True)
    details = serializers.DictField()

    class Meta:
        model = AuditEvent
        fields = [
            "id",
            "at",
            "actor",
            "origin",
            "action",
            "subject",
            "tenant_id",
            "tenant",
            "reason",
            "details",
        ]


class AuditEventViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, Managed):
    """The audit: each change once, with its actor and its reason. Nothing here can be changed."""

    queryset = AuditEvent.objects.annotate(
        tenant=Subquery(Tenant.objects.filter(pk=OuterRef("tenant_id")).values("slug")[:1])
    )
    serializer_class = AuditEventSerializer
    scope = "audit"
    of_tenant = "tenant_id"
    needs = {"list": "audit.view_auditevent", "retrieve": "audit.view_auditevent"}
    filters = {
        "tenant": "tenant",
        "action": "action",
        "actor": "actor",
        "subject": "subject",
        "since": "at__gte",
        "until": "at__lt",
    }
    lookup_value_converter = "int"
