from django.contrib.postgres.fields import ArrayField
from django.core.serializers.json import DjangoJSONEncoder
from django.db import models
from django.db.models import Q
from django.utils.timezone import now

from audit.walls import Walled


class AuditEvent(models.Model):
    """A change made by a person or by the gateway: who did what to whom, and why.

    Written by ``audit.recording.record`` inside the transaction of the change.
    Rows name what they are about instead of pointing at it, so they outlive it.
    The database refuses to change or delete one, and links it to the one before
    (``AuditLink``).
    """

    at = models.DateTimeField(default=now)
    actor = models.TextField()
    origin = models.TextField(
        blank=True,
        default="",
        db_default="",
        help_text="Where it was done: the door and the address, or the command and the machine.",
    )
    action = models.TextField()
    subject = models.TextField()
    tenant_id = models.UUIDField(null=True, blank=True)
    reason = models.TextField(blank=True)
    details = models.JSONField(default=dict, blank=True, encoder=DjangoJSONEncoder)

    objects = Walled("tenant_id")

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.CheckConstraint(
                condition=~Q(actor="") & ~Q(action="") & ~Q(subject=""),
                name="audit_auditevent_says_who_did_what",
            ),
        ]
        indexes = [
            models.Index(fields=["tenant_id", "-id"], name="audit_auditevent_of_tenant"),
            models.Index(fields=["action", "-id"], name="audit_auditevent_of_action"),
            models.Index(fields=["subject", "-id"], name="audit_auditevent_of_subject"),
            models.Index(fields=["actor", "-id"], name="audit_auditevent_of_actor"),
            models.Index(fields=["-at"], name="audit_auditevent_newest"),
        ]

    def __str__(self) -> str:
        return f"{self.action} {self.subject}"


class AuditLink(models.Model):
    """An audit event's place in the chain of its tenant, or of the platform.

    Written by a trigger as the event's transaction commits. ``digest`` is over
    the digest before and all of the event (``audit.chains``), so whoever changes
    an event, takes one out or moves one has to write all links after it anew.
    ``number`` counts from 1 without a gap.
    """

    event_id = models.BigIntegerField(primary_key=True)
    chain = models.TextField()
    number = models.BigIntegerField()
    digest = models.BinaryField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["chain", "number"], name="audit_auditlink_once_per_number"),
        ]

    def __str__(self) -> str:
        return f"{self.chain} {self.number}"


class AuditCheckpoint(models.Model):
    """What the end of a chain was at a moment, signed; worth most where the database's masters cannot reach.

    ``signature`` is of Ed25519 over what ``audit.checkpoints`` writes into a line.
    """

    at = models.DateTimeField()
    chain = models.TextField()
    number = models.BigIntegerField()
    digest = models.BinaryField()
    signature = models.BinaryField()

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(fields=["chain", "number"], name="audit_auditcheckpoint_once_per_number"),
        ]

    def __str__(self) -> str:
        return f"{self.chain} {self.number} at {self.at:%Y-%m-%d %H:%M}"


class AuditCheck(models.Model):
    """One look of the worker at the audit: at what is new, and at the next stretch of what is old.

    ``reached`` is the id of the event up to which the round over all of the audit
    has come; 0: the round is over, and the next look begins another. Kept of the
    troubles are the first few, ``found`` is how many there were.
    """

    at = models.DateTimeField(default=now)
    seconds = models.FloatField()
    events = models.BigIntegerField(help_text="How many events were looked at.")
    reached = models.BigIntegerField()
    found = models.BigIntegerField(help_text="How many troubles were found; 0: all is as it was written.")
    troubles = models.JSONField(default=list)

    class Meta:
        ordering = ["-at"]
        get_latest_by = "at"
        indexes = [
            models.Index(fields=["-at"], name="audit_auditcheck_newest"),
            models.Index(fields=["-at"], condition=~Q(found=0), name="audit_auditcheck_of_trouble"),
        ]

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M}: {self.found or 'no'} troubles"


class RequestEvent(models.Model):
    """One call at the gateway's doors, refused ones included; never its content.

    ``tenant`` and ``key`` are the names as they were; a call whose key nobody
    knows has neither. ``outcome`` says how the call ended, ``refusal`` is the
    code the client was given, ``refused_by`` names the limits that refused it;
    of a call that was not refused, those in shadow mode that would have.
    Written by the drain; the database refuses to change or delete a row.
    """

    request_id = models.UUIDField(primary_key=True)
    at = models.DateTimeField(help_text="When the call was settled or refused.")
    tenant_id = models.UUIDField(null=True, blank=True)
    tenant = models.TextField(blank=True)
    key_id = models.UUIDField(null=True, blank=True)
    key = models.TextField(blank=True, help_text="The key's label.")
    route = models.TextField()
    dialect = models.TextField()
    model = models.TextField(blank=True)
    upstream = models.TextField(blank=True)
    stream = models.BooleanField(default=False)
    run = models.TextField(
        blank=True, default="", db_default="", help_text="What the client named as its run."
    )
    status = models.SmallIntegerField(help_text="HTTP status the client was given.")
    outcome = models.TextField()
    refusal = models.TextField(blank=True)
    refused_by = ArrayField(
        models.TextField(),
        default=list,
        blank=True,
        help_text="Limits that refused the call, or in shadow mode would have.",
    )
    input_tokens = models.BigIntegerField(default=0)
    output_tokens = models.BigIntegerField(default=0)
    exact = models.BooleanField(default=True, help_text="False: the tokens are estimated.")
    admitted_at = models.DateTimeField(null=True, blank=True)
    first_byte_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)

    objects = Walled("tenant_id")

    class Meta:
        ordering = ["-at"]
        constraints = [
            models.CheckConstraint(
                condition=Q(input_tokens__gte=0) & Q(output_tokens__gte=0),
                name="audit_requestevent_tokens_not_negative",
            ),
        ]
        indexes = [
            models.Index(fields=["-at"], name="audit_requestevent_newest"),
            models.Index(fields=["tenant_id", "-at"], name="audit_requestevent_of_tenant"),
            models.Index(fields=["key_id", "-at"], name="audit_requestevent_of_key"),
        ]

    def __str__(self) -> str:
        return str(self.request_id)


class LoggedPrompt(models.Model):
    """What one call of a key that opted in said and was answered, until ``expires_at``.

    ``prompt`` and ``answer`` are encrypted (``audit.sealing``); ``audit.prompts``
    writes and opens them. ``tenant`` and ``key`` are the names as they were.
    Unlike events and entries such a row is deleted when it has expired, and when
    its person wants it.
    """

    request_id = models.UUIDField(primary_key=True)
    at = models.DateTimeField(help_text="When the call ended.")
    expires_at = models.DateTimeField(help_text="From this moment nobody can read it.")
    tenant_id = models.UUIDField()
    tenant = models.TextField()
    key_id = models.UUIDField()
    key = models.TextField(help_text="The key's label.")
    member_id = models.UUIDField(null=True, help_text="Whose key it was; null: the tenant's own.")
    prompt = models.BinaryField()
    answer = models.BinaryField()
    cut = models.BooleanField(help_text="Something was left out because it was too long.")

    objects = Walled("tenant_id")

    class Meta:
        ordering = ["-at"]
        constraints = [
            models.CheckConstraint(
                condition=Q(expires_at__gt=models.F("at")), name="audit_loggedprompt_expires_after_its_call"
            ),
        ]
        indexes = [
            models.Index(fields=["expires_at"], name="audit_loggedprompt_expiring"),
            models.Index(fields=["-at"], name="audit_loggedprompt_newest"),
            models.Index(fields=["tenant_id", "-at"], name="audit_loggedprompt_of_tenant"),
            models.Index(fields=["key_id"], name="audit_loggedprompt_of_key"),
            models.Index(
                fields=["member_id"],
                condition=Q(member_id__isnull=False),
                name="audit_loggedprompt_of_member",
            ),
        ]

    def __str__(self) -> str:
        return str(self.request_id)
