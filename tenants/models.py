from zoneinfo import available_timezones

from django.conf import settings
from django.contrib.auth.models import AbstractUser
from django.contrib.postgres.fields import ArrayField
from django.core.exceptions import ValidationError
from django.core.validators import RegexValidator
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Lower
from django.utils.timezone import now
from django.utils.translation import gettext_lazy as _

from audit.checked import Checked
from audit.walls import Walled
from tenants.ids import new_id
from tenants.names import name_field

SLUG = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?\Z"


def validate_time_zone(name: str) -> None:
    if name not in available_timezones():
        raise ValidationError(f"{name!r} is no time zone. An example: Europe/Berlin.", code="time_zone")


class User(Checked, AbstractUser):
    """A person who signs in: an operator (``is_staff``), or a member of tenants.

    A user who is not active cannot sign in, and the keys of their memberships
    are refused.
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    language = models.CharField(
        max_length=10,
        default="",
        db_default="",
        blank=True,
        help_text="Language of the portal. Empty: as the browser asks for.",
    )
    time_zone = models.CharField(
        max_length=64,
        default="",
        db_default="",
        blank=True,
        validators=[validate_time_zone],
        help_text="Zone in which times are shown to them. Empty: the tenant's.",
    )

    class Meta(AbstractUser.Meta):
        constraints = [
            models.UniqueConstraint(
                Lower("email"),
                condition=~Q(email=""),
                name="tenants_user_email_once",
                violation_error_message="Another user has this e-mail address.",
            ),
        ]


class Tenant(Checked):
    """An organisation, the wall between what one may see and what another may.

    What a key of the tenant may call: every installed model if
    ``allow_all_models``, else those of ``models``. Both are only what a key
    that says nothing itself falls back to.
    """

    class State(models.TextChoices):
        ACTIVE = "active"
        SUSPENDED = "suspended"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    slug = models.CharField(
        max_length=50,
        validators=[RegexValidator(SLUG, "Small letters, digits and hyphens in between only.")],
        help_text="Short name in addresses and reports: small letters, digits, hyphens, such as acme-lab.",
    )
    name = name_field(max_length=200, help_text="As people write it, such as ACME Laboratories.")
    state = models.CharField(
        max_length=10,
        choices=State.choices,
        default=State.ACTIVE,
        help_text="All keys of a suspended tenant are refused.",
    )
    time_zone = models.CharField(
        max_length=64,
        default="UTC",
        validators=[validate_time_zone],
        help_text="Days, weeks and months of budgets begin at its midnight, such as Europe/Berlin. "
        "A change counts for each budget from the end of its present period on.",
    )
    language = models.CharField(
        max_length=10,
        default="",
        db_default="",
        blank=True,
        choices=settings.LANGUAGES,
        help_text="Language of mails to those who have chosen none, and to addresses that are nobody's. "
        "Empty: English.",
    )
    week_start = models.PositiveSmallIntegerField(
        default=1,
        help_text="First day of a week: 1 is Monday, 7 is Sunday. "
        "A change counts from the end of the present week on.",
    )
    allow_all_models = models.BooleanField(
        default=False, help_text="Keys that say nothing themselves may call every installed model."
    )
    needs_second_factor = models.BooleanField(
        default=False, db_default=False, help_text="Its people have to have a second factor to see its pages."
    )
    max_key_days = models.PositiveSmallIntegerField(
        null=True,
        blank=True,
        help_text="For how many days a secret of its keys works at most. Empty: keys may have no end. "
        "Keys that are there already keep theirs.",
    )
    created_at = models.DateTimeField(default=now, editable=False)
    # The last field, because from here on the name is no longer Django's module.
    models = ArrayField(
        models.TextField(),
        null=True,
        blank=True,
        help_text="Models that keys which say nothing themselves may call, such as llama3.2:latest.",
    )

    objects = Walled("id")

    class Meta:
        ordering = ["slug"]
        constraints = [
            models.UniqueConstraint(
                fields=["slug"],
                name="tenants_tenant_slug_once",
                violation_error_message="Another tenant has this slug.",
            ),
            models.CheckConstraint(condition=Q(slug__regex=SLUG), name="tenants_tenant_slug_is_plain"),
            models.CheckConstraint(
                condition=Q(state__in=["active", "suspended"]), name="tenants_tenant_state_is_known"
            ),
            models.CheckConstraint(
                condition=Q(week_start__range=(1, 7)),
                name="tenants_tenant_week_starts_on_a_day",
                violation_error_message="A week starts on a day from 1 (Monday) to 7 (Sunday).",
            ),
            models.CheckConstraint(
                condition=Q(max_key_days=None) | Q(max_key_days__gte=1),
                name="tenants_tenant_keys_live_for_a_day_or_more",
                violation_error_message="Keys live for a day or more, or without a maximum.",
            ),
        ]

    def __str__(self) -> str:
        return self.slug


class CalendarChange(models.Model):
    """A time zone or week start of a tenant that gave way to another; written by a trigger.

    What follows from it for budgets and accounting days is told in
    ``budgets.schedules``. No reference, so that plain SQL may delete a tenant.
    """

    tenant_id = models.UUIDField(db_index=True)
    at = models.DateTimeField()
    time_zone_before = models.TextField()
    week_start_before = models.PositiveSmallIntegerField()
    time_zone = models.TextField()
    week_start = models.PositiveSmallIntegerField()

    objects = Walled("tenant_id")

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return f"{self.time_zone_before} to {self.time_zone} at {self.at:%Y-%m-%d %H:%M}"


class Team(Checked):
    """Members of a tenant who share a budget."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    tenant = models.ForeignKey(
        Tenant, on_delete=models.PROTECT, related_name="teams", help_text="Whose team it is, such as acme."
    )
    name = name_field(max_length=80, help_text="Such as Research.")

    objects = Walled()

    class Meta:
        ordering = ["tenant__slug", "name"]
        constraints = [
            models.UniqueConstraint(
                fields=["tenant", "name"],
                name="tenants_team_name_once_per_tenant",
                violation_error_message="The tenant has another team of this name.",
            ),
            # What the members' foreign key over both columns points at.
            models.UniqueConstraint(fields=["id", "tenant"], name="tenants_team_with_its_tenant"),
        ]

    def __str__(self) -> str:
        return self.name


class Member(Checked):
    """A user's place in a tenant. Their team, if any, is one of the same tenant."""

    class Role(models.TextChoices):
        OWNER = "owner", _("Owner")
        ADMIN = "admin", _("Admin")
        MEMBER = "member", _("Member")
        FINANCE = "finance", _("Finance")
        AUDITOR = "auditor", _("Auditor")

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    tenant = models.ForeignKey(
        Tenant,
        on_delete=models.PROTECT,
        related_name="members",
        help_text="Where the person gets a place, such as acme.",
    )
    user = models.ForeignKey(
        User,
        on_delete=models.PROTECT,
        related_name="memberships",
        help_text="Found by user name or e-mail address, such as ada@example.org.",
    )
    team = models.ForeignKey(
        Team, on_delete=models.PROTECT, related_name="members", null=True, blank=True,
        help_text="One of the tenant's, such as Research, whose budget they share. Empty: none.",
    )  # fmt: skip
    role = models.CharField(
        max_length=10,
        choices=Role.choices,
        default=Role.MEMBER,
        help_text="Owner and admin manage the tenant, a member their own keys; "
        "finance reads and exports; an auditor reads.",
    )

    objects = Walled()

    class Meta:
        ordering = ["tenant__slug", "user__username"]
        constraints = [
            models.UniqueConstraint(
                fields=["tenant", "user"],
                name="tenants_member_once_per_tenant",
                violation_error_message="The user is a member of this tenant already.",
            ),
            models.UniqueConstraint(fields=["id", "tenant"], name="tenants_member_with_its_tenant"),
            models.CheckConstraint(
                condition=Q(role__in=["owner", "admin", "member", "finance", "auditor"]),
                name="tenants_member_role_is_known",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.user} at {self.tenant}"

    def clean(self) -> None:
        if self.team is not None and self.team.tenant_id != self.tenant_id:
            raise ValidationError({"team": "The team belongs to another tenant."})


class ServiceAccount(Checked):
    """A program of a tenant that has keys of its own, which outlast whoever set it up.

    Its team, if any, is one of the same tenant: that team's budgets hold for
    its keys. A closed one stays, for its history, and its name may be used again.
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    tenant = models.ForeignKey(
        Tenant,
        on_delete=models.PROTECT,
        related_name="service_accounts",
        help_text="Whose program it is, such as acme.",
    )
    team = models.ForeignKey(
        Team, on_delete=models.PROTECT, related_name="service_accounts", null=True, blank=True,
        help_text="One of the tenant's, such as Research, whose budget it shares. Empty: none.",
    )  # fmt: skip
    name = name_field(max_length=80, help_text="What it is, such as nightly-build.")
    created_at = models.DateTimeField(default=now, editable=False)
    closed_at = models.DateTimeField(null=True, blank=True, editable=False)

    objects = Walled()

    class Meta:
        ordering = ["tenant__slug", "name"]
        constraints = [
            models.UniqueConstraint(
                fields=["tenant", "name"],
                condition=Q(closed_at=None),
                name="tenants_serviceaccount_open_name_once_per_tenant",
                violation_error_message="The tenant has another service account of this name.",
            ),
            models.UniqueConstraint(fields=["id", "tenant"], name="tenants_serviceaccount_with_its_tenant"),
            models.CheckConstraint(
                condition=Q(closed_at=None) | Q(closed_at__gte=F("created_at")),
                name="tenants_serviceaccount_closes_after_creation",
            ),
        ]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        if self.team is not None and self.team.tenant_id != self.tenant_id:
            raise ValidationError({"team": "The team belongs to another tenant."})


class Invitation(Checked):
    """An e-mail address that was asked to join a tenant, with the role and team it would have there.

    Whoever opens the link in the mail before ``expires_at`` may accept it, once.
    Of the token in the link only a digest is stored; sending it again makes
    another one.
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="invitations")
    email = models.EmailField()
    role = models.CharField(max_length=10, choices=Member.Role.choices, default=Member.Role.MEMBER)
    team = models.ForeignKey(
        Team, on_delete=models.SET_NULL, related_name="invitations", null=True, blank=True
    )
    token_digest = models.CharField(max_length=64, unique=True, editable=False)
    invited_by = models.ForeignKey(User, on_delete=models.PROTECT, related_name="invitations_sent")
    created_at = models.DateTimeField(default=now, editable=False)
    expires_at = models.DateTimeField()
    accepted_at = models.DateTimeField(null=True, blank=True, editable=False)
    accepted_by = models.ForeignKey(
        User, on_delete=models.PROTECT, related_name="invitations_accepted", null=True, blank=True
    )
    withdrawn_at = models.DateTimeField(null=True, blank=True, editable=False)

    objects = Walled()

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.UniqueConstraint(
                "tenant",
                Lower("email"),
                condition=Q(accepted_at=None, withdrawn_at=None),
                name="tenants_invitation_open_once_per_address",
                violation_error_message=_("This address is invited already. Send that invitation again."),
            ),
            models.CheckConstraint(
                condition=Q(accepted_at=None) | Q(withdrawn_at=None),
                name="tenants_invitation_accepted_or_withdrawn",
            ),
            models.CheckConstraint(
                condition=Q(accepted_at=None, accepted_by=None)
                | Q(accepted_at__isnull=False, accepted_by__isnull=False),
                name="tenants_invitation_accepted_by_somebody",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.email} to {self.tenant}"

    def clean(self) -> None:
        if self.team is not None and self.team.tenant_id != self.tenant_id:
            raise ValidationError({"team": "The team belongs to another tenant."})

    @property
    def expired(self) -> bool:
        return self.expires_at <= now()


class Generation(models.Model):
    """How often the settings of a subject changed: of a tenant, or of the platform.

    ``subject`` is the tenant's id as 32 hex digits, or ``platform``. ``number``
    is raised by the triggers on the tables of settings, ``projected`` is the
    last number that Redis confirmed. Read and written by
    ``tenants.generations`` only.
    """

    subject = models.TextField(primary_key=True)
    number = models.BigIntegerField(default=0)
    projected = models.BigIntegerField(default=0)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(projected__lte=F("number")), name="tenants_generation_not_projected_ahead"
            ),
        ]
        indexes = [
            models.Index(
                fields=["subject"], condition=Q(number__gt=F("projected")), name="tenants_generation_pending"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.subject} {self.number}"


class KeptAnswer(models.Model):
    """What a request with an ``Idempotency-Key`` was answered, for whoever sends it again.

    ``actor`` is ``key:`` or ``user:`` and the id in hex, ``request_digest`` the
    SHA-256 of method, address and body. ``body`` is JSON, null where it showed
    a secret. Of a form that may be sent once, ``actor`` begins with ``form:`` and
    ``key`` is what the form carried. Written and deleted by
    ``tenants.api.idempotency`` and ``tenants.sent_once`` only.
    """

    actor = models.TextField()
    key = models.CharField(max_length=255)
    request_digest = models.CharField(max_length=64)
    status = models.SmallIntegerField()
    body = models.TextField(null=True)  # noqa: DJ001 - nothing kept is not the same as nothing answered
    at = models.DateTimeField(default=now)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["actor", "key"], name="tenants_keptanswer_once_per_key"),
        ]
        indexes = [models.Index(fields=["at"], name="tenants_keptanswer_oldest")]

    def __str__(self) -> str:
        return f"{self.status} for {self.actor}"
