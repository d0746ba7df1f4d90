from django.contrib.postgres.fields import ArrayField
from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import F, Q
from django.utils.timezone import now
from django.utils.translation import gettext as _

from audit.checked import Checked
from audit.redaction import LONGEST_TEMPLATE, MOST_TEMPLATES, check_template
from audit.walls import Walled
from keys.endpoints import ENDPOINTS, validate_endpoints
from keys.networks import NetworkField, network_in
from keys.policies import OPTIONS
from keys.scopes import SCOPES
from tenants.ids import new_id
from tenants.models import Member, ServiceAccount, Tenant
from tenants.names import name_field

# The largest whole number that Redis' scripts count exactly.
LARGEST = 2**53 - 1


class ApiKey(Checked):
    """What a program calls the gateway with: its tenant, its label, what it may call.

    A key belongs to a member, to a service account, or else to the tenant
    itself. The secret is shown once, by ``keys.services.issue_key`` and
    ``rotate_key``; see ``KeySecret`` for what is stored.

    A disabled key is refused until it is enabled again, a revoked one for good.
    ``scopes`` are the endpoint scopes of ``keys.endpoints``, null for all, and
    ``address_blocks`` the networks that it may be used from, null for anywhere.

    What it may call: every installed model if ``allow_all_models``, else those
    of ``models``; each of the two is the tenant's where the key's is null.

    The calls of visitors, who have no secret, are booked on a key of kind
    ``anonymous``; what they may call is told by ``AnonymousAccess``.
    """

    class Kind(models.TextChoices):
        SECRET = "secret"  # noqa: S105 - a word
        ANONYMOUS = "anonymous"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    tenant = models.ForeignKey(
        Tenant, on_delete=models.PROTECT, related_name="keys", help_text="Whose key it is, such as acme."
    )
    member = models.ForeignKey(
        Member, on_delete=models.PROTECT, related_name="keys", null=True, blank=True,
        help_text="The person who calls with it. Empty, as the next: the tenant's own.",
    )  # fmt: skip
    service_account = models.ForeignKey(
        ServiceAccount, on_delete=models.PROTECT, related_name="keys", null=True, blank=True,
        help_text="The program that calls with it, such as nightly-build; not together with a member.",
    )  # fmt: skip
    label = name_field(max_length=80, help_text="What the key is for, such as nightly-report.")
    # With a default in the database, because the release before this one writes keys too.
    kind = models.CharField(
        max_length=10, choices=Kind.choices, default=Kind.SECRET, db_default=Kind.SECRET, editable=False
    )
    allow_all_models = models.BooleanField(null=True, blank=True)
    created_at = models.DateTimeField(default=now, editable=False)
    expires_at = models.DateTimeField(
        null=True, blank=True, help_text="From this moment the key is refused. Empty: it never expires."
    )
    scopes = ArrayField(
        models.TextField(),
        null=True,
        blank=True,
        validators=[validate_endpoints],
        help_text="What it may ask for, of chat, completions, embeddings, responses, messages and models. "
        "Empty: everything.",
    )
    address_blocks = ArrayField(
        NetworkField(),
        null=True,
        blank=True,
        help_text="Networks it may be used from, such as 192.0.2.0/24. Empty: anywhere.",
    )
    prompt_log_days = models.PositiveSmallIntegerField(
        null=True,
        blank=True,
        help_text="For how many days prompts and answers of its calls are kept, encrypted. Empty: never.",
    )
    disabled_at = models.DateTimeField(null=True, blank=True, editable=False)
    disabled_reason = models.TextField(blank=True, default="", db_default="", editable=False)
    revoked_at = models.DateTimeField(null=True, blank=True, editable=False)
    revoked_reason = models.TextField(blank=True, editable=False)
    # The last field, because from here on the name is no longer Django's module.
    models = ArrayField(models.TextField(), null=True, blank=True)

    objects = Walled()

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            # A revoked label may be used again; two live keys of one holder may not share one.
            models.UniqueConstraint(
                fields=["member", "label"],
                condition=Q(revoked_at=None),
                name="keys_apikey_live_label_once_per_member",
                violation_error_message="The member has another live key with this label.",
            ),
            models.UniqueConstraint(
                fields=["service_account", "label"],
                condition=Q(revoked_at=None),
                name="keys_apikey_live_label_once_per_service_account",
                violation_error_message="The service account has another live key with this label.",
            ),
            models.UniqueConstraint(
                fields=["tenant", "label"],
                condition=Q(revoked_at=None, member=None, service_account=None),
                name="keys_apikey_live_label_once_per_tenant",
                violation_error_message="The tenant has another live key with this label.",
            ),
            models.CheckConstraint(
                condition=Q(expires_at=None) | Q(expires_at__gt=F("created_at")),
                name="keys_apikey_expires_after_creation",
                violation_error_message="A key cannot expire before it is created.",
            ),
            models.CheckConstraint(
                condition=Q(revoked_reason="") | Q(revoked_at__isnull=False),
                name="keys_apikey_reason_only_when_revoked",
            ),
            models.CheckConstraint(
                condition=Q(member=None) | Q(service_account=None),
                name="keys_apikey_one_holder_at_most",
                violation_error_message="A key belongs to a member or to a service account, not to both.",
            ),
            models.CheckConstraint(
                condition=Q(disabled_reason="") | Q(disabled_at__isnull=False),
                name="keys_apikey_reason_only_when_disabled",
            ),
            models.CheckConstraint(
                condition=Q(scopes=None) | Q(scopes__contained_by=list(ENDPOINTS), scopes__len__gt=0),
                name="keys_apikey_scopes_are_known",
                violation_error_message="Name an endpoint scope at least, or leave them empty for all.",
            ),
            models.CheckConstraint(
                condition=Q(address_blocks=None) | Q(address_blocks__len__gt=0),
                name="keys_apikey_may_be_used_somewhere",
                violation_error_message="Name a network at least, or leave them empty for anywhere.",
            ),
            models.CheckConstraint(
                condition=Q(kind="secret")
                | Q(kind="anonymous", member=None, service_account=None, allow_all_models=False),
                name="keys_apikey_anonymous_belongs_to_the_tenant",
            ),
            models.CheckConstraint(
                condition=Q(prompt_log_days=None) | Q(prompt_log_days__gte=1, kind="secret"),
                name="keys_apikey_prompts_are_kept_for_days",
                violation_error_message="Prompts are kept for a day or more, and never those of visitors.",
            ),
            # What a row about a key of a tenant may point at with both columns.
            models.UniqueConstraint(fields=["id", "tenant"], name="keys_apikey_with_its_tenant"),
        ]
        indexes = [models.Index(fields=["-created_at"], name="keys_apikey_newest")]

    def __str__(self) -> str:
        return self.label

    def clean(self) -> None:
        if self.member is not None and self.member.tenant_id != self.tenant_id:
            raise ValidationError({"member": "The member belongs to another tenant."})
        account = self.service_account
        if account is not None and account.tenant_id != self.tenant_id:
            raise ValidationError({"service_account": _("The service account belongs to another tenant.")})
        if account is not None and account.closed_at is not None and self.revoked_at is None:
            raise ValidationError({"service_account": _("The service account is closed.")})
        if self.address_blocks is not None:
            try:
                self.address_blocks = list(dict.fromkeys(map(network_in, self.address_blocks)))
            except ValidationError as exc:
                raise ValidationError({"address_blocks": exc}) from exc


class KeySecret(Checked):
    """What is stored of a secret: its public part, by which it is found, and a digest.

    One of a key's secrets has no end of its own. While the key is being rotated
    an older one works beside it: until ``retires_at``, or if it
    ``retires_on_use`` until the newer one is used for the first time, which
    then sets ``retires_at``.
    """

    public_id = models.CharField(primary_key=True, max_length=12, editable=False)
    key = models.ForeignKey(ApiKey, on_delete=models.CASCADE, related_name="secrets")
    digest = models.CharField(max_length=64, editable=False)
    created_at = models.DateTimeField(default=now, editable=False)
    # In the column that the release before this one reads, so that it obeys too.
    retires_at = models.DateTimeField(null=True, blank=True, editable=False, db_column="expires_at")
    retires_on_use = models.BooleanField(default=False, db_default=False, editable=False)

    objects = Walled("key", via="keys.ApiKey")

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["key"],
                condition=Q(retires_at=None, retires_on_use=False),
                name="keys_keysecret_one_without_an_end",
            ),
            models.CheckConstraint(
                condition=Q(public_id__regex=r"^[0-9A-Za-z]{12}\Z"), name="keys_keysecret_public_id"
            ),
            models.CheckConstraint(
                condition=Q(digest__regex=r"^[0-9a-f]{64}\Z"), name="keys_keysecret_digest_is_hex"
            ),
        ]

    def __str__(self) -> str:
        return self.public_id


class SecretUse(models.Model):
    """When a secret was last used, for which model, and from which block of addresses.

    Written by ``keys.last_use`` only, once a minute at most; no settings, so no
    generation is raised. ``model`` is empty where none was asked for.
    """

    secret = models.OneToOneField(KeySecret, on_delete=models.CASCADE, primary_key=True, related_name="use")
    used_at = models.DateTimeField()
    model = models.TextField(blank=True)
    address_block = NetworkField()
    noted_at = models.DateTimeField()

    objects = Walled("secret", via="keys.KeySecret")

    class Meta:
        ordering = ["-used_at"]

    def __str__(self) -> str:
        return f"{self.secret_id} at {self.used_at:%Y-%m-%d %H:%M}"


# Nobody has to ask for a number of tokens, and of yes and no neither is more.
_NOT_BOUNDED = {("num_predict", "minimum"), ("use_mmap", "minimum"), ("use_mmap", "maximum")}


def _says_what_its_option_can() -> Q:
    """The condition that a rule's numbers are ones that its option can have."""
    condition = Q()
    for name, option in OPTIONS.items():
        fits = Q(option=name)
        for column in ("minimum", "maximum", "default_value"):
            bounds = Q(**{column: None})
            if option.lowest is not None and (name, column) not in _NOT_BOUNDED:
                bounds |= Q(**{f"{column}__range": (option.lowest, option.highest)})
            fits &= bounds
        condition |= fits
    return condition


class PolicyRule(Checked):
    """What the platform (no tenant), a tenant or a key says about one option of calls.

    What is null is not said. What all of them say together is worked out by
    ``keys.policies.together``: permissions and bounds as the strictest says, a
    default as the nearest.
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    tenant = models.ForeignKey(
        Tenant, on_delete=models.CASCADE, null=True, blank=True, related_name="+",
        help_text="Empty: the rule holds for everybody.",
    )  # fmt: skip
    key = models.ForeignKey(
        ApiKey, on_delete=models.CASCADE, null=True, blank=True, related_name="+",
        help_text="Empty: the rule holds for all keys of the tenant.",
    )  # fmt: skip
    option = models.CharField(
        max_length=20,
        choices=[(name, name) for name in OPTIONS],
        help_text="What of a request it speaks of: num_ctx is the size of the context in tokens.",
    )
    allowed = models.BooleanField(
        null=True, blank=True, help_text="Whether clients may set it. Unknown: nothing is said."
    )
    minimum = models.BigIntegerField(
        null=True, blank=True, help_text="What is sent is at least this: 2048. Empty: nothing is said."
    )
    maximum = models.BigIntegerField(
        null=True, blank=True, help_text="What is sent is at most this: 8192. Empty: nothing is said."
    )
    default_value = models.BigIntegerField(
        null=True,
        blank=True,
        help_text="What is sent where the client does not choose; keep_alive is in seconds. "
        "Empty: nothing is said.",
    )

    objects = Walled(shared=True)

    class Meta:
        ordering = ["option"]
        constraints = [
            models.CheckConstraint(
                condition=Q(option__in=list(OPTIONS)), name="keys_policyrule_option_is_known"
            ),
            models.CheckConstraint(
                condition=Q(key=None) | Q(tenant__isnull=False), name="keys_policyrule_names_the_keys_tenant"
            ),
            models.CheckConstraint(
                condition=_says_what_its_option_can(),
                name="keys_policyrule_says_what_its_option_can",
                violation_error_message="The option cannot have such a minimum, maximum or default.",
            ),
            models.CheckConstraint(
                condition=~Q(option="num_predict") | Q(allowed=None),
                name="keys_policyrule_anybody_may_ask_for_less",
                violation_error_message="Asking for fewer tokens cannot be forbidden; set a maximum.",
            ),
            models.CheckConstraint(
                condition=Q(minimum=None) | Q(maximum=None) | Q(minimum__lte=F("maximum")),
                name="keys_policyrule_minimum_within_maximum",
                violation_error_message="The minimum is above the maximum.",
            ),
            models.CheckConstraint(
                condition=Q(allowed__isnull=False)
                | Q(minimum__isnull=False)
                | Q(maximum__isnull=False)
                | Q(default_value__isnull=False),
                name="keys_policyrule_says_something",
                violation_error_message="The rule says nothing.",
            ),
            models.UniqueConstraint(
                fields=["tenant", "key", "option"],
                nulls_distinct=False,
                name="keys_policyrule_once_per_option",
                violation_error_message="There is a rule for this option already.",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.option} of {self.whose}"

    @property
    def whose(self) -> str:
        """Such as ``key nightly-report of acme``."""
        if self.key is not None:
            return f"key {self.key} of {self.tenant}"
        return "platform" if self.tenant is None else f"tenant {self.tenant}"

    def clean(self) -> None:
        if self.key is not None and self.key.tenant_id != self.tenant_id:
            raise ValidationError({"key": "The key belongs to another tenant."})


class AnonymousAccess(Checked):
    """What people may use who have no key, but name the tenant. Without a row, or not enabled: nothing.

    A visitor and the network they come from each have their tokens for a day of
    the tenant. After ``check_after`` requests of a network in a day it is asked
    for proof that a human is there; each proof is good for as many again. Of
    the limits empty is none, and 0 lets nothing through. ``key`` is the one on
    which the calls are booked.
    """

    tenant = models.OneToOneField(
        Tenant, on_delete=models.PROTECT, primary_key=True, related_name="+",
        help_text="Who lets visitors in and pays for them, such as acme.",
    )  # fmt: skip
    key = models.OneToOneField(ApiKey, on_delete=models.PROTECT, related_name="+", editable=False)
    enabled = models.BooleanField(default=False, help_text="Whether anybody is let in without a key.")
    visitor_tokens = models.BigIntegerField(
        null=True,
        blank=True,
        default=20_000,
        help_text="Tokens one visitor (a browser) may use in a day, in and out. Empty: no limit. 0: none.",
    )
    address_tokens = models.BigIntegerField(
        null=True,
        blank=True,
        default=100_000,
        help_text="Tokens all visitors of one address may use in a day. Empty: no limit. 0: none.",
    )
    address_streams = models.IntegerField(
        null=True,
        blank=True,
        default=2,
        help_text="Calls of one address that may run at one time. Empty: no limit. 0: none.",
    )
    check_after = models.IntegerField(
        null=True,
        blank=True,
        default=None,
        help_text="Requests of one address in a day until a human check. Empty: never. 0: always.",
    )
    warning_percent = models.PositiveSmallIntegerField(
        default=80, help_text="From how much of an allowance on a visitor is told: warning."
    )
    # The last field, because from here on the name is no longer Django's module.
    models = ArrayField(
        models.TextField(), default=list, blank=True, help_text="Models visitors may call. Empty: none."
    )

    objects = Walled()

    class Meta:
        verbose_name = "anonymous access"
        verbose_name_plural = "anonymous access"
        ordering = ["tenant__slug"]
        constraints = [
            models.CheckConstraint(
                condition=(Q(visitor_tokens=None) | Q(visitor_tokens__range=(0, LARGEST)))
                & (Q(address_tokens=None) | Q(address_tokens__range=(0, LARGEST)))
                & (Q(address_streams=None) | Q(address_streams__gte=0))
                & (Q(check_after=None) | Q(check_after__gte=0)),
                name="keys_anonymousaccess_limits_in_range",
                violation_error_message="A limit is 0 or more, or empty.",
            ),
            models.CheckConstraint(
                condition=Q(warning_percent__range=(1, 100)),
                name="keys_anonymousaccess_warns_between_1_and_100",
                violation_error_message="A warning is given from 1 to 100 percent on.",
            ),
        ]

    def __str__(self) -> str:
        return f"anonymous access of {self.tenant}"


PROMPT_READERS = (*Member.Role.values, "operator")


class PromptRules(models.Model):
    """Who may read what the prompt log has of a tenant, and what is taken out before it is kept.

    ``readers`` are roles of its members, and ``operator``; nobody without a row.
    ``redactions`` are templates of ``audit.redaction``.
    """

    tenant = models.OneToOneField(
        Tenant, on_delete=models.CASCADE, primary_key=True, related_name="+",
        help_text="Of whose calls it is said, such as acme.",
    )  # fmt: skip
    readers = ArrayField(
        models.CharField(max_length=10, choices=[(role, role) for role in PROMPT_READERS]),
        default=list,
        blank=True,
        help_text="Roles, and operator, separated by commas. Empty: nobody.",
    )
    redactions = ArrayField(
        models.CharField(max_length=LONGEST_TEMPLATE),
        default=list,
        blank=True,
        help_text="Such as EMP-####: # is a digit, @ a letter, ? either, + up to 32 of what is before it.",
    )

    objects = Walled()

    class Meta:
        verbose_name_plural = "prompt rules"
        ordering = ["tenant__slug"]
        constraints = [
            models.CheckConstraint(
                condition=Q(readers__contained_by=list(PROMPT_READERS)),
                name="keys_promptrules_readers_are_roles",
                violation_error_message="Readers are owner, admin, member, finance, auditor and operator.",
            ),
        ]

    def __str__(self) -> str:
        return f"prompt rules of {self.tenant}"

    def clean(self) -> None:
        try:
            for template in self.redactions:
                check_template(template)
        except ValueError as exc:
            raise ValidationError({"redactions": str(exc)}) from exc
        if len(self.redactions) > MOST_TEMPLATES:
            raise ValidationError({"redactions": f"{MOST_TEMPLATES} templates at most."})


def validate_scopes(scopes: list[str]) -> None:
    if unknown := sorted(set(scopes) - set(SCOPES)):
        raise ValidationError(f"There is no scope {', '.join(unknown)}.", code="scopes")


class ManagementKey(Checked):
    """What a program manages the gateway with, under ``/manage/v1/``. It calls no model.

    With a tenant it sees and touches that tenant alone. What is stored of its
    secret is the public part, by which it is found, and a digest, as with the
    keys for calls. ``created_by`` is who issued it.
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    label = name_field(max_length=80, help_text="What the key is for, such as terraform.")
    scopes = ArrayField(
        models.TextField(), validators=[validate_scopes], help_text="What may be done with it: budgets:read."
    )
    tenant = models.ForeignKey(
        Tenant,
        on_delete=models.PROTECT,
        related_name="+",
        null=True,
        blank=True,
        help_text="The one tenant that it sees and touches. Empty: all, and what belongs to none.",
    )
    public_id = models.CharField(max_length=12, unique=True, editable=False)
    digest = models.CharField(max_length=64, editable=False)
    created_at = models.DateTimeField(default=now, editable=False)
    created_by = models.TextField(editable=False)
    expires_at = models.DateTimeField(
        null=True, blank=True, help_text="From this moment the key is refused. Empty: it never expires."
    )
    revoked_at = models.DateTimeField(null=True, blank=True, editable=False)
    revoked_reason = models.TextField(blank=True, editable=False)
    last_used_at = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="Noted once a minute at most."
    )

    objects = Walled()

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["label"],
                condition=Q(revoked_at=None),
                name="keys_managementkey_live_label_once",
                violation_error_message="Another live management key has this label.",
            ),
            models.CheckConstraint(
                condition=Q(expires_at=None) | Q(expires_at__gt=F("created_at")),
                name="keys_managementkey_expires_after_creation",
                violation_error_message="A key cannot expire before it is created.",
            ),
            models.CheckConstraint(
                condition=Q(revoked_reason="") | Q(revoked_at__isnull=False),
                name="keys_managementkey_reason_only_when_revoked",
            ),
            models.CheckConstraint(
                condition=Q(public_id__regex=r"^[0-9A-Za-z]{12}\Z") & Q(digest__regex=r"^[0-9a-f]{64}\Z"),
                name="keys_managementkey_has_a_secret",
            ),
            models.CheckConstraint(condition=~Q(created_by=""), name="keys_managementkey_says_who_issued_it"),
        ]

    def __str__(self) -> str:
        return self.label
