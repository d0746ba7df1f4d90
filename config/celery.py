"""The Celery application, and when each recurring task runs.

Every task is safe to run twice and at the same time, so nothing here has to
promise once: results are ignored, and a tick that waited longer than its own
interval expires, because the next one does its work.
"""

import os
from typing import Any

from celery import Celery
from celery.signals import beat_init, task_prerun

from audit.origins import origin

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

# Seconds between two runs.
EVERY = {
    "budgets.tasks.drain": 1.0,
    "budgets.tasks.settle_leftovers": 5.0,
    "budgets.tasks.ensure_epoch": 5.0,
    "budgets.tasks.look": 5.0,
    "budgets.tasks.deliver": 5.0,
    "budgets.tasks.make_exports": 2.0,
    "budgets.tasks.note_pace": 15.0,
    "budgets.tasks.expire_exports": 300.0,
    "budgets.tasks.warn_of_expiry": 300.0,
    "budgets.tasks.close_periods": 60.0,
    "budgets.tasks.forget_prompts": 60.0,
    "budgets.tasks.trim": 300.0,
    "budgets.tasks.publish_estimators": 300.0,
    "budgets.tasks.watch_audit": 300.0,
    "budgets.tasks.forget_visitors": 3600.0,
    "budgets.tasks.forget_refusals": 3600.0,
    "budgets.tasks.make_months": 3600.0,
    "budgets.tasks.note_audit": 3600.0,
    "budgets.tasks.propose_prices": 3600.0,
    "budgets.tasks.archive_months": 3600.0,
    "budgets.tasks.verify": 3600.0,
}

app = Celery("tollgate")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.conf.update(
    imports=["budgets.tasks"],
    accept_content=["json"],
    task_serializer="json",
    task_ignore_result=True,
    enable_utc=True,
    timezone="UTC",
    broker_connection_retry_on_startup=True,
    # Its keys lie beside the counters.
    broker_transport_options={"global_keyprefix": "celery:"},
    # A worker takes one task at a time, so that none waits behind a slow one while another worker is idle.
    worker_prefetch_multiplier=1,
    # Nothing here is so rare that beat would have to remember over a restart when it ran last.
    beat_scheduler="celery.beat:Scheduler",
    beat_schedule={
        task: {"task": task, "schedule": seconds, "options": {"expires": seconds}}
        for task, seconds in EVERY.items()
    },
)


@beat_init.connect
def _look_at_once(**_: Any) -> None:
    """What has to be seen to before an hour has passed."""
    for task in ("budgets.tasks.make_months", "budgets.tasks.watch_audit", "budgets.tasks.note_pace"):
        app.send_task(task, expires=EVERY[task])


@task_prerun.connect
def _say_where(task: Any, **_: Any) -> None:
    origin.set(f"task {task.name}")
