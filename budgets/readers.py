"""How those read whom notices go to: in which language, and by which clock."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID
from zoneinfo import ZoneInfo

from django.conf import settings
from django.db.models.functions import Lower

from budgets.models import Delivery, Recipient
from budgets.notice_words import Reader
from tenants.models import Tenant, User


def zone_of(tenant_id: UUID | None) -> ZoneInfo:
    """The zone of a tenant; of none, and of one that is gone, UTC."""
    tenant = None if tenant_id is None else Tenant.objects.filter(pk=tenant_id).first()
    return ZoneInfo("UTC" if tenant is None else tenant.time_zone)


def mailbox(delivery: Delivery) -> str:
    """The address that a notice is mailed to; empty if it goes to a webhook, or there is nobody any more."""
    if delivery.person is not None:
        return delivery.person.email if delivery.person.is_active else ""
    recipient = delivery.recipient
    return recipient.address if recipient is not None and recipient.kind == Recipient.Kind.EMAIL else ""


def readers_of(deliveries: Iterable[Delivery]) -> list[Reader]:
    """How each of these is read, in their order: as the person chose whose address it is.

    An address that is nobody's, and what the person has left open, goes by the
    tenant that the notice is of; without one it is English and UTC.
    """
    deliveries = list(deliveries)
    addresses = {mailbox(one).lower() for one in deliveries if one.person is None} - {""}
    found = User.objects.annotate(address=Lower("email")).filter(address__in=addresses, is_active=True)
    people = {one.email.lower(): one for one in found}
    tenants = Tenant.objects.in_bulk({one.notice.tenant_id for one in deliveries} - {None})
    readers = []
    for one in deliveries:
        person = one.person or people.get(mailbox(one).lower())
        tenant = tenants.get(one.notice.tenant_id)
        language = (person and person.language) or (tenant and tenant.language) or settings.LANGUAGE_CODE
        zone = (person and person.time_zone) or (tenant and tenant.time_zone) or "UTC"
        readers.append(Reader(language, ZoneInfo(zone)))
    return readers
