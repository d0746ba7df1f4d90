"""Make the tenant that is measured with, or take it away again; both as JSON on standard output.

    python -m benchmarks.tenant UPSTREAM_PORT      prints {"tenant": slug, "secret": ...}
    python -m benchmarks.tenant remove SLUG

It has everything that a busy tenant has: a member with a key; budgets in
requests and tokens on tenant and key, one in money on the tenant, with a price;
requests and tokens a minute on tenant and key; calls at one time on the key.
None of these ten limits is ever reached.
"""

from __future__ import annotations

import json
import os
import sys

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
django.setup()

from budgets.models import Budget, Measure, PeriodKind, Price, RateLimit, Scope, Unit  # noqa: E402
from budgets.rebuild import ensure_epoch  # noqa: E402
from keys.models import ApiKey  # noqa: E402
from keys.services import issue_key, revoke_key  # noqa: E402
from proxy.models import Upstream  # noqa: E402
from proxy.services import remove_upstream, save_upstream  # noqa: E402
from tenants import generations  # noqa: E402
from tenants.ids import new_id  # noqa: E402
from tenants.models import User  # noqa: E402
from tenants.services import add_member, create_tenant  # noqa: E402

ACTOR = "benchmark"
NEVER_REACHED = 10**14


def make(upstream_port: int) -> dict[str, str]:
    """Make everything anew, under names that no earlier run has used."""
    slug = f"benchmark-{new_id().hex[-12:]}"
    tenant = create_tenant(slug=slug, name="Benchmark", actor=ACTOR, allow_all_models=True)
    member = add_member(tenant=tenant, user=User.objects.create_user(username=slug), actor=ACTOR)
    key, secret = issue_key(tenant=tenant, member=member, label="benchmark", actor=ACTOR)
    save_upstream(upstream=Upstream(name=slug, base_url=f"http://127.0.0.1:{upstream_port}"), actor=ACTOR)
    of_tenant = {"scope": Scope.TENANT, "tenant": tenant}
    of_key = {"scope": Scope.KEY, "tenant": tenant, "key": key}
    for whose in (of_tenant, of_key):
        for unit, period in ((Unit.REQUESTS, PeriodKind.DAY), (Unit.TOKENS, PeriodKind.MONTH)):
            Budget.objects.create(**whose, unit=unit, period=period, limit=NEVER_REACHED)
        for measure in (Measure.REQUESTS_PER_MINUTE, Measure.TOKENS_PER_MINUTE):
            RateLimit.objects.create(**whose, measure=measure, limit=NEVER_REACHED)
    Budget.objects.create(**of_tenant, unit=Unit.MICRO_USD, period=PeriodKind.MONTH, limit=NEVER_REACHED)
    RateLimit.objects.create(**of_key, measure=Measure.CONCURRENT_REQUESTS, limit=NEVER_REACHED)
    Price.objects.create(
        model="bench:1b", tenant=tenant, input_price=100_000, cached_price=50_000, output_price=400_000
    )
    generations.project()
    ensure_epoch()
    return {"tenant": slug, "secret": secret}


def remove(slug: str) -> dict[str, str]:
    """Revoke the keys and forget the upstream; what was booked stays."""
    for key in ApiKey.objects.filter(tenant__slug=slug):
        revoke_key(key=key, actor=ACTOR, reason="the benchmark is over")
    remove_upstream(upstream=Upstream.objects.get(name=slug), actor=ACTOR)
    return {"tenant": slug}


if __name__ == "__main__":
    done = remove(sys.argv[2]) if sys.argv[1] == "remove" else make(int(sys.argv[1]))
    sys.stdout.write(json.dumps(done) + "\n")
