"""Keys to manage with: how they are issued, shown once, and revoked."""

from __future__ import annotations

import io
import json
import re
from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.sessions.models import Session
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.db import IntegrityError, transaction
from django.urls import reverse
from django.utils.html import strip_tags
from django.utils.timezone import now

from audit.models import AuditEvent
from budgets.services import set_budget
from keys import secrets
from keys.models import ManagementKey
from keys.services import issue_management_key, revoke_management_key, set_anonymous_access
from tenants.secret_marks import CALLING, MANAGING
from tenants.services import create_tenant
from tests.conftest import House
from tests.managing import manager

LIST = "admin:keys_managementkey_changelist"
ADD = "admin:keys_managementkey_add"
CHANGE = "admin:keys_managementkey_change"
SECRET = r"tgm_[0-9A-Za-z]{58}"


def run(*arguments: str) -> str:
    output = io.StringIO()
    call_command(*arguments, stdout=output)
    return output.getvalue()


@pytest.mark.django_db
def test_of_a_secret_only_the_digest_is_stored():
    key, secret = issue_management_key(label="terraform", scopes=["tenants:read"], actor="olga")

    stored = ManagementKey.objects.values().get()
    assert re.fullmatch(SECRET, secret)
    assert stored["digest"] == secrets.digest(secret)
    assert secret not in str(stored)
    assert (stored["public_id"], stored["created_by"]) == (secret[4:16], "olga")
    event = AuditEvent.objects.get(action="management_key.issued")
    assert (event.subject, event.details["scopes"]) == (str(key.pk), ["tenants:read"])
    assert secret not in str(event.details)


def test_each_kind_of_secret_is_known_by_its_mark():
    for mark, other in ((CALLING, MANAGING), (MANAGING, CALLING)):
        public_id, secret = secrets.mint(mark)

        assert secret.startswith(mark)
        assert secrets.public_id_of(secret, mark) == public_id
        assert secrets.public_id_of(secret, other) is None
        assert secrets.public_id_of(secret.replace(mark, other), other) is None


@pytest.mark.django_db
@pytest.mark.parametrize("scopes", [[], ["tenants"], ["tenants:read", "everything:write"]])
def test_a_key_has_scopes_that_there_are(scopes):
    with pytest.raises(ValidationError):
        issue_management_key(label="terraform", scopes=scopes, actor="olga")


@pytest.mark.django_db
def test_a_label_is_free_again_once_its_key_is_revoked():
    key, _ = issue_management_key(label="terraform", scopes=["tenants:read"], actor="olga")
    with pytest.raises(ValidationError):
        issue_management_key(label="terraform", scopes=["tenants:read"], actor="olga")

    first = revoke_management_key(key=key, actor="olga", reason="lost")
    second = revoke_management_key(key=key, actor="olga", reason="again")
    issue_management_key(label="terraform", scopes=["tenants:read"], actor="olga")

    assert (first, second) == (True, False)
    assert AuditEvent.objects.filter(action="management_key.revoked").count() == 1


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("change", "constraint"),
    [
        ({"digest": "x"}, "keys_managementkey_has_a_secret"),
        ({"created_by": ""}, "keys_managementkey_says_who_issued_it"),
        ({"revoked_reason": "x"}, "keys_managementkey_reason_only_when_revoked"),
        ({"expires_at": "2001-01-01T00:00Z"}, "keys_managementkey_expires_after_creation"),
    ],
)
def test_the_database_keeps_what_is_so(change, constraint):
    manager("tenants:read")

    with pytest.raises(IntegrityError, match=constraint), transaction.atomic():
        ManagementKey.objects.update(**change)


@pytest.mark.django_db
def test_the_commands_issue_and_revoke():
    create_tenant(slug="acme", name="ACME", actor="test")

    said = run(
        "issue_management_key", "--label", "ci", "--scope", "keys:read", "--scope", "keys:write",
        "--tenant", "acme", "--expires", "90d",
    )  # fmt: skip
    secret = said.splitlines()[-1]
    key = ManagementKey.objects.get()
    revoked = run("revoke_management_key", key.public_id, "--reason", "lost")
    again = json.loads(run("revoke_management_key", key.public_id, "--reason", "lost", "--json"))

    assert re.fullmatch(SECRET, secret)
    assert "for tenant acme" in said
    assert (key.scopes, str(key.tenant), bool(key.expires_at)) == (["keys:read", "keys:write"], "acme", True)
    assert revoked.startswith("Revoked management key ci")
    assert (again["revoked_now"], again["label"]) == (False, "ci")
    assert json.loads(run("issue_management_key", "--label", "x", "--scope", "keys:read", "--json"))["secret"]


@pytest.mark.django_db
@pytest.mark.parametrize(
    "arguments",
    [
        ("issue_management_key", "--label", "x", "--scope", "nothing:read"),
        ("issue_management_key", "--label", "x", "--scope", "keys:read", "--tenant", "nobody"),
        ("revoke_management_key", "nobody000000", "--reason", "x"),
    ],
)
def test_what_the_commands_cannot_do_is_one_line(arguments):
    with pytest.raises(CommandError):
        run(*arguments)


@pytest.fixture
def olga(client, django_user_model):
    client.force_login(django_user_model.objects.create(username="olga", is_staff=True, is_superuser=True))
    return client


@pytest.mark.django_db
def test_the_admin_shows_the_secret_once_and_keeps_it_nowhere(olga):
    page = olga.post(reverse(ADD), {"label": "terraform", "scopes": ["keys:read", "audit:read"]})

    assert page.status_code == 200, page.content
    assert "no-store" in page["Cache-Control"]
    [secret] = re.findall(SECRET, page.content.decode())
    key = ManagementKey.objects.get()
    assert (key.digest, key.created_by) == (secrets.digest(secret), "olga")
    assert key.scopes == ["audit:read", "keys:read"]
    later = olga.get(reverse(CHANGE, args=[key.pk])).content.decode()
    assert key.public_id in later
    assert secret not in later
    assert key.digest not in later
    assert secret not in "".join(str(session.get_decoded()) for session in Session.objects.all())
    assert secret not in "".join(str(vars(entry)) for entry in LogEntry.objects.all())
    assert secret not in "".join(cookie.value for cookie in olga.cookies.values())


@pytest.mark.django_db
def test_the_admin_shows_who_is_cut_off_before_it_revokes(olga):
    acme = create_tenant(slug="acme", name="Acme", actor="test")
    used = manager("keys:read", "budgets:write", tenant=acme, label="terraform").key
    ManagementKey.objects.filter(pk=used.pk).update(last_used_at=now() - timedelta(hours=3))
    unused = manager("audit:read", label="auditor").key
    gone = manager("keys:read", label="gone").key
    revoke_management_key(key=gone, actor="olga", reason="lost")
    chosen = {"action": "revoke", "_selected_action": [str(key.pk) for key in (used, unused, gone)]}

    page = olga.post(reverse(LIST), chosen).content.decode()
    silent = olga.post(reverse(LIST), {**chosen, "reason": " "})

    rows = [
        [
            re.sub(r"\s+", " ", strip_tags(cell)).strip()
            for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)
        ]
        for row in re.findall(r"<tr>.*?</tr>", page, re.DOTALL)
    ]
    everywhere = "all tenants, and what belongs to none"
    assert sorted(rows[1:]) == [
        [f"auditor {unused.public_id}", "without an end", "audit:read", everywhere, "never", "test"],
        [f"gone {gone.public_id}", "no, revoked", "keys:read", everywhere, "never", "test"],
        [
            f"terraform {used.public_id}",
            "without an end",
            "budgets:write, keys:read",
            str(acme),
            "3 hours ago",
            "test",
        ],
    ]
    assert "Revoke 3 management keys" in page
    assert "2 of 3 work now." in page
    assert "This field is required" in silent.content.decode()
    assert ManagementKey.objects.filter(revoked_at=None).count() == 2


@pytest.mark.django_db
@pytest.mark.parametrize(("state", "found"), [("live", ["on"]), ("expired", ["over"]), ("revoked", ["off"])])
def test_the_admin_finds_them_by_their_state(olga, state, found):
    for label in ("on", "over", "off"):
        manager("keys:read", label=label)
    ManagementKey.objects.filter(label="over").update(
        created_at=now() - timedelta(days=2), expires_at=now() - timedelta(days=1)
    )
    revoke_management_key(key=ManagementKey.objects.get(label="off"), actor="olga", reason="lost")

    page = olga.get(reverse(LIST), {"state": state})

    assert [key.label for key in page.context["cl"].result_list] == found


@pytest.mark.django_db
def test_the_admin_changes_no_key_and_revokes_with_a_reason(olga):
    key = manager("keys:read", label="terraform").key
    chosen = {"action": "revoke", "_selected_action": [str(key.pk)]}

    olga.post(reverse(CHANGE, args=[key.pk]), {"label": "other", "scopes": ["keys:write"]})
    asked = olga.post(reverse(LIST), chosen)
    olga.post(reverse(LIST), chosen | {"reason": "lost"})

    key.refresh_from_db()
    assert "Reason, for the audit" in asked.content.decode()
    assert (key.label, key.scopes, key.revoked_reason) == ("terraform", ["keys:read"], "lost")
    assert olga.post(reverse("admin:keys_managementkey_delete", args=[key.pk])).status_code == 403


@pytest.mark.parametrize(
    ("method", "door"),
    [("POST", "/api/chat"), ("GET", "/api/tags"), ("GET", "/v1/models"), ("GET", "/v1/key")],
)
def test_a_management_key_opens_no_door_to_models(house: House, method, door):
    secret = manager().secret
    body = {"model": "tiny:1b", "messages": [{"role": "user", "content": "hello"}]}

    for header in ({"Authorization": f"Bearer {secret}"}, {"x-api-key": secret}):
        headers = {"Authorization": "", "x-api-key": ""} | header
        asked = house.ada.http.build_request(method, door, json=body)
        for name, value in headers.items():
            asked.headers.pop(name, None)
            if value:
                asked.headers[name] = value
        answer = house.ada.http.send(asked)

        assert answer.status_code == 401
    assert house.ollama.calls == []


def test_a_caller_is_told_of_its_own_key(house: House):

    ends = datetime(2999, 1, 31, 12, tzinfo=UTC)
    caller = house.caller(expires_at=ends, models=["tiny:1b"], allow_all_models=False)
    set_budget(scope="key", key=caller.key, unit="tokens", period="day", limit=100_000, actor="test")
    assert caller.chat().status_code == 200

    told = caller.http.get("/v1/key").json()

    assert (told["object"], told["label"], told["tenant"]) == ("key", caller.key.label, "acme")
    assert (told["id"], told["public_id"]) == (str(caller.key.pk), caller.secret[3:15])
    assert (told["expires_at"], told["member"], told["team"]) == ("2999-01-31T12:00:00Z", None, None)
    assert told["models"] == ["tiny:1b"]
    [limit] = told["usage"]["limits"]
    assert (limit["unit"], limit["limit"]) == ("tokens", 100_000)
    assert limit["used"] + limit["reserved"] + limit["remaining"] == 100_000
    assert limit["used"] > 0
    assert caller.secret not in json.dumps(told)


def test_visitors_have_no_key_to_be_told_of(house: House):

    set_anonymous_access(tenant=house.acme, enabled=True, models=["tiny:1b"], actor="test")
    headers = {"X-Tollgate-Tenant": "acme"}
    del house.ada.http.headers["Authorization"]

    refused = house.ada.http.get("/v1/key", headers=headers)

    assert house.ada.http.get("/v1/usage", headers=headers).status_code == 200
    assert refused.status_code == 401
    assert refused.json()["error"]["code"] == "invalid_api_key"
