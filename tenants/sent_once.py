"""Forms whose answer shows a secret: sending one again, as a browser does on reload, must not do it again."""

from __future__ import annotations

import re
from datetime import timedelta
from uuid import uuid4

from django.db import IntegrityError, transaction
from django.utils.timezone import now

from audit.walls import across
from tenants.models import KeptAnswer, User

# As long as a sign-in lasts, and then some.
KEPT_FOR = timedelta(hours=24)
NUMBER = re.compile("[0-9a-f]{32}")


class SentBefore(Exception):
    """This form was sent, and what it asked for is done."""


def form_number() -> str:
    """What a form carries so that it can be told from every other one."""
    return uuid4().hex


def send_once(user: User, number: str) -> None:
    """Note, in the transaction that does what the form asks for, that it was sent; raises ``SentBefore``.

    Of two that arrive at the same moment the second waits for the first. If
    that is rolled back, the form was not sent. What is no number of a form is
    taken for one that was sent: nobody was shown such a form.
    """
    if not NUMBER.fullmatch(number):
        raise SentBefore
    if not transaction.get_connection().in_atomic_block:
        raise transaction.TransactionManagementError("a form is noted in the transaction of what it does")
    try:
        # What was kept is of no tenant: it is found by who asks.
        with across(), transaction.atomic():
            KeptAnswer.objects.filter(at__lte=now() - KEPT_FOR, actor__startswith="form:").delete()
            KeptAnswer.objects.create(
                actor=f"form:{user.pk.hex}", key=number, request_digest="", status=200, body=None
            )
    except IntegrityError as exc:
        raise SentBefore from exc
