"""Rollups tell routes apart, also those of what was booked before.

Of each tenant and day the rollups become those of the ledger by route, where
both add up to the same: no sum changes. The rest keeps an empty route, which
is what was archived, and what ``verify`` found to differ and finds still. In
closed months too: their trigger is off only within the transaction of one day,
in which nobody else can write a rollup, and back when that is undone.

After a failure all of it can be run again. Once the new constraint is there, a
worker of the release before cannot drain; its records wait in Redis for one of
this release.
"""

from django.db import migrations, models, transaction

TABLE = "budgets_usagerollup"
ONCE = "budgets_usagerollup_once_per_hour_and_part"
TRIGGER = "budgets_usagerollup_only_in_open_months"
# The advisory lock of those who book.
BOOKING = 0x544F4C4C01

BEFORE = (
    "tenant_id", "day", "hour_start", "team_id", "member_id", "key_id", "model", "upstream", "operation",
)  # fmt: skip
NAMES = ("tenant", "team", "member", "key")
FIGURES = (
    "requests", "input_tokens", "cached_tokens", "output_tokens", "thinking_tokens", "estimated_tokens",
    "gpu_ms", "cost_micro_usd",
)  # fmt: skip
KEY, COLUMNS = ", ".join(BEFORE), ", ".join((*BEFORE, "route", *NAMES, *FIGURES))
SUMS = ", ".join(f"sum({figure})::bigint AS {figure}" for figure in FIGURES)
LAST_NAMES = ", ".join(f"max({name}) AS {name}" for name in NAMES)


def same(one, other):
    """Whether rows have the same key of before; that by which a join finds them is never null."""
    nullable = ("team_id", "member_id")
    return " AND ".join(
        f"{one}.{column} {'IS NOT DISTINCT FROM' if column in nullable else '='} {other}.{column}"
        for column in BEFORE
    )


TELL_APART = f"""
INSERT INTO told_apart ({COLUMNS})
WITH by_route AS (
    SELECT {KEY}, route, {SUMS} FROM (
        SELECT *, date_trunc('hour', ended_at, 'UTC') AS hour_start,
            CASE WHEN exact THEN 0 ELSE input_tokens + output_tokens END AS estimated_tokens
        FROM budgets_ledgerentry WHERE tenant_id = %s AND day = %s
    ) AS entries GROUP BY {KEY}, route
),
ledger AS (SELECT {KEY}, {SUMS} FROM by_route GROUP BY {KEY}),
rollup AS (SELECT {KEY}, {LAST_NAMES}, {SUMS} FROM {TABLE} WHERE tenant_id = %s AND day = %s GROUP BY {KEY})
SELECT {", ".join(f"by_route.{column}" for column in (*BEFORE, "route"))},
    {", ".join(f"rollup.{name}" for name in NAMES)},
    {", ".join(f"by_route.{figure}" for figure in FIGURES)}
FROM rollup JOIN ledger ON {same("rollup", "ledger")} JOIN by_route ON {same("rollup", "by_route")}
WHERE {" AND ".join(f"rollup.{figure} = ledger.{figure}" for figure in FIGURES)}
"""


def tell_apart(apps, schema_editor):
    connection = schema_editor.connection
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {TABLE} ADD COLUMN IF NOT EXISTS route text NOT NULL DEFAULT ''")
        _keep_once(cursor)
        cursor.execute(
            f"CREATE TEMP TABLE told_apart ON COMMIT DELETE ROWS AS SELECT {COLUMNS} FROM {TABLE} WITH NO DATA"
        )
        cursor.execute(
            f"SELECT DISTINCT day, tenant_id FROM {TABLE} WHERE route = '' ORDER BY day, tenant_id"
        )
        for day, tenant_id in cursor.fetchall():
            with transaction.atomic(using=connection.alias):
                cursor.execute("SELECT pg_advisory_xact_lock(%s)", [BOOKING])
                cursor.execute(f"ALTER TABLE {TABLE} DISABLE TRIGGER {TRIGGER}")
                cursor.execute(TELL_APART, [tenant_id, day, tenant_id, day])
                cursor.execute(
                    f"DELETE FROM {TABLE} AS rollup USING (SELECT DISTINCT {KEY} FROM told_apart) AS told "
                    f"WHERE {same('rollup', 'told')}"
                )
                cursor.execute(f"INSERT INTO {TABLE} ({COLUMNS}) SELECT {COLUMNS} FROM told_apart")
                cursor.execute(f"ALTER TABLE {TABLE} ENABLE TRIGGER {TRIGGER}")
        cursor.execute("DROP TABLE told_apart")


def _keep_once(cursor):
    """Let the constraint count the route too; readers and writers wait for no index that is built."""
    cursor.execute(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = %s AND conrelid = %s::regclass",
        [ONCE, TABLE],
    )
    if "route" in cursor.fetchone()[0]:
        return
    # One that was not finished is of no use.
    cursor.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {ONCE}_of_route")
    cursor.execute(
        f"CREATE UNIQUE INDEX CONCURRENTLY {ONCE}_of_route ON {TABLE} ({KEY}, route) NULLS NOT DISTINCT"
    )
    cursor.execute(
        f"ALTER TABLE {TABLE} DROP CONSTRAINT {ONCE}, "
        f"ADD CONSTRAINT {ONCE} UNIQUE USING INDEX {ONCE}_of_route"
    )


def put_together(apps, schema_editor):
    connection = schema_editor.connection
    columns = ", ".join((*BEFORE, *NAMES, *FIGURES))
    with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [BOOKING])
        cursor.execute(f"ALTER TABLE {TABLE} DISABLE TRIGGER {TRIGGER}")
        cursor.execute(
            f"CREATE TEMP TABLE together ON COMMIT DROP AS SELECT {KEY}, {LAST_NAMES}, {SUMS} "
            f"FROM {TABLE} GROUP BY {KEY} HAVING count(*) > 1"
        )
        cursor.execute(f"DELETE FROM {TABLE} AS rollup USING together WHERE {same('rollup', 'together')}")
        # The constraint goes with the column.
        cursor.execute(f"ALTER TABLE {TABLE} DROP COLUMN route")
        cursor.execute(f"INSERT INTO {TABLE} ({columns}) SELECT {columns} FROM together")
        cursor.execute(
            f"ALTER TABLE {TABLE} ADD CONSTRAINT {ONCE} UNIQUE NULLS NOT DISTINCT ({KEY}), "
            f"ENABLE TRIGGER {TRIGGER}"
        )


class Migration(migrations.Migration):
    # An index beside writers is made outside a transaction, and each day has one of its own.
    atomic = False
    dependencies = [("budgets", "0032_rights_to_raise_limits")]

    operations = [
        migrations.SeparateDatabaseAndState(
            [migrations.RunPython(tell_apart, put_together)],
            [
                migrations.AddField(
                    model_name="usagerollup",
                    name="route",
                    field=models.TextField(
                        blank=True,
                        default="",
                        db_default="",
                        help_text="Empty: the entries were archived without it.",
                    ),
                ),
                migrations.RemoveConstraint(model_name="usagerollup", name=ONCE),
                migrations.AddConstraint(
                    model_name="usagerollup",
                    constraint=models.UniqueConstraint(
                        fields=(*BEFORE, "route"), nulls_distinct=False, name=ONCE
                    ),
                ),
            ],
        )
    ]
