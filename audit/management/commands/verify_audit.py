import json
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit import chains, checkpoints


class Command(BaseCommand):
    help = "Find out whether an audit event was changed, taken out, put in or moved."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--checkpoints", metavar="FILE", help="lines of audit_checkpoints that were kept elsewhere"
        )
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        marks = _marks(options["checkpoints"])
        found = chains.verify(marks)
        if options["json"]:
            described = {
                "events": found.events,
                "chains": {chain: number for chain, (number, _) in found.ends.items()},
                "checkpoints": len(marks),
                "troubles": [str(trouble) for trouble in found.troubles],
            }
            self.stdout.write(json.dumps(described))
        else:
            for trouble in found.troubles:
                self.stdout.write(str(trouble))
            self.stdout.write(
                f"{found.events} events in {len(found.ends)} chains, {len(marks)} checkpoints: "
                + (f"{len(found.troubles)} troubles." if found.troubles else "all as it was written.")
            )
        if found.troubles:
            raise CommandError("The audit is not as it was written.")


def _marks(file: str | None) -> chains.Marks:
    """The checkpoints of a file, or without one those of the database; raises ``CommandError``."""
    try:
        kept = Path(file).read_text().splitlines() if file else list(checkpoints.lines())
        return checkpoints.marks_in(kept)
    except OSError as exc:
        raise CommandError(f"{file} cannot be read: {exc.strerror}.") from exc
    except checkpoints.Forged as exc:
        raise CommandError(f"{file or 'The database'}: {exc}.") from exc
