"""What is told of one key is found without reading what is told of others, and without its rows.

How long a key's calls took is told of up to thirty days of them. They lie far
apart, so each would be a page of its own to be read; now the index by which
they are found holds what that is worked out from. It is made anew at once,
because an index of a table with partitions cannot be made beside writers. Only
the drain writes there: it waits meanwhile, and no call does. Django knows the
index by its name and first columns, which stay.
"""

from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models

WITH_MORE = """
DROP INDEX audit_requestevent_of_key;
CREATE INDEX audit_requestevent_of_key ON audit_requestevent (key_id, at DESC)
INCLUDE (tenant_id, refusal, admitted_at, first_byte_at, ended_at);
"""

AS_BEFORE = """
DROP INDEX audit_requestevent_of_key;
CREATE INDEX audit_requestevent_of_key ON audit_requestevent (key_id, at DESC);
"""


class Migration(migrations.Migration):
    # What is made beside writers is made outside a transaction; the text of SQL is one by itself.
    atomic = False
    dependencies = [("budgets", "0029_notices_keep_values"), ("audit", "0009_audit_checks")]

    operations = [
        migrations.RunSQL([f"BEGIN; {WITH_MORE} COMMIT"], [f"BEGIN; {AS_BEFORE} COMMIT"]),
        AddIndexConcurrently(
            "usagerollup", models.Index(fields=["key_id", "day"], name="budgets_usagerollup_of_key")
        ),
    ]
