import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit.recording import person_at_the_shell
from keys import services
from keys.commands import key_called
from keys.models import PolicyRule
from keys.policies import OPTIONS
from tenants import generations
from tenants.commands import PENDING, number_or, tenant_called, told_plainly

NUMBERS = {"minimum": "minimum", "maximum": "maximum", "default": "default_value"}
PERMISSIONS = {"yes": True, "no": False, "none": None}


class Command(BaseCommand):
    help = "Say what clients may ask of Ollama: for everybody, for a tenant or for a key."

    def add_arguments(self, parser: CommandParser) -> None:
        whose = parser.add_mutually_exclusive_group(required=True)
        whose.add_argument("--platform", action="store_true", help="the rule holds for everybody")
        whose.add_argument("--tenant", metavar="SLUG", help="for all keys of this tenant")
        whose.add_argument("--key", metavar="PUBLIC_ID|KEY_ID", help="for this key")
        parser.add_argument("--option", required=True, choices=sorted(OPTIONS))
        parser.add_argument(
            "--allowed", choices=PERMISSIONS, help="whether clients may set it; none: take back what was said"
        )
        for name in NUMBERS:
            parser.add_argument(
                f"--{name}", metavar="N", help="a whole number, of seconds for keep_alive; none: take it back"
            )
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        given = {name: options[name] for name in NUMBERS if options[name] is not None}
        says = {NUMBERS[name]: number_or("none", text) for name, text in given.items()}
        if options["allowed"] is not None:
            says["allowed"] = PERMISSIONS[options["allowed"]]
        if not says:
            raise CommandError("Say something: --allowed, --minimum, --maximum or --default.")
        tenant = tenant_called(options["tenant"]) if options["tenant"] else None
        key = key_called(options["key"]) if options["key"] else None
        with told_plainly():
            rule = services.set_policy(
                option=options["option"],
                tenant=tenant,
                key=key,
                actor=person_at_the_shell(),
                **says,
            )
        whose = key.tenant if key else tenant
        in_force = generations.in_force(whose.pk if whose else None)
        if options["json"]:
            described = rule and {
                "rule_id": str(rule.pk),
                "tenant": rule.tenant and rule.tenant.slug,
                "key": rule.key and rule.key.label,
                "option": rule.option,
                "allowed": rule.allowed,
                "minimum": rule.minimum,
                "maximum": rule.maximum,
                "default": rule.default_value,
                "in_force": in_force,
            }
            self.stdout.write(json.dumps(described))
            return
        self.stdout.write("Nothing is said any more." if rule is None else f"{_in_words(rule)}: {rule}.")
        if not in_force:
            self.stdout.write(PENDING)


def _in_words(rule: PolicyRule) -> str:
    permission = {True: "allowed", False: "not allowed", None: ""}[rule.allowed]
    numbers = (("at least", rule.minimum), ("at most", rule.maximum), ("by default", rule.default_value))
    words = [permission, *(f"{word} {number}" for word, number in numbers if number is not None)]
    return ", ".join(filter(None, words))
