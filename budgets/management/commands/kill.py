import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error as DatabaseError

from audit.recording import person_at_the_shell
from budgets import services
from budgets.api.kill_switches import switch_as_json
from budgets.models import KillSwitch
from keys.commands import key_called
from tenants import generations
from tenants.commands import model_called, moment, tenant_called, told_plainly

SCOPES = ["platform", "tenant", "key", "upstream", "model"]


class Command(BaseCommand):
    help = "Stop all calls of the platform, a tenant, key, upstream or model, running ones too; or list."

    def add_arguments(self, parser: CommandParser) -> None:
        add_subject_arguments(parser)
        parser.add_argument("--reason", help="why, for the audit")
        parser.add_argument("--message", default="", help="what callers are told besides")
        parser.add_argument(
            "--until", metavar="WHEN", default="7d", help="when it lifts itself: 12h, 30d, 2027-01-31 (7d)"
        )
        parser.add_argument("--list", action="store_true", help="list the switches that are on, arm none")
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["list"]:
            self._list(as_json=options["json"])
            return
        subject = subject_called(options)
        if not options["reason"]:
            raise CommandError("Give a --reason.")
        with told_plainly():
            switch = services.arm_kill_switch(
                **subject,
                reason=options["reason"],
                message=options["message"],
                until=moment(options["until"], "UTC"),
                actor=person_at_the_shell(),
            )
        if options["json"]:
            self.stdout.write(json.dumps(switch_as_json(switch)))
            return
        until = f"{switch.until:%Y-%m-%d %H:%M} UTC"
        self.stdout.write(f"Armed kill switch {switch.pk}: {switch}, until {until}.")
        if generations.in_force(switch.tenant_id):
            self.stdout.write("In force: no process admits such a call. Those that run end within seconds.")
        else:
            self.stdout.write(
                "Pending: Redis cannot be reached. The gateway puts it in force as soon as it can."
            )

    def _list(self, *, as_json: bool) -> None:
        try:
            switches = list(KillSwitch.objects.on())
        except DatabaseError as exc:
            raise CommandError(f"Nobody knows which are on: PostgreSQL cannot be asked. {exc}") from exc
        if as_json:
            self.stdout.write(json.dumps([switch_as_json(switch) for switch in switches]))
            return
        for switch in switches:
            self.stdout.write(
                f"{switch.pk}  {switch}  until {switch.until:%Y-%m-%d %H:%M} UTC"
                f"  by {switch.armed_by}: {switch.reason}"
            )
        if not switches:
            self.stdout.write("No kill switch is on.")


def add_subject_arguments(parser: CommandParser) -> None:
    """What is stopped: a scope and, but for the platform, a name."""
    parser.add_argument("scope", nargs="?", choices=SCOPES)
    parser.add_argument(
        "name",
        nargs="?",
        help="slug of the tenant, public id or UUID of the key, name of the upstream or model",
    )
    parser.add_argument("--tenant", metavar="SLUG", help="only this tenant's calls to the model")


def subject_called(options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of ``arm_kill_switch`` that say what is stopped; raises ``CommandError``."""
    scope, name, tenant = options["scope"], options["name"], options["tenant"]
    if scope is None:
        raise CommandError(f"Say what: {', '.join(SCOPES)}.")
    if (name is None) != (scope == "platform"):
        raise CommandError("The platform has no name." if name else f"Name the {scope}.")
    if tenant and scope != "model":
        raise CommandError("--tenant goes with a model only.")
    subject: dict[str, Any] = {"scope": scope}
    if scope == "tenant":
        subject["tenant"] = tenant_called(name)
    elif scope == "key":
        subject["key"] = key_called(name)
    elif scope == "model":
        subject["model"] = model_called(name)
    elif scope == "upstream":
        subject["upstream"] = name
    if tenant:
        subject["tenant"] = tenant_called(tenant)
    return subject
