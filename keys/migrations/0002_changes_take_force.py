"""A change of a key or of its secrets raises the generation of its tenant."""

from django.db import migrations

TRIGGERS = """
CREATE TRIGGER keys_apikey_changed AFTER INSERT OR UPDATE OR DELETE ON keys_apikey
FOR EACH ROW EXECUTE FUNCTION tollgate_changed('tenant_id');

-- A secret has no tenant of its own. If its key is gone already, deleting that has raised the generation.
CREATE FUNCTION tollgate_secret_changed() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM tollgate_bump(subject)
    FROM (SELECT DISTINCT replace(tenant_id::text, '-', '') AS subject FROM keys_apikey
          WHERE id IN (OLD.key_id, NEW.key_id) ORDER BY 1) AS tenants;
    RETURN NULL;
END
$$;

CREATE TRIGGER keys_keysecret_changed AFTER INSERT OR UPDATE OR DELETE ON keys_keysecret
FOR EACH ROW EXECUTE FUNCTION tollgate_secret_changed();
"""

DROP_TRIGGERS = """
DROP TRIGGER keys_keysecret_changed ON keys_keysecret;
DROP FUNCTION tollgate_secret_changed();
DROP TRIGGER keys_apikey_changed ON keys_apikey;
"""

# Two columns in one foreign key are beyond Django's fields.
SAME_TENANT = """
ALTER TABLE keys_apikey ADD CONSTRAINT keys_apikey_member_of_same_tenant
FOREIGN KEY (member_id, tenant_id) REFERENCES tenants_member (id, tenant_id) DEFERRABLE INITIALLY DEFERRED;
"""

DROP_SAME_TENANT = "ALTER TABLE keys_apikey DROP CONSTRAINT keys_apikey_member_of_same_tenant;"


class Migration(migrations.Migration):
    dependencies = [("keys", "0001_initial"), ("tenants", "0002_changes_take_force")]

    operations = [
        migrations.RunSQL(TRIGGERS, DROP_TRIGGERS),
        migrations.RunSQL(SAME_TENANT, DROP_SAME_TENANT),
    ]
