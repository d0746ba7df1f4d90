"""Rate limits are raised until a moment too, and asked for more of: a raise is one of any limit."""

import django.contrib.postgres.fields
import django.db.models.deletion
from django.db import migrations, models

import budgets.models.notices

ONE_LIMIT = models.Q(
    models.Q(("budget__isnull", False), ("rate_limit", None)),
    models.Q(("budget", None), ("rate_limit__isnull", False)),
    _connector="OR",
)
NAME_ONE = "Name a budget or a rate limit, one of the two."
TO_OR_BY = models.Q(
    models.Q(("by", None), ("to__isnull", False), ("to__range", (0, 9007199254740991))),
    models.Q(("by__isnull", False), ("by__range", (1, 9007199254740991)), ("to", None)),
    _connector="OR",
)

# A raise takes force for the tenant of its limit; one that goes with its limit needs no word of its own.
TRIGGER = """
CREATE FUNCTION tollgate_limitraise_changed() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    changed text;
BEGIN
    IF TG_OP = 'UPDATE' AND OLD IS NOT DISTINCT FROM NEW THEN
        RETURN NULL;
    END IF;
    FOR changed IN
        SELECT coalesce(replace(tenant_id::text, '-', ''), 'platform') AS subject FROM budgets_budget
        WHERE id IN (CASE WHEN TG_OP <> 'INSERT' THEN OLD.budget_id END,
                     CASE WHEN TG_OP <> 'DELETE' THEN NEW.budget_id END)
        UNION
        SELECT coalesce(replace(tenant_id::text, '-', ''), 'platform') FROM budgets_ratelimit
        WHERE id IN (CASE WHEN TG_OP <> 'INSERT' THEN OLD.rate_limit_id END,
                     CASE WHEN TG_OP <> 'DELETE' THEN NEW.rate_limit_id END)
        ORDER BY 1
    LOOP
        PERFORM tollgate_bump(changed);
    END LOOP;
    RETURN NULL;
END
$$;

CREATE TRIGGER budgets_limitraise_changed AFTER INSERT OR UPDATE OR DELETE ON budgets_limitraise
FOR EACH ROW EXECUTE FUNCTION tollgate_limitraise_changed();
"""

DROP_TRIGGER = """
DROP TRIGGER budgets_limitraise_changed ON budgets_limitraise;
DROP FUNCTION tollgate_limitraise_changed();
"""

TRIGGER_OF_BUDGETS = """
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

DROP_TRIGGER_OF_BUDGETS = """
DROP TRIGGER budgets_budgetraise_changed ON budgets_budgetraise;
DROP FUNCTION tollgate_budgetraise_changed();
"""


class Migration(migrations.Migration):
    dependencies = [
        ("budgets", "0030_pages_of_a_key"),
    ]

    operations = [
        migrations.RunSQL(DROP_TRIGGER_OF_BUDGETS, TRIGGER_OF_BUDGETS),
        migrations.RenameModel("BudgetRaise", "LimitRaise"),
        migrations.RemoveConstraint("limitraise", "budgets_budgetraise_to_or_by"),
        migrations.RemoveConstraint("limitraise", "budgets_budgetraise_ends_after_it_starts"),
        migrations.RemoveConstraint("limitraise", "budgets_budgetraise_says_why"),
        migrations.RemoveConstraint("raiserequest", "budgets_raiserequest_one_open_per_person_and_limit"),
        migrations.AlterField(
            model_name="limitraise",
            name="budget",
            field=models.ForeignKey(
                blank=True,
                help_text="The budget that has more for a while, such as tokens of tenant acme in a day.",
                null=True,
                on_delete=django.db.models.deletion.CASCADE,
                related_name="raises",
                to="budgets.budget",
            ),
        ),
        migrations.AddField(
            model_name="limitraise",
            name="rate_limit",
            field=models.ForeignKey(
                blank=True,
                help_text="Or the rate limit, such as requests of tenant acme in a minute, or at one time.",
                null=True,
                on_delete=django.db.models.deletion.CASCADE,
                related_name="raises",
                to="budgets.ratelimit",
            ),
        ),
        migrations.AlterField(
            model_name="limitraise",
            name="to",
            field=models.BigIntegerField(
                blank=True, help_text="The limit while it holds, in what is counted: 2000000.", null=True
            ),
        ),
        migrations.AlterField(
            model_name="limitraise",
            name="by",
            field=models.BigIntegerField(
                blank=True,
                help_text="What is added to the limit while it holds, in what is counted: 500000.",
                null=True,
            ),
        ),
        migrations.AlterField(
            model_name="raiserequest",
            name="budget",
            field=models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.CASCADE,
                related_name="raise_requests",
                to="budgets.budget",
            ),
        ),
        migrations.AddField(
            model_name="raiserequest",
            name="rate_limit",
            field=models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.CASCADE,
                related_name="raise_requests",
                to="budgets.ratelimit",
            ),
        ),
        migrations.AddConstraint(
            model_name="limitraise",
            constraint=models.CheckConstraint(
                condition=ONE_LIMIT,
                name="budgets_limitraise_of_one_limit",
                violation_error_message=NAME_ONE,
            ),
        ),
        migrations.AddConstraint(
            model_name="limitraise",
            constraint=models.CheckConstraint(
                condition=TO_OR_BY,
                name="budgets_limitraise_to_or_by",
                violation_error_message="A raise says to how much or by how much, one of the two.",
            ),
        ),
        migrations.AddConstraint(
            model_name="limitraise",
            constraint=models.CheckConstraint(
                condition=models.Q(("ends_at__gt", models.F("starts_at"))),
                name="budgets_limitraise_ends_after_it_starts",
                violation_error_message="A raise ends after it starts.",
            ),
        ),
        migrations.AddConstraint(
            model_name="limitraise",
            constraint=models.CheckConstraint(
                condition=models.Q(("reason", ""), _negated=True),
                name="budgets_limitraise_says_why",
                violation_error_message="A raise needs a reason.",
            ),
        ),
        migrations.AddConstraint(
            model_name="raiserequest",
            constraint=models.CheckConstraint(
                condition=ONE_LIMIT,
                name="budgets_raiserequest_of_one_limit",
                violation_error_message=NAME_ONE,
            ),
        ),
        migrations.AddConstraint(
            model_name="raiserequest",
            constraint=models.UniqueConstraint(
                condition=models.Q(("state", "open")),
                fields=("budget", "rate_limit", "asked_by"),
                name="budgets_raiserequest_one_open_per_person_and_limit",
                nulls_distinct=False,
                violation_error_message="You have asked for more of this limit already.",
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
                    ("raise_ended", "a raise of a limit is over"),
                    ("raise_requested", "somebody asks for more of a limit"),
                    ("raise_decided", "a request for more of a limit was answered"),
                    ("kill_switch_armed", "a kill switch stops calls"),
                    ("kill_switch_lifted", "a kill switch no longer stops calls"),
                    ("key_expires", "a key expires soon"),
                    ("books_disagree", "the books do not agree"),
                    ("record_parked", "a usage record could not be booked"),
                    ("audit_broken", "the audit is not as it was written"),
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
                        ("raise_ended", "a raise of a limit is over"),
                        ("raise_requested", "somebody asks for more of a limit"),
                        ("raise_decided", "a request for more of a limit was answered"),
                        ("kill_switch_armed", "a kill switch stops calls"),
                        ("kill_switch_lifted", "a kill switch no longer stops calls"),
                        ("key_expires", "a key expires soon"),
                        ("books_disagree", "the books do not agree"),
                        ("record_parked", "a usage record could not be booked"),
                        ("audit_broken", "the audit is not as it was written"),
                        ("test", "somebody tries whether notices arrive"),
                    ],
                    max_length=20,
                ),
                default=budgets.models.notices.happenings_told_of,
                help_text="What they are told of.",
                size=None,
            ),
        ),
        migrations.RunSQL(TRIGGER, DROP_TRIGGER),
    ]
