"""People are told of keys that expire soon, also those whom the key belongs to."""

import django.contrib.postgres.fields
import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models

import budgets.models.notices


class Migration(migrations.Migration):
    dependencies = [
        ("budgets", "0024_running_calls_tell_more"),
        ("tenants", "0007_service_accounts"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.RemoveConstraint(
            model_name="recipient",
            name="budgets_recipient_happenings_are_known",
        ),
        migrations.AddField(
            model_name="delivery",
            name="person",
            field=models.ForeignKey(
                null=True,
                on_delete=django.db.models.deletion.SET_NULL,
                related_name="+",
                to=settings.AUTH_USER_MODEL,
            ),
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
            model_name="delivery",
            constraint=models.UniqueConstraint(
                fields=("notice", "person"), name="budgets_delivery_once_per_notice_and_person"
            ),
        ),
        migrations.AddConstraint(
            model_name="delivery",
            constraint=models.CheckConstraint(
                condition=models.Q(("recipient", None), ("person", None), _connector="OR"),
                name="budgets_delivery_goes_to_one",
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
                            "key_expires",
                            "books_disagree",
                            "record_parked",
                        ],
                    )
                ),
                name="budgets_recipient_happenings_are_known",
            ),
        ),
    ]
