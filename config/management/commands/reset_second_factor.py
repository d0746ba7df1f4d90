import json
from typing import Any

from allauth.mfa.models import Authenticator
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction
from django.db.models import Q

from audit.recording import person_at_the_shell, record
from tenants.models import User


class Command(BaseCommand):
    help = "Take away the second factor and the recovery codes of somebody who has lost them."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("person", metavar="NAME", help="name or e-mail address")
        parser.add_argument("--reason", required=True)
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    @transaction.atomic
    def handle(self, *args: Any, **options: Any) -> None:
        name = options["person"]
        user = User.objects.filter(Q(username=name) | Q(email__iexact=name)).first()
        if user is None:
            raise CommandError(f"There is nobody called {name!r}.")
        taken = sorted(Authenticator.objects.filter(user=user).values_list("type", flat=True))
        Authenticator.objects.filter(user=user).delete()
        if taken:
            record(
                action="user.second_factor_reset",
                actor=person_at_the_shell(),
                subject=str(user.pk),
                reason=options["reason"],
                username=user.username,
                taken=taken,
            )
        if options["json"]:
            self.stdout.write(json.dumps({"user": user.username, "taken": taken}))
        elif taken:
            self.stdout.write(f"Took {', '.join(taken)} of {user.username} away.")
        else:
            self.stdout.write(f"{user.username} has no second factor.")
