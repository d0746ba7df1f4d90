import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit.recording import person_at_the_shell
from keys import prompts, services
from keys.commands import key_called
from keys.models import PROMPT_READERS
from tenants import generations
from tenants.commands import PENDING, number_or, tenant_called, told_plainly


class Command(BaseCommand):
    help = "Keep what the calls of a key say, for some days; or say who of a tenant may read what is kept."

    def add_arguments(self, parser: CommandParser) -> None:
        whose = parser.add_mutually_exclusive_group(required=True)
        whose.add_argument("--key", metavar="PUBLIC_ID|KEY_ID", help="the key whose calls are kept")
        whose.add_argument("--tenant", metavar="SLUG", help="the tenant whose people may read")
        parser.add_argument("--days", metavar="N", help="of a key: for how many days; off: not any more")
        parser.add_argument(
            "--readers",
            metavar="ROLES",
            help=f"of a tenant: who may read, such as owner,operator; nobody. Of {', '.join(PROMPT_READERS)}",
        )
        parser.add_argument(
            "--redact",
            action="append",
            metavar="TEMPLATE",
            help="of a tenant: what is left out, such as EMP-####; may be repeated; none: secrets only",
        )
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        told, tenant_id = self._key(options) if options["key"] else self._tenant(options)
        in_force = generations.in_force(tenant_id)
        if options["json"]:
            self.stdout.write(json.dumps(told | {"in_force": in_force}))
            return
        self.stdout.write(f"{', '.join(f'{name}: {value}' for name, value in told.items())}.")
        if not in_force:
            self.stdout.write(PENDING)

    def _key(self, options: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        if options["days"] is None or options["readers"] is not None or options["redact"]:
            raise CommandError("With --key say --days, and nothing of readers and templates.")
        key = key_called(options["key"])
        with told_plainly():
            key = services.change_key(
                key=key, actor=person_at_the_shell(), prompt_log_days=number_or("off", options["days"])
            )
        return {"key": key.label, "tenant": key.tenant.slug, "days": key.prompt_log_days}, key.tenant_id

    def _tenant(self, options: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        changes: dict[str, Any] = {}
        if options["readers"] is not None:
            named = options["readers"]
            changes["readers"] = [] if named == "nobody" else sorted(set(named.split(",")))
        if options["redact"]:
            changes["redactions"] = [] if options["redact"] == ["none"] else options["redact"]
        if not changes or options["days"] is not None:
            raise CommandError("With --tenant say --readers or --redact, and no --days.")
        tenant = tenant_called(options["tenant"])
        with told_plainly():
            rules = prompts.set_prompt_rules(tenant=tenant, actor=person_at_the_shell(), **changes)
        told = {"tenant": tenant.slug, "readers": rules.readers, "redactions": rules.redactions}
        return told, tenant.pk
