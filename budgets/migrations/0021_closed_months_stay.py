"""What makes a closed month closed: the database refuses whatever would change it.

A row on a day of a closed month is refused by a trigger of each row. A trigger
of each statement would be called once for many rows, but only for the table
that the statement names: one that writes into a partition would go by it. Those
of rows are made for every partition, also for the ones to come.

Who writes shares the lock of tenant and month until the end of the
transaction, who closes has it alone. So a closing waits for those who write on
the month's days, and they wait for it, and nobody else does. After the lock
everybody has to see what was committed before it, which a transaction that
looks at an older state of the database does not: it may not write here.

Closings and statements are kept too, and statements are numbered without a gap.
"""

from django.db import migrations

FROZEN = """
CREATE FUNCTION tollgate_month_lock(tenant uuid, day date) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    -- Several tenants may share a lock, so that a transaction for thousands of them needs few.
    SELECT 92689689214976 + ((extract(year FROM day)::bigint * 12 + extract(month FROM day)::bigint) << 8)
        + (uuid_hash(tenant) & 255)
$$;

CREATE FUNCTION tollgate_refuse_closed_month(whose uuid, booked_on date) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'what is booked is written in transactions that are read committed'
            USING ERRCODE = 'restrict_violation';
    END IF;
    PERFORM pg_advisory_xact_lock_shared(tollgate_month_lock(whose, booked_on));
    IF EXISTS (
        SELECT FROM budgets_closedmonth
        WHERE tenant_id = whose AND reopened_at IS NULL
        AND month = booked_on - (extract(day FROM booked_on)::integer - 1)
    ) THEN
        RAISE EXCEPTION 'the month % of tenant % is closed', to_char(booked_on, 'YYYY-MM'), whose
            USING ERRCODE = 'restrict_violation';
    END IF;
END
$$;

CREATE FUNCTION tollgate_only_in_open_months() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        PERFORM tollgate_refuse_closed_month(OLD.tenant_id, OLD.day);
    END IF;
    IF TG_OP <> 'DELETE' THEN
        PERFORM tollgate_refuse_closed_month(NEW.tenant_id, NEW.day);
    END IF;
    RETURN NULL;
END
$$;

-- After, so that a row that is there already and is not written again is not refused.
CREATE TRIGGER budgets_ledgerentry_only_in_open_months AFTER INSERT ON budgets_ledgerentry
FOR EACH ROW EXECUTE FUNCTION tollgate_only_in_open_months();

CREATE TRIGGER budgets_usagerollup_only_in_open_months AFTER INSERT OR UPDATE OR DELETE ON budgets_usagerollup
FOR EACH ROW EXECUTE FUNCTION tollgate_only_in_open_months();
"""

THAWED = """
DROP TRIGGER budgets_usagerollup_only_in_open_months ON budgets_usagerollup;
DROP TRIGGER budgets_ledgerentry_only_in_open_months ON budgets_ledgerentry;
DROP FUNCTION tollgate_only_in_open_months();
DROP FUNCTION tollgate_refuse_closed_month(uuid, date);
DROP FUNCTION tollgate_month_lock(uuid, date);
"""

KEPT = """
CREATE TRIGGER budgets_closedmonth_stays BEFORE UPDATE ON budgets_closedmonth
FOR EACH ROW WHEN (
    OLD.reopened_at IS NOT NULL
    OR to_jsonb(OLD) - '{reopening_asked_at,reopening_asked_by,reopening_reason,reopened_at,reopened_by}'::text[]
    IS DISTINCT FROM
    to_jsonb(NEW) - '{reopening_asked_at,reopening_asked_by,reopening_reason,reopened_at,reopened_by}'::text[]
)
EXECUTE FUNCTION tollgate_append_only();

CREATE TRIGGER budgets_closedmonth_append_only BEFORE DELETE ON budgets_closedmonth
FOR EACH ROW EXECUTE FUNCTION tollgate_append_only();

CREATE TRIGGER budgets_statement_append_only BEFORE UPDATE OR DELETE ON budgets_statement
FOR EACH ROW EXECUTE FUNCTION tollgate_append_only();

CREATE TRIGGER budgets_archivedmonth_append_only BEFORE UPDATE OR DELETE ON budgets_archivedmonth
FOR EACH ROW EXECUTE FUNCTION tollgate_append_only();

CREATE FUNCTION tollgate_statement_is_the_next() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    next integer;
BEGIN
    PERFORM pg_advisory_xact_lock(362107653377);
    SELECT coalesce(max(sequence), 0) + 1 INTO next FROM budgets_statement WHERE year = NEW.year;
    IF NEW.sequence <> next OR NEW.number <> NEW.year || '-' || to_char(NEW.sequence, 'FM000000') THEN
        RAISE EXCEPTION 'statement % is not the next one of its year, which is %', NEW.number, next
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END
$$;

CREATE TRIGGER budgets_statement_is_the_next BEFORE INSERT ON budgets_statement
FOR EACH ROW EXECUTE FUNCTION tollgate_statement_is_the_next();
"""

LOOSE = """
DROP TRIGGER budgets_statement_is_the_next ON budgets_statement;
DROP FUNCTION tollgate_statement_is_the_next();
DROP TRIGGER budgets_archivedmonth_append_only ON budgets_archivedmonth;
DROP TRIGGER budgets_statement_append_only ON budgets_statement;
DROP TRIGGER budgets_closedmonth_append_only ON budgets_closedmonth;
DROP TRIGGER budgets_closedmonth_stays ON budgets_closedmonth;
"""


class Migration(migrations.Migration):
    dependencies = [("budgets", "0020_closed_months")]

    operations = [migrations.RunSQL(FROZEN, THAWED), migrations.RunSQL(KEPT, LOOSE)]
