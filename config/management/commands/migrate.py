from typing import Any

from django.core.management.commands.migrate import Command as DjangoCommand
from django.db import connections

# All who come after a statement that waits for a lock wait with it, so it is the migration that gives up.
LOCK_TIMEOUT = "5s"


class Command(DjangoCommand):
    """Django's, but it fails when it cannot have a lock soon, instead of holding everybody up."""

    def handle(self, *args: Any, **options: Any) -> None:
        with connections[options["database"]].cursor() as cursor:
            cursor.execute("SELECT set_config('lock_timeout', %s, false)", [LOCK_TIMEOUT])
        super().handle(*args, **options)
