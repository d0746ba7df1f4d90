"""Every audit event is linked to the one before, as its transaction commits; how, is told in ``audit.chains``.

Linking waits for the transaction's end and takes one lock for all chains, so
two transactions can never wait for each other, and nobody waits for long.
"""

from django.db import migrations, models

LINKS = """
CREATE FUNCTION tollgate_audit_digest(before bytea, number bigint, event audit_auditevent) RETURNS bytea
LANGUAGE sql STABLE AS $$
    SELECT sha256(before || string_agg(
        convert_to(octet_length(convert_to(part, 'UTF8')) || ':', 'UTF8') || convert_to(part, 'UTF8'), ''::bytea
        ORDER BY place
    ))
    FROM unnest(ARRAY[
        number::text, event.id::text, (extract(epoch FROM event.at) * 1000000)::bigint::text, event.actor,
        event.origin, event.action, event.subject, coalesce(event.tenant_id::text, ''), event.reason,
        event.details::text
    ]) WITH ORDINALITY AS parts (part, place)
$$;

CREATE FUNCTION tollgate_link_audit_event() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    its_chain text := coalesce(NEW.tenant_id::text, 'platform');
    last_number bigint := 0;
    last_digest bytea := decode(repeat('00', 32), 'hex');
    found_number bigint;
    found_digest bytea;
BEGIN
    PERFORM pg_advisory_xact_lock(362107653124);
    SELECT number, digest INTO found_number, found_digest
    FROM audit_auditlink WHERE chain = its_chain ORDER BY number DESC LIMIT 1;
    IF found_number IS NOT NULL THEN
        last_number := found_number;
        last_digest := found_digest;
    END IF;
    INSERT INTO audit_auditlink (event_id, chain, number, digest)
    VALUES (NEW.id, its_chain, last_number + 1, tollgate_audit_digest(last_digest, last_number + 1, NEW));
    RETURN NULL;
END
$$;

CREATE CONSTRAINT TRIGGER audit_auditevent_linked AFTER INSERT ON audit_auditevent
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION tollgate_link_audit_event();

CREATE TRIGGER audit_auditlink_append_only BEFORE UPDATE OR DELETE ON audit_auditlink
FOR EACH ROW EXECUTE FUNCTION tollgate_append_only();

CREATE TRIGGER audit_auditcheckpoint_append_only BEFORE UPDATE OR DELETE ON audit_auditcheckpoint
FOR EACH ROW EXECUTE FUNCTION tollgate_append_only();

DO $$
DECLARE
    event audit_auditevent;
    its_chain text;
    its_number bigint;
    last_digest bytea;
BEGIN
    FOR event IN SELECT * FROM audit_auditevent ORDER BY id LOOP
        its_chain := coalesce(event.tenant_id::text, 'platform');
        its_number := 1;
        last_digest := decode(repeat('00', 32), 'hex');
        SELECT number + 1, digest INTO its_number, last_digest
        FROM audit_auditlink WHERE chain = its_chain ORDER BY number DESC LIMIT 1;
        IF NOT FOUND THEN
            its_number := 1;
            last_digest := decode(repeat('00', 32), 'hex');
        END IF;
        INSERT INTO audit_auditlink (event_id, chain, number, digest)
        VALUES (event.id, its_chain, its_number, tollgate_audit_digest(last_digest, its_number, event));
    END LOOP;
END
$$;
"""

NO_LINKS = """
DROP TRIGGER audit_auditcheckpoint_append_only ON audit_auditcheckpoint;
DROP TRIGGER audit_auditlink_append_only ON audit_auditlink;
DROP TRIGGER audit_auditevent_linked ON audit_auditevent;
DROP FUNCTION tollgate_link_audit_event();
DROP FUNCTION tollgate_audit_digest(bytea, bigint, audit_auditevent);
"""


class Migration(migrations.Migration):
    dependencies = [("audit", "0005_requestevent_by_month")]

    operations = [
        migrations.AddField(
            model_name="auditevent",
            name="origin",
            field=models.TextField(
                blank=True,
                db_default="",
                default="",
                help_text="Where it was done: the door and the address, or the command and the machine.",
            ),
        ),
        migrations.CreateModel(
            name="AuditCheckpoint",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("at", models.DateTimeField()),
                ("chain", models.TextField()),
                ("number", models.BigIntegerField()),
                ("digest", models.BinaryField()),
                ("signature", models.BinaryField()),
            ],
            options={
                "ordering": ["-id"],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("chain", "number"), name="audit_auditcheckpoint_once_per_number"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="AuditLink",
            fields=[
                ("event_id", models.BigIntegerField(primary_key=True, serialize=False)),
                ("chain", models.TextField()),
                ("number", models.BigIntegerField()),
                ("digest", models.BinaryField()),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("chain", "number"), name="audit_auditlink_once_per_number"
                    )
                ],
            },
        ),
        migrations.RunSQL(LINKS, NO_LINKS),
    ]
