"""What the calendar of a tenant was before it changed is kept, after plain SQL too."""

from django.db import migrations

TRIGGER = """
CREATE FUNCTION tollgate_keep_calendar() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO tenants_calendarchange
        (tenant_id, at, time_zone_before, week_start_before, time_zone, week_start)
    -- Not the start of the transaction: that may lie in a period which is over by now.
    VALUES (NEW.id, clock_timestamp(), OLD.time_zone, OLD.week_start, NEW.time_zone, NEW.week_start);
    RETURN NULL;
END
$$;

CREATE TRIGGER tenants_tenant_keep_calendar AFTER UPDATE ON tenants_tenant
FOR EACH ROW WHEN ((OLD.time_zone, OLD.week_start) IS DISTINCT FROM (NEW.time_zone, NEW.week_start))
EXECUTE FUNCTION tollgate_keep_calendar();
"""

DROP_TRIGGER = """
DROP TRIGGER tenants_tenant_keep_calendar ON tenants_tenant;
DROP FUNCTION tollgate_keep_calendar();
"""


class Migration(migrations.Migration):
    dependencies = [("tenants", "0003_calendar_changes")]

    operations = [migrations.RunSQL(TRIGGER, DROP_TRIGGER)]
