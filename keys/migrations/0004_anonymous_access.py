"""Who may call without a key, and the key on which their calls are booked."""

import django.contrib.postgres.fields
import django.db.models.deletion
from django.db import migrations, models

TRIGGER = """
CREATE TRIGGER keys_anonymousaccess_changed AFTER INSERT OR UPDATE OR DELETE ON keys_anonymousaccess
FOR EACH ROW EXECUTE FUNCTION tollgate_changed('tenant_id');
"""

DROP_TRIGGER = "DROP TRIGGER keys_anonymousaccess_changed ON keys_anonymousaccess;"

# Two columns in one foreign key are beyond Django's fields.
SAME_TENANT = """
ALTER TABLE keys_anonymousaccess ADD CONSTRAINT keys_anonymousaccess_key_of_same_tenant
FOREIGN KEY (key_id, tenant_id) REFERENCES keys_apikey (id, tenant_id) DEFERRABLE INITIALLY DEFERRED;
"""

DROP_SAME_TENANT = "ALTER TABLE keys_anonymousaccess DROP CONSTRAINT keys_anonymousaccess_key_of_same_tenant;"


class Migration(migrations.Migration):
    dependencies = [
        ("keys", "0003_policies"),
        ("tenants", "0002_changes_take_force"),
    ]

    operations = [
        migrations.CreateModel(
            name="AnonymousAccess",
            fields=[
                (
                    "tenant",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT,
                        primary_key=True,
                        related_name="+",
                        serialize=False,
                        to="tenants.tenant",
                    ),
                ),
                (
                    "enabled",
                    models.BooleanField(default=False, help_text="Whether anybody is let in without a key."),
                ),
                (
                    "visitor_tokens",
                    models.BigIntegerField(
                        blank=True,
                        default=20000,
                        help_text="Tokens one visitor (a browser) may use in a day, in and out. Empty: no limit. 0: none.",
                        null=True,
                    ),
                ),
                (
                    "address_tokens",
                    models.BigIntegerField(
                        blank=True,
                        default=100000,
                        help_text="Tokens all visitors of one address may use in a day. Empty: no limit. 0: none.",
                        null=True,
                    ),
                ),
                (
                    "address_streams",
                    models.IntegerField(
                        blank=True,
                        default=2,
                        help_text="Calls of one address that may run at one time. Empty: no limit. 0: none.",
                        null=True,
                    ),
                ),
                (
                    "check_after",
                    models.IntegerField(
                        blank=True,
                        default=None,
                        help_text="Requests of one address in a day until a human check. Empty: never. 0: always.",
                        null=True,
                    ),
                ),
                (
                    "warning_percent",
                    models.PositiveSmallIntegerField(
                        default=80, help_text="From how much of an allowance on a visitor is told: warning."
                    ),
                ),
                (
                    "models",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.TextField(),
                        blank=True,
                        default=list,
                        help_text="Models visitors may call. Empty: none.",
                        size=None,
                    ),
                ),
            ],
            options={
                "verbose_name": "anonymous access",
                "verbose_name_plural": "anonymous access",
                "ordering": ["tenant__slug"],
            },
        ),
        migrations.AddField(
            model_name="apikey",
            name="kind",
            field=models.CharField(
                choices=[("secret", "Secret"), ("anonymous", "Anonymous")],
                db_default="secret",
                default="secret",
                editable=False,
                max_length=10,
            ),
        ),
        migrations.AddConstraint(
            model_name="apikey",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("kind", "secret"),
                    models.Q(("allow_all_models", False), ("kind", "anonymous"), ("member", None)),
                    _connector="OR",
                ),
                name="keys_apikey_anonymous_belongs_to_the_tenant",
            ),
        ),
        migrations.AddField(
            model_name="anonymousaccess",
            name="key",
            field=models.OneToOneField(
                editable=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="+",
                to="keys.apikey",
            ),
        ),
        migrations.AddConstraint(
            model_name="anonymousaccess",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(
                        ("visitor_tokens", None),
                        ("visitor_tokens__range", (0, 9007199254740991)),
                        _connector="OR",
                    ),
                    models.Q(
                        ("address_tokens", None),
                        ("address_tokens__range", (0, 9007199254740991)),
                        _connector="OR",
                    ),
                    models.Q(("address_streams", None), ("address_streams__gte", 0), _connector="OR"),
                    models.Q(("check_after", None), ("check_after__gte", 0), _connector="OR"),
                ),
                name="keys_anonymousaccess_limits_in_range",
                violation_error_message="A limit is 0 or more, or empty.",
            ),
        ),
        migrations.AddConstraint(
            model_name="anonymousaccess",
            constraint=models.CheckConstraint(
                condition=models.Q(("warning_percent__range", (1, 100))),
                name="keys_anonymousaccess_warns_between_1_and_100",
                violation_error_message="A warning is given from 1 to 100 percent on.",
            ),
        ),
        migrations.RunSQL(TRIGGER, DROP_TRIGGER),
        migrations.RunSQL(SAME_TENANT, DROP_SAME_TENANT),
    ]
