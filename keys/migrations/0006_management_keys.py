"""Keys to manage with, beside those to call with."""

import django.contrib.postgres.fields
import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models

import keys.models
import tenants.ids


class Migration(migrations.Migration):
    dependencies = [
        ("keys", "0005_prompt_log"),
        ("tenants", "0005_second_factor"),
    ]

    operations = [
        migrations.CreateModel(
            name="ManagementKey",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=tenants.ids.new_id, editable=False, primary_key=True, serialize=False
                    ),
                ),
                (
                    "label",
                    models.CharField(help_text="What the key is for, such as terraform.", max_length=80),
                ),
                (
                    "scopes",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.TextField(),
                        help_text="What may be done with it: budgets:read.",
                        size=None,
                        validators=[keys.models.validate_scopes],
                    ),
                ),
                ("public_id", models.CharField(editable=False, max_length=12, unique=True)),
                ("digest", models.CharField(editable=False, max_length=64)),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                ("created_by", models.TextField(editable=False)),
                (
                    "expires_at",
                    models.DateTimeField(
                        blank=True,
                        help_text="From this moment the key is refused. Empty: it never expires.",
                        null=True,
                    ),
                ),
                ("revoked_at", models.DateTimeField(blank=True, editable=False, null=True)),
                ("revoked_reason", models.TextField(blank=True, editable=False)),
                (
                    "last_used_at",
                    models.DateTimeField(
                        blank=True, editable=False, help_text="Noted once a minute at most.", null=True
                    ),
                ),
                (
                    "tenant",
                    models.ForeignKey(
                        blank=True,
                        help_text="The one tenant that it sees and touches. Empty: all, and what belongs to none.",
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="tenants.tenant",
                    ),
                ),
            ],
            options={
                "ordering": ["-created_at"],
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("revoked_at", None)),
                        fields=("label",),
                        name="keys_managementkey_live_label_once",
                        violation_error_message="Another live management key has this label.",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("expires_at", None), ("expires_at__gt", models.F("created_at")), _connector="OR"
                        ),
                        name="keys_managementkey_expires_after_creation",
                        violation_error_message="A key cannot expire before it is created.",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("revoked_reason", ""), ("revoked_at__isnull", False), _connector="OR"
                        ),
                        name="keys_managementkey_reason_only_when_revoked",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("public_id__regex", "^[0-9A-Za-z]{12}\\Z"), ("digest__regex", "^[0-9a-f]{64}\\Z")
                        ),
                        name="keys_managementkey_has_a_secret",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("created_by", ""), _negated=True),
                        name="keys_managementkey_says_who_issued_it",
                    ),
                ],
            },
        ),
    ]
