import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models

import budgets.models

TRIGGERS = """
CREATE TRIGGER budgets_killswitch_changed AFTER INSERT ON budgets_killswitch
FOR EACH ROW EXECUTE FUNCTION tollgate_changed('tenant_id');

CREATE TRIGGER budgets_killswitch_append_only BEFORE UPDATE OR DELETE ON budgets_killswitch
FOR EACH ROW EXECUTE FUNCTION tollgate_append_only();

-- A lift has no tenant of its own.
CREATE FUNCTION tollgate_switch_lifted() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM tollgate_bump(coalesce(replace(tenant_id::text, '-', ''), 'platform'))
    FROM budgets_killswitch WHERE id = NEW.switch_id;
    RETURN NULL;
END
$$;

CREATE TRIGGER budgets_killswitchlift_changed AFTER INSERT ON budgets_killswitchlift
FOR EACH ROW EXECUTE FUNCTION tollgate_switch_lifted();

CREATE TRIGGER budgets_killswitchlift_append_only BEFORE UPDATE OR DELETE ON budgets_killswitchlift
FOR EACH ROW EXECUTE FUNCTION tollgate_append_only();
"""

DROP_TRIGGERS = """
DROP TRIGGER budgets_killswitchlift_append_only ON budgets_killswitchlift;
DROP TRIGGER budgets_killswitchlift_changed ON budgets_killswitchlift;
DROP FUNCTION tollgate_switch_lifted();
DROP TRIGGER budgets_killswitch_append_only ON budgets_killswitch;
DROP TRIGGER budgets_killswitch_changed ON budgets_killswitch;
"""

# Whoever arms one in a hurry, with plain SQL, has to type only what they know.
DEFAULTS = """
ALTER TABLE budgets_killswitch
ALTER COLUMN tenant SET DEFAULT '', ALTER COLUMN key SET DEFAULT '',
ALTER COLUMN model SET DEFAULT '', ALTER COLUMN upstream SET DEFAULT '',
ALTER COLUMN message SET DEFAULT '', ALTER COLUMN armed_by SET DEFAULT current_user,
ALTER COLUMN armed_at SET DEFAULT now(), ALTER COLUMN until SET DEFAULT now() + interval '7 days';

ALTER TABLE budgets_killswitchlift
ALTER COLUMN lifted_by SET DEFAULT current_user, ALTER COLUMN lifted_at SET DEFAULT now();
"""


class Migration(migrations.Migration):
    dependencies = [
        ("budgets", "0009_closings_stay"),
    ]

    operations = [
        migrations.CreateModel(
            name="RunningCall",
            fields=[
                ("request_id", models.UUIDField(primary_key=True, serialize=False)),
                ("tenant_id", models.UUIDField()),
                ("tenant", models.TextField()),
                ("key_id", models.UUIDField()),
                ("key", models.TextField()),
                ("member", models.TextField(blank=True)),
                ("model", models.TextField()),
                ("upstream", models.TextField()),
                ("route", models.TextField()),
                ("stream", models.BooleanField()),
                ("admitted_at", models.DateTimeField()),
                ("output_tokens", models.BigIntegerField()),
                ("output_cap", models.BigIntegerField()),
                ("started", models.BooleanField()),
                ("stopping", models.BooleanField()),
            ],
            options={
                "managed": False,
                "default_permissions": ("view", "stop"),
            },
        ),
        migrations.CreateModel(
            name="KillSwitch",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "scope",
                    models.CharField(
                        choices=[
                            ("platform", "Platform"),
                            ("tenant", "Tenant"),
                            ("key", "Key"),
                            ("upstream", "Upstream"),
                            ("model", "Model"),
                        ],
                        max_length=10,
                    ),
                ),
                ("tenant_id", models.UUIDField(blank=True, null=True)),
                ("tenant", models.TextField(blank=True, help_text="Slug of the tenant, as it was.")),
                ("key_id", models.UUIDField(blank=True, null=True)),
                ("key", models.TextField(blank=True, help_text="Label of the key, as it was.")),
                (
                    "model",
                    models.CharField(
                        blank=True, help_text="Canonical name, such as llama3.2:latest.", max_length=350
                    ),
                ),
                ("upstream", models.CharField(blank=True, help_text="Name of an upstream.", max_length=80)),
                ("reason", models.TextField(help_text="For operators and the audit.")),
                (
                    "message",
                    models.CharField(blank=True, help_text="What callers are told besides.", max_length=200),
                ),
                ("armed_by", models.TextField()),
                ("armed_at", models.DateTimeField(default=django.utils.timezone.now)),
                (
                    "until",
                    models.DateTimeField(
                        default=budgets.models.in_seven_days, help_text="When it lifts itself."
                    ),
                ),
            ],
            options={
                "verbose_name_plural": "kill switches",
                "ordering": ["-id"],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(
                                ("key_id", None),
                                ("model", ""),
                                ("scope", "platform"),
                                ("tenant_id", None),
                                ("upstream", ""),
                            ),
                            models.Q(
                                ("key_id", None),
                                ("model", ""),
                                ("scope", "tenant"),
                                ("tenant_id__isnull", False),
                                ("upstream", ""),
                            ),
                            models.Q(
                                ("key_id__isnull", False),
                                ("model", ""),
                                ("scope", "key"),
                                ("tenant_id__isnull", False),
                                ("upstream", ""),
                            ),
                            models.Q(
                                ("key_id", None),
                                ("model", ""),
                                ("scope", "upstream"),
                                ("tenant_id", None),
                                models.Q(("upstream", ""), _negated=True),
                            ),
                            models.Q(
                                ("key_id", None),
                                ("scope", "model"),
                                ("upstream", ""),
                                models.Q(("model", ""), _negated=True),
                            ),
                            _connector="OR",
                        ),
                        name="budgets_killswitch_names_what_its_scope_needs",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("model", ""), ("model__regex", "^[a-z0-9_./:-]+:[a-z0-9_.-]+$"), _connector="OR"
                        ),
                        name="budgets_killswitch_model_is_canonical",
                        violation_error_message="Write the model in lower case and with its tag: llama3.2:latest.",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("reason", ""), _negated=True), models.Q(("armed_by", ""), _negated=True)
                        ),
                        name="budgets_killswitch_says_who_and_why",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("until__gt", models.F("armed_at"))),
                        name="budgets_killswitch_ends_after_it_begins",
                        violation_error_message="A kill switch has to end in the future.",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="KillSwitchLift",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("reason", models.TextField()),
                ("lifted_by", models.TextField()),
                ("lifted_at", models.DateTimeField(default=django.utils.timezone.now)),
                (
                    "switch",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="lift",
                        to="budgets.killswitch",
                    ),
                ),
            ],
            options={
                "ordering": ["-id"],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("reason", ""), _negated=True),
                            models.Q(("lifted_by", ""), _negated=True),
                        ),
                        name="budgets_killswitchlift_says_who_and_why",
                    )
                ],
            },
        ),
        migrations.RunSQL(TRIGGERS, DROP_TRIGGERS),
        migrations.RunSQL(DEFAULTS, migrations.RunSQL.noop),
    ]
