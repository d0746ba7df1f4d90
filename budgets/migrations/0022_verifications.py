"""What came of comparing the books is kept, and people are told of it, and of records that are parked."""

import django.contrib.postgres.fields
import django.core.serializers.json
import django.utils.timezone
from django.db import migrations, models

import budgets.models.notices
import tenants.ids

NEW = ["books_disagree", "record_parked"]
ALL_BEFORE = [
    "threshold",
    "exhausted",
    "shadow_refused",
    "raise_ended",
    "kill_switch_armed",
    "kill_switch_lifted",
]


def tell_those_who_are_told_of_all(apps, schema_editor):
    """Recipients of the platform who left nothing out are told of what is new too."""
    recipients = apps.get_model("budgets", "Recipient").objects
    for recipient in recipients.filter(tenant=None, happenings__contains=ALL_BEFORE):
        recipient.happenings = [*recipient.happenings, *NEW]
        recipient.save(update_fields=["happenings"])


def tell_nobody(apps, schema_editor):
    """So that what the release before knows is all there is."""
    recipients = apps.get_model("budgets", "Recipient").objects
    for recipient in recipients.filter(happenings__overlap=NEW):
        recipient.happenings = [one for one in recipient.happenings if one not in NEW]
        recipient.save(update_fields=["happenings"])


class Migration(migrations.Migration):
    dependencies = [
        ("budgets", "0021_closed_months_stay"),
        ("tenants", "0004_calendar_changes_are_kept"),
    ]

    operations = [
        migrations.CreateModel(
            name="Verification",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=tenants.ids.new_id, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("at", models.DateTimeField(default=django.utils.timezone.now)),
                ("seconds", models.DecimalField(decimal_places=3, max_digits=9)),
                ("asked_by", models.TextField()),
                ("scope", models.TextField(help_text="Whose books, and of which days.")),
                (
                    "whole",
                    models.BooleanField(help_text="All tenants, and at least the days that are still open."),
                ),
                (
                    "outcome",
                    models.CharField(
                        choices=[
                            ("agrees", "The books agree"),
                            ("differs", "The books do not agree"),
                            ("unasked", "Something could not be asked"),
                        ],
                        max_length=10,
                    ),
                ),
                ("position", models.TextField(blank=True)),
                ("figures", models.JSONField(encoder=django.core.serializers.json.DjangoJSONEncoder)),
                ("differences", models.JSONField(encoder=django.core.serializers.json.DjangoJSONEncoder)),
                ("found", models.PositiveIntegerField()),
                ("unasked", models.JSONField()),
                ("standing", models.JSONField(default=list)),
            ],
            options={
                "ordering": ["-at"],
            },
        ),
        migrations.RemoveConstraint(
            model_name="recipient",
            name="budgets_recipient_happenings_are_known",
        ),
        migrations.AddField(
            model_name="parkedrecord",
            name="told",
            field=models.BooleanField(db_default=False, default=False),
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
                    ("kill_switch_armed", "a kill switch stops calls"),
                    ("kill_switch_lifted", "a kill switch no longer stops calls"),
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
                        ("kill_switch_armed", "a kill switch stops calls"),
                        ("kill_switch_lifted", "a kill switch no longer stops calls"),
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
        migrations.RunPython(tell_those_who_are_told_of_all, tell_nobody),
        migrations.AddIndex(
            model_name="parkedrecord",
            index=models.Index(
                condition=models.Q(("told", False)), fields=["id"], name="budgets_parkedrecord_untold"
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
                            "kill_switch_armed",
                            "kill_switch_lifted",
                            "books_disagree",
                            "record_parked",
                        ],
                    )
                ),
                name="budgets_recipient_happenings_are_known",
            ),
        ),
        migrations.AddIndex(
            model_name="verification",
            index=models.Index(fields=["-at"], name="budgets_verification_newest"),
        ),
        migrations.AddConstraint(
            model_name="verification",
            constraint=models.CheckConstraint(
                condition=models.Q(("outcome__in", ["agrees", "differs", "unasked"])),
                name="budgets_verification_outcome_is_known",
            ),
        ),
        migrations.AddConstraint(
            model_name="verification",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("found__gt", 0), ("outcome", "differs")),
                    models.Q(models.Q(("outcome", "differs"), _negated=True), ("found", 0)),
                    _connector="OR",
                ),
                name="budgets_verification_differs_if_something_was_found",
            ),
        ),
    ]
