"""Refused calls keep what they were refused for, and people may ask for more of a budget."""

import django.contrib.postgres.fields
import django.core.serializers.json
import django.db.models.deletion
import django.utils.timezone
from django.conf import settings
from django.db import migrations, models

import budgets.models.notices
import tenants.ids

NEW = ["raise_requested", "raise_decided"]
ALL_BEFORE = [
    "threshold",
    "exhausted",
    "shadow_refused",
    "raise_ended",
    "kill_switch_armed",
    "kill_switch_lifted",
]


def tell_those_who_are_told_of_all(apps, schema_editor):
    """Recipients who left nothing out are told of what is new too."""
    recipients = apps.get_model("budgets", "Recipient").objects
    for recipient in recipients.filter(happenings__contains=ALL_BEFORE):
        recipient.happenings = [*recipient.happenings, *NEW]
        recipient.save(update_fields=["happenings"])


def tell_nobody(apps, schema_editor):
    """So that what the release before knows is all there is."""
    recipients = apps.get_model("budgets", "Recipient").objects
    for recipient in recipients.filter(happenings__overlap=NEW):
        recipient.happenings = [one for one in recipient.happenings if one not in NEW]
        recipient.save(update_fields=["happenings"])
    apps.get_model("budgets", "Notice").objects.filter(happening__in=NEW).delete()


class Migration(migrations.Migration):
    dependencies = [
        ("budgets", "0025_key_expiry"),
        ("tenants", "0010_preferences"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="RaiseRequest",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=tenants.ids.new_id, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("to", models.BigIntegerField(help_text="The limit that is asked for.")),
                ("until", models.DateTimeField(help_text="Until when it should hold.")),
                ("reason", models.TextField()),
                ("request_id", models.UUIDField(blank=True, null=True)),
                ("asked_at", models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("open", "open"),
                            ("granted", "granted"),
                            ("declined", "declined"),
                            ("withdrawn", "withdrawn"),
                            ("lapsed", "lapsed"),
                        ],
                        default="open",
                        editable=False,
                        max_length=10,
                    ),
                ),
                ("decided_at", models.DateTimeField(editable=False, null=True)),
                ("decided_by", models.TextField(blank=True, editable=False)),
                (
                    "answer",
                    models.TextField(blank=True, editable=False, help_text="What the person was told."),
                ),
            ],
            options={
                "ordering": ["-asked_at"],
            },
        ),
        migrations.CreateModel(
            name="RefusedCall",
            fields=[
                ("request_id", models.UUIDField(primary_key=True, serialize=False)),
                ("at", models.DateTimeField()),
                ("tenant_id", models.UUIDField(null=True)),
                ("key_id", models.UUIDField(null=True)),
                ("member_id", models.UUIDField(help_text="Whose key it was; null: nobody's own.", null=True)),
                ("refusal", models.TextField(help_text="The code that the client was given.")),
                (
                    "facts",
                    models.JSONField(default=dict, encoder=django.core.serializers.json.DjangoJSONEncoder),
                ),
            ],
            options={
                "ordering": ["-at"],
            },
        ),
        migrations.RemoveConstraint(
            model_name="recipient",
            name="budgets_recipient_happenings_are_known",
        ),
        migrations.AlterField(
            model_name="notice",
            name="happening",
            field=models.CharField(
                choices=[
                    ("threshold", "a share of a budget is used"),
                    ("exhausted", "a budget refused a call"),
                    ("shadow_refused", "a shadow budget would have refused a call"),
                    ("period_closed", "a period of a budget is over"),
                    ("raise_ended", "a raise of a budget is over"),
                    ("raise_requested", "somebody asks for more of a budget"),
                    ("raise_decided", "a request for more of a budget was answered"),
                    ("kill_switch_armed", "a kill switch stops calls"),
                    ("kill_switch_lifted", "a kill switch no longer stops calls"),
                    ("key_expires", "a key expires soon"),
                    ("books_disagree", "the books do not agree"),
                    ("record_parked", "a usage record could not be booked"),
                    ("test", "somebody tries whether notices arrive"),
                ],
                max_length=20,
            ),
        ),
        migrations.AlterField(
            model_name="recipient",
            name="happenings",
            field=django.contrib.postgres.fields.ArrayField(
                base_field=models.CharField(
                    choices=[
                        ("threshold", "a share of a budget is used"),
                        ("exhausted", "a budget refused a call"),
                        ("shadow_refused", "a shadow budget would have refused a call"),
                        ("period_closed", "a period of a budget is over"),
                        ("raise_ended", "a raise of a budget is over"),
                        ("raise_requested", "somebody asks for more of a budget"),
                        ("raise_decided", "a request for more of a budget was answered"),
                        ("kill_switch_armed", "a kill switch stops calls"),
                        ("kill_switch_lifted", "a kill switch no longer stops calls"),
                        ("key_expires", "a key expires soon"),
                        ("books_disagree", "the books do not agree"),
                        ("record_parked", "a usage record could not be booked"),
                        ("test", "somebody tries whether notices arrive"),
                    ],
                    max_length=20,
                ),
                default=budgets.models.notices.happenings_told_of,
                help_text="What they are told of.",
                size=None,
            ),
        ),
        migrations.AddConstraint(
            model_name="recipient",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    (
                        "happenings__contained_by",
                        [
                            "threshold",
                            "exhausted",
                            "shadow_refused",
                            "period_closed",
                            "raise_ended",
                            "raise_requested",
                            "raise_decided",
                            "kill_switch_armed",
                            "kill_switch_lifted",
                            "key_expires",
                            "books_disagree",
                            "record_parked",
                        ],
                    )
                ),
                name="budgets_recipient_happenings_are_known",
            ),
        ),
        migrations.RunPython(tell_those_who_are_told_of_all, tell_nobody),
        migrations.AddField(
            model_name="raiserequest",
            name="asked_by",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to=settings.AUTH_USER_MODEL
            ),
        ),
        migrations.AddField(
            model_name="raiserequest",
            name="budget",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.CASCADE,
                related_name="raise_requests",
                to="budgets.budget",
            ),
        ),
        migrations.AddField(
            model_name="raiserequest",
            name="raised",
            field=models.OneToOneField(
                editable=False,
                null=True,
                on_delete=django.db.models.deletion.SET_NULL,
                related_name="asked_for",
                to="budgets.budgetraise",
            ),
        ),
        migrations.AddField(
            model_name="raiserequest",
            name="tenant",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.CASCADE, related_name="+", to="tenants.tenant"
            ),
        ),
        migrations.AddIndex(
            model_name="refusedcall",
            index=models.Index(fields=["tenant_id", "-at"], name="budgets_refusedcall_of_tenant"),
        ),
        migrations.AddIndex(
            model_name="refusedcall",
            index=models.Index(fields=["member_id", "-at"], name="budgets_refusedcall_of_member"),
        ),
        migrations.AddIndex(
            model_name="refusedcall",
            index=models.Index(fields=["at"], name="budgets_refusedcall_oldest"),
        ),
        migrations.AddIndex(
            model_name="raiserequest",
            index=models.Index(fields=["tenant", "-asked_at"], name="budgets_raiserequest_of_tenant"),
        ),
        migrations.AddConstraint(
            model_name="raiserequest",
            constraint=models.UniqueConstraint(
                condition=models.Q(("state", "open")),
                fields=("budget", "asked_by"),
                name="budgets_raiserequest_one_open_per_person_and_limit",
                violation_error_message="You have asked for more of this limit already.",
            ),
        ),
        migrations.AddConstraint(
            model_name="raiserequest",
            constraint=models.CheckConstraint(
                condition=models.Q(("state__in", ["open", "granted", "declined", "withdrawn", "lapsed"])),
                name="budgets_raiserequest_state_is_known",
            ),
        ),
        migrations.AddConstraint(
            model_name="raiserequest",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("decided_at", None), ("decided_by", ""), ("state", "open")),
                    models.Q(
                        models.Q(("state", "open"), _negated=True),
                        ("decided_at__isnull", False),
                        models.Q(("decided_by", ""), _negated=True),
                    ),
                    _connector="OR",
                ),
                name="budgets_raiserequest_says_who_decided",
            ),
        ),
        migrations.AddConstraint(
            model_name="raiserequest",
            constraint=models.CheckConstraint(
                condition=models.Q(("to__range", (1, 9007199254740991))),
                name="budgets_raiserequest_to_counts_exactly",
                violation_error_message="Ask for a whole number above 0.",
            ),
        ),
        migrations.AddConstraint(
            model_name="raiserequest",
            constraint=models.CheckConstraint(
                condition=models.Q(("reason", ""), _negated=True), name="budgets_raiserequest_says_why"
            ),
        ),
        migrations.AddConstraint(
            model_name="raiserequest",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("state", "declined"), _negated=True),
                    models.Q(("answer", ""), _negated=True),
                    _connector="OR",
                ),
                name="budgets_raiserequest_no_has_a_reason",
            ),
        ),
        migrations.AddConstraint(
            model_name="raiserequest",
            constraint=models.CheckConstraint(
                condition=models.Q(("until__gt", models.F("asked_at"))),
                name="budgets_raiserequest_ends_after_it_is_asked",
                violation_error_message="A raise ends in the future.",
            ),
        ),
    ]
