"""Programs of a tenant that have keys of their own, and how long a secret may work."""

import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models

import tenants.ids

TRIGGER = """
CREATE TRIGGER tenants_serviceaccount_changed AFTER INSERT OR UPDATE OR DELETE ON tenants_serviceaccount
FOR EACH ROW EXECUTE FUNCTION tollgate_changed('tenant_id');
"""

DROP_TRIGGER = "DROP TRIGGER tenants_serviceaccount_changed ON tenants_serviceaccount;"

# Two columns in one foreign key are beyond Django's fields.
SAME_TENANT = """
ALTER TABLE tenants_serviceaccount ADD CONSTRAINT tenants_serviceaccount_team_of_same_tenant
FOREIGN KEY (team_id, tenant_id) REFERENCES tenants_team (id, tenant_id) DEFERRABLE INITIALLY DEFERRED;
"""

DROP_SAME_TENANT = """
ALTER TABLE tenants_serviceaccount DROP CONSTRAINT tenants_serviceaccount_team_of_same_tenant;
"""


class Migration(migrations.Migration):
    dependencies = [
        ("tenants", "0006_kept_answers"),
    ]

    operations = [
        migrations.CreateModel(
            name="ServiceAccount",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=tenants.ids.new_id, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("name", models.CharField(help_text="What it is, such as nightly-build.", max_length=80)),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                ("closed_at", models.DateTimeField(blank=True, editable=False, null=True)),
            ],
            options={
                "ordering": ["tenant__slug", "name"],
            },
        ),
        migrations.AddField(
            model_name="tenant",
            name="max_key_days",
            field=models.PositiveSmallIntegerField(
                blank=True,
                help_text="For how many days a secret of its keys works at most. Empty: keys may have no end. Keys that are there already keep theirs.",
                null=True,
            ),
        ),
        migrations.AddConstraint(
            model_name="tenant",
            constraint=models.CheckConstraint(
                condition=models.Q(("max_key_days", None), ("max_key_days__gte", 1), _connector="OR"),
                name="tenants_tenant_keys_live_for_a_day_or_more",
                violation_error_message="Keys live for a day or more, or without a maximum.",
            ),
        ),
        migrations.AddField(
            model_name="serviceaccount",
            name="team",
            field=models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="service_accounts",
                to="tenants.team",
            ),
        ),
        migrations.AddField(
            model_name="serviceaccount",
            name="tenant",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT,
                related_name="service_accounts",
                to="tenants.tenant",
            ),
        ),
        migrations.AddConstraint(
            model_name="serviceaccount",
            constraint=models.UniqueConstraint(
                condition=models.Q(("closed_at", None)),
                fields=("tenant", "name"),
                name="tenants_serviceaccount_open_name_once_per_tenant",
                violation_error_message="The tenant has another service account of this name.",
            ),
        ),
        migrations.AddConstraint(
            model_name="serviceaccount",
            constraint=models.UniqueConstraint(
                fields=("id", "tenant"), name="tenants_serviceaccount_with_its_tenant"
            ),
        ),
        migrations.AddConstraint(
            model_name="serviceaccount",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("closed_at", None), ("closed_at__gte", models.F("created_at")), _connector="OR"
                ),
                name="tenants_serviceaccount_closes_after_creation",
            ),
        ),
        migrations.RunSQL(TRIGGER, DROP_TRIGGER),
        migrations.RunSQL(SAME_TENANT, DROP_SAME_TENANT),
    ]
