"""Rules about the options of a call; a change of one raises a generation."""

import django.db.models.deletion
from django.db import migrations, models

import tenants.ids

TRIGGER = """
CREATE TRIGGER keys_policyrule_changed AFTER INSERT OR UPDATE OR DELETE ON keys_policyrule
FOR EACH ROW EXECUTE FUNCTION tollgate_changed('tenant_id');
"""

DROP_TRIGGER = "DROP TRIGGER keys_policyrule_changed ON keys_policyrule;"

# Two columns in one foreign key are beyond Django's fields.
SAME_TENANT = """
ALTER TABLE keys_policyrule ADD CONSTRAINT keys_policyrule_key_of_same_tenant
FOREIGN KEY (key_id, tenant_id) REFERENCES keys_apikey (id, tenant_id) DEFERRABLE INITIALLY DEFERRED;
"""

DROP_SAME_TENANT = "ALTER TABLE keys_policyrule DROP CONSTRAINT keys_policyrule_key_of_same_tenant;"


class Migration(migrations.Migration):
    dependencies = [
        ("keys", "0002_changes_take_force"),
        ("tenants", "0002_changes_take_force"),
    ]

    operations = [
        migrations.CreateModel(
            name="PolicyRule",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=tenants.ids.new_id, editable=False, primary_key=True, serialize=False
                    ),
                ),
                (
                    "option",
                    models.CharField(
                        choices=[
                            ("num_ctx", "num_ctx"),
                            ("num_batch", "num_batch"),
                            ("num_gpu", "num_gpu"),
                            ("main_gpu", "main_gpu"),
                            ("num_thread", "num_thread"),
                            ("draft_num_predict", "draft_num_predict"),
                            ("use_mmap", "use_mmap"),
                            ("keep_alive", "keep_alive"),
                            ("num_predict", "num_predict"),
                            ("raw", "raw"),
                            ("template", "template"),
                            ("system", "system"),
                            ("suffix", "suffix"),
                            ("context", "context"),
                            ("images", "images"),
                            ("tools", "tools"),
                            ("think", "think"),
                        ],
                        max_length=20,
                    ),
                ),
                (
                    "allowed",
                    models.BooleanField(
                        blank=True,
                        help_text="Whether clients may set it. Unknown: nothing is said.",
                        null=True,
                    ),
                ),
                (
                    "minimum",
                    models.BigIntegerField(
                        blank=True,
                        help_text="What is sent is at least this. Empty: nothing is said.",
                        null=True,
                    ),
                ),
                (
                    "maximum",
                    models.BigIntegerField(
                        blank=True,
                        help_text="What is sent is at most this. Empty: nothing is said.",
                        null=True,
                    ),
                ),
                (
                    "default_value",
                    models.BigIntegerField(
                        blank=True,
                        help_text="What is sent where the client does not choose; keep_alive is in seconds. Empty: nothing is said.",
                        null=True,
                    ),
                ),
                (
                    "key",
                    models.ForeignKey(
                        blank=True,
                        help_text="Empty: the rule holds for all keys of the tenant.",
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="+",
                        to="keys.apikey",
                    ),
                ),
                (
                    "tenant",
                    models.ForeignKey(
                        blank=True,
                        help_text="Empty: the rule holds for everybody.",
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="+",
                        to="tenants.tenant",
                    ),
                ),
            ],
            options={
                "ordering": ["option"],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            (
                                "option__in",
                                [
                                    "num_ctx",
                                    "num_batch",
                                    "num_gpu",
                                    "main_gpu",
                                    "num_thread",
                                    "draft_num_predict",
                                    "use_mmap",
                                    "keep_alive",
                                    "num_predict",
                                    "raw",
                                    "template",
                                    "system",
                                    "suffix",
                                    "context",
                                    "images",
                                    "tools",
                                    "think",
                                ],
                            )
                        ),
                        name="keys_policyrule_option_is_known",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("key", None), ("tenant__isnull", False), _connector="OR"),
                        name="keys_policyrule_names_the_keys_tenant",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(
                                ("option", "num_ctx"),
                                models.Q(
                                    ("minimum", None), ("minimum__range", (256, 1048576)), _connector="OR"
                                ),
                                models.Q(
                                    ("maximum", None), ("maximum__range", (256, 1048576)), _connector="OR"
                                ),
                                models.Q(
                                    ("default_value", None),
                                    ("default_value__range", (256, 1048576)),
                                    _connector="OR",
                                ),
                            ),
                            models.Q(
                                ("option", "num_batch"),
                                models.Q(("minimum", None), ("minimum__range", (1, 65536)), _connector="OR"),
                                models.Q(("maximum", None), ("maximum__range", (1, 65536)), _connector="OR"),
                                models.Q(
                                    ("default_value", None),
                                    ("default_value__range", (1, 65536)),
                                    _connector="OR",
                                ),
                            ),
                            models.Q(
                                ("option", "num_gpu"),
                                models.Q(("minimum", None), ("minimum__range", (0, 1024)), _connector="OR"),
                                models.Q(("maximum", None), ("maximum__range", (0, 1024)), _connector="OR"),
                                models.Q(
                                    ("default_value", None),
                                    ("default_value__range", (0, 1024)),
                                    _connector="OR",
                                ),
                            ),
                            models.Q(
                                ("option", "main_gpu"),
                                models.Q(("minimum", None), ("minimum__range", (0, 63)), _connector="OR"),
                                models.Q(("maximum", None), ("maximum__range", (0, 63)), _connector="OR"),
                                models.Q(
                                    ("default_value", None),
                                    ("default_value__range", (0, 63)),
                                    _connector="OR",
                                ),
                            ),
                            models.Q(
                                ("option", "num_thread"),
                                models.Q(("minimum", None), ("minimum__range", (1, 1024)), _connector="OR"),
                                models.Q(("maximum", None), ("maximum__range", (1, 1024)), _connector="OR"),
                                models.Q(
                                    ("default_value", None),
                                    ("default_value__range", (1, 1024)),
                                    _connector="OR",
                                ),
                            ),
                            models.Q(
                                ("option", "draft_num_predict"),
                                models.Q(("minimum", None), ("minimum__range", (0, 256)), _connector="OR"),
                                models.Q(("maximum", None), ("maximum__range", (0, 256)), _connector="OR"),
                                models.Q(
                                    ("default_value", None),
                                    ("default_value__range", (0, 256)),
                                    _connector="OR",
                                ),
                            ),
                            models.Q(
                                ("option", "use_mmap"),
                                ("minimum", None),
                                ("maximum", None),
                                models.Q(
                                    ("default_value", None), ("default_value__range", (0, 1)), _connector="OR"
                                ),
                            ),
                            models.Q(
                                ("option", "keep_alive"),
                                models.Q(
                                    ("minimum", None), ("minimum__range", (60, 604800)), _connector="OR"
                                ),
                                models.Q(
                                    ("maximum", None), ("maximum__range", (60, 604800)), _connector="OR"
                                ),
                                models.Q(
                                    ("default_value", None),
                                    ("default_value__range", (60, 604800)),
                                    _connector="OR",
                                ),
                            ),
                            models.Q(
                                ("option", "num_predict"),
                                ("minimum", None),
                                models.Q(
                                    ("maximum", None), ("maximum__range", (1, 2147483647)), _connector="OR"
                                ),
                                models.Q(
                                    ("default_value", None),
                                    ("default_value__range", (1, 2147483647)),
                                    _connector="OR",
                                ),
                            ),
                            models.Q(
                                ("option", "raw"),
                                ("minimum", None),
                                ("maximum", None),
                                ("default_value", None),
                            ),
                            models.Q(
                                ("option", "template"),
                                ("minimum", None),
                                ("maximum", None),
                                ("default_value", None),
                            ),
                            models.Q(
                                ("option", "system"),
                                ("minimum", None),
                                ("maximum", None),
                                ("default_value", None),
                            ),
                            models.Q(
                                ("option", "suffix"),
                                ("minimum", None),
                                ("maximum", None),
                                ("default_value", None),
                            ),
                            models.Q(
                                ("option", "context"),
                                ("minimum", None),
                                ("maximum", None),
                                ("default_value", None),
                            ),
                            models.Q(
                                ("option", "images"),
                                ("minimum", None),
                                ("maximum", None),
                                ("default_value", None),
                            ),
                            models.Q(
                                ("option", "tools"),
                                ("minimum", None),
                                ("maximum", None),
                                ("default_value", None),
                            ),
                            models.Q(
                                ("option", "think"),
                                ("minimum", None),
                                ("maximum", None),
                                ("default_value", None),
                            ),
                            _connector="OR",
                        ),
                        name="keys_policyrule_says_what_its_option_can",
                        violation_error_message="The option cannot have such a minimum, maximum or default.",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("option", "num_predict"), _negated=True),
                            ("allowed", None),
                            _connector="OR",
                        ),
                        name="keys_policyrule_anybody_may_ask_for_less",
                        violation_error_message="Asking for fewer tokens cannot be forbidden; set a maximum.",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("minimum", None),
                            ("maximum", None),
                            ("minimum__lte", models.F("maximum")),
                            _connector="OR",
                        ),
                        name="keys_policyrule_minimum_within_maximum",
                        violation_error_message="The minimum is above the maximum.",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("allowed__isnull", False),
                            ("minimum__isnull", False),
                            ("maximum__isnull", False),
                            ("default_value__isnull", False),
                            _connector="OR",
                        ),
                        name="keys_policyrule_says_something",
                        violation_error_message="The rule says nothing.",
                    ),
                    models.UniqueConstraint(
                        fields=("tenant", "key", "option"),
                        name="keys_policyrule_once_per_option",
                        nulls_distinct=False,
                        violation_error_message="There is a rule for this option already.",
                    ),
                ],
            },
        ),
        migrations.RunSQL(TRIGGER, DROP_TRIGGER),
        migrations.RunSQL(SAME_TENANT, DROP_SAME_TENANT),
    ]
