"""Who is told of what happens, and how that went."""

from __future__ import annotations

from secrets import token_hex
from urllib.parse import urlsplit

from django.contrib.postgres.fields import ArrayField
from django.core.exceptions import ValidationError
from django.core.serializers.json import DjangoJSONEncoder
from django.core.validators import validate_email
from django.db import models
from django.db.models import Q
from django.utils.timezone import now
from django.utils.translation import gettext as _

from audit.checked import Checked
from audit.walls import Walled
from tenants.ids import new_id
from tenants.models import Tenant, User


def new_salt() -> str:
    return token_hex(16)


def trouble_with_url(url: str) -> str:
    """What is wrong with the URL of a webhook, wherever it leads; nothing, if it is well formed."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return _("This is no URL.")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        return _("A webhook is an https:// address.")
    if parts.username is not None or parts.password is not None:
        return _("A webhook has no user name or password in its address.")
    if not url.isascii() or any(ord(character) <= 32 or ord(character) == 127 for character in url):
        return _("A webhook has no spaces or special characters in its address.")
    return ""


class Happening(models.TextChoices):
    """What people are told of."""

    THRESHOLD = "threshold", "a share of a budget is used"
    EXHAUSTED = "exhausted", "a budget refused a call"
    SHADOW_REFUSED = "shadow_refused", "a shadow budget would have refused a call"
    PERIOD_CLOSED = "period_closed", "a period of a budget is over"
    RAISE_ENDED = "raise_ended", "a raise of a limit is over"
    RAISE_REQUESTED = "raise_requested", "somebody asks for more of a limit"
    RAISE_DECIDED = "raise_decided", "a request for more of a limit was answered"
    KILL_SWITCH_ARMED = "kill_switch_armed", "a kill switch stops calls"
    KILL_SWITCH_LIFTED = "kill_switch_lifted", "a kill switch no longer stops calls"
    KEY_EXPIRES = "key_expires", "a key expires soon"
    BOOKS_DISAGREE = "books_disagree", "the books do not agree"
    RECORD_PARKED = "record_parked", "a usage record could not be booked"
    AUDIT_BROKEN = "audit_broken", "the audit is not as it was written"
    TEST = "test", "somebody tries whether notices arrive"


def every_happening() -> list[str]:
    return [happening for happening in Happening.values if happening != Happening.TEST]


def happenings_told_of() -> list[str]:
    """What a recipient is told of who says nothing: all but each of very many periods."""
    return [happening for happening in every_happening() if happening != Happening.PERIOD_CLOSED]


class Recipient(Checked):
    """Who is told of what happens to a tenant, or with no tenant to any and to the platform."""

    class Kind(models.TextChoices):
        EMAIL = "email", "E-mail"
        WEBHOOK = "webhook"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    tenant = models.ForeignKey(
        Tenant,
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="+",
        help_text="Empty: told of all tenants and of the platform.",
    )
    kind = models.CharField(
        max_length=8,
        choices=Kind.choices,
        help_text="A mail for people, or a signed POST to a program.",
    )
    address = models.CharField(
        max_length=2000, help_text="An e-mail address, or the URL of a webhook: ops@example.org."
    )
    happenings = ArrayField(
        models.CharField(max_length=20, choices=Happening.choices),
        default=happenings_told_of,
        help_text="What they are told of.",
    )
    active = models.BooleanField(default=True, help_text="One that is not active is told of nothing new.")
    # What the secret of a webhook is derived from, with KEY_PEPPER.
    salt = models.CharField(max_length=32, editable=False, default=new_salt)
    created_at = models.DateTimeField(default=now, editable=False)

    objects = Walled()

    class Meta:
        ordering = ["tenant__slug", "kind", "address"]
        constraints = [
            models.CheckConstraint(
                condition=Q(kind__in=["email", "webhook"]), name="budgets_recipient_kind_is_known"
            ),
            models.CheckConstraint(
                condition=Q(happenings__contained_by=every_happening()),
                name="budgets_recipient_happenings_are_known",
            ),
            models.UniqueConstraint(
                fields=["tenant", "kind", "address"],
                nulls_distinct=False,
                name="budgets_recipient_once_per_address",
                violation_error_message="This address is told already.",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.shown_address}"

    def clean(self) -> None:
        if self.kind == self.Kind.EMAIL:
            try:
                validate_email(self.address)
            except ValidationError as exc:
                raise ValidationError({"address": exc.messages}) from exc
        elif trouble := trouble_with_url(self.address):
            raise ValidationError({"address": trouble})

    @property
    def shown_address(self) -> str:
        """The address without what may be a secret: of a URL the host alone."""
        return self.address if self.kind == self.Kind.EMAIL else (urlsplit(self.address).hostname or "?")


class Notice(models.Model):
    """Something that happened and that people are told of, once.

    ``subject`` is the id of what it happened to. A threshold is told once for
    each period and limit of a budget; with ``limit`` and ``used`` as they were.
    ``facts`` is what webhooks are sent, and ``text`` is in it, in English.
    Others are told in words of their own (``budgets.notice_words``) that are
    made of ``values``; null: it is older than these, and ``text`` is all there
    is. Names are kept as they were.
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    happening = models.CharField(max_length=20, choices=Happening.choices)
    subject = models.TextField()
    period_start = models.DateTimeField(null=True)
    threshold = models.PositiveSmallIntegerField(null=True)
    limit = models.BigIntegerField(null=True)
    used = models.BigIntegerField(null=True)
    tenant_id = models.UUIDField(null=True)
    at = models.DateTimeField(default=now)
    text = models.TextField()
    facts = models.JSONField(encoder=DjangoJSONEncoder)
    values = models.JSONField(null=True)

    objects = Walled("tenant_id")

    class Meta:
        ordering = ["-at"]
        constraints = [
            models.UniqueConstraint(
                fields=["happening", "subject", "period_start", "threshold", "limit"],
                nulls_distinct=False,
                name="budgets_notice_once_per_crossing",
            ),
        ]
        indexes = [models.Index(fields=["-at"], name="budgets_notice_newest")]

    def __str__(self) -> str:
        return self.text


class Delivery(Checked):
    """One notice on its way to one recipient, or by mail to a person whom it concerns.

    ``id`` is what the receiver knows a repeat by.

    ``next_at``: when it is tried next; also when it is tried again, should the
    process that tries it now die. ``attempts`` has ``at``, ``status`` (of HTTP)
    and ``error`` of each attempt that ended, oldest first; of one that failed
    also the text to be translated, ``reason``, and what its placeholders are,
    ``values``.
    """

    class State(models.TextChoices):
        WAITING = "waiting"
        DELIVERED = "delivered"
        DEAD = "dead", "Dead: given up"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    notice = models.ForeignKey(Notice, on_delete=models.CASCADE, related_name="deliveries")
    recipient = models.ForeignKey(Recipient, on_delete=models.SET_NULL, null=True, related_name="deliveries")
    person = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, related_name="+")
    to = models.TextField(help_text="The recipient as it was, without secrets.")
    state = models.CharField(max_length=10, choices=State.choices, default=State.WAITING)
    begun = models.PositiveSmallIntegerField(default=0, help_text="How many attempts were begun.")
    attempts = models.JSONField(default=list)
    next_at = models.DateTimeField(default=now)
    delivered_at = models.DateTimeField(null=True)

    objects = Walled("notice", via="budgets.Notice")

    class Meta:
        verbose_name_plural = "deliveries"
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["notice", "recipient"], name="budgets_delivery_once_per_notice_and_recipient"
            ),
            models.UniqueConstraint(
                fields=["notice", "person"], name="budgets_delivery_once_per_notice_and_person"
            ),
            models.CheckConstraint(
                condition=Q(recipient=None) | Q(person=None), name="budgets_delivery_goes_to_one"
            ),
            models.CheckConstraint(
                condition=Q(state__in=["waiting", "delivered", "dead"]),
                name="budgets_delivery_state_is_known",
            ),
        ]
        indexes = [
            models.Index(fields=["next_at"], condition=Q(state="waiting"), name="budgets_delivery_waiting"),
        ]

    def __str__(self) -> str:
        return f"{self.notice} to {self.to}"
