"""What calls of keys that opted in said, encrypted, until it expires."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("audit", "0007_chains"),
    ]

    operations = [
        migrations.CreateModel(
            name="LoggedPrompt",
            fields=[
                ("request_id", models.UUIDField(primary_key=True, serialize=False)),
                ("at", models.DateTimeField(help_text="When the call ended.")),
                ("expires_at", models.DateTimeField(help_text="From this moment nobody can read it.")),
                ("tenant_id", models.UUIDField()),
                ("tenant", models.TextField()),
                ("key_id", models.UUIDField()),
                ("key", models.TextField(help_text="The key's label.")),
                (
                    "member_id",
                    models.UUIDField(help_text="Whose key it was; null: the tenant's own.", null=True),
                ),
                ("prompt", models.BinaryField()),
                ("answer", models.BinaryField()),
                ("cut", models.BooleanField(help_text="Something was left out because it was too long.")),
            ],
            options={
                "ordering": ["-at"],
                "indexes": [
                    models.Index(fields=["expires_at"], name="audit_loggedprompt_expiring"),
                    models.Index(fields=["-at"], name="audit_loggedprompt_newest"),
                    models.Index(fields=["tenant_id", "-at"], name="audit_loggedprompt_of_tenant"),
                    models.Index(fields=["key_id"], name="audit_loggedprompt_of_key"),
                    models.Index(
                        condition=models.Q(("member_id__isnull", False)),
                        fields=["member_id"],
                        name="audit_loggedprompt_of_member",
                    ),
                ],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("expires_at__gt", models.F("at"))),
                        name="audit_loggedprompt_expires_after_its_call",
                    )
                ],
            },
        ),
    ]
