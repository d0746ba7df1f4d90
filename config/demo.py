"""The data of a quickstart: an operator, a tenant with a member, a budget and a key, an upstream."""

from __future__ import annotations

import secrets
import time
from typing import Any

from django.core.management.base import CommandError
from django.db import transaction

from budgets.models import Budget, LedgerEntry
from budgets.rebuild import ensure_epoch
from budgets.services import set_budget
from keys.models import ApiKey, KeySecret
from keys.secrets import digest, public_id_of
from keys.services import issue_key, revoke_key
from proxy.models import Upstream
from proxy.services import save_upstream
from tenants.models import Member, Tenant, User
from tenants.services import add_member, create_tenant

ACTOR = "quickstart"
TOKENS_A_DAY = 1_000_000


@transaction.atomic
def prepare(*, ollama_url: str, demo_key: str, admin_password: str) -> dict[str, Any]:
    """Create what is missing; what exists stays as it is.

    ``demo_key`` and ``admin_password`` are what an earlier run knew, or empty.
    The answer carries those that are good now: a key whose secret nobody knows
    any more is revoked and replaced, the password of an operator that somebody
    else has set is not touched and comes back empty.
    """
    admin_password = _admin(admin_password)
    tenant = Tenant.objects.filter(slug="demo").first() or create_tenant(
        slug="demo", name="Demo", actor=ACTOR, allow_all_models=True
    )
    member = _member(tenant)
    _upstream(ollama_url)
    if not Budget.objects.filter(tenant=tenant).exists():
        set_budget(
            tenant=tenant, scope="tenant", unit="tokens", period="day", limit=TOKENS_A_DAY, actor=ACTOR
        )
    # The worker would see to it too, but some seconds later.
    transaction.on_commit(ensure_epoch)
    return {"admin_password": admin_password, "demo_key": _key(member, demo_key)}


def wait_until_booked(request_id: str, *, seconds: float) -> dict[str, Any]:
    """The ledger entry of a call, waiting for it; raises ``CommandError`` if none comes in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        entry = LedgerEntry.objects.filter(request_id=request_id, kind="usage").first()
        if entry is not None:
            return {
                "number": entry.pk,
                "tenant": entry.tenant,
                "key": entry.key,
                "model": entry.model,
                "input_tokens": entry.input_tokens,
                "output_tokens": entry.output_tokens,
                "exact": entry.exact,
                "outcome": entry.outcome,
            }
        time.sleep(0.1)
    raise CommandError(f"call {request_id} was not booked within {seconds:.0f} seconds")


def _admin(known_password: str) -> str:
    """Create the operator ``admin`` if there is none; return its password if it is known."""
    admin = User.objects.filter(username="admin").first()
    if admin is None:
        password = secrets.token_urlsafe(15)
        User.objects.create_superuser("admin", password=password)
        return password
    return known_password if known_password and admin.check_password(known_password) else ""


def _member(tenant: Tenant) -> Member:
    member = Member.objects.filter(tenant=tenant, user__username="demo").first()
    if member is not None:
        return member
    # Without a password nobody can log in; an operator may set one.
    user = User.objects.filter(username="demo").first() or User.objects.create_user("demo")
    return add_member(tenant=tenant, user=user, role=Member.Role.OWNER, actor=ACTOR)


def _upstream(ollama_url: str) -> None:
    """Let the upstream ``ollama`` be at this address, unless another one is already."""
    if Upstream.objects.filter(base_url=ollama_url).exists():
        return
    upstream = Upstream.objects.filter(name="ollama").first() or Upstream(name="ollama")
    upstream.base_url = ollama_url
    save_upstream(upstream=upstream, actor=ACTOR)


def _key(member: Member, known_secret: str) -> str:
    """The secret of the member's key ``quickstart``, a new one if the known one is none any more."""
    live = ApiKey.objects.filter(member=member, label="quickstart", revoked_at=None).first()
    if live is not None:
        public_id = public_id_of(known_secret)
        if KeySecret.objects.filter(key=live, public_id=public_id, digest=digest(known_secret)).exists():
            return known_secret
        revoke_key(key=live, actor=ACTOR, reason="its secret was lost")
    _, secret = issue_key(tenant=member.tenant, member=member, label="quickstart", actor=ACTOR)
    return secret
