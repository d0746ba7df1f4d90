"""Telling people what has happened: writing it down once, and a delivery for each who wants to know.

Both are one transaction, so whatever is written down is delivered. Sending is
``budgets.deliveries``'s, and nothing waits for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Q
from django.utils.timezone import now

from budgets.models import Delivery, Happening, Notice, Recipient
from budgets.notice_words import Reader, text_of
from budgets.readers import zone_of
from tenants.ids import new_id
from tenants.models import User


@transaction.atomic
def tell(
    *,
    happening: str,
    subject: str,
    values: dict[str, Any],
    facts: dict[str, Any],
    tenant_id: UUID | None = None,
    tenant: str = "",
    period_start: datetime | None = None,
    threshold: int | None = None,
    limit: int | None = None,
    used: int | None = None,
    quietly: bool = False,
) -> Notice | None:
    """Write down that something happened, and tell those who want to know; None if it was told before.

    ``subject`` is the id of what it happened to; together with the period,
    threshold and limit it says what is the same happening. ``values`` is what
    ``budgets.notice_words`` makes words of, ``facts`` what webhooks are sent
    beside the English text. Both must fit into JSON and hold no secret.
    ``quietly``: it is written down and nobody is told, because another notice
    says more.
    """
    notice_id, at = new_id(), now()
    text = text_of(happening, values, Reader(settings.LANGUAGE_CODE, zone_of(tenant_id)))
    payload = {
        "id": str(notice_id),
        "happening": happening,
        "at": at.isoformat(),
        "tenant": tenant or None,
        "text": text,
    } | facts
    try:
        with transaction.atomic():
            notice = Notice.objects.create(
                id=notice_id, happening=happening, subject=subject, period_start=period_start,
                threshold=threshold, limit=limit, used=used, tenant_id=tenant_id, at=at, text=text,
                facts=payload, values=values,
            )  # fmt: skip
    except IntegrityError:
        return None
    if not quietly:
        deliver_to(notice, _recipients(happening, tenant_id))
    return notice


def deliver_to_people(notice: Notice, people: Iterable[User]) -> None:
    """An e-mail to each of these whom the notice concerns, but for those who get it as recipients."""
    told = {delivery.recipient.address for delivery in notice.deliveries.exclude(recipient=None)
            .select_related("recipient") if delivery.recipient is not None}  # fmt: skip
    Delivery.objects.bulk_create(
        [
            Delivery(notice=notice, person=person, to=f"email {person.email}")
            for person in people
            if person.email and person.email not in told
        ]
    )


def deliver_to(notice: Notice, recipients: list[Recipient]) -> list[Delivery]:
    """A delivery of a notice for each recipient, to be sent soon."""
    return Delivery.objects.bulk_create(
        [Delivery(notice=notice, recipient=recipient, to=str(recipient)) for recipient in recipients]
    )


def _recipients(happening: str, tenant_id: UUID | None) -> list[Recipient]:
    """Those of the tenant, and those who hear of all tenants."""
    whose = Q(tenant=None) if tenant_id is None else Q(tenant=None) | Q(tenant=tenant_id)
    return list(Recipient.objects.filter(whose, active=True, happenings__contains=[happening]))


@transaction.atomic
def try_out(recipient: Recipient, actor: str) -> Delivery:
    """A delivery that only shows whether a recipient can be reached."""
    notice = tell(
        happening=Happening.TEST,
        subject=str(new_id()),
        values={"who": actor},
        facts={},
        tenant_id=recipient.tenant_id,
        tenant="" if recipient.tenant is None else recipient.tenant.slug,
        quietly=True,
    )
    if notice is None:
        raise RuntimeError("a new id is not new")
    return deliver_to(notice, [recipient])[0]
