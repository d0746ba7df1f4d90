import json
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit.recording import person_at_the_shell
from budgets import deliveries, notices
from budgets.models import Delivery, Recipient


class Command(BaseCommand):
    help = "Send a test notice to a recipient, now, and say whether it arrived."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("recipient", metavar="ID", help="as add_recipient printed it")
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            recipient = Recipient.objects.select_related("tenant").get(pk=options["recipient"])
        except (Recipient.DoesNotExist, ValidationError) as exc:
            raise CommandError(f"There is no recipient {options['recipient']!r}.") from exc
        delivery = deliveries.deliver_now(notices.try_out(recipient, person_at_the_shell()))
        arrived = delivery.state == Delivery.State.DELIVERED
        attempt = delivery.attempts[-1]
        if options["json"]:
            described = {
                "delivery_id": str(delivery.pk),
                "delivered": arrived,
                "status": attempt["status"],
                "error": attempt["error"],
            }
            self.stdout.write(json.dumps(described))
        elif arrived:
            self.stdout.write(f"{recipient}: delivered.")
        if not arrived:
            raise CommandError(f"{recipient}: {attempt['error']}. The worker tries it again.")
