"""Changes of upstreams and aliases raise the generation, like those of tenants and keys."""

from django.db import migrations

TRIGGERS = """
CREATE TRIGGER proxy_upstream_changed AFTER INSERT OR UPDATE OR DELETE ON proxy_upstream
FOR EACH ROW EXECUTE FUNCTION tollgate_changed();

-- An alias of one tenant too: what is remembered of aliases is remembered for all of them at once.
CREATE TRIGGER proxy_modelalias_changed AFTER INSERT OR UPDATE OR DELETE ON proxy_modelalias
FOR EACH ROW EXECUTE FUNCTION tollgate_changed();
"""

DROP_TRIGGERS = """
DROP TRIGGER proxy_modelalias_changed ON proxy_modelalias;
DROP TRIGGER proxy_upstream_changed ON proxy_upstream;
"""


class Migration(migrations.Migration):
    dependencies = [("proxy", "0001_initial"), ("tenants", "0002_changes_take_force")]

    operations = [migrations.RunSQL(TRIGGERS, DROP_TRIGGERS)]
