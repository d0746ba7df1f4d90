"""The pages about keys: whose keys they show to whom, and what people do with them."""

from __future__ import annotations

import re
from datetime import timedelta
from html import unescape
from typing import Any
from uuid import UUID

import pytest
from django.contrib.auth.models import Permission
from django.contrib.sessions.models import Session
from django.test import Client
from django.utils.timezone import now

from audit.models import AuditEvent, RequestEvent
from budgets.models import Budget
from budgets.services import set_budget, set_rate_limit
from keys import services
from keys.lifetimes import Grace
from keys.models import ApiKey, KeySecret, SecretUse
from keys.secrets import digest
from tenants.ids import new_id
from tenants.models import KeptAnswer, Member, Tenant, User
from tenants.services import add_member, create_service_account, create_tenant
from tests.counting import without_redis
from tests.people import EVERYBODY, OPERATORS, ROLES, UNKNOWN, Outline, a_browser, a_person
from tests.test_usage_pages import text_of

pytestmark = pytest.mark.django_db

SECRET = re.compile(r"tg_[0-9A-Za-z]{58}")
# With the permissions of the admin; the operator of ``tests.people`` has none for keys.
KEEPERS = frozenset({"superuser"})
SEE_ALL = frozenset({"owner", "admin", "finance", "auditor"}) | KEEPERS
MANAGE_ALL = frozenset({"owner", "admin"}) | KEEPERS


@pytest.fixture
def acme() -> Tenant:
    return create_tenant(
        slug="acme", name="ACME", actor="test", time_zone="Europe/Berlin", allow_all_models=True
    )


@pytest.fixture
def owner(acme: Tenant) -> Client:
    return a_browser(a_person("owner", acme))


def a_key(tenant: Tenant, label: str = "nightly", **options: Any) -> ApiKey:
    key, _ = services.issue_key(tenant=tenant, label=label, actor="test", **options)
    return key


def a_member(tenant: Tenant, name: str, role: str = "member") -> tuple[Member, Client]:
    user = User.objects.create(username=name)
    return add_member(tenant=tenant, user=user, role=role, actor="test"), a_browser(user)


def page_of(key: ApiKey, what: str = "") -> str:
    return f"/portal/{key.tenant.slug}/keys/{key.pk}/{what}"


def change_page(what: str, *keys: ApiKey) -> str:
    return f"/portal/acme/keys/change/{what}/?" + "&".join(f"key={key.pk}" for key in keys)


def fields_of(page: Any) -> dict[str, Any]:
    """What a page's forms carry along without anybody having to fill it in."""
    fields: dict[str, Any] = {}
    hidden = re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', page.content.decode())
    for name, value in hidden:
        fields.setdefault(name, []).append(unescape(value))
    return fields


def form_of(browser: Client, **changes: Any) -> dict[str, Any]:
    """The form for a new key as it comes, filled in."""
    page = browser.get("/portal/acme/keys/new/")
    usual = {
        "label": "nightly",
        "owner": "me",
        "scopes": ["chat", "completions", "embeddings", "responses", "messages", "models"],
        "which_models": "tenant",
        "expires": "90",
        "period_tokens": "month",
        "period_micro_usd": "month",
        "period_requests": "month",
    }
    return fields_of(page) | usual | changes


def create(browser: Client, **changes: Any) -> Any:
    return browser.post("/portal/acme/keys/new/", form_of(browser, **changes))


PAGES = {
    "/portal/acme/keys/": SEE_ALL | {"member"},
    "/portal/acme/keys/new/": MANAGE_ALL | {"member"},
    "of the tenant": SEE_ALL,
    "of the tenant: rotate/": MANAGE_ALL,
    "of the tenant: secrets/": SEE_ALL,
    "of the tenant: revoke": MANAGE_ALL,
    "/portal/acme/keys/00000000-0000-0000-0000-000000000001/": frozenset(),
    "/portal/nobody/keys/": frozenset(),
}


@pytest.mark.parametrize("who", EVERYBODY)
@pytest.mark.parametrize("page", PAGES)
def test_each_page_opens_for_those_whose_it_is(acme: Tenant, page: str, who: str) -> None:
    browser = a_browser(a_person(who, acme))
    key = a_key(acme)
    name, _, what = page.partition(": ")
    address = name if name.startswith("/") else page_of(key, what)
    if what == "revoke":
        address = change_page("revoke", key)

    status = browser.get(address).status_code

    if who in PAGES[page]:
        assert status == 200
    elif who in UNKNOWN:
        assert status == 302
    else:
        # Whoever sees the tenant may be told that more is not allowed; nobody else learns that it is there.
        assert status == (403 if is_told(who, page) else 404)


def is_told(who: str, page: str) -> bool:
    if "nobody" in page or who not in ROLES | OPERATORS:
        return False
    if who == "operator":
        return True
    return who in ("finance", "auditor") and PAGES[page] == MANAGE_ALL | ({"member"} & PAGES[page])


@pytest.mark.parametrize(
    ("permissions", "sees", "changes"),
    [
        (["view_tenant"], 403, 403),
        (["view_tenant", "view_apikey"], 200, 403),
        (["view_tenant", "view_apikey", "change_apikey"], 200, 200),
    ],
)
def test_an_operator_needs_the_permission_for_keys(
    acme: Tenant, permissions: list[str], sees: int, changes: int
) -> None:
    olga = User.objects.create(username="olga", is_staff=True)
    olga.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    browser = a_browser(olga)

    assert browser.get("/portal/acme/keys/").status_code == sees
    assert browser.get("/portal/acme/keys/new/").status_code == changes


def test_members_see_and_change_their_own_keys_and_no_others(acme: Tenant) -> None:
    (ada, browser), (eve, _) = a_member(acme, "ada"), a_member(acme, "eve")
    own, hers, tenants = (
        a_key(acme, "own", member=ada),
        a_key(acme, "hers", member=eve),
        a_key(acme, "shared"),
    )

    listed = text_of(browser.get("/portal/acme/keys/").content.decode())

    assert "own" in listed
    assert "hers" not in listed
    assert "shared" not in listed
    assert browser.get(page_of(own, "rotate/")).status_code == 200
    for key in (hers, tenants):
        for what in ("", "rotate/", "secrets/"):
            assert browser.get(page_of(key, what)).status_code == 404
        assert browser.post(page_of(key, "end-grace/")).status_code == 404
        assert browser.get(change_page("revoke", own, key)).status_code == 404
        assert browser.post(change_page("revoke"), {"key": [key.pk], "reason": "x"}).status_code == 404
    assert not ApiKey.objects.exclude(revoked_at=None).exists()


def test_a_key_of_another_tenant_looks_like_none_at_all(acme: Tenant, owner: Client) -> None:
    globex = create_tenant(slug="globex", name="Globex", actor="test")
    theirs = a_key(globex, "of globex")
    nobodys = UUID(int=7)

    for method, address in [
        ("get", "/portal/acme/keys/{}/"),
        ("get", "/portal/acme/keys/{}/secrets/"),
        ("get", "/portal/acme/keys/{}/rotate/"),
        ("post", "/portal/acme/keys/{}/rotate/"),
        ("post", "/portal/acme/keys/{}/end-grace/"),
        ("get", "/portal/acme/keys/change/revoke/?key={}"),
        ("get", "/portal/globex/keys/{}/"),
    ]:
        foreign, unknown = (getattr(owner, method)(address.format(key_id)) for key_id in (theirs.pk, nobodys))
        assert foreign.status_code == unknown.status_code == 404
        assert text_of(foreign.content.decode()) == text_of(unknown.content.decode())
    assert (
        "of globex"
        not in owner.get("/portal/acme/keys/?q=of globex&state=any").content.decode().partition("<table")[2]
    )
    assert ApiKey.objects.get(pk=theirs.pk).revoked_at is None


def test_every_page_is_whole_and_has_nothing_that_the_policy_forbids(acme: Tenant, owner: Client) -> None:
    key = a_key(acme)
    set_budget(scope="key", key=key, unit="tokens", period="day", limit=100, actor="test")
    pages = [
        "/portal/acme/keys/",
        "/portal/acme/keys/new/",
        page_of(key),
        page_of(key, "rotate/"),
        change_page("revoke", key),
    ]

    for address in pages:
        response = owner.get(address)
        outline = Outline(response.content.decode())
        assert response.status_code == 200
        assert outline.tags.count("h1") == outline.tags.count("main") == 1
        assert [one for one in outline.inline if one != "script"] == []
        assert "<script>" not in response.content.decode()
        assert response.headers["Cache-Control"] == "no-store"
        policy = response.headers["Content-Security-Policy"]
        assert policy.startswith(
            "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'self'"
        )


def test_the_list_tells_what_each_key_is(acme: Tenant, owner: Client) -> None:
    ada, _ = a_member(acme, "ada")
    robot = create_service_account(tenant=acme, name="nightly build", actor="test")
    mine = a_key(acme, "mine", member=ada, scopes=["chat"], address_blocks=["192.0.2.0/24"])
    a_key(acme, "builds", service_account=robot, allow_all_models=False, models=["tiny:1b"])
    a_key(acme, "shared", expires_at=now() + timedelta(days=3))
    set_budget(scope="key", key=mine, unit="tokens", period="day", limit=5_000, actor="test")
    secret = mine.secrets.get()
    SecretUse.objects.create(
        secret=secret, used_at=now(), noted_at=now(), model="tiny:1b", address_block="203.0.113.0/24"
    )

    page = owner.get("/portal/acme/keys/")

    rows = rows_by_label(page)
    mask = f"tg_{secret.public_id[:4]}…{secret.public_id[-4:]}"
    for told in (mask, "Works", "ada person", "Every model only chat only from 192.0.2.0/24", "tokens a day",
                 "0 of 5,000 used, 5,000 left", "tiny:1b from 203.0.113.0/24", "never"):  # fmt: skip
        assert told in rows["mine"]
    assert "nightly build service account" in rows["builds"]
    assert "tiny:1b" in rows["builds"]
    assert "ACME the tenant" in rows["shared"]
    assert "soon" in rows["shared"]
    assert secret.digest not in page.content.decode()
    assert secret.public_id not in page.content.decode()


def test_the_list_tells_of_rates_too_and_not_that_a_key_had_no_limit(acme: Tenant, owner: Client) -> None:
    slow = a_key(acme, "slow")
    set_rate_limit(scope="key", key=slow, measure="requests_per_minute", limit=3, actor="test")
    a_key(acme, "free")

    rows = rows_by_label(owner.get("/portal/acme/keys/"))

    assert "3 requests a minute" in rows["slow"]
    assert "none of its own" not in rows["slow"]
    assert "none of its own" in rows["free"]


def rows_by_label(page: Any) -> dict[str, str]:
    table = page.content.decode().partition('<table class="keys">')[2].partition("</table>")[0]
    rows = {}
    for row in table.partition("<tbody>")[2].split("</tr>"):
        if found := re.search(r'<th scope="row"><a [^>]*>([^<]*)</a>', row):
            rows[found[1]] = " ".join(unescape(re.sub(r"<[^>]+>", " ", row)).split())
    return rows


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("", {"live", "off", "over", "ending"}),
        ("state=live", {"live", "ending"}),
        ("state=disabled", {"off"}),
        ("state=expired", {"over"}),
        ("state=revoked", {"gone"}),
        ("state=expiring", {"ending"}),
        ("state=any", {"live", "off", "over", "gone", "ending"}),
        ("state=any&q=OVE", {"over"}),
        ("owner=me", set()),
        ("owner=tenant&q=live", {"live"}),
        ("state=nonsense", {"live", "off", "over", "ending"}),
    ],
)
def test_keys_are_found_by_state_owner_and_name(
    acme: Tenant, owner: Client, asked: str, expected: set[str]
) -> None:
    a_key(acme, "live")
    services.disable_key(key=a_key(acme, "off"), actor="test", reason="pause")
    services.revoke_key(key=a_key(acme, "gone"), actor="test", reason="lost")
    a_key(acme, "ending", expires_at=now() + timedelta(days=3))
    over = a_key(acme, "over")
    ApiKey.objects.filter(pk=over.pk).update(
        created_at=now() - timedelta(days=2), expires_at=now() - timedelta(days=1)
    )

    assert set(rows_by_label(owner.get(f"/portal/acme/keys/?{asked}"))) == expected


def test_a_key_is_found_by_the_beginning_of_its_secret_and_a_whole_one_is_not_shown_again(
    acme: Tenant, owner: Client
) -> None:
    key, secret = services.issue_key(tenant=acme, label="nightly", actor="test")
    a_key(acme, "other")
    public_id = key.secrets.get().public_id

    by_part = owner.get(f"/portal/acme/keys/?q=tg_{public_id[:6]}")
    by_whole = owner.get(f"/portal/acme/keys/?q={secret}")

    assert set(rows_by_label(by_part)) == set(rows_by_label(by_whole)) == {"nightly"}
    assert secret not in by_whole.content.decode()
    assert "whole secret" in text_of(by_whole.content.decode())


def test_a_long_list_has_pages_that_keep_what_was_asked_for(acme: Tenant, owner: Client) -> None:
    for number in range(52):
        a_key(acme, f"key {number:02}")

    first = owner.get("/portal/acme/keys/?state=live")
    second = owner.get("/portal/acme/keys/?state=live&page=2")

    assert len(rows_by_label(first)) == 50
    assert set(rows_by_label(second)) == {"key 00", "key 01"}
    assert '<a rel="next" href="?state=live&amp;page=2">' in first.content.decode()
    assert '<a rel="prev" href="?state=live&amp;page=1">' in second.content.decode()


def test_without_keys_the_list_says_what_to_do(acme: Tenant, owner: Client) -> None:
    assert "Create the first one" in text_of(owner.get("/portal/acme/keys/").content.decode())

    services.revoke_key(key=a_key(acme), actor="test", reason="lost")
    assert "No key is like that" in text_of(owner.get("/portal/acme/keys/").content.decode())


def test_without_redis_pages_tell_what_was_booked_and_until_when(acme: Tenant, owner: Client) -> None:
    key = a_key(acme)
    set_budget(scope="key", key=key, unit="tokens", period="day", limit=5_000, actor="test")

    with without_redis():
        listed, detail = owner.get("/portal/acme/keys/"), owner.get(page_of(key))

    for page in (listed, detail):
        assert page.status_code == 200
        text = text_of(page.content.decode())
        assert "counters cannot be asked" in text
        assert "0 of 5,000 used" in text


def test_the_page_of_a_key_shows_its_limits_live_and_what_was_done_to_it(acme: Tenant, owner: Client) -> None:
    key = a_key(acme)
    set_budget(scope="key", key=key, unit="micro_usd", period="month", limit=2_500_000, actor="ada")
    set_budget(scope="key", key=key, unit="tokens", period="day", limit=5_000, actor="ada")
    services.change_key(key=key, actor="bob", label="renamed")
    services.disable_key(key=key, actor="eve", reason="until the audit is over")

    page = owner.get(page_of(key))

    text = text_of(page.content.decode())
    assert f'data-live="/live/portal/acme/keys/{key.pk}/"' in page.content.decode()
    assert "This one will stop the key first" in text
    history = text.partition("By Details")[2]
    told = ["Disabled eve until the audit is over", "Changed bob label: nightly → renamed",
            "Limit set ada tokens a day: nothing → 5,000", "Limit set ada USD a month: nothing → 2.500000",
            "Created test"]  # fmt: skip
    assert [history.find(one) for one in told] == sorted(history.find(one) for one in told)
    assert all(one in history for one in told)


@pytest.mark.parametrize("span", ["24h", "7d", "30d", "period", "nonsense"])
def test_the_charts_of_a_key_can_be_downloaded(acme: Tenant, owner: Client, span: str) -> None:
    key = a_key(acme)

    drawing = owner.get(f"{page_of(key)}?span={span}&chart=tokens.svg")
    figures = owner.get(f"{page_of(key)}?span={span}&chart=tokens.csv")

    assert drawing.content.startswith(b"<svg")
    assert figures.content.startswith(b"Time,Tokens in (tokens),Tokens out (tokens)")
    assert owner.get(f"{page_of(key)}?span={span}&chart=nothing.svg").status_code == 404


def test_the_newest_requests_lead_to_what_is_known_of_them(acme: Tenant, owner: Client) -> None:
    key, other = a_key(acme), a_key(acme, "other")
    asked = {}
    for one in (key, other):
        event = RequestEvent.objects.create(
            request_id=new_id(), at=now(), tenant_id=acme.pk, key_id=one.pk, route="/api/chat",
            dialect="OLLAMA", model="tiny:1b", status=200, outcome="completed",
            input_tokens=1_234, output_tokens=20,
        )  # fmt: skip
        asked[one.label] = event.request_id

    page = owner.get(page_of(key)).content.decode()

    assert f'href="/portal/acme/requests/{asked["nightly"]}/"' in page
    assert "1,234" in text_of(page)
    assert str(asked["other"]) not in page


# What follows creates keys.


def test_a_new_key_is_what_the_form_says(acme: Tenant, owner: Client) -> None:
    robot = create_service_account(tenant=acme, name="nightly build", actor="test")

    page = create(
        owner,
        owner=f"service:{robot.pk}",
        scopes=["chat", "models"],
        address_blocks="192.0.2.0/24, 2001:db8::/32\n192.0.2.0/24",
        expires="7",
        limit_tokens="1000000",
        period_tokens="week",
        limit_micro_usd="2.50",
        period_micro_usd="month",
    )

    key = ApiKey.objects.get()
    assert page.status_code == 200
    assert (key.label, key.service_account, key.member) == ("nightly", robot, None)
    assert key.scopes == ["chat", "models"]
    assert key.address_blocks == ["192.0.2.0/24", "2001:db8::/32"]
    assert (key.allow_all_models, key.models) == (None, None)
    assert key.expires_at is not None
    assert abs(key.expires_at - now() - timedelta(days=7)) < timedelta(minutes=1)
    assert {(one.unit, one.period, one.limit) for one in Budget.objects.filter(key=key)} == {
        ("tokens", "week", 1_000_000),
        ("micro_usd", "month", 2_500_000),
    }
    assert AuditEvent.objects.filter(action__in=["key.issued", "budget.set"], actor="owner").count() == 3


def test_the_secret_is_in_one_answer_and_nowhere_else(acme: Tenant, owner: Client) -> None:
    page = create(owner)

    [secret] = set(SECRET.findall(page.content.decode()))
    key = ApiKey.objects.get()
    assert page.headers["Cache-Control"] == "no-store"
    assert KeySecret.objects.get().digest == digest(secret)
    random_part = secret[15:]
    assert random_part not in "".join(str(one.get_decoded()) for one in Session.objects.all())
    assert random_part not in "".join(
        str(vars(one)) for one in [*AuditEvent.objects.all(), *KeptAnswer.objects.all()]
    )
    assert random_part not in "".join(cookie.value for cookie in owner.cookies.values())
    for address in ("/portal/acme/keys/", page_of(key), page_of(key, "rotate/"), "/portal/acme/keys/new/"):
        assert random_part not in owner.get(address).content.decode()


def test_a_form_that_is_sent_again_shows_no_secret_and_issues_no_key(acme: Tenant, owner: Client) -> None:
    form = form_of(owner)
    owner.post("/portal/acme/keys/new/", form)

    again = owner.post("/portal/acme/keys/new/", form)
    services.revoke_key(key=ApiKey.objects.get(), actor="test", reason="lost")
    after_it_was_revoked = owner.post("/portal/acme/keys/new/", form)

    for answer in (again, after_it_was_revoked):
        assert answer.status_code == 409
        assert not SECRET.search(answer.content.decode())
        assert "cannot be shown again" in text_of(answer.content.decode())
    assert ApiKey.objects.count() == 1


@pytest.mark.parametrize("number", ["", "\0" * 32, "x" * 5_000])
def test_a_form_that_nobody_was_shown_issues_no_key(acme: Tenant, owner: Client, number: str) -> None:
    answer = owner.post("/portal/acme/keys/new/", form_of(owner, form=number))

    assert answer.status_code == 409
    assert not ApiKey.objects.exists()


def test_a_form_with_a_mistake_may_be_sent_again(acme: Tenant, owner: Client) -> None:
    form = form_of(owner, label="")

    wrong = owner.post("/portal/acme/keys/new/", form)
    right = owner.post("/portal/acme/keys/new/", form | {"label": "nightly"})

    assert wrong.status_code == 400
    assert fields_of(wrong)["form"] == form["form"]
    assert right.status_code == 200
    assert SECRET.search(right.content.decode())


@pytest.mark.parametrize(
    ("changes", "field", "told"),
    [
        ({"label": ""}, "label", "This field is required"),
        ({"scopes": []}, "scopes", "Choose one at least"),
        ({"which_models": "these"}, "models", "Choose a model"),
        ({"which_models": "these", "models": ["big:70b"]}, "models", "not one of the available choices"),
        ({"address_blocks": "192.0.2.1/24"}, "address_blocks", "Is 192.0.2.0/24 meant?"),
        ({"address_blocks": "office"}, "address_blocks", "is no network"),
        ({"expires": "day"}, "expires_on", "Name the day"),
        ({"expires": "day", "expires_on": "2020-01-01"}, "expires_on", "has begun already"),
        ({"expires": "5000"}, "expires", "not one of the available choices"),
        ({"owner": "tenant:x"}, "owner", "not one of the available choices"),
        ({"limit_tokens": "-1"}, "limit_tokens", "greater than or equal to 0"),
        ({"limit_tokens": "1.5"}, "limit_tokens", "no more than 0 decimal places"),
        ({"limit_micro_usd": "0.0000001"}, "limit_micro_usd", "no more than 6 decimal places"),
        (
            {"limit_tokens": "501", "period_tokens": "day"},
            "limit_tokens",
            "the whole tenant: 500 tokens a month",
        ),
        ({"label": "taken"}, "label", "another live key with this label"),
    ],
)
def test_mistakes_are_told_beside_their_field(
    acme: Tenant, owner: Client, changes: dict[str, Any], field: str, told: str
) -> None:
    a_key(acme, "taken", member=Member.objects.get(tenant=acme))
    set_budget(scope="tenant", tenant=acme, unit="tokens", period="month", limit=500, actor="test")

    page = create(owner, **changes)

    assert page.status_code == 400
    assert told in " ".join(page.context["form"].errors[field])
    assert told in unescape(page.content.decode())
    assert ApiKey.objects.count() == 1
    assert Budget.objects.count() == 1


@pytest.mark.parametrize(
    ("parent", "limit", "refused"),
    [
        ("month", ("tokens", "day", 501), True),
        ("month", ("tokens", "month", 501), True),
        ("month", ("tokens", "month", 500), False),
        ("month", ("tokens", "lifetime", 501), False),
        ("day", ("tokens", "month", 501), False),
        ("30d", ("tokens", "week", 501), True),
        ("month", ("requests", "month", 501), False),
        ("lifetime", ("tokens", "hour", 501), True),
    ],
)
def test_an_own_limit_is_never_above_one_that_holds_as_long(
    acme: Tenant, owner: Client, parent: str, limit: tuple[str, str, int], refused: bool
) -> None:
    set_budget(scope="tenant", tenant=acme, unit="tokens", period=parent, limit=500, actor="test")
    unit, period, amount = limit

    page = create(owner, **{f"limit_{unit}": str(amount), f"period_{unit}": period})

    assert (page.status_code == 400) == refused
    assert ApiKey.objects.exists() != refused


def test_a_member_issues_keys_of_their_own_within_their_own_limits(acme: Tenant) -> None:
    ada, browser = a_member(acme, "ada")
    create_service_account(tenant=acme, name="nightly build", actor="test")
    set_budget(scope="member", member=ada, unit="tokens", period="month", limit=500, actor="test")

    form = browser.get("/portal/acme/keys/new/").context["form"]
    others = create(browser, owner="tenant")
    too_much = create(browser, limit_tokens="501")
    right = create(browser, limit_tokens="500")

    assert form.fields["owner"].choices == [("me", "Me")]
    assert others.status_code == too_much.status_code == 400
    assert "all keys of ada: 500 tokens a month" in unescape(too_much.content.decode())
    assert right.status_code == 200
    assert ApiKey.objects.get().member == ada


def test_a_key_ends_within_what_the_tenant_allows(acme: Tenant, owner: Client) -> None:
    Tenant.objects.update(max_key_days=45)

    choices = [
        value for value, _ in owner.get("/portal/acme/keys/new/").context["form"].fields["expires"].choices
    ]
    late = create(owner, expires="day", expires_on=f"{now() + timedelta(days=60):%Y-%m-%d}")
    longest = create(owner, expires="longest")

    assert choices == ["7", "30", "longest", "day"]
    assert late.status_code == 400
    assert "45 days at most" in " ".join(late.context["form"].errors["expires"])
    assert longest.status_code == 200


def test_what_the_key_may_call_is_shown_before_it_is_there(acme: Tenant, owner: Client) -> None:
    form = form_of(owner, scopes=["embeddings"], address_blocks="192.0.2.0/24", label="", limit_tokens="40")
    set_budget(scope="tenant", tenant=acme, unit="tokens", period="month", limit=500, actor="test")

    by_button = owner.post("/portal/acme/keys/new/", form | {"look": "1"})
    by_script = owner.post("/portal/acme/keys/new/may-call/", form)

    for answer in (by_button, by_script):
        text = " ".join(unescape(re.sub(r"<[^>]+>", " ", answer.content.decode())).split())
        assert answer.status_code == 200
        assert "From where 192.0.2.0/24" in text
        assert "/v1/embeddings" in text
        assert "the whole tenant: 500 tokens a month" in text
        assert "First refused by key-tokens-month" in text
    assert "/v1/chat/completions" not in by_script.content.decode()
    assert "hx-swap-oob" in by_script.content.decode()
    assert not ApiKey.objects.exists()


# What follows changes keys.


@pytest.mark.django_db(transaction=True)
def test_revoking_asks_first_tells_the_effect_and_does_it(acme: Tenant, owner: Client) -> None:
    keys = [a_key(acme, "one"), a_key(acme, "two")]
    page = owner.get(change_page("revoke", *keys))

    nothing = owner.post(change_page("revoke"), fields_of(page))
    done = owner.post(change_page("revoke"), fields_of(page) | {"reason": "laptop lost"}, follow=True)

    assert "No call of them runs now" in text_of(page.content.decode())
    assert nothing.status_code == 400
    assert "This field is required" in nothing.content.decode()
    assert {key.revoked_reason for key in ApiKey.objects.exclude(revoked_at=None)} == {"laptop lost"}
    assert ApiKey.objects.exclude(revoked_at=None).count() == 2
    text = text_of(done.content.decode())
    assert re.search(r"2 keys were revoked\. Refused everywhere after \d+\.\d\d s\. 0 running calls", text)


@pytest.mark.parametrize(("what", "column"), [("revoke", "revoked_at"), ("disable", "disabled_at")])
def test_a_change_that_redis_does_not_know_of_is_told_as_pending(
    acme: Tenant, owner: Client, what: str, column: str
) -> None:
    key = a_key(acme)
    page = owner.get(change_page(what, key))

    with without_redis():
        done = owner.post(change_page(what), fields_of(page) | {"reason": "lost"}, follow=True)

    assert "Pending, because Redis cannot be reached" in text_of(done.content.decode())
    assert getattr(ApiKey.objects.get(), column) is not None


def test_a_key_is_disabled_and_enabled_again(acme: Tenant, owner: Client) -> None:
    key = a_key(acme)

    told = {}
    for what in ("disable", "enable"):
        asked = owner.get(change_page(what, key))
        owner.post(change_page(what), fields_of(asked) | {"reason": "pause"})
        told[what] = text_of(owner.get(page_of(key)).content.decode())

    assert "Disabled pause Owner" in told["disable"]
    assert "Works Owner" in told["enable"]


@pytest.mark.parametrize("what", ["revoke", "disable", "rotate"])
def test_a_key_that_somebody_else_changed_meanwhile_is_looked_at_again(
    acme: Tenant, owner: Client, what: str
) -> None:
    key = a_key(acme)
    address = page_of(key, "rotate/") if what == "rotate" else change_page(what, key)
    seen = fields_of(owner.get(address))
    services.change_key(key=key, actor="bob", label="renamed")

    stale = owner.post(address, seen | {"reason": "lost", "grace": "now"})
    again = owner.post(address, fields_of(stale) | {"reason": "lost", "grace": "now"})

    assert stale.status_code == 409
    assert 'role="alert"' in stale.content.decode()
    assert not SECRET.search(stale.content.decode())
    assert again.status_code in (200, 302)
    assert AuditEvent.objects.filter(subject=str(key.pk), actor="owner").count() == 1


@pytest.mark.parametrize("grace", Grace.values)
def test_rotating_shows_a_new_secret_once_and_what_becomes_of_the_other(
    acme: Tenant, owner: Client, grace: str
) -> None:
    key = a_key(acme)
    form = fields_of(owner.get(page_of(key, "rotate/"))) | {"grace": grace}

    page = owner.post(page_of(key, "rotate/"), form)
    again = owner.post(page_of(key, "rotate/"), form)

    [secret] = set(SECRET.findall(page.content.decode()))
    newest, _older = key.secrets.order_by("-created_at")
    assert page.status_code == 200
    assert newest.digest == digest(secret)
    assert again.status_code == 409
    assert not SECRET.search(again.content.decode())
    assert key.secrets.count() == 2
    assert ("End its grace now" in page.content.decode()) == (grace != "now")
    assert ('hx-trigger="every 5s"' in owner.get(page_of(key)).content.decode()) == (grace != "now")


def test_the_grace_is_ended_by_one_click(acme: Tenant, owner: Client) -> None:
    key = a_key(acme)
    services.rotate_key(key=key, actor="test", grace=Grace.WEEK)

    done = owner.post(page_of(key, "end-grace/"), follow=True)
    again = owner.post(page_of(key, "end-grace/"), follow=True)

    assert "Only the newest secret works now" in text_of(done.content.decode())
    assert "worked already" in text_of(again.content.decode())
    assert key.secrets.filter(retires_at=None).count() == 1


def test_a_revoked_key_is_not_rotated(acme: Tenant, owner: Client) -> None:
    key = a_key(acme)
    services.revoke_key(key=key, actor="test", reason="lost")
    form = fields_of(owner.get(page_of(key, "rotate/"))) | {"grace": "now"}

    page = owner.post(page_of(key, "rotate/"), form)

    assert page.status_code == 400
    assert "revoked or has expired" in text_of(page.content.decode())
    assert "Rotate" not in text_of(owner.get(page_of(key)).content.decode()).partition("Secrets")[0]
