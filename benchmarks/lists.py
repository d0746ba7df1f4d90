"""How long the admin's lists take: ``python3 benchmarks/lists.py --rows 20000000``.

Makes up so many ledger entries, request events and audit events, and opens each
list as an operator does: as it is, by time, by tenant and key, by whatever can
be filtered, and with every kind of search, also for what is not there. Told is
the best of some openings; it ends with status 1 if one is above a second.

Starts PostgreSQL and Valkey of its own and throws them away. Five million rows of
each take some 8 GB of disk meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import bootstrap

if __name__ == "__main__":
    bootstrap.build_environment()
    bootstrap.enter_environment()

from benchmarks import books

if TYPE_CHECKING:
    from django.test import Client

AIM_SECONDS = 1.0
REPEATS = 3

AUDIT = """
INSERT INTO audit_auditevent (at, actor, origin, action, subject, tenant_id, reason, details)
SELECT now() - interval '30 days' * (1 - (number + 0.5) / %(rows)s), 'person-' || number %% 50, 'admin',
    (ARRAY['key.issued', 'key.revoked', 'budget.set', 'member.added'])[1 + number %% 4],
    md5(number::text)::uuid::text, md5('tenant' || number %% 20)::uuid, '', '{}'
FROM generate_series(0, %(rows)s - 1) AS number
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=5_000_000, help="rows of each table")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    given = parser.parse_args()
    with books.servers():
        import django

        os.environ |= {"DJANGO_SETTINGS_MODULE": "config.settings", "OPERATORS_NEED_SECOND_FACTOR": "false"}
        os.environ["ALLOWED_HOSTS"] = "testserver"
        django.setup()
        from django.core.management import call_command

        call_command("migrate", verbosity=0)
        figures = opened(given.rows)
    width = max(map(len, figures))
    for name, seconds in figures.items():
        print(f"{name.ljust(width)}  {seconds:.3f} s{'  TOO SLOW' if seconds > AIM_SECONDS else ''}")  # noqa: T201
    if given.json:
        Path(given.json).write_text(json.dumps(figures, indent=1))
    return int(max(figures.values()) > AIM_SECONDS)


def opened(rows: int) -> dict[str, float]:
    """Seconds of the fastest of ``REPEATS`` openings of each list, by what was asked of it."""
    from django.db import connection
    from django.test import Client

    from audit.models import RequestEvent
    from tenants.models import User

    books.fill(rows)
    with connection.cursor() as cursor:
        # What links events and keeps them as they are has nothing to do with lists, and takes hours.
        cursor.execute("ALTER TABLE audit_auditevent DISABLE TRIGGER USER")
        cursor.execute(AUDIT, {"rows": rows})
        cursor.execute("ALTER TABLE audit_auditevent ENABLE TRIGGER USER")
        cursor.execute("ANALYZE audit_auditevent")
    browser = Client()
    browser.force_login(User.objects.create_superuser("operator"))
    oldest = RequestEvent.objects.order_by("at").first()
    assert oldest is not None  # noqa: S101, tells the type checker: so many were made
    ids = {"tenant_id": str(oldest.tenant_id), "key_id": str(oldest.key_id)}
    month, day = f"{oldest.at:%Y-%m}", f"{oldest.at:%Y-%m-%d}"
    asked: dict[str, dict[str, str]] = {
        "as it is": {},
        "its last page": {"p": "100"},
        "the oldest month": {"when": month},
        "the oldest day": {"when": day},
        "a tenant": {"tenant_id": ids["tenant_id"]},
        "a tenant on the oldest day": {"tenant_id": ids["tenant_id"], "when": day},
        "search: id of a tenant": {"q": ids["tenant_id"]},
        "search: an id that is nobody's": {"q": str(uuid4())},
        "search: a word that is nowhere": {"q": "nowhere"},
    }
    of_calls = {
        "a key": {"key_id": ids["key_id"]},
        "search: id of the oldest request": {"q": str(oldest.request_id)},
        "search: id of a key": {"q": ids["key_id"]},
        "search: a model": {"q": "model-1:1b"},
        "search: an e-mail of nobody": {"q": "nobody@example.org"},
    }
    lists: dict[str, dict[str, dict[str, str]]] = {
        "audit/requestevent": asked
        | of_calls
        | {
            "refused (none is)": {"status_class": "refused"},
            "failed, of a tenant (none is)": {"status_class": "5", "tenant_id": ids["tenant_id"]},
            "estimated": {"status_class": "estimated"},
        },
        "budgets/ledgerentry": asked
        | of_calls
        | {
            "corrections (there are none)": {"kind": "correction"},
            "settled late (none was)": {"marked": "late"},
            "estimated, in the oldest month": {"marked": "estimated", "when": month},
        },
        "audit/auditevent": asked
        | {
            "search: an action": {"q": "key.revoked"},
            "search: an actor": {"q": "person-7"},
            "search: the beginning of an action": {"q": "key."},
        },
    }
    figures = {
        f"{page}, {name}": _best_of(browser, f"/admin/{page}/", query)
        for page, questions in lists.items()
        for name, query in questions.items()
    }
    return figures | {"the dashboard": _best_of(browser, "/admin/", {})}


def _best_of(browser: Client, address: str, query: dict[str, str]) -> float:
    """Seconds of the fastest of ``REPEATS`` openings."""
    return min(_seconds(browser, address, query) for _ in range(REPEATS))


def _seconds(browser: Client, address: str, query: dict[str, str]) -> float:
    started = time.perf_counter()
    answer = browser.get(address, query)
    if answer.status_code != 200:
        raise RuntimeError(f"{address} with {query} answered {answer.status_code}")
    return round(time.perf_counter() - started, 3)


if __name__ == "__main__":
    sys.exit(main())
