"""A change of settings raises the generation of its tenant or of the platform.

A table of settings takes part with one trigger. Where a column names the
tenant, a change raises that tenant's generation, or the platform's where the
column is null:

    CREATE TRIGGER <table>_changed AFTER INSERT OR UPDATE OR DELETE ON <table>
    FOR EACH ROW EXECUTE FUNCTION tollgate_changed('tenant_id');

Without an argument every change raises the platform's:

    CREATE TRIGGER <table>_changed AFTER INSERT OR UPDATE OR DELETE ON <table>
    FOR EACH ROW EXECUTE FUNCTION tollgate_changed();

A transaction raises a number by one, however many rows it changes. An update
that changes nothing raises nothing; one that moves a row raises both tenants. ``tollgate_bump(subject)`` is for triggers that have to look further
for the tenant. The row of the generation stays locked until the transaction
ends, so the changes of one tenant commit one after another in the order of
their numbers. What follows from a number is told in ``tenants.generations``.

The functions keep the search path of the moment they are made, so they work in
a connection that has another one (restoring a dump has none).
"""

from django.db import migrations

FUNCTIONS = """
CREATE FUNCTION tollgate_bump(changed text) RETURNS void LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO tenants_generation AS generation (subject, number, projected) VALUES (changed, 1, 0)
    ON CONFLICT (subject) DO UPDATE SET number = generation.number + 1
    -- Once in a transaction is enough: a row this transaction wrote, and Redis does not know, was raised by it.
    WHERE NOT (generation.xmin = pg_current_xact_id()::xid AND generation.number > generation.projected);
    PERFORM pg_notify('tollgate_generation', changed);
END
$$;

CREATE FUNCTION tollgate_changed() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    changed text;
BEGIN
    IF TG_OP = 'UPDATE' AND OLD IS NOT DISTINCT FROM NEW THEN
        RETURN NULL;
    END IF;
    -- In one order, so that two transactions moving rows cannot wait for each other.
    FOR changed IN
        SELECT DISTINCT coalesce(replace(side ->> TG_ARGV[0], '-', ''), 'platform')
        FROM (VALUES (CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END),
                     (CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END)) AS sides (side)
        WHERE side IS NOT NULL
        ORDER BY 1
    LOOP
        PERFORM tollgate_bump(changed);
    END LOOP;
    RETURN NULL;
END
$$;

CREATE FUNCTION tollgate_user_changed() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM tollgate_bump(subject)
    FROM (SELECT replace(tenant_id::text, '-', '') AS subject FROM tenants_member
          WHERE user_id = NEW.id ORDER BY 1) AS memberships;
    RETURN NULL;
END
$$;
"""

DROP_FUNCTIONS = """
DROP FUNCTION tollgate_user_changed();
DROP FUNCTION tollgate_changed();
DROP FUNCTION tollgate_bump(text);
"""

TRIGGERS = """
CREATE TRIGGER tenants_tenant_changed AFTER INSERT OR UPDATE OR DELETE ON tenants_tenant
FOR EACH ROW EXECUTE FUNCTION tollgate_changed('id');

CREATE TRIGGER tenants_team_changed AFTER INSERT OR UPDATE OR DELETE ON tenants_team
FOR EACH ROW EXECUTE FUNCTION tollgate_changed('tenant_id');

CREATE TRIGGER tenants_member_changed AFTER INSERT OR UPDATE OR DELETE ON tenants_member
FOR EACH ROW EXECUTE FUNCTION tollgate_changed('tenant_id');

-- Signing in changes the row too, and is no change of settings.
CREATE TRIGGER tenants_user_changed AFTER UPDATE ON tenants_user
FOR EACH ROW WHEN ((OLD.username, OLD.is_active) IS DISTINCT FROM (NEW.username, NEW.is_active))
EXECUTE FUNCTION tollgate_user_changed();
"""

DROP_TRIGGERS = """
DROP TRIGGER tenants_user_changed ON tenants_user;
DROP TRIGGER tenants_member_changed ON tenants_member;
DROP TRIGGER tenants_team_changed ON tenants_team;
DROP TRIGGER tenants_tenant_changed ON tenants_tenant;
"""

# Two columns in one foreign key are beyond Django's fields.
SAME_TENANT = """
ALTER TABLE tenants_member ADD CONSTRAINT tenants_member_team_of_same_tenant
FOREIGN KEY (team_id, tenant_id) REFERENCES tenants_team (id, tenant_id) DEFERRABLE INITIALLY DEFERRED;
"""

DROP_SAME_TENANT = "ALTER TABLE tenants_member DROP CONSTRAINT tenants_member_team_of_same_tenant;"


class Migration(migrations.Migration):
    dependencies = [("tenants", "0001_initial")]

    operations = [
        migrations.RunSQL(FUNCTIONS, DROP_FUNCTIONS),
        migrations.RunSQL(TRIGGERS, DROP_TRIGGERS),
        migrations.RunSQL(SAME_TENANT, DROP_SAME_TENANT),
    ]
