"""What people are told, whom, and how it got there."""

import django.contrib.postgres.fields
import django.core.serializers.json
import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models

import budgets.models
import tenants.ids


class Migration(migrations.Migration):
    dependencies = [
        ("budgets", "0011_runs"),
        ("tenants", "0004_calendar_changes_are_kept"),
    ]

    operations = [
        migrations.CreateModel(
            name="Notice",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=tenants.ids.new_id, editable=False, primary_key=True, serialize=False
                    ),
                ),
                (
                    "happening",
                    models.CharField(
                        choices=[
                            ("threshold", "a share of a budget is used"),
                            ("exhausted", "a budget refused a call"),
                            ("shadow_refused", "a shadow budget would have refused a call"),
                            ("period_closed", "a period of a budget is over"),
                            ("raise_ended", "a raise of a budget is over"),
                            ("kill_switch_armed", "a kill switch stops calls"),
                            ("kill_switch_lifted", "a kill switch no longer stops calls"),
                            ("test", "somebody tries whether notices arrive"),
                        ],
                        max_length=20,
                    ),
                ),
                ("subject", models.TextField()),
                ("period_start", models.DateTimeField(null=True)),
                ("threshold", models.PositiveSmallIntegerField(null=True)),
                ("limit", models.BigIntegerField(null=True)),
                ("used", models.BigIntegerField(null=True)),
                ("tenant_id", models.UUIDField(null=True)),
                ("at", models.DateTimeField(default=django.utils.timezone.now)),
                ("text", models.TextField()),
                ("facts", models.JSONField(encoder=django.core.serializers.json.DjangoJSONEncoder)),
            ],
            options={
                "ordering": ["-at"],
                "indexes": [models.Index(fields=["-at"], name="budgets_notice_newest")],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("happening", "subject", "period_start", "threshold", "limit"),
                        name="budgets_notice_once_per_crossing",
                        nulls_distinct=False,
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="Recipient",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=tenants.ids.new_id, editable=False, primary_key=True, serialize=False
                    ),
                ),
                (
                    "kind",
                    models.CharField(choices=[("email", "E-mail"), ("webhook", "Webhook")], max_length=8),
                ),
                (
                    "address",
                    models.CharField(
                        help_text="An e-mail address, or the URL of a webhook.", max_length=2000
                    ),
                ),
                (
                    "happenings",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.CharField(
                            choices=[
                                ("threshold", "a share of a budget is used"),
                                ("exhausted", "a budget refused a call"),
                                ("shadow_refused", "a shadow budget would have refused a call"),
                                ("period_closed", "a period of a budget is over"),
                                ("raise_ended", "a raise of a budget is over"),
                                ("kill_switch_armed", "a kill switch stops calls"),
                                ("kill_switch_lifted", "a kill switch no longer stops calls"),
                                ("test", "somebody tries whether notices arrive"),
                            ],
                            max_length=20,
                        ),
                        default=budgets.models.happenings_told_of,
                        help_text="What they are told of.",
                        size=None,
                    ),
                ),
                (
                    "active",
                    models.BooleanField(
                        default=True, help_text="One that is not active is told of nothing new."
                    ),
                ),
                ("salt", models.CharField(default=budgets.models.new_salt, editable=False, max_length=32)),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                (
                    "tenant",
                    models.ForeignKey(
                        blank=True,
                        help_text="Empty: told of all tenants and of the platform.",
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="+",
                        to="tenants.tenant",
                    ),
                ),
            ],
            options={
                "ordering": ["tenant__slug", "kind", "address"],
            },
        ),
        migrations.CreateModel(
            name="Delivery",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=tenants.ids.new_id, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("to", models.TextField(help_text="The recipient as it was, without secrets.")),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("waiting", "Waiting"),
                            ("delivered", "Delivered"),
                            ("dead", "Dead: given up"),
                        ],
                        default="waiting",
                        max_length=10,
                    ),
                ),
                (
                    "begun",
                    models.PositiveSmallIntegerField(default=0, help_text="How many attempts were begun."),
                ),
                ("attempts", models.JSONField(default=list)),
                ("next_at", models.DateTimeField(default=django.utils.timezone.now)),
                ("delivered_at", models.DateTimeField(null=True)),
                (
                    "notice",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="deliveries",
                        to="budgets.notice",
                    ),
                ),
                (
                    "recipient",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="deliveries",
                        to="budgets.recipient",
                    ),
                ),
            ],
            options={
                "verbose_name_plural": "deliveries",
                "ordering": ["-id"],
            },
        ),
        migrations.AddConstraint(
            model_name="recipient",
            constraint=models.CheckConstraint(
                condition=models.Q(("kind__in", ["email", "webhook"])), name="budgets_recipient_kind_is_known"
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
                        ],
                    )
                ),
                name="budgets_recipient_happenings_are_known",
            ),
        ),
        migrations.AddConstraint(
            model_name="recipient",
            constraint=models.UniqueConstraint(
                fields=("tenant", "kind", "address"),
                name="budgets_recipient_once_per_address",
                nulls_distinct=False,
                violation_error_message="This address is told already.",
            ),
        ),
        migrations.AddIndex(
            model_name="delivery",
            index=models.Index(
                condition=models.Q(("state", "waiting")), fields=["next_at"], name="budgets_delivery_waiting"
            ),
        ),
        migrations.AddConstraint(
            model_name="delivery",
            constraint=models.UniqueConstraint(
                fields=("notice", "recipient"), name="budgets_delivery_once_per_notice_and_recipient"
            ),
        ),
        migrations.AddConstraint(
            model_name="delivery",
            constraint=models.CheckConstraint(
                condition=models.Q(("state__in", ["waiting", "delivered", "dead"])),
                name="budgets_delivery_state_is_known",
            ),
        ),
    ]
