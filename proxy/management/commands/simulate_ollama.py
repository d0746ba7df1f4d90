"""``manage.py simulate_ollama``: a simulated Ollama in the foreground."""

import asyncio
import signal
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from proxy.simulator import Simulator, faults


class Command(BaseCommand):
    help = "Run a simulated Ollama until SIGTERM or SIGINT."
    requires_system_checks = ()
    requires_migrations_checks = False

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
        parser.add_argument(
            "--port", type=int, default=11434, help="port, 0 for any free one (default: %(default)s)"
        )
        parser.add_argument("--fault-models", action="store_true", help="list one model for each usual fault")

    def handle(self, *args: Any, **options: Any) -> None:
        models = [f"fault-{words}" for words in faults.STOCK] if options["fault_models"] else []
        asyncio.run(self._run(Simulator(options["host"], options["port"], models=models)))

    async def _run(self, simulator: Simulator) -> None:
        try:
            await simulator.start()
        except OSError as exc:
            raise CommandError(f"Cannot listen on {simulator.host}:{simulator.port}: {exc.strerror}") from exc
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        self.stdout.write(f"Simulated Ollama at {simulator.url}")
        self.stdout.flush()
        await stop.wait()
        await simulator.stop()
