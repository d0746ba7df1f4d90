import json
from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit.recording import person_at_the_shell
from budgets.models import PriceProposal
from budgets.price_proposals import accept_price, decline_price, effect_in_words, effect_of
from budgets.price_report import proposal_as_json
from tenants import generations
from tenants.commands import PENDING, moment, told_plainly


class Command(BaseCommand):
    help = "Accept or decline a proposed price. Accepted, it holds from the next month on, or a given moment."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("proposal", metavar="ID", help="the proposal, as propose_prices shows it")
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("--accept", action="store_true", help="set the price")
        which.add_argument("--decline", action="store_true", help="leave the price as it is")
        parser.add_argument("--reason", required=True, help="why, for the audit")
        parser.add_argument(
            "--from", dest="starts", metavar="WHEN", help="when an accepted price starts; with the next month"
        )
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        proposal = _proposal_called(options["proposal"])
        starts_at = moment(options["starts"], "UTC") if options["starts"] else None
        if starts_at and options["decline"]:
            raise CommandError("--from goes with --accept.")
        actor, reason = person_at_the_shell(), options["reason"]
        effect = effect_of(proposal, starts_at)
        with told_plainly():
            if options["accept"]:
                price = accept_price(
                    proposal=proposal, actor=actor, reason=reason, starts_at=effect.starts_at
                )
                decided = price is not None
            else:
                decided = decline_price(proposal=proposal, actor=actor, reason=reason)
        proposal.refresh_from_db()
        if not decided:
            by = f" by {proposal.decided_by}" if proposal.decided_by else ""
            raise CommandError(f"It is no longer open: it was {proposal.state}{by}.")
        in_force = generations.in_force(None)
        if options["json"]:
            self.stdout.write(json.dumps(proposal_as_json(proposal) | {"in_force": in_force}))
            return
        if options["decline"]:
            self.stdout.write(f"Declined: {proposal}. The price stays as it is.")
            return
        self.stdout.write(f"Accepted: {proposal}.")
        for line in effect_in_words(proposal, effect):
            self.stdout.write(line)
        if not in_force:
            self.stdout.write(PENDING)


def _proposal_called(text: str) -> PriceProposal:
    try:
        return PriceProposal.objects.get(pk=UUID(text))
    except (ValueError, PriceProposal.DoesNotExist) as exc:
        raise CommandError(f"There is no proposal {text!r}.") from exc
