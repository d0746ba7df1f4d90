"""Sending what people are told: at least once, with back-off, and beside everything else.

An attempt is claimed before it is made, and the claim says when the next one is
due. So a process that dies in the middle needs no clean-up, two never make the
same attempt, and a receiver may get a notice twice but knows it by its id.
"""

from __future__ import annotations

import logging
import random
import smtplib
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import timedelta
from typing import Any

import orjson
from django.conf import settings
from django.core.mail import EmailMessage
from django.db import transaction
from django.utils.timezone import now
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from budgets import webhooks
from budgets.alone import alone
from budgets.exceptions import NotDelivered
from budgets.models import Delivery
from budgets.notice_words import Reader, in_words, lines_of
from budgets.readers import mailbox, readers_of

logger = logging.getLogger(__name__)

# Any number; only those who send take this advisory lock.
LOCK = 0x544F4C4C03
AT_ONE_TIME = 20

# With these, the last attempt is made about four hours after the first.
MOST_ATTEMPTS = 12
FIRST_PAUSE_SECONDS = 15
LONGEST_PAUSE_SECONDS = 3600


def pause_seconds(begun: int) -> float:
    """How long after an attempt, numbered from 1 on, the next one is made: doubled, and a little random."""
    whole: int = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** (begun - 1))
    # Never less than an attempt may take, so that nobody else begins the next one meanwhile.
    return max(FIRST_PAUSE_SECONDS, whole * random.uniform(0.75, 1.25))  # noqa: S311, no secret


def deliver() -> int:
    """Make the attempts that are due, one for each of a few deliveries; return how many arrived.

    Returns 0 at once while another process sends, so that slow receivers take
    one worker's time at most. A repeat makes no attempt that was made.
    """
    with alone(LOCK) as only:
        return _send_all(_claim()) if only else 0


def deliver_now(delivery: Delivery) -> Delivery:
    """Make one attempt of a delivery while somebody waits; returns it as it is then."""
    with transaction.atomic():
        claimed = _claimed(list(Delivery.objects.select_for_update().filter(pk=delivery.pk, state="waiting")))
    _send_all(claimed)
    return Delivery.objects.select_related("notice").get(pk=delivery.pk)


@transaction.atomic
def _claim() -> list[Delivery]:
    due = Delivery.objects.select_for_update(skip_locked=True).filter(state="waiting", next_at__lte=now())
    return _claimed(list(due.order_by("next_at")[:AT_ONE_TIME]))


def _claimed(deliveries: list[Delivery]) -> list[Delivery]:
    """Begin an attempt of each; those whose last attempt nobody has told the end of are given up."""
    begun = []
    for delivery in deliveries:
        if delivery.begun >= MOST_ATTEMPTS:
            delivery.state = Delivery.State.DEAD
        else:
            delivery.begun += 1
            delivery.next_at = now() + timedelta(seconds=pause_seconds(delivery.begun))
            begun.append(delivery)
        delivery.save()
    known = Delivery.objects.select_related("notice", "recipient", "person")
    return list(known.filter(pk__in=[delivery.pk for delivery in begun]))


def _send_all(deliveries: list[Delivery]) -> int:
    if not deliveries:
        return 0
    arrived = 0
    with ThreadPoolExecutor(len(deliveries)) as threads:
        sending = {
            threads.submit(_attempt, delivery, reader): delivery
            for delivery, reader in zip(deliveries, readers_of(deliveries), strict=True)
        }
        for done in as_completed(sending):
            arrived += _note(sending[done], *done.result())
    return arrived


def _attempt(delivery: Delivery, reader: Reader) -> tuple[int | None, NotDelivered | None]:
    """Send; returns the status of HTTP, if there is one, and what went wrong, or nothing."""
    recipient, address = delivery.recipient, mailbox(delivery)
    if recipient is None and not address:
        return None, NotDelivered(gettext_noop("the recipient was removed"))
    try:
        if recipient is None or address:
            _mail(address, delivery, reader)
            return None, None
        body = orjson.dumps(delivery.notice.facts)
        headers = {"Content-Type": "application/json", "User-Agent": "Tollgate"}
        headers |= webhooks.signed_headers(recipient, str(delivery.pk), body)
        status = webhooks.post(recipient.address, body, headers)
    except NotDelivered as exc:
        return None, exc
    except Exception as exc:
        # Whatever it is, the others are sent; what it says may have the address in it.
        logger.exception("notice %s could not be sent to %s", delivery.notice_id, delivery.to)
        return None, NotDelivered(type(exc).__name__)
    if 200 <= status < 300:
        return status, None
    return status, NotDelivered(gettext_noop("the receiver answered %(status)s"), status=str(status))


def why_not(attempt: dict[str, Any]) -> str:
    """What went wrong with an attempt, in the language that is spoken; nothing if it arrived."""
    # Those from before there were reasons have only the English.
    return _(attempt["reason"]) % attempt["values"] if attempt.get("reason") else str(attempt["error"])


def _note(delivery: Delivery, status: int | None, trouble: NotDelivered | None) -> bool:
    """Write down how an attempt ended; return whether the notice has arrived."""
    nobody = delivery.recipient is None and not mailbox(delivery)
    last = nobody or delivery.begun >= MOST_ATTEMPTS
    error = "" if trouble is None else str(trouble)
    attempt: dict[str, Any] = {"at": now().isoformat(), "status": status, "error": error}
    if trouble is not None:
        attempt |= {"reason": trouble.reason, "values": trouble.values}
    with transaction.atomic():
        # A repeat that was claimed meanwhile may have ended first.
        row = Delivery.objects.select_for_update().get(pk=delivery.pk)
        row.attempts.append(attempt)
        if not error and row.state != Delivery.State.DELIVERED:
            row.state, row.delivered_at = Delivery.State.DELIVERED, now()
        elif error and last and row.state == Delivery.State.WAITING:
            row.state = Delivery.State.DEAD
            logger.error("notice %s to %s is given up: %s", row.notice_id, row.to, error)
        row.save()
    return not error


def _mail(address: str, delivery: Delivery, reader: Reader) -> None:
    """Send a notice as a plain message; its id is that of the delivery, so a repeat is known as one.

    It is put into words for each attempt, so it is read as its reader does by then.
    """
    if not settings.EMAIL_URL:
        raise NotDelivered(gettext_noop("EMAIL_URL is not set"))
    text, lines = in_words(delivery.notice, reader), lines_of(delivery.notice, reader)
    message = EmailMessage(
        subject="[Tollgate] " + " ".join(text.split())[:150],
        body="\n".join([text, "", *lines, ""]),
        to=[address],
        headers={
            "Message-ID": f"<{delivery.pk}@tollgate>",
            "Auto-Submitted": "auto-generated",
            "Content-Language": reader.language,
        },
    )
    try:
        message.send()
    except smtplib.SMTPResponseException as exc:
        raise NotDelivered(f"{type(exc).__name__} {exc.smtp_code}") from exc
    except smtplib.SMTPRecipientsRefused as exc:
        codes = sorted({code for code, _ in exc.recipients.values()})
        refused = gettext_noop("the mail server refused the recipient: %(codes)s")
        raise NotDelivered(refused, codes=str(codes)) from exc
    except (OSError, smtplib.SMTPException) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else type(exc).__name__
        raise NotDelivered(gettext_noop("mail server: %(reason)s"), reason=reason) from exc
