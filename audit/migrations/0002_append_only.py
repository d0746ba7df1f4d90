"""Audit and request events can be added, and nothing else, whoever asks.

Any table becomes append-only with the same function:

    CREATE TRIGGER <table>_append_only BEFORE UPDATE OR DELETE ON <table>
    FOR EACH ROW EXECUTE FUNCTION tollgate_append_only();

A refused statement fails with ``restrict_violation`` (an ``IntegrityError`` in
Django). ``TRUNCATE`` is not covered: the tests empty their tables with it.
"""

from django.db import migrations

APPEND_ONLY = """
CREATE FUNCTION tollgate_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'rows of % can be added but not changed or deleted', TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation';
END
$$;

CREATE TRIGGER audit_auditevent_append_only BEFORE UPDATE OR DELETE ON audit_auditevent
FOR EACH ROW EXECUTE FUNCTION tollgate_append_only();

CREATE TRIGGER audit_requestevent_append_only BEFORE UPDATE OR DELETE ON audit_requestevent
FOR EACH ROW EXECUTE FUNCTION tollgate_append_only();
"""

CHANGEABLE = """
DROP TRIGGER audit_requestevent_append_only ON audit_requestevent;
DROP TRIGGER audit_auditevent_append_only ON audit_auditevent;
DROP FUNCTION tollgate_append_only();
"""


class Migration(migrations.Migration):
    dependencies = [("audit", "0001_initial")]

    operations = [migrations.RunSQL(APPEND_ONLY, CHANGEABLE)]
