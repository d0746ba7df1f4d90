"""A change of a budget, rate limit or price raises a generation; the ledger only grows."""

from django.db import migrations

TRIGGERS = """
CREATE TRIGGER budgets_budget_changed AFTER INSERT OR UPDATE OR DELETE ON budgets_budget
FOR EACH ROW EXECUTE FUNCTION tollgate_changed('tenant_id');

CREATE TRIGGER budgets_ratelimit_changed AFTER INSERT OR UPDATE OR DELETE ON budgets_ratelimit
FOR EACH ROW EXECUTE FUNCTION tollgate_changed('tenant_id');

CREATE TRIGGER budgets_price_changed AFTER INSERT OR UPDATE OR DELETE ON budgets_price
FOR EACH ROW EXECUTE FUNCTION tollgate_changed('tenant_id');

CREATE TRIGGER budgets_ledgerentry_append_only BEFORE UPDATE OR DELETE ON budgets_ledgerentry
FOR EACH ROW EXECUTE FUNCTION tollgate_append_only();
"""

DROP_TRIGGERS = """
DROP TRIGGER budgets_ledgerentry_append_only ON budgets_ledgerentry;
DROP TRIGGER budgets_price_changed ON budgets_price;
DROP TRIGGER budgets_ratelimit_changed ON budgets_ratelimit;
DROP TRIGGER budgets_budget_changed ON budgets_budget;
"""

# Two columns in one foreign key are beyond Django's fields.
SAME_TENANT = """
ALTER TABLE budgets_budget
ADD CONSTRAINT budgets_budget_team_of_same_tenant
    FOREIGN KEY (team_id, tenant_id) REFERENCES tenants_team (id, tenant_id) DEFERRABLE INITIALLY DEFERRED,
ADD CONSTRAINT budgets_budget_member_of_same_tenant
    FOREIGN KEY (member_id, tenant_id) REFERENCES tenants_member (id, tenant_id) DEFERRABLE INITIALLY DEFERRED,
ADD CONSTRAINT budgets_budget_key_of_same_tenant
    FOREIGN KEY (key_id, tenant_id) REFERENCES keys_apikey (id, tenant_id) DEFERRABLE INITIALLY DEFERRED;

ALTER TABLE budgets_ratelimit
ADD CONSTRAINT budgets_ratelimit_team_of_same_tenant
    FOREIGN KEY (team_id, tenant_id) REFERENCES tenants_team (id, tenant_id) DEFERRABLE INITIALLY DEFERRED,
ADD CONSTRAINT budgets_ratelimit_member_of_same_tenant
    FOREIGN KEY (member_id, tenant_id) REFERENCES tenants_member (id, tenant_id) DEFERRABLE INITIALLY DEFERRED,
ADD CONSTRAINT budgets_ratelimit_key_of_same_tenant
    FOREIGN KEY (key_id, tenant_id) REFERENCES keys_apikey (id, tenant_id) DEFERRABLE INITIALLY DEFERRED;
"""

DROP_SAME_TENANT = """
ALTER TABLE budgets_ratelimit
DROP CONSTRAINT budgets_ratelimit_key_of_same_tenant,
DROP CONSTRAINT budgets_ratelimit_member_of_same_tenant,
DROP CONSTRAINT budgets_ratelimit_team_of_same_tenant;
ALTER TABLE budgets_budget
DROP CONSTRAINT budgets_budget_key_of_same_tenant,
DROP CONSTRAINT budgets_budget_member_of_same_tenant,
DROP CONSTRAINT budgets_budget_team_of_same_tenant;
"""


class Migration(migrations.Migration):
    dependencies = [
        ("budgets", "0001_initial"),
        ("audit", "0002_append_only"),
        ("keys", "0002_changes_take_force"),
        ("tenants", "0002_changes_take_force"),
    ]

    operations = [
        migrations.RunSQL(TRIGGERS, DROP_TRIGGERS),
        migrations.RunSQL(SAME_TENANT, DROP_SAME_TENANT),
    ]
