import django.db.models.deletion
from django.db import migrations, models

TRIGGER = """
CREATE TRIGGER budgets_outagecredit_changed AFTER INSERT OR UPDATE OR DELETE ON budgets_outagecredit
FOR EACH ROW EXECUTE FUNCTION tollgate_changed('tenant_id');
"""

DROP_TRIGGER = "DROP TRIGGER budgets_outagecredit_changed ON budgets_outagecredit;"


class Migration(migrations.Migration):
    dependencies = [
        ("budgets", "0002_changes_take_force"),
        ("tenants", "0002_changes_take_force"),
    ]

    operations = [
        migrations.AddField(
            model_name="ledgerentry",
            name="on_credit",
            field=models.BooleanField(
                db_default=False, default=False, help_text="Admitted while Redis could not be asked."
            ),
        ),
        migrations.CreateModel(
            name="OutageCredit",
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
                    "tokens",
                    models.BigIntegerField(
                        help_text="Tokens, input and output, that each process may lend until Redis has booked them. 0: none."
                    ),
                ),
            ],
            options={
                "verbose_name": "outage credit",
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("tokens__range", (0, 9007199254740991))),
                        name="budgets_outagecredit_in_range",
                        violation_error_message="A credit is 0 or more.",
                    )
                ],
            },
        ),
        migrations.RunSQL(TRIGGER, DROP_TRIGGER),
    ]
