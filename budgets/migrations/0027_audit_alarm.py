"""People are told when the audit is not as it was written."""

import django.contrib.postgres.fields
from django.db import migrations, models

import budgets.models.notices

NEW = "audit_broken"
HAPPENINGS = [
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
    (NEW, "the audit is not as it was written"),
    ("test", "somebody tries whether notices arrive"),
]
KNOWN = "budgets_recipient_happenings_are_known"


def tell_those_who_hear_of_the_books(apps, schema_editor):
    """Recipients of the platform who are told when the books disagree are told of the audit too."""
    recipients = apps.get_model("budgets", "Recipient").objects
    for recipient in recipients.filter(tenant=None, happenings__contains=["books_disagree"]):
        recipient.happenings = [*recipient.happenings, NEW]
        recipient.save(update_fields=["happenings"])


def tell_nobody(apps, schema_editor):
    """So that what the release before knows is all there is."""
    recipients = apps.get_model("budgets", "Recipient").objects
    for recipient in recipients.filter(happenings__contains=[NEW]):
        recipient.happenings = [one for one in recipient.happenings if one != NEW]
        recipient.save(update_fields=["happenings"])


class Migration(migrations.Migration):
    dependencies = [
        ("budgets", "0026_refusals_are_explained"),
        ("audit", "0009_audit_checks"),
    ]

    operations = [
        migrations.RemoveConstraint(model_name="recipient", name=KNOWN),
        migrations.AlterField(
            model_name="notice",
            name="happening",
            field=models.CharField(choices=HAPPENINGS, max_length=20),
        ),
        migrations.AlterField(
            model_name="recipient",
            name="happenings",
            field=django.contrib.postgres.fields.ArrayField(
                base_field=models.CharField(choices=HAPPENINGS, max_length=20),
                default=budgets.models.notices.happenings_told_of,
                help_text="What they are told of.",
                size=None,
            ),
        ),
        migrations.AddConstraint(
            model_name="recipient",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("happenings__contained_by", [name for name, _ in HAPPENINGS if name != "test"])
                ),
                name=KNOWN,
            ),
        ),
        migrations.RunPython(tell_those_who_hear_of_the_books, tell_nobody),
    ]
