import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from keys.callers import policy_of
from keys.commands import key_called
from keys.policies import OPTIONS, Rule, rule_of


class Command(BaseCommand):
    help = "Show what a key may ask of Ollama: what the platform, its tenant and itself say together."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "key", metavar="PUBLIC_ID|KEY_ID", help="12 characters after tg_, or the key's UUID"
        )
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        key = key_called(options["key"])
        policy = policy_of(key.tenant_id, key.pk)
        rules = {name: rule_of(policy, name) for name in OPTIONS}
        if options["json"]:
            described = {
                "key_id": str(key.pk),
                "tenant": key.tenant.slug,
                "label": key.label,
                "options": {
                    name: {
                        "allowed": rule.allowed,
                        "minimum": rule.minimum,
                        "maximum": rule.maximum,
                        "default": rule.default,
                        "said": name in policy,
                    }
                    for name, rule in rules.items()
                },
            }
            self.stdout.write(json.dumps(described))
            return
        for name, rule in rules.items():
            self.stdout.write(f"{name:<18} {_in_words(rule)}{'' if name in policy else ' (nobody says)'}")


def _in_words(rule: Rule) -> str:
    words = ["allowed" if rule.allowed else "not allowed"]
    if rule.allowed and rule.maximum is not None:
        words.append(f"from {rule.minimum} to {rule.maximum}")
    if rule.default is not None:
        words.append(f"by default {rule.default}")
    return ", ".join(words)
