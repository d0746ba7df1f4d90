"""A closing never changes, but for the moment at which somebody was told of it; late usage only grows."""

from django.db import migrations

TRIGGERS = """
CREATE TRIGGER budgets_periodclosing_stays BEFORE UPDATE ON budgets_periodclosing
FOR EACH ROW WHEN (to_jsonb(OLD) - 'notified_at' IS DISTINCT FROM to_jsonb(NEW) - 'notified_at')
EXECUTE FUNCTION tollgate_append_only();

CREATE TRIGGER budgets_periodclosing_append_only BEFORE DELETE ON budgets_periodclosing
FOR EACH ROW EXECUTE FUNCTION tollgate_append_only();

CREATE TRIGGER budgets_lateusage_append_only BEFORE UPDATE OR DELETE ON budgets_lateusage
FOR EACH ROW EXECUTE FUNCTION tollgate_append_only();
"""

DROP_TRIGGERS = """
DROP TRIGGER budgets_lateusage_append_only ON budgets_lateusage;
DROP TRIGGER budgets_periodclosing_append_only ON budgets_periodclosing;
DROP TRIGGER budgets_periodclosing_stays ON budgets_periodclosing;
"""


class Migration(migrations.Migration):
    dependencies = [("budgets", "0008_period_closings")]

    operations = [migrations.RunSQL(TRIGGERS, DROP_TRIGGERS)]
