"""Who may do what: the table of ``docs/roles.md``, tried line by line at the real addresses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from django.contrib.auth.models import AnonymousUser, Permission
from django.db import transaction
from django.http import HttpResponseBase
from django.test import Client

from audit.models import AuditEvent
from budgets.services import set_budget, set_rate_limit
from keys.services import issue_key
from tenants.models import Member, Tenant, User
from tenants.services import add_member, create_team, create_tenant
from tests import ledgers
from tests.accounts import quiet_counters
from tests.emptying import empty_tables
from tests.ledgers import book
from tests.people import a_browser

# What a trial changes is taken back, so that the next one finds the tenant as it was furnished.
pytestmark = pytest.mark.django_db

TABLE = Path(__file__).resolve().parent.parent / "docs" / "roles.md"
MANAGE = "/manage/v1/"
# A key that is not the member's. Whoever reads it reads the whole tenant.
OF_OTHERS = "key-of-others"


@dataclass(frozen=True)
class Trial:
    """How an action is tried; ``{tenant}`` and the like stand for ids. ``changes``: it does something."""

    method: str
    address: str
    body: dict[str, Any] = field(default_factory=dict)
    whole: str = ""
    # How the table calls it if that is missing.
    part: str = "own keys"

    @property
    def changes(self) -> bool:
        return self.method != "GET"


DAYS = {"from_day": "2026-10-01", "before_day": "2026-11-01", "profile": "day"}
LAST_YEAR = "from=2026-01-01&before=2027-01-01"
BECAUSE = {"reason": "because"}
# A new line of the table gets a trial here.
TRIALS = {
    "open the tenant's pages": Trial("GET", "/portal/acme/"),
    "read usage": Trial("GET", f"/portal/acme/usage/?{LAST_YEAR}", whole=OF_OTHERS),
    "read entries of the ledger": Trial("GET", f"/portal/acme/usage/entries/?{LAST_YEAR}", whole=OF_OTHERS),
    "read usage by the API": Trial("GET", f"{MANAGE}usage/?tenant=acme", whole=OF_OTHERS),
    "read entries by the API": Trial("GET", f"{MANAGE}usage/entries/?tenant=acme", whole=OF_OTHERS),
    "read statements": Trial("GET", "/portal/acme/statements/"),
    "export usage": Trial("POST", "/portal/acme/exports/", DAYS),
    "export usage by the API": Trial("POST", f"{MANAGE}exports/", DAYS | {"tenant": "acme"}),
    "read the tenant's audit": Trial("GET", "/portal/acme/audit/"),
    "see keys": Trial("GET", "/portal/acme/keys/", whole="nightly"),
    "issue a key": Trial("GET", "/portal/acme/keys/new/", whole="The tenant itself"),
    "change a key of the tenant": Trial("GET", "/portal/acme/keys/{key}/edit/"),
    "rotate a key of the tenant": Trial("GET", "/portal/acme/keys/{key}/rotate/"),
    "disable a key of the tenant": Trial("GET", "/portal/acme/keys/change/disable/?key={key}"),
    "revoke a key of the tenant": Trial("GET", "/portal/acme/keys/change/revoke/?key={key}"),
    "see members, invitations and service accounts": Trial(
        "GET", "/portal/acme/team/", whole="other", part="themselves"
    ),
    "see how limits stand": Trial("GET", "/portal/acme/limits/", whole="nightly"),
    "read why calls were refused": Trial("GET", "/portal/acme/refusals/"),
    "see which models may be called": Trial("GET", "/portal/acme/models/"),
    "open the playground": Trial("GET", "/portal/acme/playground/"),
    "say who is told of warnings": Trial(
        "POST",
        "/portal/acme/limits/recipients/",
        {"kind": "email", "address": "ops@acme.example", "happenings": "threshold"},
    ),
    "ask for more of a budget": Trial("GET", "/portal/acme/raises/new/{budget}/"),
    "ask for more of a rate limit": Trial("GET", "/portal/acme/raises/new/{rate}/"),
    "see requests for more": Trial("GET", "/portal/acme/raises/"),
    "invite somebody": Trial("POST", "/portal/acme/team/", {"email": "new@acme.example", "role": "member"}),
    "invite an owner": Trial("POST", "/portal/acme/team/", {"email": "new@acme.example", "role": "owner"}),
    "change a member's role": Trial("POST", "/portal/acme/team/members/{member}/", {"role": "auditor"}),
    "remove a member": Trial("POST", "/portal/acme/team/members/{member}/remove/"),
    "create a service account": Trial(
        "POST", "/portal/acme/team/service-accounts/", {"account-name": "build"}
    ),
    "see who is in a team": Trial("GET", "/portal/acme/team/teams/{team}/"),
    "create a team": Trial("POST", "/portal/acme/team/teams/", {"team-name": "Research"}),
    "rename a team": Trial("POST", "/portal/acme/team/teams/{team}/", {"name": "Research"}),
    "put somebody into a team": Trial(
        "POST", "/portal/acme/team/teams/{team}/put-in/", {"members": "{member}"}
    ),
    "take somebody out of a team": Trial("POST", "/portal/acme/team/teams/{full}/members/{inside}/take-out/"),
    "remove a team": Trial("POST", "/portal/acme/team/teams/{team}/remove/"),
    "choose the language of mails": Trial("POST", "/portal/acme/team/language/", {"language": "de"}),
    "leave the tenant": Trial("POST", "/portal/acme/team/leave/"),
    "read the audit of all in the admin": Trial("GET", "/admin/audit/auditevent/"),
    "read keys by the API": Trial("GET", f"{MANAGE}keys/"),
    "read limits by the API": Trial("GET", f"{MANAGE}budgets/"),
    "read running calls by the API": Trial("GET", f"{MANAGE}running-calls/"),
    "issue a key by the API": Trial("POST", f"{MANAGE}keys/", {"tenant": "acme", "label": "another"}),
    "revoke a key by the API": Trial("POST", f"{MANAGE}keys/{{key}}/revoke/", BECAUSE),
    "create a team by the API": Trial("POST", f"{MANAGE}teams/", {"tenant": "acme", "name": "Research"}),
    "change a member's role by the API": Trial("PATCH", f"{MANAGE}members/{{member}}/", {"role": "auditor"}),
    "set a budget by the API": Trial(
        "POST",
        f"{MANAGE}budgets/",
        {"scope": "tenant", "tenant": "acme", "unit": "tokens", "period": "day", "limit": 9},
    ),
    "set a price by the API": Trial(
        "POST", f"{MANAGE}prices/", {"tenant": "acme", "model": "tiny:1b", "input_price": 1}
    ),
    "arm a kill switch by the API": Trial(
        "POST", f"{MANAGE}kill-switches/", BECAUSE | {"scope": "tenant", "tenant": "acme"}
    ),
    "stop running calls by the API": Trial(
        "POST", f"{MANAGE}running-calls/stop/", BECAUSE | {"tenant": "acme"}
    ),
    "suspend the tenant by the API": Trial("POST", f"{MANAGE}tenants/{{tenant}}/suspend/", BECAUSE),
    "see keys in the admin": Trial("GET", "/admin/keys/apikey/"),
    "issue a key in the admin": Trial("GET", "/admin/keys/apikey/add/"),
    "see management keys in the admin": Trial("GET", "/admin/keys/managementkey/"),
    "issue a management key in the admin": Trial("GET", "/admin/keys/managementkey/add/"),
    "add a person in the admin": Trial("GET", "/admin/tenants/user/add/"),
}
# What is no one's deed to be told of, or counted as a change.
NOT_AUDITED = {"stop running calls by the API"}


def table() -> dict[str, dict[str, str]]:
    """The lines of the page's second table: what each role is told, by action."""
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("|")]
    start = next(number for number, line in enumerate(lines) if line.startswith("| action |"))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:]]
    [_, *roles], _, *rows = cells
    return {action: dict(zip(roles, told, strict=True)) for action, *told in rows}


TOLD = table()
ROLES = list(next(iter(TOLD.values())))


def somebody(role: str, acme: Tenant) -> User | AnonymousUser:
    """A person as a column of the table calls them."""
    if role == "stranger":
        return AnonymousUser()
    user = User.objects.create(username="somebody", is_staff=role in ("operator", "platform auditor"))
    if role == "operator":
        user.user_permissions.set(Permission.objects.all())
    elif role == "platform auditor":
        user.user_permissions.set(Permission.objects.filter(codename__startswith="view_"))
    elif role == "foreign":
        globex = create_tenant(slug="globex", name="Globex", actor="test")
        add_member(tenant=globex, user=user, role="owner", actor="test")
    else:
        add_member(tenant=acme, user=user, role=role, actor="test")
    return user


@dataclass(frozen=True)
class Place:
    """A tenant with some of everything, and somebody of a role who has come to its doors."""

    role: str
    signed_in: bool
    # The browser's, once they have signed in.
    cookies: Mapping[str, Any]
    ids: Mapping[str, Any]


def furnished(role: str) -> Place:
    quiet_counters()
    # In one transaction all of it is put in force once.
    with transaction.atomic():
        acme = create_tenant(slug="acme", name="ACME", actor="test")
        person = somebody(role, acme)
        own = Member.objects.filter(tenant=acme).first()
        add_member(tenant=acme, user=User.objects.create(username="another"), role="owner", actor="test")
        other = add_member(tenant=acme, user=User.objects.create(username="other"), actor="test")
        key, _ = issue_key(tenant=acme, label="nightly", actor="test")
        book(
            ledgers.of(acme, key_id=key.pk, key=OF_OTHERS, member_id=other.pk, member="other"),
            *([ledgers.of(acme, key="key-of-mine", member_id=own.pk, member="somebody")] if own else []),
        )
        limits: dict[str, Any] = {"unit": "tokens", "period": "day", "limit": 9, "actor": "test"}
        set_budget(scope="key", key=key, **limits)
        budget = set_budget(scope="tenant", tenant=acme, **limits)
        rate = set_rate_limit(
            scope="tenant", tenant=acme, measure="requests_per_minute", limit=9, actor="test"
        )
        team, full = (create_team(tenant=acme, name=name, actor="test") for name in ("Empty", "Full"))
        inside_user = User.objects.create(username="inside")
        inside = add_member(tenant=acme, user=inside_user, team=full, actor="test")
    ids = {"tenant": acme, "key": key, "member": other, "budget": budget, "team": team, "full": full,
           "inside": inside, "rate": rate}  # fmt: skip
    return Place(
        role,
        signed_in=isinstance(person, User),
        cookies=a_browser(person).cookies,
        ids={name: row.pk for name, row in ids.items()},
    )


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest, django_db_setup: None, django_db_blocker: Any) -> Iterator[Place]:
    with django_db_blocker.unblock():
        try:
            yield furnished(request.param)
        finally:
            empty_tables(None)  # type: ignore[arg-type]  # it looks at no test case


def outcome(answer: HttpResponseBase, trial: Trial, *, signed_in: bool) -> str:
    """What an answer says, in the words of the table."""
    to_sign_in = answer.status_code == 302 and re.match(
        r"/(account|admin)/login/", answer.headers["Location"]
    )
    # A form that does not have what was sent says 400.
    if answer.status_code in (400, 401, 403) or to_sign_in:
        return "no" if signed_in else "sign in"
    if answer.status_code == 404:
        return "unknown"
    assert answer.status_code in (200, 201, 204, 302), answer.status_code
    return trial.part if trial.whole and trial.whole.encode() not in answer.content else "yes"  # type: ignore[attr-defined]


@pytest.mark.parametrize("place", ROLES, indirect=True)
@pytest.mark.parametrize("action", TOLD)
def test_each_role_can_do_what_the_table_says_and_no_more(place: Place, action: str) -> None:
    trial, told = TRIALS[action], TOLD[action][place.role]
    address, body = trial.address.format(**place.ids), dict(trial.body)
    if "members" in body:
        body["members"] = body["members"].format(**place.ids)
    before = AuditEvent.objects.count()
    sent: dict[str, Any] = {}
    if trial.changes and address.startswith(MANAGE):
        sent = {"data": json.dumps(body), "content_type": "application/json"}
    elif trial.changes:
        sent = {"data": urlencode(body), "content_type": "application/x-www-form-urlencoded"}
    browser = Client()
    browser.cookies.update(place.cookies)

    answer = browser.generic(trial.method, address, **sent)

    assert outcome(answer, trial, signed_in=place.signed_in) == told
    if trial.changes and action not in NOT_AUDITED:
        assert (AuditEvent.objects.count() > before) == (told == "yes")


def test_every_line_has_a_trial_and_every_trial_a_line() -> None:
    """A right that is new gets both."""
    assert set(TRIALS) == set(table())


def test_the_table_has_a_column_for_every_role() -> None:
    roles = {"operator", "platform auditor", *Member.Role.values, "foreign", "stranger"}

    assert all(set(row) == roles for row in table().values())


def test_an_auditor_of_a_tenant_and_one_of_the_platform_change_nothing() -> None:
    changing = {action for action, trial in TRIALS.items() if trial.changes} - {
        "export usage",
        "export usage by the API",
        "leave the tenant",
    }

    assert len(changing) >= 9
    assert {table()[action][role] for action in changing for role in ("auditor", "platform auditor")} == {
        "no"
    }
