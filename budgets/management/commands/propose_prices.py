import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from audit.recording import person_at_the_shell
from budgets.commands import month_written
from budgets.money import price_told
from budgets.price_proposals import propose
from budgets.price_report import proposal_as_json
from tenants.commands import told_plainly


class Command(BaseCommand):
    help = "Propose prices from what a month cost. They change nothing until somebody accepts them."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--month", required=True, metavar="YYYY-MM", help="a month of UTC that is over")
        parser.add_argument(
            "--again", action="store_true", help="propose anew what was accepted or declined for the month"
        )
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        month = month_written(options["month"])
        with told_plainly():
            answers = propose(month=month, actor=person_at_the_shell(), again=options["again"])
        if options["json"]:
            described = [
                {
                    "model": answer.model,
                    "made": answer.made,
                    "reason": answer.reason or None,
                    "proposal": answer.proposal and proposal_as_json(answer.proposal),
                }
                for answer in answers
            ]
            self.stdout.write(json.dumps({"month": options["month"], "models": described}))
            return
        for answer in answers:
            proposal = answer.proposal
            if proposal is None or answer.reason:
                self.stdout.write(f"{answer.model}: nothing is proposed. {answer.reason}")
            else:
                new = "proposed" if answer.made else "proposed before"
                self.stdout.write(f"{answer.model}: {new}: {price_told(proposal)}. {proposal.pk}")
        if not answers:
            self.stdout.write(f"No model was used in {month:%B %Y}.")
