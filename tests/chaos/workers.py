"""What Celery does in production, done by threads; each does all of it, so two do everything twice."""

from __future__ import annotations

import threading

from django.db import InterfaceError, OperationalError, connection
from redis.exceptions import OutOfMemoryError, RedisError

from budgets import ledger, spool
from budgets.rebuild import ensure_epoch
from budgets.sweeping import sweep

PAUSE_SECONDS = 0.1


class Worker(threading.Thread):
    """Drains, replays, sweeps and rebuilds until told to stop; ``errors`` is what went wrong."""

    def __init__(self, number: int) -> None:
        super().__init__(name=f"worker {number}")
        self.errors: list[Exception] = []
        # Set before PostgreSQL breaks connections, which is an error no more.
        self.postgres_breaks = False
        self._stopping = threading.Event()
        self._resting = threading.Event()

    def stop(self) -> None:
        self._stopping.set()

    def rest(self) -> None:
        """Do nothing until ``go_on``, once what is being done is done."""
        self._resting.set()

    def go_on(self) -> None:
        self._resting.clear()

    def run(self) -> None:
        try:
            while not self._stopping.wait(PAUSE_SECONDS):
                if not self._resting.is_set():
                    self._work()
        finally:
            connection.close()

    def _work(self) -> None:
        for task in (ensure_epoch, ledger.drain, spool.replay, sweep):
            try:
                task()
            except OutOfMemoryError:
                # What Redis has no room for now is done again when it has.
                continue
            except RedisError as exc:
                # What is lost while Redis is being emptied; Celery would log it and come back.
                if "NOGROUP" not in str(exc) and "no such key" not in str(exc):
                    self.errors.append(exc)
            except (OperationalError, InterfaceError) as exc:
                connection.close()
                if not self.postgres_breaks:
                    self.errors.append(exc)
            except Exception as exc:  # noqa: BLE001, any error is a finding
                self.errors.append(exc)
