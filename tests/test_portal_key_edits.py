"""The page on which a key is changed: what it says before, what it does, and for whom."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.core.exceptions import ValidationError
from django.test import Client
from django.utils.timezone import now

from audit.models import AuditEvent
from budgets.limited_keys import LimitChange, OwnLimit, change_limited_key
from budgets.models import Budget, RateLimit
from budgets.services import raise_limit, set_budget, set_rate_limit
from keys import services
from keys.models import ApiKey, KeySecret
from tenants.models import Tenant, User
from tenants.services import add_member, create_service_account, create_team, create_tenant
from tests.counting import without_redis
from tests.people import a_browser, a_person
from tests.test_portal_keys import a_key, a_member, fields_of, page_of
from tests.test_usage_pages import text_of

pytestmark = pytest.mark.django_db


@pytest.fixture
def acme() -> Tenant:
    return create_tenant(
        slug="acme", name="ACME", actor="test", time_zone="Europe/Berlin", allow_all_models=True
    )


@pytest.fixture
def owner(acme: Tenant) -> Client:
    return a_browser(a_person("owner", acme))


def filled_in(page: Any, **changes: Any) -> dict[str, Any]:
    """The form of a page as a browser would send it, with changes."""
    form = page.context["form"]
    values = {name: form[name].value() for name in form.fields}
    as_it_is = {name: "" if value is None else value for name, value in values.items()}
    return fields_of(page) | as_it_is | changes


def edit(browser: Client, key: ApiKey, **changes: Any) -> Any:
    page = browser.get(page_of(key, "edit/"))
    return browser.post(page_of(key, "edit/"), filled_in(page, **changes), follow=True)


def errors_of(page: Any) -> dict[str, str]:
    return {name: " ".join(wrong) for name, wrong in page.context["form"].errors.items()}


def events(actor: str = "owner") -> list[AuditEvent]:
    return list(AuditEvent.objects.filter(actor=actor).order_by("pk"))


@pytest.mark.django_db(transaction=True)
def test_all_of_a_key_is_changed_and_the_audit_has_what_was_before(acme: Tenant, owner: Client) -> None:
    key = a_key(acme, expires_at=now() + timedelta(days=5))
    set_budget(scope="key", key=key, unit="tokens", period="day", limit=100, actor="test")
    set_rate_limit(scope="key", key=key, measure="requests_per_minute", limit=5, actor="test")

    page = edit(
        owner,
        key,
        label="renamed",
        scopes=["chat"],
        address_blocks="192.0.2.0/24\r\n2001:db8::/32",
        expires="30",
        limit_tokens="50",
        limit_micro_usd="2.50",
        period_micro_usd="month",
        limit_requests_per_minute="",
        limit_concurrent_requests="2",
    )

    key = ApiKey.objects.get()
    assert page.status_code == 200
    assert re.search(r"Saved\. It holds everywhere after \d+\.\d\d s\.", text_of(page.content.decode()))
    assert (key.label, key.scopes) == ("renamed", ["chat"])
    assert key.address_blocks == ["192.0.2.0/24", "2001:db8::/32"]
    assert key.expires_at is not None
    assert abs(key.expires_at - now() - timedelta(days=30)) < timedelta(minutes=1)
    assert (key.allow_all_models, key.models) == (None, None)
    assert {(one.unit, one.period, one.limit) for one in Budget.objects.all()} == {
        ("tokens", "day", 50),
        ("micro_usd", "month", 2_500_000),
    }
    assert [(one.measure, one.limit) for one in RateLimit.objects.all()] == [("concurrent_requests", 2)]
    changed, *of_limits = events()
    assert changed.action == "key.changed"
    assert changed.details["before"]["label"] == "nightly"
    assert changed.details["after"]["label"] == "renamed"
    assert "models" not in changed.details["after"]
    # What goes makes room for what comes.
    assert [(one.action, one.details.get("before"), one.details["limit"]) for one in of_limits] == [
        ("rate_limit.removed", None, 5),
        ("budget.set", 100, 50),
        ("budget.set", None, 2_500_000),
        ("rate_limit.set", None, 2),
    ]


ALL_ODD: dict[str, Any] = {
    "every model": {"allow_all_models": True},
    "a list that its tenant overrules": {"models": ["tiny:1b"]},
    "models that there are not": {"allow_all_models": False, "models": ["gone:1b"]},
    "no model at all": {"allow_all_models": False, "models": []},
    "scopes and networks": {"scopes": ["chat"], "address_blocks": ["192.0.2.0/24", "2001:db8::/32"]},
    "an end": {"expires_at": now() + timedelta(days=400)},
}


@pytest.mark.parametrize("what", ALL_ODD)
def test_what_nobody_touches_stays_as_it_is_to_the_last_digit(acme: Tenant, owner: Client, what: str) -> None:
    key = a_key(acme, **ALL_ODD[what])
    set_budget(scope="key", key=key, unit="micro_usd", period="90m", limit=1_234_567, actor="test")
    set_budget(scope="key", key=key, unit="micro_usd", period="year", limit=2_000_000, actor="test")
    set_budget(scope="key", key=key, unit="gpu_ms", period="day", limit=1_500, actor="test")
    set_budget(scope="key", key=key, unit="requests", period="day", limit=None, actor="test")
    set_budget(scope="key", key=key, unit="tokens", period="day", limit=7, shadow=True, actor="test")
    limits = list(Budget.objects.order_by("pk").values())
    before = ApiKey.objects.values().get()

    nothing = edit(owner, key)
    nothing_happened = not events()
    edit(owner, key, label="renamed")

    assert "nothing was changed" in text_of(nothing.content.decode())
    assert nothing_happened
    assert ApiKey.objects.values().get() == before | {"label": "renamed"}
    assert list(Budget.objects.order_by("pk").values()) == limits
    assert [event.details["after"] for event in events()] == [{"label": "renamed"}]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"which_models": "these", "models": ["tiny:1b"]}, (False, ["tiny:1b"])),
        ({"which_models": "tenant"}, (None, None)),
    ],
)
def test_models_are_chosen_among_those_of_the_tenant_and_its_own(
    acme: Tenant, owner: Client, chosen: dict[str, Any], expected: Any
) -> None:
    key = a_key(acme, allow_all_models=False, models=["tiny:1b", "gone:1b"])

    edit(owner, key, **chosen)

    changed = ApiKey.objects.get()
    assert (changed.allow_all_models, changed.models) == expected


def test_every_model_is_no_choice_but_for_a_key_that_has_it(acme: Tenant, owner: Client) -> None:
    Tenant.objects.update(allow_all_models=False, models=["tiny:1b"])
    plain, lifted = a_key(acme, "plain"), a_key(acme, "lifted", allow_all_models=True)

    refused = edit(owner, plain, which_models="every")
    edit(owner, lifted, which_models="tenant")

    assert "which_models" in errors_of(refused)
    assert ApiKey.objects.get(label="lifted").allow_all_models is None


@pytest.mark.parametrize(
    ("changes", "field", "told"),
    [
        ({"label": "taken"}, "label", "another live key with this label"),
        ({"scopes": []}, "scopes", "Choose one at least"),
        ({"which_models": "these"}, "models", "Choose a model"),
        ({"address_blocks": "192.0.2.1/24"}, "address_blocks", "Is 192.0.2.0/24 meant?"),
        ({"expires": "day", "expires_on": "2020-01-01"}, "expires_on", "has begun already"),
        ({"expires": "day"}, "expires_on", "Name the day"),
        ({"expires": "day", "expires_on": "9999-12-31"}, "expires_on", "Name a year from 1970 to 9998"),
        ({"expires": "365"}, "expires", "not one of the available choices"),
        ({"expires": "never"}, "expires", "not one of the available choices"),
        ({"expires": "day", "expires_on": "2999-01-01"}, "expires", "45 days at most"),
        ({"limit_tokens": "501"}, "limit_tokens", "the whole tenant: 500 tokens for good"),
        ({"limit_tokens": "5", "period_tokens": "month"}, "limit_tokens", "A lifetime does not end"),
        (
            {"limit_requests_per_minute": "61"},
            "limit_requests_per_minute",
            "the whole tenant: 60 requests a minute",
        ),
        ({"limit_concurrent_requests": "1.5"}, "limit_concurrent_requests", "decimal places"),
    ],
)
def test_mistakes_are_told_beside_their_field_and_change_nothing(
    acme: Tenant, owner: Client, changes: dict[str, Any], field: str, told: str
) -> None:
    key = a_key(acme)
    a_key(acme, "taken")
    Tenant.objects.update(max_key_days=45)
    set_budget(scope="key", key=key, unit="tokens", period="lifetime", limit=5, actor="test")
    set_budget(scope="tenant", tenant=acme, unit="tokens", period="month", limit=500, actor="test")
    set_budget(scope="tenant", tenant=acme, unit="tokens", period="lifetime", limit=500, actor="test")
    set_rate_limit(scope="tenant", tenant=acme, measure="requests_per_minute", limit=60, actor="test")
    before = (ApiKey.objects.values().get(pk=key.pk), list(Budget.objects.values()))

    page = edit(owner, key, **changes)

    assert page.status_code == 400
    assert told in errors_of(page)[field]
    assert (ApiKey.objects.values().get(pk=key.pk), list(Budget.objects.values())) == before
    assert events() == []


def test_what_refuses_first_is_one_of_the_limits_that_are_filled_in(acme: Tenant, owner: Client) -> None:
    key = a_key(acme)
    set_budget(scope="tenant", tenant=acme, unit="tokens", period="month", limit=500, actor="test")
    set_budget(scope="key", key=key, unit="tokens", period="day", limit=100, actor="test")
    set_rate_limit(scope="key", key=key, measure="tokens_per_minute", limit=9, actor="test")
    page = owner.get(page_of(key, "edit/"))
    typed = {
        "limit_tokens": "0",
        "limit_requests": "7",
        "period_requests": "hour",
        "limit_tokens_per_minute": "",
    }

    untouched = owner.post(page_of(key, "edit/may-call/"), filled_in(page)).context["preview"]
    told = owner.post(page_of(key, "edit/may-call/"), filled_in(page, **typed))

    assert [(one.name, one.limit) for one in untouched.limits] == [
        ("key-tokens-day", 100),
        ("tenant-tokens-month", 500),
        ("key-tokens-minute", 9),
    ]
    assert [(one.name, one.limit) for one in told.context["preview"].limits] == [
        ("key-tokens-day", 0),
        ("key-requests-hour", 7),
        ("tenant-tokens-month", 500),
    ]
    assert re.search("First refused by.*?<code>key-tokens-day", told.content.decode(), re.DOTALL)
    assert list(Budget.objects.filter(key=key).values_list("limit", flat=True)) == [100]
    assert events() == []


def test_the_page_of_the_key_tells_of_every_change_of_its_limits(acme: Tenant, owner: Client) -> None:
    key = a_key(acme)
    set_budget(scope="key", key=key, unit="micro_usd", period="day", limit=2_500_000, actor="test")
    set_rate_limit(scope="key", key=key, measure="tokens_per_minute", limit=1_000, actor="test")

    edit(owner, key, period_micro_usd="month", limit_requests_per_minute="60", limit_tokens_per_minute="")
    edit(owner, key, limit_micro_usd="")

    text = text_of(owner.get(page_of(key)).content.decode())
    history = text.partition("By Details")[2]
    told = [
        "Limit removed owner USD a month: 2.500000 → nothing",
        "Limit set owner requests a minute: nothing → 60",
        "Limit removed owner tokens a minute: 1,000 → nothing",
        "Limit set test tokens a minute: nothing → 1,000",
    ]
    assert "How fast, at most: 60 requests a minute." in text
    assert [one for one in told if one not in history] == []


def test_the_page_of_the_key_tells_of_another_period(acme: Tenant, owner: Client) -> None:
    key = a_key(acme)
    set_budget(scope="key", key=key, unit="tokens", period="day", limit=5, actor="test")

    edit(owner, key, period_tokens="month")

    assert "Period: a day → a month" in text_of(owner.get(page_of(key)).content.decode())


def test_gpu_time_is_told_and_typed_in_the_same_unit_wherever_it_is_limited(
    acme: Tenant, owner: Client
) -> None:
    key = a_key(acme)
    budget = set_budget(scope="key", key=key, unit="gpu_ms", period="day", limit=90_000, actor="test")

    form = owner.get(page_of(key, "edit/")).content.decode()
    pages = [owner.get(page_of(key)), owner.get("/portal/acme/limits/"), owner.get("/portal/acme/keys/")]
    edit(owner, key, limit_gpu_ms="60000")

    assert "Milliseconds of GPU time" in text_of(form)
    assert 'value="90000"' in form
    for page in pages:
        assert "90,000" in text_of(page.content.decode())
        assert "ms of GPU time" in text_of(page.content.decode())
    budget.refresh_from_db()
    assert budget.limit == 60_000


def test_a_limit_above_its_parent_is_left_alone_until_it_is_touched(acme: Tenant, owner: Client) -> None:
    key = a_key(acme)
    set_budget(scope="key", key=key, unit="tokens", period="day", limit=900, actor="test")
    set_budget(scope="tenant", tenant=acme, unit="tokens", period="month", limit=500, actor="test")

    untouched = edit(owner, key, label="renamed")
    still_above = edit(owner, key, limit_tokens="600")
    below = edit(owner, key, limit_tokens="500")

    assert (untouched.status_code, still_above.status_code, below.status_code) == (200, 400, 200)
    assert "the whole tenant: 500 tokens a month" in errors_of(still_above)["limit_tokens"]
    assert Budget.objects.get(key=key).limit == 500


def test_parents_of_team_and_member_stand_beside_the_fields(acme: Tenant, owner: Client) -> None:
    team = create_team(tenant=acme, name="Research", actor="test")
    mia = add_member(tenant=acme, user=User.objects.create(username="mia"), team=team, actor="test")
    robot = create_service_account(tenant=acme, name="build", team=team, actor="test")
    set_rate_limit(scope="team", team=team, measure="concurrent_requests", limit=3, actor="test")
    set_budget(scope="member", member=mia, unit="requests", period="day", limit=1_000, actor="test")
    hers, robots = a_key(acme, "hers", member=mia), a_key(acme, "robots", service_account=robot)

    pages = {one.label: text_of(owner.get(page_of(one, "edit/")).content.decode()) for one in (hers, robots)}

    assert "team Research: 3 requests at one time" in pages["hers"]
    assert "team Research: 3 requests at one time" in pages["robots"]
    assert "all keys of mia: 1,000 requests a day" in pages["hers"]
    assert "all keys of mia" not in pages["robots"]
    assert edit(owner, robots, limit_concurrent_requests="4").status_code == 400
    assert edit(owner, robots, limit_concurrent_requests="3").status_code == 200


def test_another_period_begins_when_the_present_one_ends_and_keeps_what_was_used(
    acme: Tenant, owner: Client
) -> None:
    key = a_key(acme)
    budget = set_budget(scope="key", key=key, unit="tokens", period="day", limit=100, actor="test")

    edit(owner, key, period_tokens="month", limit_tokens="90")

    changed = Budget.objects.get()
    assert (changed.pk, changed.period, changed.limit) == (budget.pk, "month", 90)
    assert [event.action for event in events()] == ["budget.set", "budget.period_changed"]


@pytest.mark.parametrize("between", ["the key", "a limit of it", "a limit that goes", "a limit that comes"])
def test_of_two_who_change_a_key_at_a_time_the_second_is_told(
    acme: Tenant, owner: Client, between: str
) -> None:
    key = a_key(acme)
    rate = set_rate_limit(scope="key", key=key, measure="tokens_per_minute", limit=9, actor="test")
    set_budget(scope="key", key=key, unit="tokens", period="day", limit=100, actor="test")
    sent = filled_in(owner.get(page_of(key, "edit/")), label="mine", scopes=["chat"])
    bob = a_browser(add_member(tenant=acme, user=User.objects.create(username="bob"), role="admin",
                               actor="test").user)  # fmt: skip
    theirs = {
        "the key": {"label": "theirs"},
        "a limit of it": {"limit_tokens": "50"},
        "a limit that goes": {"limit_tokens_per_minute": ""},
        "a limit that comes": {"limit_requests": "8"},
    }[between]
    assert edit(bob, key, **theirs).status_code == 200
    before = (ApiKey.objects.values().get(), list(Budget.objects.order_by("pk").values()))

    stale = owner.post(page_of(key, "edit/"), sent)
    again = owner.post(page_of(key, "edit/"), filled_in(stale, label="mine"), follow=True)

    text = text_of(stale.content.decode())
    assert stale.status_code == 409
    assert 'role="alert"' in stale.content.decode()
    assert "Somebody has changed the key" in text
    assert "Name mine" in text
    assert "May be used for chat" in text
    assert again.status_code == 200
    key = ApiKey.objects.get()
    assert (key.label, key.scopes) == ("mine", None)
    assert before[0] | {"label": "mine"} == ApiKey.objects.values().get()
    assert list(Budget.objects.order_by("pk").values()) == before[1]
    assert RateLimit.objects.filter(pk=rate.pk).exists() == (between != "a limit that goes")


def test_what_is_sent_twice_is_done_once(acme: Tenant, owner: Client) -> None:
    key = a_key(acme)
    sent = filled_in(owner.get(page_of(key, "edit/")), label="renamed")

    first, second = (owner.post(page_of(key, "edit/"), sent) for _ in range(2))

    assert (first.status_code, second.status_code) == (302, 409)
    assert len(events()) == 1


def test_a_revoked_key_is_not_changed_by_any_door(acme: Tenant, owner: Client) -> None:
    key = a_key(acme)
    sent = filled_in(owner.get(page_of(key, "edit/")), label="renamed")
    services.revoke_key(key=key, actor="test", reason="lost")

    page, done = owner.get(page_of(key, "edit/")), owner.post(page_of(key, "edit/"), sent)

    for answer in (page, done):
        assert "revoked for good" in text_of(answer.content.decode())
        assert 'name="label"' not in answer.content.decode()
    assert done.status_code == 409
    assert "edit/" not in owner.get(page_of(key)).content.decode()
    with pytest.raises(ValidationError, match="The key is revoked"):
        services.change_key(key=key, actor="test", label="renamed")
    assert ApiKey.objects.get().label == "nightly"


def test_an_expired_key_works_again_with_a_later_end(acme: Tenant, owner: Client) -> None:
    key = a_key(acme)
    ApiKey.objects.update(created_at=now() - timedelta(days=9), expires_at=now() - timedelta(days=1))
    KeySecret.objects.update(created_at=now() - timedelta(days=9))

    page = owner.get(page_of(key, "edit/"))
    renamed = edit(owner, key, label="renamed")
    edit(owner, key, expires="7")

    assert "The key has expired" in text_of(page.content.decode())
    assert renamed.status_code == 200
    assert "Works" in text_of(owner.get(page_of(key)).content.decode())


def test_a_disabled_key_is_changed_and_stays_disabled(acme: Tenant, owner: Client) -> None:
    key = a_key(acme)
    services.disable_key(key=key, actor="test", reason="pause")

    page = owner.get(page_of(key, "edit/"))
    edit(owner, key, label="renamed")

    changed = ApiKey.objects.get()
    assert "disabled and stays so" in text_of(page.content.decode())
    assert (changed.label, changed.disabled_at is None) == ("renamed", False)


def test_the_latest_end_is_counted_from_the_newest_secret(acme: Tenant, owner: Client) -> None:
    key = a_key(acme)
    KeySecret.objects.update(created_at=now() - timedelta(days=20))
    Tenant.objects.update(max_key_days=45)

    page = owner.get(page_of(key, "edit/"))
    edit(owner, key, expires="longest")

    choices = [value for value, _ in page.context["form"].fields["expires"].choices]
    assert choices == ["keep", "7", "longest", "day"]
    ends = ApiKey.objects.get().expires_at
    assert ends == KeySecret.objects.get().created_at + timedelta(days=45)


def test_without_redis_a_change_is_saved_and_pending(acme: Tenant, owner: Client) -> None:
    key = a_key(acme)
    sent = filled_in(owner.get(page_of(key, "edit/")), label="renamed")

    with without_redis():
        form = owner.get(page_of(key, "edit/"))
        done = owner.post(page_of(key, "edit/"), sent, follow=True)

    assert "nobody can say just now" in text_of(form.content.decode())
    assert "pending, because Redis cannot be reached" in text_of(done.content.decode())
    assert ApiKey.objects.get().label == "renamed"


# What follows is about who may do what.


def test_members_change_their_own_keys_and_see_no_others(acme: Tenant) -> None:
    (ada, browser), (eve, _) = a_member(acme, "ada"), a_member(acme, "eve")
    own, hers, shared = a_key(acme, "own", member=ada), a_key(acme, "hers", member=eve), a_key(acme, "shared")

    assert edit(browser, own, label="renamed").status_code == 200
    for key in (hers, shared):
        for what in ("edit/", "edit/may-call/"):
            assert browser.post(page_of(key, what), {"label": "x", "version": ""}).status_code == 404
        assert browser.get(page_of(key, "edit/")).status_code == 404
    assert set(ApiKey.objects.values_list("label", flat=True)) == {"renamed", "hers", "shared"}


@pytest.mark.parametrize("who", ["finance", "auditor"])
def test_who_only_reads_is_shown_no_way_to_change(acme: Tenant, who: str) -> None:
    key, browser = a_key(acme), a_browser(a_person(who, acme))

    assert "edit/" not in browser.get(page_of(key)).content.decode()
    assert browser.get(page_of(key, "edit/")).status_code == 403
    assert browser.post(page_of(key, "edit/"), {"label": "x"}).status_code == 403
    assert browser.post(page_of(key, "edit/may-call/"), {"label": "x"}).status_code == 403


def test_a_key_of_another_tenant_looks_like_none_at_all(acme: Tenant, owner: Client) -> None:
    theirs = a_key(create_tenant(slug="globex", name="Globex", actor="test"))

    for what in ("edit/", "edit/may-call/"):
        foreign, unknown = (
            owner.post(f"/portal/acme/keys/{key_id}/{what}", {"label": "x"})
            for key_id in (theirs.pk, UUID(int=7))
        )
        assert foreign.status_code == unknown.status_code == 404
        assert text_of(foreign.content.decode()) == text_of(unknown.content.decode())


CASES = [
    # whose key it is, who set the limit of 100 a day, who changes it, into what, and whether they may
    ("ada", "ada", "ada", {"limit_tokens": "200"}, True),
    ("ada", "ada", "ada", {"limit_tokens": ""}, True),
    ("ada", "owner", "ada", {"limit_tokens": "200"}, False),
    ("ada", "owner", "ada", {"limit_tokens": ""}, False),
    ("ada", "owner", "ada", {"period_tokens": "hour"}, False),
    ("ada", "owner", "ada", {"limit_tokens": "100", "limit_requests": "5"}, True),
    ("ada", "owner", "ada", {"limit_tokens": "50"}, True),
    ("ada", "plain SQL", "ada", {"limit_tokens": "101"}, False),
    ("ada", "ada", "owner", {"limit_tokens": "200"}, True),
    ("ada", "owner", "owner", {"limit_tokens": "200"}, True),
    ("owner", "olga", "owner", {"limit_tokens": "200"}, False),
    ("owner", "owner", "owner", {"limit_tokens": "200"}, True),
    ("nobody", "olga", "owner", {"limit_tokens": "200"}, True),
    ("owner", "olga", "superuser", {"limit_tokens": "200"}, True),
]


@pytest.mark.parametrize(("whose", "set_by", "who", "changes", "may"), CASES)
def test_nobody_lifts_what_somebody_else_has_set_on_their_own_key(
    acme: Tenant, owner: Client, whose: str, set_by: str, who: str, changes: dict[str, str], may: bool
) -> None:
    ada, adas = a_member(acme, "ada")
    browser = {"ada": adas, "owner": owner}.get(who) or a_browser(a_person("superuser", acme))
    holder = {"ada": ada, "owner": acme.members.get(user__username="owner")}.get(whose)
    key = a_key(acme, member=holder)
    limit: dict[str, Any] = {"unit": "tokens", "period": "day", "limit": 100}
    if set_by == "plain SQL":
        Budget.objects.create(scope="key", tenant=acme, key=key, **limit)
    else:
        set_budget(scope="key", key=key, actor=set_by, **limit)

    page = edit(browser, key, **changes)

    assert page.status_code == (200 if may else 400)
    if not may:
        assert "Somebody else has set this limit" in errors_of(page)["limit_tokens"]
        assert "100 tokens a day" in errors_of(page)["limit_tokens"]
        assert Budget.objects.get().limit == 100


def test_whoever_lowered_what_another_set_gets_back_to_that_and_no_further(acme: Tenant) -> None:
    ada, browser = a_member(acme, "ada")
    key = a_key(acme, member=ada)
    set_budget(scope="key", key=key, unit="tokens", period="day", limit=100, actor="owner")

    lowered, back, above = (edit(browser, key, limit_tokens=limit) for limit in ("50", "100", "101"))

    assert (lowered.status_code, back.status_code, above.status_code) == (200, 200, 400)
    assert Budget.objects.get().limit == 100


def test_a_limit_that_is_wrong_takes_the_rest_of_the_change_with_it(acme: Tenant) -> None:
    key = a_key(acme)
    budget = set_budget(scope="key", key=key, unit="tokens", period="lifetime", limit=9, actor="test")

    with pytest.raises(ValidationError):
        change_limited_key(
            key=key,
            actor="owner",
            lifts=True,
            limits={"tokens": LimitChange(budget, OwnLimit("tokens", 5, "day"))},
            label="renamed",
        )

    assert ApiKey.objects.get().label == "nightly"
    assert Budget.objects.get().limit == 9
    assert events() == []


# What follows is about what is told before.


def test_the_page_tells_what_the_change_cuts(acme: Tenant, owner: Client) -> None:
    key = a_key(acme, expires_at=now() + timedelta(days=60))
    budget = set_budget(scope="key", key=key, unit="tokens", period="day", limit=100, actor="test")
    page = owner.get(page_of(key, "edit/"))
    changes = filled_in(
        page,
        scopes=["chat"],
        address_blocks="192.0.2.0/24",
        expires="7",
        limit_tokens="0",
        period_tokens="month",
    )

    untouched = text_of(page.content.decode())
    by_button = owner.post(page_of(key, "edit/"), changes | {"look": "1"})
    by_script = owner.post(page_of(key, "edit/may-call/"), changes)
    raise_limit(row=budget, to=50, ends_at=now() + timedelta(hours=1), reason="test", actor="test")
    raised = owner.post(page_of(key, "edit/may-call/"), changes)

    assert "Nothing, as far as it is filled in." in untouched
    assert "No call runs with the key now. Running calls go on to their end" in untouched
    for answer in (by_button, by_script):
        # The part that is put into a page has no main part of its own.
        told = text_of(f"<main>{answer.content.decode().partition('may-call')[2]}</main>")
        assert answer.status_code == 200
        assert "No longer open to it:" in told
        assert "/v1/embeddings" in told
        assert "Calls from anywhere but 192.0.2.0/24 are refused." in told
        assert "It ends earlier." in told
        assert "0 are used or held of 0 tokens a day" in told
        assert "Its next period is another one." in told
    assert "are used or held" not in raised.content.decode()
    assert events() == []
    assert ApiKey.objects.get().scopes is None


def test_more_than_before_cuts_nothing(acme: Tenant, owner: Client) -> None:
    key = a_key(acme, scopes=["chat"], address_blocks=["192.0.2.0/24"], expires_at=now() + timedelta(days=3))
    changes = filled_in(
        owner.get(page_of(key, "edit/")),
        scopes=["chat", "models"],
        address_blocks="192.0.2.0/24 198.51.100.0/24",
        expires="30",
        limit_requests="5",
    )

    told = owner.post(page_of(key, "edit/may-call/"), changes).content.decode()

    assert "Nothing, as far as it is filled in." in told
    assert "198.51.100.0/24" in told
