"""What pytest gives to a test, for a command: servers, settings, an empty database, an Ollama."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tests import servers

if TYPE_CHECKING:
    from proxy.simulator.server import SimulatorThread


@contextlib.contextmanager
def standing_alone() -> Iterator[SimulatorThread]:
    """Servers of our own, or those of ``DATABASE_URL`` and ``REDIS_URL``, until the end of the block.

    Nothing of ours that needs the settings may have been imported before.
    """
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    with contextlib.ExitStack() as cleanup:
        servers._prepare(cleanup)
        import django

        django.setup()
        from django.db import connection

        from proxy.simulator.server import SimulatorThread

        real = connection.settings_dict["NAME"]
        connection.creation.create_test_db(verbosity=0, autoclobber=True)
        cleanup.callback(connection.creation.destroy_test_db, real, verbosity=0)
        yield cleanup.enter_context(SimulatorThread())


def emptied(ollama: SimulatorThread) -> None:
    """Empty tables, and an Ollama as new."""
    from django.core.management import call_command

    call_command("flush", verbosity=0, interactive=False)
    ollama.reset()
