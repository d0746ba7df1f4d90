"""What the limit and period of a budget were before they changed is kept, after plain SQL too."""

from django.db import migrations

TRIGGERS = """
CREATE FUNCTION tollgate_keep_budget() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF OLD.period = 'lifetime' AND NEW.period <> 'lifetime' THEN
        RAISE check_violation USING MESSAGE = 'A lifetime does not end, so no other period can follow it.';
    END IF;
    INSERT INTO budgets_budgetchange
        (budget_id, at, period_before, seconds_before, limit_before, period, seconds, "limit")
    VALUES (NEW.id, clock_timestamp(), OLD.period, OLD.seconds, OLD."limit", NEW.period, NEW.seconds, NEW."limit");
    RETURN NULL;
END
$$;

CREATE TRIGGER budgets_budget_keep AFTER UPDATE ON budgets_budget
FOR EACH ROW WHEN ((OLD.period, OLD.seconds, OLD."limit") IS DISTINCT FROM (NEW.period, NEW.seconds, NEW."limit"))
EXECUTE FUNCTION tollgate_keep_budget();
"""

DROP_TRIGGERS = """
DROP TRIGGER budgets_budget_keep ON budgets_budget;
DROP FUNCTION tollgate_keep_budget();
"""


class Migration(migrations.Migration):
    dependencies = [("budgets", "0006_budget_changes"), ("tenants", "0004_calendar_changes_are_kept")]

    operations = [migrations.RunSQL(TRIGGERS, DROP_TRIGGERS)]
