import json
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit import checkpoints


class Command(BaseCommand):
    help = "Note how long the audit is now, signed, and write all such notes out to be kept elsewhere."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--output", metavar="FILE", help="instead of standard output")
        parser.add_argument("--json", action="store_true", help="with --output: print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        made = checkpoints.make()
        lines = list(checkpoints.lines())
        text = "".join(f"{line}\n" for line in lines)
        if options["output"] is None:
            self.stdout.write(text, ending="")
            return
        try:
            Path(options["output"]).write_text(text)
        except OSError as exc:
            raise CommandError(f"{options['output']} cannot be written: {exc.strerror}.") from exc
        if options["json"]:
            described = {"made": made, "written": len(lines), "public_key": checkpoints.public_key()}
            self.stdout.write(json.dumps(described))
        else:
            self.stdout.write(
                f"Made {made}, wrote {len(lines)}. They are signed by {checkpoints.public_key()}."
            )
