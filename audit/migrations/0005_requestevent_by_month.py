"""Request events lie in a partition for each month; how, is told in ``audit.months``."""

from django.db import migrations

from audit import months

TABLE = "audit_requestevent"

INDEXES = """
CREATE INDEX audit_requestevent_newest ON audit_requestevent (at DESC);
CREATE INDEX audit_requestevent_of_tenant ON audit_requestevent (tenant_id, at DESC);
CREATE INDEX audit_requestevent_of_key ON audit_requestevent (key_id, at DESC);
"""

PARTITIONED = f"""
ALTER TABLE {TABLE} RENAME TO {TABLE}_whole;
CREATE TABLE {TABLE} (LIKE {TABLE}_whole INCLUDING DEFAULTS INCLUDING CONSTRAINTS)
PARTITION BY RANGE (request_id);
CREATE TABLE {TABLE}_rest PARTITION OF {TABLE} DEFAULT;
"""

FILLED = f"""
INSERT INTO {TABLE} SELECT * FROM {TABLE}_whole;
DROP TABLE {TABLE}_whole;
ALTER TABLE {TABLE} ADD PRIMARY KEY (request_id);
{INDEXES}
CREATE TRIGGER audit_requestevent_append_only BEFORE UPDATE OR DELETE ON {TABLE}
FOR EACH ROW EXECUTE FUNCTION tollgate_append_only();
"""

WHOLE = f"""
ALTER TABLE {TABLE} RENAME TO {TABLE}_parted;
CREATE TABLE {TABLE} (LIKE {TABLE}_parted INCLUDING DEFAULTS INCLUDING CONSTRAINTS);
INSERT INTO {TABLE} SELECT * FROM {TABLE}_parted;
DROP TABLE {TABLE}_parted;
ALTER TABLE {TABLE} ADD PRIMARY KEY (request_id);
{INDEXES}
CREATE TRIGGER audit_requestevent_append_only BEFORE UPDATE OR DELETE ON {TABLE}
FOR EACH ROW EXECUTE FUNCTION tollgate_append_only();
"""


def part(apps, schema_editor):
    months.part(TABLE, PARTITIONED, FILLED)


class Migration(migrations.Migration):
    dependencies = [("audit", "0004_requestevent_run")]

    operations = [migrations.RunPython(part, lambda apps, schema_editor: schema_editor.execute(WHOLE))]
