import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error as DatabaseError

from audit.recording import person_at_the_shell
from budgets import services
from budgets.management.commands.kill import add_subject_arguments, subject_called
from budgets.models import KillSwitch
from tenants import generations


class Command(BaseCommand):
    help = "Lift every kill switch that is on for the platform, a tenant, key, upstream or model."

    def add_arguments(self, parser: CommandParser) -> None:
        add_subject_arguments(parser)
        parser.add_argument("--reason", required=True, help="why, for the audit")
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        subject = services.subject_of_switch(**subject_called(options))
        try:
            switches = list(KillSwitch.objects.on().filter(**subject))
        except DatabaseError as exc:
            raise CommandError(f"Nobody knows which are on: PostgreSQL cannot be asked. {exc}") from exc
        lifted = [
            switch
            for switch in switches
            if services.lift_kill_switch(switch=switch, actor=person_at_the_shell(), reason=options["reason"])
        ]
        in_force = generations.in_force(subject["tenant_id"])
        if options["json"]:
            self.stdout.write(json.dumps({"lifted": [switch.pk for switch in lifted], "in_force": in_force}))
            return
        for switch in lifted:
            self.stdout.write(f"Lifted kill switch {switch.pk}: {switch}.")
        if not lifted:
            self.stdout.write("No such kill switch was on.")
        elif not in_force:
            self.stdout.write(
                "Pending: Redis cannot be reached. The gateway puts it in force as soon as it can."
            )
