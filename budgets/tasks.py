"""What the worker does again and again; each may be run twice at once, or late."""

from __future__ import annotations

from celery import shared_task
from django.utils.timezone import now

from audit import checkpoints, months, prompts
from budgets import (
    alerts,
    archives,
    booking,
    closing,
    deliveries,
    key_expiry,
    learning,
    ledger,
    pace,
    price_proposals,
    rebuild,
    refused_calls,
    spool,
    sweeping,
    verification,
    visitors,
)
from budgets.exports import jobs


@shared_task(ignore_result=True)
def drain() -> None:
    """Move usage records into the ledger; every second."""
    ledger.drain()


@shared_task(ignore_result=True)
def settle_leftovers() -> None:
    """Book what waits in the spool, then calls whose process died; every few seconds."""
    spool.replay()
    sweeping.sweep()


@shared_task(ignore_result=True)
def ensure_epoch() -> None:
    """Rebuild the counters if Redis has lost them; every few seconds."""
    rebuild.ensure_epoch()


@shared_task(ignore_result=True)
def look() -> None:
    """Find out what people have to be told; every few seconds."""
    alerts.look()


@shared_task(ignore_result=True)
def note_pace() -> None:
    """Note how many calls were counted by now; every few seconds."""
    pace.note()


@shared_task(ignore_result=True)
def deliver() -> None:
    """Send what people are told; every few seconds."""
    deliveries.deliver()


@shared_task(ignore_result=True)
def warn_of_expiry() -> None:
    """Tell people of keys that expire soon; every few minutes."""
    key_expiry.warn()


@shared_task(ignore_result=True)
def make_exports() -> None:
    """Make the files that people ordered; every few seconds."""
    jobs.make_exports()


@shared_task(ignore_result=True)
def expire_exports() -> None:
    """Delete those whose time is over; every few minutes."""
    jobs.expire_exports()


@shared_task(ignore_result=True)
def trim() -> None:
    """Forget old records that the ledger has; every few minutes."""
    ledger.trim()


@shared_task(ignore_result=True)
def publish_estimators() -> None:
    """Publish what was learned of how many bytes make a token; every few minutes."""
    learning.publish(now())


@shared_task(ignore_result=True)
def close_periods() -> None:
    """Write down what periods that are over came to, and what is booked on them later; every minute."""
    closing.close_periods()
    closing.note_late_usage()


@shared_task(ignore_result=True)
def forget_visitors() -> None:
    """Forget what visitors used on days long past; every hour."""
    visitors.forget()


@shared_task(ignore_result=True)
def forget_refusals() -> None:
    """Forget what the values were of calls that were refused long ago; every hour."""
    refused_calls.forget()


@shared_task(ignore_result=True)
def archive_months() -> None:
    """Take months out of the database that are old and closed; every hour."""
    archives.archive_months()


@shared_task(ignore_result=True)
def make_months() -> None:
    """Make the partitions of the months to come; every hour."""
    months.ensure_ahead(booking.BY_MONTH)


@shared_task(ignore_result=True)
def note_audit() -> None:
    """Make checkpoints of the audit; every hour."""
    checkpoints.make()


@shared_task(ignore_result=True)
def watch_audit() -> None:
    """Look at what is new in the audit and at a stretch of what is old; every few minutes."""
    alerts.watch_audit()


@shared_task(ignore_result=True)
def propose_prices() -> None:
    """In the first week of a month, propose prices from what the last one cost; every hour."""
    price_proposals.propose_last_month()


@shared_task(ignore_result=True)
def forget_prompts() -> None:
    """Delete from the prompt log what is past its lifetime; every minute."""
    prompts.forget_expired()


@shared_task(ignore_result=True)
def verify() -> None:
    """Compare the books of the days that are still open; every hour."""
    verification.verify_and_keep(part=verification.open_part(), asked_by=verification.ACTOR)
