import re
from datetime import timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.contrib.sessions.models import Session
from django.urls import reverse
from django.utils.timezone import now

from audit.models import AuditEvent
from budgets.services import set_budget
from keys import secrets, services
from keys.above import above
from keys.models import AnonymousAccess, ApiKey, KeySecret
from tenants import services as tenant_services
from tests.counting import NOWHERE

pytestmark = pytest.mark.django_db

LIST = "admin:keys_apikey_changelist"
ADD = "admin:keys_apikey_add"
CHANGE = "admin:keys_apikey_change"


@pytest.fixture
def acme():
    return tenant_services.create_tenant(slug="acme", name="ACME", actor="root")


@pytest.fixture
def key(acme):
    key, _ = services.issue_key(tenant=acme, label="nightly", actor="root", models=["tiny:latest"])
    return key


def form(tenant, **fields):
    usual = {"tenant": str(tenant.pk), "label": "nightly", "may_call": "silent", "listed": ""}
    return usual | fields


def issue(admin_client, tenant, **fields):
    return admin_client.post(reverse(ADD), form(tenant, **fields))


def test_issuing_a_key_shows_its_secret_once_and_keeps_it_nowhere(admin_client, acme):
    page = issue(admin_client, acme)

    assert page.status_code == 200
    assert "no-store" in page["Cache-Control"]
    (secret,) = re.findall(r"tg_[0-9A-Za-z]{58}", page.content.decode())
    assert KeySecret.objects.get().digest == secrets.digest(secret)
    assert AuditEvent.objects.get(action="key.issued").actor == "admin"

    key = ApiKey.objects.get()
    later = admin_client.get(reverse(CHANGE, args=[key.pk])).content.decode()
    assert secret not in later
    assert KeySecret.objects.get().digest not in later
    assert KeySecret.objects.get().public_id in later
    assert secret not in "".join(str(session.get_decoded()) for session in Session.objects.all())
    assert secret not in "".join(str(vars(entry)) for entry in LogEntry.objects.all())
    assert secret not in "".join(cookie.value for cookie in admin_client.cookies.values())


def test_sending_the_form_again_issues_no_second_key(admin_client, acme):
    issue(admin_client, acme)

    again = issue(admin_client, acme)

    assert "another live key with this label" in again.content.decode()
    assert not re.search(r"tg_[0-9A-Za-z]{58}", again.content.decode())
    assert ApiKey.objects.count() == 1


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"may_call": "silent"}, (None, None)),
        ({"may_call": "all"}, (True, None)),
        (
            {"may_call": "listed", "listed": "tiny:latest\r\nbig:70b, tiny:latest\r\n"},
            (False, ["big:70b", "tiny:latest"]),
        ),
        ({"may_call": "listed"}, (False, [])),
    ],
)
def test_the_form_keeps_silence_apart_from_an_empty_list(answer, expected, admin_client, acme):
    issue(admin_client, acme, **answer)

    key = ApiKey.objects.get()
    assert (key.allow_all_models, key.models) == expected

    shown = admin_client.get(reverse(CHANGE, args=[key.pk])).context["adminform"].form
    assert shown["may_call"].value() == answer["may_call"]
    assert shown["listed"].value().split() == (expected[1] or [])


def test_a_list_that_would_not_count_is_refused(admin_client, acme):
    page = issue(admin_client, acme, may_call="all", listed="tiny:latest")

    assert "Only the listed models" in str(page.context["adminform"].form.errors["listed"])
    assert not ApiKey.objects.exists()


def test_a_member_of_another_tenant_is_refused(admin_client, acme):
    globex = tenant_services.create_tenant(slug="globex", name="Globex", actor="root")
    user = tenant_services.create_user(username="eve", email="", actor="root")
    eve = tenant_services.add_member(tenant=globex, user=user, actor="root")

    page = issue(admin_client, acme, member=str(eve.pk))

    assert "belongs to another tenant" in page.content.decode()
    assert not ApiKey.objects.exists()


def test_a_change_goes_through_the_service_and_touches_nothing_else(admin_client, acme, key):
    admin_client.post(
        reverse(CHANGE, args=[key.pk]),
        form(
            acme,
            label="weekly",
            may_call="listed",
            listed="tiny:latest",
            **{"secrets-TOTAL_FORMS": "0", "secrets-INITIAL_FORMS": "0"},
        ),
    )

    key.refresh_from_db()
    event = AuditEvent.objects.get(action="key.changed")
    assert (key.label, key.models) == ("weekly", ["tiny:latest"])
    assert (event.actor, event.details["before"]) == ("admin", {"label": "nightly"})


def test_revoking_asks_why_and_then_revokes(admin_client, acme, key):
    chosen = {"action": "revoke", "_selected_action": [str(key.pk)]}

    asked = admin_client.post(reverse(LIST), chosen)
    assert "Reason, for the audit" in asked.content.decode()
    assert "nightly" in asked.content.decode()
    assert ApiKey.objects.get().revoked_at is None

    done = admin_client.post(reverse(LIST), chosen | {"reason": "lost", "answered": "yes"}, follow=True)
    key.refresh_from_db()
    assert key.revoked_at is not None
    assert AuditEvent.objects.get(action="key.revoked").reason == "lost"
    assert "Revoked 1 of 1 keys" in done.content.decode()


def test_revoking_without_redis_says_that_it_is_pending(settings, admin_client, key):
    settings.CACHES = NOWHERE

    done = admin_client.post(
        reverse(LIST),
        {"action": "revoke", "_selected_action": [str(key.pk)], "reason": "lost", "answered": "yes"},
        follow=True,
    )

    assert "pending, because Redis cannot be reached" in done.content.decode()


def test_nobody_deletes_a_key(admin_client, key):
    assert (
        admin_client.post(reverse("admin:keys_apikey_delete", args=[key.pk]), {"post": "yes"}).status_code
        == 403
    )
    admin_client.post(
        reverse(LIST), {"action": "delete_selected", "_selected_action": [str(key.pk)], "post": "yes"}
    )

    assert ApiKey.objects.count() == 1


@pytest.mark.parametrize("query", [{"q": "night"}, {"q": "acme"}, {"q": "public id"}, {"state": "live"}])
def test_a_key_is_found_by_label_tenant_public_id_and_state(query, admin_client, key):
    if query.get("q") == "public id":
        query = {"q": KeySecret.objects.get().public_id}
    globex = tenant_services.create_tenant(slug="globex", name="Globex", actor="root")
    gone, _ = services.issue_key(tenant=globex, label="gone", actor="root")
    services.revoke_key(key=gone, actor="root", reason="lost")

    page = admin_client.get(reverse(LIST), query)

    assert [row.label for row in page.context["cl"].result_list] == ["nightly"]


@pytest.mark.parametrize(
    ("state", "labels"), [("expired", ["old"]), ("revoked", ["gone"]), ("live", ["new"])]
)
def test_keys_are_filtered_by_state(state, labels, admin_client, acme):
    for label in ("new", "old", "gone"):
        services.issue_key(tenant=acme, label=label, actor="root")
    ApiKey.objects.filter(label="old").update(created_at="2020-01-01T00:00Z", expires_at=now())
    services.revoke_key(key=ApiKey.objects.get(label="gone"), actor="root", reason="lost")

    page = admin_client.get(reverse(LIST), {"state": state})

    assert [row.label for row in page.context["cl"].result_list] == labels


def test_the_list_asks_the_database_as_often_for_many_keys_as_for_one(
    admin_client, acme, django_assert_max_num_queries
):
    user = tenant_services.create_user(username="ada", email="", actor="root")
    member = tenant_services.add_member(tenant=acme, user=user, actor="root")
    for number in range(20):
        services.issue_key(tenant=acme, member=member, label=str(number), actor="root")

    with django_assert_max_num_queries(8):
        admin_client.get(reverse(LIST))


ACCESS = {
    "enabled": "on",
    "models": "tiny:1b,small:3b",
    "visitor_tokens": "500",
    "address_tokens": "",
    "address_streams": "0",
    "check_after": "",
    "warning_percent": "80",
}


def test_anonymous_access_is_opened_and_closed_through_the_service(admin_client, acme):
    added = admin_client.post(reverse("admin:keys_anonymousaccess_add"), {**ACCESS, "tenant": str(acme.pk)})

    access = AnonymousAccess.objects.get()
    limits = (access.visitor_tokens, access.address_tokens, access.address_streams, access.check_after)
    assert added.status_code == 302
    assert (access.enabled, access.models) == (True, ["tiny:1b", "small:3b"])
    assert limits == (500, None, 0, None)

    change = reverse("admin:keys_anonymousaccess_change", args=[access.pk])
    closed = {name: value for name, value in ACCESS.items() if name != "enabled"}
    assert admin_client.post(change, closed).status_code == 302
    access.refresh_from_db()
    assert not access.enabled
    assert AuditEvent.objects.filter(action="anonymous_access.set", actor="admin").count() == 2


@pytest.mark.parametrize(("field", "value"), [("visitor_tokens", "-1"), ("warning_percent", "0")])
def test_anonymous_access_that_cannot_be_is_told_on_the_form(admin_client, acme, field, value):
    fields = {**ACCESS, "tenant": str(acme.pk), field: value}
    page = admin_client.post(reverse("admin:keys_anonymousaccess_add"), fields)

    assert page.status_code == 200
    assert not AnonymousAccess.objects.exists()


def test_the_key_of_visitors_can_be_looked_at_and_revoked_and_nothing_else(admin_client, acme):
    key = services.set_anonymous_access(tenant=acme, actor="root", enabled=True).key

    page = admin_client.get(reverse(CHANGE, args=[key.pk]))
    saved = admin_client.post(reverse(CHANGE, args=[key.pk]), form(acme, may_call="all"))
    action = {"action": "revoke", "_selected_action": [str(key.pk)], "reason": "abuse", "answered": "yes"}
    admin_client.post(reverse(LIST), action)

    assert (page.status_code, saved.status_code) == (200, 403)
    key.refresh_from_db()
    assert key.revoked_reason == "abuse"


def test_a_page_shows_what_revoking_will_do_before_it_is_done(admin_client, acme, key, monkeypatch):
    services.issue_key(tenant=acme, label="weekly", actor="root")
    monkeypatch.setattr(above, "running_calls", lambda keys: 3 if len(keys) == 2 else 0)
    chosen = [str(one.pk) for one in ApiKey.objects.all()]

    asked = admin_client.post(reverse(LIST), {"action": "revoke", "_selected_action": chosen})
    untouched = ApiKey.objects.filter(revoked_at=None).count()
    done = admin_client.post(
        reverse(LIST),
        {"action": "revoke", "_selected_action": chosen, "answered": "yes", "reason": "lost"},
        follow=True,
    )

    assert "This changes 2 keys and cuts 3 running calls." in asked.content.decode()
    assert untouched == 2
    assert ApiKey.objects.filter(revoked_reason="lost").count() == 2
    assert "Revoked 2 of 2 keys" in done.content.decode()


def test_keys_are_disabled_and_enabled_by_action(admin_client, key):
    def act(action, reason):
        return admin_client.post(
            reverse(LIST),
            {"action": action, "_selected_action": [str(key.pk)], "answered": "yes", "reason": reason},
        )

    assert act("disable", "odd calls").status_code == 302
    key.refresh_from_db()
    assert key.disabled_reason == "odd calls"
    assert [
        row.label for row in admin_client.get(reverse(LIST), {"state": "disabled"}).context["cl"].result_list
    ]
    assert act("enable", "").status_code == 200  # without a reason it is asked for again
    assert act("enable", "explained").status_code == 302
    key.refresh_from_db()
    assert (key.disabled_at, key.disabled_reason) == (None, "")


def test_the_end_of_keys_is_set_by_action_within_what_the_tenant_allows(admin_client, acme, key):
    tenant_services.change_tenant(tenant=acme, actor="root", max_key_days=30)

    def act(days):
        ends = now() + timedelta(days=days)
        return admin_client.post(
            reverse(LIST),
            {
                "action": "expire", "_selected_action": [str(key.pk)], "answered": "yes",
                "expires_at_0": f"{ends:%Y-%m-%d}", "expires_at_1": "12:00:00",
            },
        )  # fmt: skip

    refused, done = act(60), act(20)

    assert "works for 30 days at most" in refused.content.decode()
    assert done.status_code == 302
    key.refresh_from_db()
    assert key.expires_at < now() + timedelta(days=21)


def test_a_key_is_rotated_on_a_page_that_shows_the_new_secret_once(admin_client, key):
    page = reverse("admin:keys_apikey_rotate", args=[key.pk])
    old = KeySecret.objects.get()

    asked = admin_client.get(page)
    rotated = admin_client.post(page, {"grace": "24h"})
    shown = re.search(r"tg_[0-9A-Za-z]{58}", rotated.content.decode())
    later = admin_client.get(page).content.decode()
    ended = admin_client.post(reverse("admin:keys_apikey_end_grace", args=[key.pk]), follow=True)

    assert asked.context["form"].initial == {}
    assert old.public_id in asked.content.decode()
    assert shown is not None
    assert "no-store" in rotated.headers["Cache-Control"]
    assert shown.group() not in later
    assert "Only the newest secret works now." in ended.content.decode()
    old.refresh_from_db()
    assert old.retires_at is not None
    assert old.retires_at <= now()
    assert AuditEvent.objects.get(action="key.rotated").actor == "admin"


def test_without_the_right_to_change_keys_nobody_rotates_one(client, django_user_model, key):
    user = django_user_model.objects.create(username="looks", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_apikey"))
    client.force_login(user)

    refused = client.post(reverse("admin:keys_apikey_rotate", args=[key.pk]), {"grace": "now"})

    assert refused.status_code == 403
    assert KeySecret.objects.count() == 1


def test_the_page_of_a_key_tells_what_it_may_call(admin_client, acme):
    key, _ = services.issue_key(
        tenant=acme, label="ci", actor="root", scopes=["chat"], address_blocks=["192.0.2.0/24"]
    )
    set_budget(scope="tenant", tenant=acme, unit="tokens", period="day", limit=1000, actor="root")

    page = admin_client.get(reverse(CHANGE, args=[key.pk])).content.decode()

    assert "This key may call" in page
    assert "<code>/v1/chat/completions</code>, from 192.0.2.0/24" in page
    assert "<code>no_models</code>" in page
    assert "tenant-tokens-day" in page


def test_scopes_and_networks_are_chosen_on_the_form_and_emptied_again(admin_client, acme):
    issue(admin_client, acme, scopes=["chat", "models"], address_blocks="192.0.2.7,2001:db8::/32")
    key = ApiKey.objects.get()
    assert (key.scopes, key.address_blocks) == (["chat", "models"], ["192.0.2.7/32", "2001:db8::/32"])

    no_secrets = {"secrets-TOTAL_FORMS": "0", "secrets-INITIAL_FORMS": "0"}
    page = reverse(CHANGE, args=[key.pk])
    refused = admin_client.post(page, form(acme, address_blocks="192.0.2.7/24", **no_secrets))
    emptied = admin_client.post(page, form(acme, **no_secrets))

    assert emptied.status_code == 302, emptied.context["errors"]
    assert "Is 192.0.2.0/24 meant?" in refused.content.decode()
    key.refresh_from_db()
    assert (key.scopes, key.address_blocks) == (None, None)


def test_closing_a_service_account_shows_what_it_does_before_it_does_it(admin_client, acme):
    account = tenant_services.create_service_account(tenant=acme, name="build", actor="root")
    services.issue_key(tenant=acme, label="ci", service_account=account, actor="root")
    action = {"action": "close", "_selected_action": [str(account.pk)]}
    accounts = reverse("admin:tenants_serviceaccount_changelist")

    asked = admin_client.post(accounts, action).content.decode()

    assert "Keys that are revoked for good: 1. Running calls that are cut: 0." in asked
    account.refresh_from_db()
    assert account.closed_at is None

    done = admin_client.post(accounts, action | {"reason": "moved"}, follow=True).content.decode()

    assert "Closed 1 of 1 service accounts; keys revoked: 1." in done
    assert ApiKey.objects.get().revoked_at is not None
    assert AuditEvent.objects.get(action="service_account.closed").reason == "moved"


def test_a_revoked_key_stays_as_it_was(admin_client, key):
    services.revoke_key(key=key, actor="root", reason="lost")

    page = admin_client.post(reverse(CHANGE, args=[key.pk]), form(key.tenant, label="renamed"))

    assert page.status_code == 200
    assert "The key is revoked" in page.content.decode()
    assert ApiKey.objects.get().label == "nightly"
