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

import orjson
from django.conf import settings
from django.core.mail import EmailMessage
from django.db import transaction
from django.utils.timezone import now

from budgets import webhooks
from budgets.alone import alone
from budgets.exceptions import NotDelivered
from budgets.models import Delivery, Recipient

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
        sending = {threads.submit(_attempt, delivery): delivery for delivery in deliveries}
        for done in as_completed(sending):
            arrived += _note(sending[done], *done.result())
    return arrived


def _attempt(delivery: Delivery) -> tuple[int | None, str]:
    """Send; returns the status of HTTP, if there is one, and what went wrong, or nothing."""
    recipient, address = delivery.recipient, _mailbox(delivery)
    if recipient is None and not address:
        return None, "the recipient was removed"
    try:
        if recipient is None or address:
            _mail(address, delivery)
            return None, ""
        body = orjson.dumps(delivery.notice.facts)
        headers = {"Content-Type": "application/json", "User-Agent": "Tollgate"}
        headers |= webhooks.signed_headers(recipient, str(delivery.pk), body)
        status = webhooks.post(recipient.address, body, headers)
    except NotDelivered as exc:
        return None, str(exc)
    except Exception as exc:
        # Whatever it is, the others are sent; what it says may have the address in it.
        logger.exception("notice %s could not be sent to %s", delivery.notice_id, delivery.to)
        return None, type(exc).__name__
    return status, "" if 200 <= status < 300 else f"the receiver answered {status}"


def _mailbox(delivery: Delivery) -> str:
    """The address that a notice is mailed to; empty if it goes to a webhook, or there is nobody any more."""
    if delivery.person is not None:
        return delivery.person.email if delivery.person.is_active else ""
    recipient = delivery.recipient
    return recipient.address if recipient is not None and recipient.kind == Recipient.Kind.EMAIL else ""


def _note(delivery: Delivery, status: int | None, error: str) -> bool:
    """Write down how an attempt ended; return whether the notice has arrived."""
    nobody = delivery.recipient is None and not _mailbox(delivery)
    last = nobody or delivery.begun >= MOST_ATTEMPTS
    with transaction.atomic():
        # A repeat that was claimed meanwhile may have ended first.
        row = Delivery.objects.select_for_update().get(pk=delivery.pk)
        row.attempts.append({"at": now().isoformat(), "status": status, "error": error})
        if not error and row.state != Delivery.State.DELIVERED:
            row.state, row.delivered_at = Delivery.State.DELIVERED, now()
        elif error and last and row.state == Delivery.State.WAITING:
            row.state = Delivery.State.DEAD
            logger.error("notice %s to %s is given up: %s", row.notice_id, row.to, error)
        row.save()
    return not error


def _mail(address: str, delivery: Delivery) -> None:
    """Send a notice as a plain message; its id is that of the delivery, so a repeat is known as one."""
    if not settings.EMAIL_URL:
        raise NotDelivered("EMAIL_URL is not set")
    notice = delivery.notice
    message = EmailMessage(
        subject="[Tollgate] " + " ".join(notice.text.split())[:150],
        body=f"{notice.text}\n\n{_lines(notice.facts)}\n",
        to=[address],
        headers={"Message-ID": f"<{delivery.pk}@tollgate>", "Auto-Submitted": "auto-generated"},
    )
    try:
        message.send()
    except smtplib.SMTPResponseException as exc:
        raise NotDelivered(f"{type(exc).__name__} {exc.smtp_code}") from exc
    except smtplib.SMTPRecipientsRefused as exc:
        codes = sorted({code for code, _ in exc.recipients.values()})
        raise NotDelivered(f"the mail server refused the recipient: {codes}") from exc
    except (OSError, smtplib.SMTPException) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else type(exc).__name__
        raise NotDelivered(f"mail server: {reason}") from exc


def _lines(facts: dict[str, object], prefix: str = "") -> str:
    """The facts, one on each line."""
    lines = []
    for name, value in facts.items():
        if name == "text":
            continue
        if isinstance(value, dict):
            lines.append(_lines(value, f"{prefix}{name}."))
        else:
            lines.append(f"{prefix}{name}: {'-' if value is None else value}")
    return "\n".join(lines)
