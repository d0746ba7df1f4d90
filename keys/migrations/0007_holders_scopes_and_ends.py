"""Who holds a key, what it may ask for and from where, how its secrets end, and when they were used."""

import django.contrib.postgres.fields
import django.db.models.deletion
from django.db import migrations, models

import keys.endpoints
import keys.networks

# Two columns in one foreign key are beyond Django's fields.
SAME_TENANT = """
ALTER TABLE keys_apikey ADD CONSTRAINT keys_apikey_service_account_of_same_tenant
FOREIGN KEY (service_account_id, tenant_id)
REFERENCES tenants_serviceaccount (id, tenant_id) DEFERRABLE INITIALLY DEFERRED;
"""

DROP_SAME_TENANT = "ALTER TABLE keys_apikey DROP CONSTRAINT keys_apikey_service_account_of_same_tenant;"


class Migration(migrations.Migration):
    dependencies = [
        ("keys", "0006_management_keys"),
        ("tenants", "0007_service_accounts"),
    ]

    operations = [
        migrations.CreateModel(
            name="SecretUse",
            fields=[
                (
                    "secret",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        related_name="use",
                        serialize=False,
                        to="keys.keysecret",
                    ),
                ),
                ("used_at", models.DateTimeField()),
                ("model", models.TextField(blank=True)),
                ("address_block", keys.networks.NetworkField()),
                ("noted_at", models.DateTimeField()),
            ],
            options={
                "ordering": ["-used_at"],
            },
        ),
        migrations.RemoveConstraint(
            model_name="apikey",
            name="keys_apikey_live_label_once_per_tenant",
        ),
        migrations.RemoveConstraint(
            model_name="apikey",
            name="keys_apikey_anonymous_belongs_to_the_tenant",
        ),
        # The column keeps its name: the release before this one reads it, and writes its own rows.
        migrations.SeparateDatabaseAndState(
            state_operations=[
                migrations.RenameField("keysecret", "expires_at", "retires_at"),
                migrations.AlterField(
                    "keysecret",
                    "retires_at",
                    models.DateTimeField(blank=True, db_column="expires_at", editable=False, null=True),
                ),
            ],
        ),
        migrations.AddField(
            model_name="apikey",
            name="address_blocks",
            field=django.contrib.postgres.fields.ArrayField(
                base_field=keys.networks.NetworkField(),
                blank=True,
                help_text="Networks it may be used from, such as 192.0.2.0/24. Empty: anywhere.",
                null=True,
                size=None,
            ),
        ),
        migrations.AddField(
            model_name="apikey",
            name="disabled_at",
            field=models.DateTimeField(blank=True, editable=False, null=True),
        ),
        migrations.AddField(
            model_name="apikey",
            name="disabled_reason",
            field=models.TextField(blank=True, db_default="", default="", editable=False),
        ),
        migrations.AddField(
            model_name="apikey",
            name="scopes",
            field=django.contrib.postgres.fields.ArrayField(
                base_field=models.TextField(),
                blank=True,
                help_text="What it may ask for, of chat, completions, embeddings, responses, messages and models. Empty: everything.",
                null=True,
                size=None,
                validators=[keys.endpoints.validate_endpoints],
            ),
        ),
        migrations.AddField(
            model_name="apikey",
            name="service_account",
            field=models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="keys",
                to="tenants.serviceaccount",
            ),
        ),
        migrations.AddField(
            model_name="keysecret",
            name="retires_on_use",
            field=models.BooleanField(db_default=False, default=False, editable=False),
        ),
        migrations.AddConstraint(
            model_name="apikey",
            constraint=models.UniqueConstraint(
                condition=models.Q(("revoked_at", None)),
                fields=("service_account", "label"),
                name="keys_apikey_live_label_once_per_service_account",
                violation_error_message="The service account has another live key with this label.",
            ),
        ),
        migrations.AddConstraint(
            model_name="apikey",
            constraint=models.UniqueConstraint(
                condition=models.Q(("member", None), ("revoked_at", None), ("service_account", None)),
                fields=("tenant", "label"),
                name="keys_apikey_live_label_once_per_tenant",
                violation_error_message="The tenant has another live key with this label.",
            ),
        ),
        migrations.AddConstraint(
            model_name="apikey",
            constraint=models.CheckConstraint(
                condition=models.Q(("member", None), ("service_account", None), _connector="OR"),
                name="keys_apikey_one_holder_at_most",
                violation_error_message="A key belongs to a member or to a service account, not to both.",
            ),
        ),
        migrations.AddConstraint(
            model_name="apikey",
            constraint=models.CheckConstraint(
                condition=models.Q(("disabled_reason", ""), ("disabled_at__isnull", False), _connector="OR"),
                name="keys_apikey_reason_only_when_disabled",
            ),
        ),
        migrations.AddConstraint(
            model_name="apikey",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("scopes", None),
                    models.Q(
                        (
                            "scopes__contained_by",
                            ["chat", "completions", "embeddings", "responses", "messages", "models"],
                        ),
                        ("scopes__len__gt", 0),
                    ),
                    _connector="OR",
                ),
                name="keys_apikey_scopes_are_known",
                violation_error_message="Name an endpoint scope at least, or leave them empty for all.",
            ),
        ),
        migrations.AddConstraint(
            model_name="apikey",
            constraint=models.CheckConstraint(
                condition=models.Q(("address_blocks", None), ("address_blocks__len__gt", 0), _connector="OR"),
                name="keys_apikey_may_be_used_somewhere",
                violation_error_message="Name a network at least, or leave them empty for anywhere.",
            ),
        ),
        migrations.AddConstraint(
            model_name="apikey",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("kind", "secret"),
                    models.Q(
                        ("allow_all_models", False),
                        ("kind", "anonymous"),
                        ("member", None),
                        ("service_account", None),
                    ),
                    _connector="OR",
                ),
                name="keys_apikey_anonymous_belongs_to_the_tenant",
            ),
        ),
        migrations.AddConstraint(
            model_name="keysecret",
            constraint=models.UniqueConstraint(
                condition=models.Q(("retires_at", None), ("retires_on_use", False)),
                fields=("key",),
                name="keys_keysecret_one_without_an_end",
            ),
        ),
        migrations.RunSQL(SAME_TENANT, DROP_SAME_TENANT),
    ]
