"""For how long what the calls of a key say is kept, who reads it, and what is left out."""

import django.contrib.postgres.fields
import django.db.models.deletion
from django.db import migrations, models

TRIGGER = """
CREATE TRIGGER keys_promptrules_changed AFTER INSERT OR UPDATE OR DELETE ON keys_promptrules
FOR EACH ROW EXECUTE FUNCTION tollgate_changed('tenant_id');
"""

DROP_TRIGGER = "DROP TRIGGER keys_promptrules_changed ON keys_promptrules;"


class Migration(migrations.Migration):
    dependencies = [
        ("keys", "0004_anonymous_access"),
        ("tenants", "0004_calendar_changes_are_kept"),
    ]

    operations = [
        migrations.CreateModel(
            name="PromptRules",
            fields=[
                (
                    "tenant",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        related_name="+",
                        serialize=False,
                        to="tenants.tenant",
                    ),
                ),
                (
                    "readers",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.CharField(
                            choices=[
                                ("owner", "owner"),
                                ("admin", "admin"),
                                ("member", "member"),
                                ("finance", "finance"),
                                ("operator", "operator"),
                            ],
                            max_length=10,
                        ),
                        blank=True,
                        default=list,
                        help_text="Roles, and operator, separated by commas. Empty: nobody.",
                        size=None,
                    ),
                ),
                (
                    "redactions",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.CharField(max_length=60),
                        blank=True,
                        default=list,
                        help_text="Such as EMP-####: # is a digit, @ a letter, ? either, + up to 32 of what is before it.",
                        size=None,
                    ),
                ),
            ],
            options={
                "verbose_name_plural": "prompt rules",
                "ordering": ["tenant__slug"],
            },
        ),
        migrations.AddField(
            model_name="apikey",
            name="prompt_log_days",
            field=models.PositiveSmallIntegerField(
                blank=True,
                help_text="For how many days prompts and answers of its calls are kept, encrypted. Empty: never.",
                null=True,
            ),
        ),
        migrations.AddConstraint(
            model_name="apikey",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("prompt_log_days", None),
                    models.Q(("kind", "secret"), ("prompt_log_days__gte", 1)),
                    _connector="OR",
                ),
                name="keys_apikey_prompts_are_kept_for_days",
                violation_error_message="Prompts are kept for a day or more, and never those of visitors.",
            ),
        ),
        migrations.AddConstraint(
            model_name="promptrules",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("readers__contained_by", ["owner", "admin", "member", "finance", "operator"])
                ),
                name="keys_promptrules_readers_are_roles",
                violation_error_message="Readers are owner, admin, member, finance and operator.",
            ),
        ),
        migrations.RunSQL(TRIGGER, DROP_TRIGGER),
    ]
