"""A raise of a budget changes its limit for a while; limits count what they refused."""

import django.contrib.postgres.fields
import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models

import budgets.models
import tenants.ids

# A raise takes force for the tenant of its budget; one that goes with its budget needs no word of its own.
TRIGGER = """
CREATE FUNCTION tollgate_budgetraise_changed() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    changed text;
BEGIN
    IF TG_OP = 'UPDATE' AND OLD IS NOT DISTINCT FROM NEW THEN
        RETURN NULL;
    END IF;
    FOR changed IN
        SELECT DISTINCT coalesce(replace(tenant_id::text, '-', ''), 'platform') FROM budgets_budget
        WHERE id IN (CASE WHEN TG_OP <> 'INSERT' THEN OLD.budget_id END,
                     CASE WHEN TG_OP <> 'DELETE' THEN NEW.budget_id END)
        ORDER BY 1
    LOOP
        PERFORM tollgate_bump(changed);
    END LOOP;
    RETURN NULL;
END
$$;

CREATE TRIGGER budgets_budgetraise_changed AFTER INSERT OR UPDATE OR DELETE ON budgets_budgetraise
FOR EACH ROW EXECUTE FUNCTION tollgate_budgetraise_changed();
"""

DROP_TRIGGER = """
DROP TRIGGER budgets_budgetraise_changed ON budgets_budgetraise;
DROP FUNCTION tollgate_budgetraise_changed();
"""


class Migration(migrations.Migration):
    dependencies = [
        ("budgets", "0003_outage_credit"),
        ("keys", "0002_changes_take_force"),
        ("tenants", "0002_changes_take_force"),
    ]

    operations = [
        migrations.CreateModel(
            name="BudgetRaise",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=tenants.ids.new_id, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("to", models.BigIntegerField(blank=True, help_text="The limit while it holds.", null=True)),
                (
                    "by",
                    models.BigIntegerField(
                        blank=True, help_text="What is added to the limit while it holds.", null=True
                    ),
                ),
                ("starts_at", models.DateTimeField(default=django.utils.timezone.now)),
                ("ends_at", models.DateTimeField()),
                ("reason", models.TextField()),
                ("granted_by", models.TextField(editable=False)),
                ("granted_at", models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                ("taken_back_at", models.DateTimeField(editable=False, null=True)),
            ],
            options={
                "ordering": ["-ends_at"],
            },
        ),
        migrations.RemoveConstraint(
            model_name="ratelimit",
            name="budgets_ratelimit_once_per_scope_and_measure",
        ),
        migrations.AddField(
            model_name="budget",
            name="thresholds",
            field=django.contrib.postgres.fields.ArrayField(
                base_field=models.PositiveSmallIntegerField(),
                blank=True,
                default=budgets.models.default_thresholds,
                help_text="Percents of the limit at which people are told, such as 80,95,100. Empty: none.",
                size=None,
            ),
        ),
        migrations.AddField(
            model_name="budgetperiod",
            name="refused",
            field=models.BigIntegerField(db_default=0),
        ),
        migrations.AddField(
            model_name="ratelimit",
            name="shadow",
            field=models.BooleanField(default=False, help_text="Counts and reports, never refuses."),
        ),
        migrations.AlterField(
            model_name="budgetperiod",
            name="used",
            field=models.BigIntegerField(db_default=0),
        ),
        migrations.AddConstraint(
            model_name="budget",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    (
                        "thresholds__contained_by",
                        [
                            1,
                            2,
                            3,
                            4,
                            5,
                            6,
                            7,
                            8,
                            9,
                            10,
                            11,
                            12,
                            13,
                            14,
                            15,
                            16,
                            17,
                            18,
                            19,
                            20,
                            21,
                            22,
                            23,
                            24,
                            25,
                            26,
                            27,
                            28,
                            29,
                            30,
                            31,
                            32,
                            33,
                            34,
                            35,
                            36,
                            37,
                            38,
                            39,
                            40,
                            41,
                            42,
                            43,
                            44,
                            45,
                            46,
                            47,
                            48,
                            49,
                            50,
                            51,
                            52,
                            53,
                            54,
                            55,
                            56,
                            57,
                            58,
                            59,
                            60,
                            61,
                            62,
                            63,
                            64,
                            65,
                            66,
                            67,
                            68,
                            69,
                            70,
                            71,
                            72,
                            73,
                            74,
                            75,
                            76,
                            77,
                            78,
                            79,
                            80,
                            81,
                            82,
                            83,
                            84,
                            85,
                            86,
                            87,
                            88,
                            89,
                            90,
                            91,
                            92,
                            93,
                            94,
                            95,
                            96,
                            97,
                            98,
                            99,
                            100,
                        ],
                    )
                ),
                name="budgets_budget_thresholds_are_percents",
                violation_error_message="A threshold is a percentage from 1 to 100.",
            ),
        ),
        migrations.AddConstraint(
            model_name="ratelimit",
            constraint=models.UniqueConstraint(
                fields=("scope", "tenant", "team", "member", "key", "model", "upstream", "measure", "shadow"),
                name="budgets_ratelimit_once_per_scope_and_measure",
                nulls_distinct=False,
            ),
        ),
        migrations.AddField(
            model_name="budgetraise",
            name="budget",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.CASCADE, related_name="raises", to="budgets.budget"
            ),
        ),
        migrations.AddConstraint(
            model_name="budgetraise",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("by", None), ("to__isnull", False), ("to__range", (0, 9007199254740991))),
                    models.Q(("by__isnull", False), ("by__range", (1, 9007199254740991)), ("to", None)),
                    _connector="OR",
                ),
                name="budgets_budgetraise_to_or_by",
                violation_error_message="A raise says to how much or by how much, one of the two.",
            ),
        ),
        migrations.AddConstraint(
            model_name="budgetraise",
            constraint=models.CheckConstraint(
                condition=models.Q(("ends_at__gt", models.F("starts_at"))),
                name="budgets_budgetraise_ends_after_it_starts",
                violation_error_message="A raise ends after it starts.",
            ),
        ),
        migrations.AddConstraint(
            model_name="budgetraise",
            constraint=models.CheckConstraint(
                condition=models.Q(("reason", ""), _negated=True),
                name="budgets_budgetraise_says_why",
                violation_error_message="A raise needs a reason.",
            ),
        ),
        migrations.RunSQL(TRIGGER, DROP_TRIGGER),
    ]
