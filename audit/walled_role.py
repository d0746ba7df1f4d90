"""The second wall: a role of PostgreSQL that sees the rows of one tenant and no others.

Doors run their statements as ``tollgate_walled``, which cannot sign in, owns
nothing and is held by row-level security to the tenant that the session names
(``tollgate.tenant``; none: no rows). The owner of the tables is held by none, so
the system pays nothing.

``build`` makes it all, after each ``migrate``: the role, and for every model
what ``Walled`` says of it, partitions included: they are reached through their
table alone. Whatever table is told nowhere is closed to the role.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, connection, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg.pq import TransactionStatus

from audit.walls import Walled, tenant_here, walled_off

ROLE = "tollgate_walled"
SETTING = "tollgate.tenant"
# What is written into policies: worked out once for a statement, not for each row.
HERE = f"(SELECT nullif(current_setting('{SETTING}', true), '')::uuid)"

# Any number; only those who build the walls take this advisory lock.
LOCK = 0x544F4C4C28

WHAT_TO_DO = """\
The role {role} is missing or not granted to {user}, and {user} may not do that itself.
An administrator of PostgreSQL has to run once:
    CREATE ROLE {role} NOLOGIN;  -- unless it is there
    GRANT {role} TO "{user}";
Then run migrate again."""

SYSTEM = None
UNKNOWN = "unknown"


def watch(sender: Any, connection: BaseDatabaseWrapper, **_: Any) -> None:
    """For ``connection_created``: see to it that statements go out as whom they should."""
    if connection.vendor == "postgresql" and keep_to_the_place not in connection.execute_wrappers:
        # The first is the outermost; whoever adds others takes away the last.
        connection.execute_wrappers.insert(0, keep_to_the_place)


def keep_to_the_place(
    execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Mapping[str, Any]
) -> Any:
    """Make the connection the role that its place asks for, if it is another, and execute a statement.

    What the connection is, is kept with the connection itself, so one that comes
    out of the pool is set right before its first statement, whoever had it.
    """
    session = context["connection"].connection
    become(session)
    done = execute(sql, params, many, context)
    if isinstance(sql, str) and sql.startswith("ROLLBACK TO"):
        # It took back what had been set since.
        session.walled_as = UNKNOWN
    return done


def become(session: Any) -> None:
    """Make a connection of psycopg the role that the place asks for, if it is another."""
    status = session.info.transaction_status
    if status == TransactionStatus.INERROR:
        # Nothing but the way back is possible, and that needs no role.
        return
    wanted: UUID | str | None = (tenant_here() or "") if walled_off() else SYSTEM
    now = getattr(session, "walled_as", SYSTEM)
    if getattr(session, "walled_for_now", False) and status == TransactionStatus.IDLE:
        # It was set in a transaction that is over; whether that was taken back, nobody told us.
        now, session.walled_for_now = UNKNOWN, False
    if now == wanted:
        return
    # No queries, because a transaction may have to begin with what its kind is.
    role = f"SET ROLE {ROLE}" if wanted is not SYSTEM else "RESET ROLE"
    session.walled_as = UNKNOWN
    session.execute(f"{role}; SET {SETTING} = '{wanted or ''}'")
    session.walled_as = wanted
    session.walled_for_now = session.info.transaction_status != TransactionStatus.IDLE


def build(walled: list[type[models.Model]], shared: Mapping[str, str]) -> None:
    """Make role, policies and rights what they should be; a repeat changes nothing.

    ``shared``: tables without a wall, and what the role may do with them. Tables
    and columns that a migration has not made yet are left for the next time.
    Raises ``ImproperlyConfigured`` with what an administrator has to do.
    """
    _ensure_role()
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
        cursor.execute("SELECT quote_ident(current_schema())")
        schema = cursor.fetchone()[0]
        cursor.execute(f"GRANT USAGE ON SCHEMA {schema} TO {ROLE}")
        cursor.execute(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {ROLE}")
        for model in walled:
            if _is_there(cursor, model):
                _wall(cursor, model)
        for table, rights in shared.items():
            cursor.execute("SELECT to_regclass(%s) IS NOT NULL", [table])
            if cursor.fetchone()[0]:
                cursor.execute(f'GRANT {rights} ON "{table}" TO {ROLE}')
        _close_others(cursor, [*(model._meta.db_table for model in walled), *shared])  # noqa: SLF001
        cursor.execute(DEFINERS)
        for (function,) in cursor.fetchall():
            # Triggers write what no door may: generations, links of the audit.
            cursor.execute(f"ALTER FUNCTION {function} SECURITY DEFINER SET search_path FROM CURRENT")


# Trigger functions of ours that would run as whoever changed a row.
DEFINERS = """
SELECT oid::regprocedure::text FROM pg_proc
WHERE proname LIKE 'tollgate\\_%' AND prorettype = 'trigger'::regtype AND NOT prosecdef
    AND pronamespace = current_schema()::regnamespace
    AND proowner = (SELECT oid FROM pg_roles WHERE rolname = current_user)
"""


def policies_of(model: type[models.Model]) -> dict[str, str]:
    """The policies of a table, by name."""
    table = model._meta.db_table  # noqa: SLF001
    own = condition(model)
    policies = {"tollgate_wall": f"USING ({own}) WITH CHECK ({own})"}
    if (read := condition(model, reading=True)) != own:
        policies["tollgate_shared"] = f"FOR SELECT USING ({read})"
    # Each as it follows the words AS PERMISSIVE.
    return {name: f'CREATE POLICY {name} ON "{table}" {_placed(text)}' for name, text in policies.items()}


def condition(model: type[models.Model], *, reading: bool = False) -> str:
    """The condition, in SQL, that a row is the tenant's; ``reading``: or one that it may read."""
    return _behind(model, _wall_of(model), reading=reading)


def _behind(model: type[models.Model], wall: Walled[Any], *, reading: bool) -> str:
    column = f'"{model._meta.db_table}"."{_column_of(model, wall)}"'  # noqa: SLF001
    if wall.via is not None:
        owner = wall.via._meta  # noqa: SLF001
        owned = (
            f'"{owner.db_table}"."{owner.pk.column}" = {column} AND {condition(wall.via, reading=reading)}'
        )
        found = f'EXISTS (SELECT FROM "{owner.db_table}" WHERE {owned})'
        if wall.otherwise is None:
            return found
        return f"({found} OR {column} IS NULL AND {_behind(model, wall.otherwise, reading=reading)})"
    own = f"{column} = {HERE}"
    return f"({own} OR {column} IS NULL)" if wall.shared and reading else own


def _column_of(model: type[models.Model], wall: Walled[Any]) -> str:
    field = model._meta.get_field(wall.column)  # noqa: SLF001
    # A column, and no relation from elsewhere.
    assert isinstance(field, models.Field)  # noqa: S101
    assert field.column is not None  # noqa: S101
    return field.column


def _wall_of(model: type[models.Model]) -> Walled[Any]:
    wall: Walled[Any] = model.wall  # type: ignore[attr-defined]
    return wall


def _placed(text: str) -> str:
    """The text of a policy with its role, which stands between its command and its conditions."""
    command, using, conditions = text.partition("USING")
    return f"{command}TO {ROLE} {using}{conditions}"


def _is_there(cursor: Any, model: type[models.Model], wall: Walled[Any] | None = None) -> bool:
    """Whether a table is there, and all that its wall is made of."""
    table, wall = model._meta.db_table, wall or _wall_of(model)  # noqa: SLF001
    cursor.execute(
        "SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attname = %s)",
        [table, _column_of(model, wall)],
    )
    return (
        bool(cursor.fetchone()[0])
        and (wall.via is None or _is_there(cursor, wall.via))
        and (wall.otherwise is None or _is_there(cursor, model, wall.otherwise))
    )


def _wall(cursor: Any, model: type[models.Model]) -> None:
    table = model._meta.db_table  # noqa: SLF001
    wanted = {
        name: (text, hashlib.sha256(text.encode()).hexdigest()) for name, text in policies_of(model).items()
    }
    cursor.execute(
        "SELECT polname, obj_description(oid, 'pg_policy') FROM pg_policy WHERE polrelid = %s::regclass",
        [table],
    )
    there = dict(cursor.fetchall())
    if there != {name: digest for name, (_, digest) in wanted.items()}:
        for name in there:
            cursor.execute(f'DROP POLICY "{name}" ON "{table}"')
        for name, (text, digest) in wanted.items():
            cursor.execute(text)
            cursor.execute(f"COMMENT ON POLICY {name} ON \"{table}\" IS '{digest}'")
        cursor.execute(f'ALTER TABLE "{table}" ENABLE ROW LEVEL SECURITY')
    cursor.execute(f'GRANT SELECT, INSERT, UPDATE, DELETE ON "{table}" TO {ROLE}')


def _close_others(cursor: Any, reached: list[str]) -> None:
    """Take back what the role may do with tables that are not told any more."""
    cursor.execute(
        "SELECT DISTINCT oid::regclass::text FROM pg_class, aclexplode(relacl) AS granted "
        "WHERE relkind IN ('r', 'p', 'v', 'm') AND relnamespace = current_schema()::regnamespace "
        "AND grantee = %s::regrole AND relname <> ALL(%s) "
        "AND relowner = (SELECT oid FROM pg_roles WHERE rolname = current_user)",
        [ROLE, reached],
    )
    for (table,) in cursor.fetchall():
        cursor.execute(f"REVOKE ALL ON {table} FROM {ROLE}")


def _ensure_role() -> None:
    """Make the role, which is one for all databases of a server, and let us become it."""
    # Others may make it at the same moment, for their databases.
    for _ in range(3):
        if _may_become():
            return
        for statement in (f"CREATE ROLE {ROLE} NOLOGIN", f"GRANT {ROLE} TO CURRENT_USER"):
            _try(statement)
    if not _may_become():
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_user")
            raise ImproperlyConfigured(WHAT_TO_DO.format(role=ROLE, user=cursor.fetchone()[0]))


def _may_become() -> bool:
    return _try(f"SET LOCAL ROLE {ROLE}", "RESET ROLE")


def _try(*statements: str) -> bool:
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
    except DatabaseError:
        return False
    return True
