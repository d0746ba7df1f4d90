import io
import json
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
import time_machine
from django.core.management import CommandError, call_command

from audit.models import AuditEvent
from keys import secrets
from keys.models import ApiKey, KeySecret
from tenants import generations, services
from tenants.commands import moment
from tenants.models import Member, Tenant, User
from tenants.redis import redis_now
from tests.counting import NOWHERE

pytestmark = pytest.mark.django_db(transaction=True)

NOW = datetime(2026, 11, 21, 4, 30, tzinfo=UTC)


@pytest.fixture
def acme(db):
    return services.create_tenant(slug="acme", name="ACME", actor="root", time_zone="Europe/Berlin")


@pytest.fixture
def ada(acme):
    user = services.create_user(username="ada", email="ada@example.org", actor="root")
    return services.add_member(tenant=acme, user=user, actor="root")


def run(*arguments):
    output = io.StringIO()
    call_command(*arguments, stdout=output)
    return output.getvalue()


def run_json(*arguments):
    return json.loads(run(*arguments, "--json"))


def test_create_tenant_creates_a_tenant_and_its_first_owner():
    told = run("create_tenant", "--slug", "acme", "--name", "ACME", "--owner", "ada@example.org")

    tenant, owner = Tenant.objects.get(), Member.objects.select_related("user").get()
    assert told == f"Created tenant acme ({tenant.pk}).\nada@example.org is its owner.\n"
    assert (owner.tenant, owner.role, owner.user.email) == (tenant, "owner", "ada@example.org")
    assert not owner.user.has_usable_password()
    assert set(AuditEvent.objects.values_list("action", flat=True)) == {
        "tenant.created",
        "user.created",
        "member.added",
    }
    assert all("manage.py" in event.actor for event in AuditEvent.objects.all())


def test_create_tenant_takes_a_user_who_is_there_as_owner(ada):
    created = run_json("create_tenant", "--slug", "globex", "--name", "Globex", "--owner", "ADA@example.org")

    assert User.objects.count() == 1
    assert created["owner"] == "ada@example.org"
    assert Member.objects.get(pk=created["owner_member_id"]).user == ada.user


@pytest.mark.parametrize(
    ("options", "allow_all_models", "models"),
    [
        ([], False, None),
        (["--all-models"], True, None),
        (["--model", "tiny:latest", "--model", "big:70b"], False, ["tiny:latest", "big:70b"]),
    ],
)
def test_create_tenant_says_which_models_its_keys_may_call(options, allow_all_models, models):
    created = run_json(
        "create_tenant", "--slug", "acme", "--name", "ACME", "--time-zone", "Asia/Tokyo", *options
    )

    tenant = Tenant.objects.get(pk=created["tenant_id"])
    assert (tenant.allow_all_models, tenant.models) == (allow_all_models, models)
    assert created == {
        "tenant_id": str(tenant.pk),
        "slug": "acme",
        "name": "ACME",
        "time_zone": "Asia/Tokyo",
        "language": "",
        "allow_all_models": allow_all_models,
        "models": models,
        "owner": None,
        "owner_member_id": None,
        "in_force": True,
    }


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["create_tenant", "--slug", "acme", "--name", "Twice"], "Another tenant has this slug."),
        (
            ["create_tenant", "--slug", "A b", "--name", "X"],
            "Small letters, digits and hyphens in between only.",
        ),
        (["create_tenant", "--slug", "x", "--name", "X", "--time-zone", "Mars"], "'Mars' is no time zone."),
        (
            ["create_tenant", "--slug", "x", "--name", "X", "--owner", "nobody"],
            "Enter a valid email address.",
        ),
        (["create_tenant", "--slug", "x", "--name", "X", "--all-models", "--model", "m"], "not allowed with"),
        (["issue_key", "--tenant", "globex", "--label", "x"], "There is no tenant 'globex'."),
        (["issue_key", "--tenant", "acme", "--label", ""], "This field cannot be blank."),
        (
            ["issue_key", "--tenant", "acme", "--label", "x", "--member", "eve@example.org"],
            "Nobody at acme has",
        ),
        (["issue_key", "--tenant", "acme", "--label", "x", "--expires", "soon"], "'soon' is no moment."),
        (
            ["issue_key", "--tenant", "acme", "--label", "x", "--expires", "2020-01-01"],
            "cannot expire before",
        ),
        (["issue_key", "--tenant", "acme", "--label", "x", "--expires", "2026-02-30"], "is no moment."),
        (["revoke_key", "nonsense", "--reason", "x"], "neither a public id (12 characters) nor the UUID"),
        (["revoke_key", "0" * 12, "--reason", "x"], "There is no key '000000000000'."),
        (["revoke_key", str(uuid4()), "--reason", "x"], "There is no key"),
        (["revoke_key", "0" * 12], "required: --reason"),
    ],
)
def test_a_command_that_fails_says_why_and_changes_nothing(arguments, told, acme, ada):
    before = AuditEvent.objects.count()

    with pytest.raises(CommandError) as failed:
        run(*arguments)

    assert told in str(failed.value)
    assert failed.value.returncode == 1
    assert Tenant.objects.count() == 1
    assert User.objects.count() == 1
    assert not ApiKey.objects.exists()
    assert AuditEvent.objects.count() == before


def test_issue_key_prints_the_secret_once(acme):
    *told, secret = run("issue_key", "--tenant", "acme", "--label", "nightly").splitlines()

    key = ApiKey.objects.get()
    assert told == [f"Issued key nightly ({key.pk}) of acme. Its secret is not shown again:"]
    assert KeySecret.objects.get().digest == secrets.digest(secret)


def test_issue_key_tells_all_about_the_key_in_json(acme, ada):
    issued = run_json(
        "issue_key", "--tenant", "acme", "--label", "nightly", "--member", "Ada@example.org",
        "--expires", "2099-01-31", "--model", "tiny:latest",
    )  # fmt: skip

    key = ApiKey.objects.get()
    assert (key.member, key.allow_all_models, key.models) == (ada, False, ["tiny:latest"])
    secret = issued.pop("secret")
    assert issued == {
        "key_id": str(key.pk),
        "public_id": secrets.public_id_of(secret),
        "tenant": "acme",
        "member": "ada@example.org",
        "service_account": None,
        "label": "nightly",
        "expires_at": "2099-01-31T00:00:00+01:00",
        "allow_all_models": False,
        "models": ["tiny:latest"],
        "scopes": None,
        "address_blocks": None,
        "in_force": True,
    }


@pytest.mark.parametrize(("options", "allow_all_models"), [([], None), (["--all-models"], True)])
def test_a_key_issued_without_a_list_of_models_follows_the_tenant_or_may_call_all(
    options, allow_all_models, acme
):
    run("issue_key", "--tenant", "acme", "--label", "nightly", *options)

    key = ApiKey.objects.get()
    assert (key.allow_all_models, key.models) == (allow_all_models, None)


@pytest.mark.parametrize("by", ["public_id", "key_id"])
def test_revoke_key_revokes_and_says_that_it_is_in_force(by):
    services.create_tenant(slug="acme", name="ACME", actor="root")
    issued = run_json("issue_key", "--tenant", "acme", "--label", "nightly")

    told = run("revoke_key", issued[by], "--reason", "lost").splitlines()
    again = run_json("revoke_key", issued[by], "--reason", "lost again")

    key = ApiKey.objects.get()
    assert told == [
        f"Revoked key nightly ({key.pk}) of acme.",
        "In force: no process admits another call with it. Running calls that end: 0.",
    ]
    assert key.revoked_reason == "lost"
    assert key.revoked_at is not None
    assert again == {
        "key_id": str(key.pk),
        "tenant": "acme",
        "label": "nightly",
        "revoked_now": False,
        "revoked_at": key.revoked_at.isoformat(),
        "running_calls": 0,
        "in_force": True,
    }
    assert AuditEvent.objects.filter(action="key.revoked").count() == 1
    redis_now().delete(generations.NUMBERS)


def test_revoke_key_says_when_the_change_is_pending(settings):
    services.create_tenant(slug="acme", name="ACME", actor="root")
    issued = run_json("issue_key", "--tenant", "acme", "--label", "nightly")
    working = settings.CACHES
    settings.CACHES = NOWHERE

    told = run("revoke_key", issued["public_id"], "--reason", "lost").splitlines()
    assert told[1].startswith("Pending: Redis cannot be reached.")
    assert ApiKey.objects.get().revoked_at is not None
    assert run_json("revoke_key", issued["public_id"], "--reason", "lost")["in_force"] is False

    settings.CACHES = working
    assert run_json("revoke_key", issued["public_id"], "--reason", "lost")["in_force"] is True
    redis_now().delete(generations.NUMBERS)


def test_issue_key_limits_a_key_of_a_service_account(acme):
    account = services.create_service_account(tenant=acme, name="build", actor="root")

    issued = run_json(
        "issue_key", "--tenant", "acme", "--label", "ci", "--service-account", "build", "--scope", "chat",
        "--scope", "models", "--address-block", "192.0.2.7", "--address-block", "2001:db8::/32",
    )  # fmt: skip

    key = ApiKey.objects.get()
    assert (key.service_account, key.member) == (account, None)
    assert issued["service_account"] == "build"
    assert key.scopes == issued["scopes"] == ["chat", "models"]
    assert key.address_blocks == issued["address_blocks"] == ["192.0.2.7/32", "2001:db8::/32"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--service-account", "nobody"], "acme has no service account 'nobody'."),
        (["--scope", "everything"], "invalid choice: 'everything'"),
        (["--address-block", "192.0.2.7/24"], "Is 192.0.2.0/24 meant?"),
    ],
)
def test_issue_key_says_what_a_key_cannot_be_limited_to(acme, options, told):
    with pytest.raises(CommandError) as refused:
        run("issue_key", "--tenant", "acme", "--label", "nightly", *options)

    assert told in str(refused.value)
    assert not ApiKey.objects.exists()


def test_a_key_is_disabled_enabled_and_rotated_by_command(acme):
    issued = run_json("issue_key", "--tenant", "acme", "--label", "nightly")

    disabled = run("disable_key", issued["public_id"], "--reason", "odd calls").splitlines()
    again = run_json("disable_key", issued["public_id"], "--reason", "odd calls")
    enabled = run_json("enable_key", issued["public_id"], "--reason", "explained")
    rotated = run("rotate_key", issued["public_id"], "--grace", "24h").splitlines()

    key = ApiKey.objects.get()
    assert disabled == [
        f"Disabled key nightly ({key.pk}) of acme.",
        "In force: no process admits a call with it. Running calls that end: 0.",
    ]
    assert (again["disabled_now"], enabled["enabled_now"], enabled["disabled_at"]) == (False, True, None)
    assert rotated[0].startswith(
        f"Rotated key nightly ({key.pk}) of acme. The secret before works on: for 24"
    )
    newest, older = key.secrets.order_by("-created_at")
    assert rotated[1][3:15] == newest.public_id
    assert newest.retires_at is None
    assert older.retires_at is not None
    assert older.retires_at - newest.created_at <= timedelta(hours=24)


def test_a_revoked_key_is_not_rotated(acme):
    issued = run_json("issue_key", "--tenant", "acme", "--label", "nightly")
    run("revoke_key", issued["public_id"], "--reason", "lost")

    with pytest.raises(CommandError, match="Issue a new one"):
        run("rotate_key", issued["public_id"], "--grace", "now")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("90d", NOW + timedelta(days=90)),
        ("12h", NOW + timedelta(hours=12)),
        ("30m", NOW + timedelta(minutes=30)),
        ("2027-01-31", datetime(2027, 1, 30, 23, tzinfo=UTC)),
        ("2027-07-01", datetime(2027, 6, 30, 22, tzinfo=UTC)),
        ("2027-01-31T18:00", datetime(2027, 1, 31, 17, tzinfo=UTC)),
        ("2027-01-31T18:00Z", datetime(2027, 1, 31, 18, tzinfo=UTC)),
        ("2027-01-31T18:00-05:00", datetime(2027, 1, 31, 23, tzinfo=UTC)),
    ],
)
def test_a_moment_is_a_span_from_now_or_a_date_or_time(text, meant):
    with time_machine.travel(NOW, tick=False):
        assert moment(text, "Europe/Berlin") == meant


@pytest.mark.parametrize(
    "text", ["", "0d", "-1d", "1w", "d", "1.5h", "9999999d", "2027-13-01", "2027-02-30T10:00"]
)
def test_what_is_no_moment_is_refused(text):
    with pytest.raises(CommandError, match="is no moment"):
        moment(text, "UTC")
