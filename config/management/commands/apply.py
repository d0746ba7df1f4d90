import json
import sys
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit.recording import person_at_the_shell
from config.declared import document
from config.declared.kinds import SHAPES
from config.declared.plan import apply, plan
from tenants import generations
from tenants.commands import PENDING, told_plainly


class Command(BaseCommand):
    help = "Make tenants, teams, keys, budgets, limits, prices, policies and upstreams what a file says."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "file", metavar="FILE", help="YAML as export_config writes it; - for standard input"
        )
        parser.add_argument("--dry-run", action="store_true", help="only show what would be done")
        parser.add_argument("--prune", action="store_true", help="remove what the file does not name")
        parser.add_argument("--json", action="store_true", help="print the result as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        with told_plainly():
            wanted = document.read(_text_of(options["file"]), SHAPES)
            changes = plan(wanted, prune=options["prune"])
            told = [str(change) for change in changes]
            secrets = {} if options["dry_run"] else apply(changes, actor=person_at_the_shell())
        in_force = options["dry_run"] or not generations.pending()
        if options["json"]:
            described = {
                "applied": not options["dry_run"],
                "changes": told,
                "secrets": secrets,
                "in_force": in_force,
            }
            self.stdout.write(json.dumps(described))
            return
        for line in told:
            self.stdout.write(line)
        self.stdout.write(_summary(len(told), dry_run=options["dry_run"]))
        for name, secret in secrets.items():
            self.stdout.write(f"Issued {name}. Its secret is not shown again:\n{secret}")
        if not in_force:
            self.stdout.write(PENDING)


def _summary(number: int, *, dry_run: bool) -> str:
    if number == 0:
        return "Everything is as the file says."
    things = "1 change" if number == 1 else f"{number} changes"
    return f"{things} would be made. Nothing was done." if dry_run else f"{things} made."


def _text_of(file: str) -> str:
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise CommandError(f"{file} cannot be read: {exc}.") from exc
