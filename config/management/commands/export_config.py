from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from config.declared import document
from config.declared.kinds import SHAPES, present


class Command(BaseCommand):
    help = "Write how the gateway is set as a file for apply; no secrets are in it."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--output", metavar="FILE", help="instead of standard output")

    def handle(self, *args: Any, **options: Any) -> None:
        text = document.written(present(), SHAPES)
        if options["output"] is None:
            self.stdout.write(text, ending="")
            return
        try:
            Path(options["output"]).write_text(text, encoding="utf-8")
        except OSError as exc:
            raise CommandError(f"{options['output']} cannot be written: {exc.strerror}.") from exc
