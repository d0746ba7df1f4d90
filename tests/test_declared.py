"""Settings as a file: applied, exported, and applied again without a change."""

from __future__ import annotations

import io
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.utils.timezone import now
from hypothesis import given
from hypothesis import strategies as st

from audit.models import AuditEvent
from budgets.limits import limit_now
from budgets.models import Budget, OutageCredit, Price, RateLimit
from budgets.services import raise_limit
from config.declared import document
from config.declared.kinds import SHAPES, present
from config.declared.plan import apply, plan
from keys.models import ApiKey, PolicyRule
from keys.services import revoke_key
from proxy.models import ModelAlias, Upstream
from tenants.models import ServiceAccount, Team, Tenant
from tenants.services import add_member, create_tenant, create_user
from tests.test_prompt_log import OLD

FILE = """
version: 1
upstreams:
- {name: gpu-1, base_url: "http://10.0.0.5:11434"}
tenants:
- {slug: physics, name: Physics Department, time_zone: Europe/Berlin, allow_all_models: true}
- {slug: history, name: History, suspended: true}
teams:
- {tenant: physics, name: Research}
keys:
- {tenant: physics, label: nightly, expires_at: 2099-01-01T00:00:00+01:00, models: ["tiny:1b"]}
aliases:
- {alias: "default:latest", model: "tiny:1b"}
prices:
- {model: "tiny:1b", starts_at: 2026-01-01T00:00:00+00:00, input_price: 300000, output_price: 900000}
budgets:
- {scope: platform, unit: tokens, period: day, limit: 1000000}
- {scope: team, tenant: physics, team: Research, unit: micro_usd, period: month, limit: 5, thresholds: [50]}
- {scope: key, tenant: physics, key: nightly, unit: requests, period: 90m, limit: 0, shadow: true}
- {scope: tenant, tenant: physics, unit: gpu_ms, period: week}
rate_limits:
- {scope: tenant, tenant: physics, measure: requests_per_minute, limit: 60}
policies:
- {option: num_ctx, maximum: 8192}
- {tenant: physics, key: nightly, option: system, allowed: false}
outage_credits:
- {tenant: physics, tokens: 20000}
"""

pytestmark = pytest.mark.django_db


def applied(text: str, *, prune: bool = False) -> dict[str, str]:
    return apply(plan(document.read(text, SHAPES), prune=prune), actor="ops")


def told(text: str, *, prune: bool = False) -> list[str]:
    return [str(change) for change in plan(document.read(text, SHAPES), prune=prune)]


def exported() -> str:
    return document.written(present(), SHAPES)


def test_a_file_makes_everything_it_names_and_a_second_time_nothing():
    secrets = applied(FILE)

    assert list(secrets) == ["physics: nightly"]
    assert secrets["physics: nightly"].startswith("tg_")
    assert (Upstream.objects.count(), ModelAlias.objects.count(), Team.objects.count()) == (1, 1, 1)
    assert {tenant.slug: tenant.state for tenant in Tenant.objects.all()} == {
        "physics": "active",
        "history": "suspended",
    }
    assert (Budget.objects.count(), RateLimit.objects.count(), PolicyRule.objects.count()) == (4, 1, 2)
    assert (Price.objects.count(), OutageCredit.objects.get().tokens) == (1, 20_000)
    key = ApiKey.objects.get()
    assert (key.expires_at, key.models) == (datetime(2098, 12, 31, 23, tzinfo=UTC), ["tiny:1b"])
    assert Budget.objects.get(scope="tenant").limit is None
    assert Budget.objects.get(scope="key").limit == 0

    assert told(FILE, prune=True) == []
    assert applied(FILE) == {}


def test_what_is_exported_says_the_same_and_holds_no_secret():
    (secret,) = applied(FILE).values()

    text = exported()

    assert told(text, prune=True) == []
    assert document.read(text, SHAPES) == document.read(FILE, SHAPES)
    assert secret not in text
    assert secret[3:15] not in text


def test_a_raise_that_holds_is_in_no_file_and_applying_one_leaves_it_alone():
    applied(FILE)
    before = exported()
    rows: list[Budget | RateLimit] = [Budget.objects.get(scope="platform"), RateLimit.objects.get()]
    for row in rows:
        raise_limit(row=row, by=5, ends_at=now() + timedelta(hours=1), reason="a deadline", actor="test")

    assert exported() == before
    assert told(before, prune=True) == []
    applied(before, prune=True)
    assert [limit_now(type(row).objects.get(pk=row.pk)) for row in rows] == [1_000_005, 65]


def test_an_empty_gateway_exports_and_applies():
    assert told(exported(), prune=True) == []
    assert [section for section in document.read("version: 1", SHAPES).values() if section] == []


def test_every_change_has_its_audit_event_and_the_whole_has_one():
    applied(FILE)

    actions = set(AuditEvent.objects.values_list("action", flat=True))
    assert actions >= {
        "upstream.added", "tenant.created", "tenant.suspended", "team.created", "key.issued", "alias.added",
        "price.set", "budget.set", "rate_limit.set", "policy.set", "outage_credit.set", "config.applied",
    }  # fmt: skip
    assert set(AuditEvent.objects.values_list("actor", flat=True)) == {"ops"}


@pytest.mark.parametrize(
    ("was", "shall_be", "line"),
    [
        ("limit: 1000000", "limit: 2000000", "~ budgets scope=platform unit=tokens period=day  limit: 1000000 -> 2000000"),  # noqa: E501
        ("limit: 1000000", "shadow: false", "~ budgets scope=platform unit=tokens period=day  limit: 1000000 -> nothing"),  # noqa: E501
        ("Physics Department", "Physics", "~ tenants slug=physics  name: Physics Department -> Physics"),
        ("suspended: true", "suspended: false", "~ tenants slug=history  suspended: True -> False"),
        ("10.0.0.5", "10.0.0.6", "~ upstreams name=gpu-1  base_url: http://10.0.0.5:11434 -> http://10.0.0.6:11434"),
        ("tokens: 20000", "tokens: 10", "~ outage_credits tenant=physics  tokens: 20000 -> 10"),
        ("maximum: 8192", "maximum: 4096", "~ policies option=num_ctx  maximum: 8192 -> 4096"),
        ("limit: 60", "limit: 30", "~ rate_limits scope=tenant tenant=physics measure=requests_per_minute  limit: 60 -> 30"),  # noqa: E501
        ('models: ["tiny:1b"]', "allow_all_models: false", "~ keys tenant=physics label=nightly  allow_all_models: nothing -> False, models: ['tiny:1b'] -> nothing"),  # noqa: E501
        ("output_price: 900000", "output_price: 800000", "~ prices model=tiny:1b starts_at=2026-01-01 00:00:00+00:00  output_price: 900000 -> 800000"),  # noqa: E501
    ],
)  # fmt: skip
def test_a_difference_is_one_line_and_applying_it_leaves_none(was, shall_be, line):
    applied(FILE)
    other = FILE.replace(was, shall_be)

    assert told(other) == [line]
    applied(other)

    assert told(other, prune=True) == []


def test_what_a_file_does_not_name_stays_unless_it_is_pruned():
    applied(FILE)
    nothing = "version: 1"

    assert told(nothing) == []
    assert applied(nothing) == {}
    gone = told(nothing, prune=True)
    applied(nothing, prune=True)

    assert len(gone) == 14
    assert all(line.startswith("- ") for line in gone)
    assert told(nothing, prune=True) == []
    assert not Budget.objects.exists()
    assert set(Tenant.objects.values_list("state", flat=True)) == {"suspended"}
    assert ApiKey.objects.get().revoked_reason == "no longer declared"


MORE = """
version: 1
tenants:
- {slug: physics, name: Physics, max_key_days: 3600}
teams:
- {tenant: physics, name: Research}
service_accounts:
- {tenant: physics, name: nightly-build, team: Research}
keys:
- tenant: physics
  service_account: nightly-build
  label: ci
  expires_at: 2035-11-01T00:00:00+00:00
  scopes: [chat, models]
  address_blocks: [192.0.2.7, "2001:DB8::/32"]
  prompt_log_days: 3
  disabled: true
prompt_rules:
- {tenant: physics, readers: [owner], redactions: ["EMP-####"]}
upstream_costs:
- {upstream: gpu-1, starts_at: 2026-01-01T00:00:00+00:00, hardware_price: 24000000000, busy_watts: 1400}
budgets:
- {scope: key, tenant: physics, key: nightly-build/ci, unit: tokens, period: day, limit: 5}
"""


@pytest.fixture
def prompts_can_be_kept(settings):
    settings.PROMPT_LOG_KEYS = [OLD]


@pytest.mark.parametrize(
    ("was", "shall_be", "line"),
    [
        ("max_key_days: 3600", "max_key_days: 3500", "~ tenants slug=physics  max_key_days: 3600 -> 3500"),
        ("name: Physics", "name: Physics, language: de", "~ tenants slug=physics  language:  -> de"),
        (", team: Research", "", "~ service_accounts tenant=physics name=nightly-build  team: Research -> nothing"),  # noqa: E501
        ("disabled: true", "disabled: false", "~ keys tenant=physics service_account=nightly-build label=ci  disabled: True -> False"),  # noqa: E501
        ("scopes: [chat, models]", "scopes: [chat]", "~ keys tenant=physics service_account=nightly-build label=ci  scopes: ['chat', 'models'] -> ['chat']"),  # noqa: E501
        ("192.0.2.7,", "192.0.2.8/32,", "~ keys tenant=physics service_account=nightly-build label=ci  address_blocks: ['192.0.2.7/32', '2001:db8::/32'] -> ['192.0.2.8/32', '2001:db8::/32']"),  # noqa: E501
        ("prompt_log_days: 3", "prompt_log_days: 4", "~ keys tenant=physics service_account=nightly-build label=ci  prompt_log_days: 3 -> 4"),  # noqa: E501
        ("readers: [owner]", "readers: [admin]", "~ prompt_rules tenant=physics  readers: ['owner'] -> ['admin']"),  # noqa: E501
        ("busy_watts: 1400", "busy_watts: 1500", "~ upstream_costs upstream=gpu-1 starts_at=2026-01-01 00:00:00+00:00  busy_watts: 1400 -> 1500"),  # noqa: E501
    ],
)  # fmt: skip
@pytest.mark.usefixtures("prompts_can_be_kept")
def test_accounts_prompts_and_costs_are_declared_too(was, shall_be, line):
    secrets = applied(MORE)
    again = told(MORE, prune=True)
    exported_again = told(exported(), prune=True)
    other = MORE.replace(was, shall_be)
    change = told(other)
    applied(other)

    assert list(secrets) == ["physics: nightly-build/ci"]
    assert (again, exported_again) == ([], [])
    assert change == [line]
    assert told(other, prune=True) == []


@pytest.mark.usefixtures("prompts_can_be_kept")
def test_pruning_closes_service_accounts_and_lets_their_team_go():
    applied(MORE)

    applied("version: 1", prune=True)

    assert not Team.objects.exists()
    assert ServiceAccount.objects.get().closed_at is not None
    assert ApiKey.objects.get().revoked_reason == "no longer declared"
    assert told("version: 1", prune=True) == []


def test_an_address_may_move_from_one_upstream_to_another():
    applied(FILE)

    applied(FILE.replace("name: gpu-1", "name: gpu-2"), prune=True)

    assert [one.name for one in Upstream.objects.all()] == ["gpu-2"]


def test_keys_of_members_have_their_address_in_their_name():
    tenant = create_tenant(slug="physics", name="Physics", actor="ops")
    ada = create_user(username="ada", email="ada@example.org", actor="ops")
    add_member(tenant=tenant, user=ada, actor="ops")
    text = """
version: 1
tenants:
- {slug: physics, name: Physics}
keys:
- {tenant: physics, member: ada@example.org, label: laptop}
budgets:
- {scope: key, tenant: physics, key: ada@example.org/laptop, unit: tokens, period: day, limit: 5}
- {scope: member, tenant: physics, member: ada@example.org, unit: tokens, period: day, limit: 9}
"""

    secrets = applied(text)

    assert list(secrets) == ["physics: ada@example.org/laptop"]
    assert Budget.objects.get(scope="key").key == ApiKey.objects.get()
    assert told(exported(), prune=True) == []
    assert told(text, prune=True) == []


def test_keys_that_are_revoked_and_what_limits_them_are_not_declared():
    applied(FILE)
    revoke_key(key=ApiKey.objects.get(), actor="ops", reason="lost")

    rows = present()

    assert rows["keys"] == {}
    assert {row["scope"] for row in rows["budgets"].values()} == {"platform", "team", "tenant"}
    assert [row["option"] for row in rows["policies"].values()] == ["num_ctx"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has to begin with version: 1"),
        ("version: 2", "has to begin with version: 1"),
        ("- 1", "has to begin with version: 1"),
        ("version: 1\nbudget: []", "There is no section budget"),
        ("version: 1\nversion: 1", "version stands twice"),
        ("version: 1\ntenants: {slug: a}", "tenants has to be a list of rows"),
        ("version: 1\ntenants: [physics]", "row 1 of tenants is no row"),
        ("version: 1\ntenants: [{name: Physics}]", "row 1 of tenants needs slug"),
        ("version: 1\ntenants: [{slug: a, name: A, color: red}]", "row 1 of tenants has color, but may have slug,"),  # noqa: E501
        ("version: 1\ntenants: [{slug: a, name: 5}]", "name of row 1 of tenants is 5; it has to be str"),
        ("version: 1\ntenants: [{slug: a, slug: b}]", "slug stands twice"),
        ("version: 1\ntenants: [{slug: a, name: A}, {slug: a, name: B}]", "row 2 of tenants is about the same"),  # noqa: E501
        ("version: 1\nbudgets: [{scope: platform, unit: tokens, period: day, limit: yes}]", "has to be int or nothing"),  # noqa: E501
        ("version: 1\nbudgets: [{scope: platform, unit: tokens, period: day, limit: 1.5}]", "has to be int or nothing"),  # noqa: E501
        ("version: 1\nprices: [{model: 'a:b', starts_at: 2026-01-01T00:00:00}]", "needs an offset"),
        ("version: 1\nprices: [{model: 'a:b'}]", "needs starts_at|starts_at of row 1"),
        ("version: 1\n  tenants: [", "The file is no YAML"),
        ("[" * 5000, "lists in lists"),
        ('version: 1\ntenants: [{slug: a, name: "A\\0B"}]', "name of row 1 of tenants has a NUL"),
        ('version: 1\ntenants: [{slug: a, name: A, models: ["a\\0:b"]}]', "models of row 1 .* a NUL"),
        ("version: 1\nx: !!python/object/apply:os.system ['true']", "The file is no YAML"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_told_in_a_sentence(text, told):
    with pytest.raises(ValidationError, match=told):
        document.read(text, SHAPES)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            "budgets: [{scope: tenant, tenant: nobody, unit: tokens, period: day}]",
            "There is no tenant nobody",
        ),
        ("budgets: [{scope: team, team: Research, unit: tokens, period: day}]", "needs its tenant"),
        ("budgets: [{scope: platform, unit: tokens, period: fortnight}]", "is no period"),
        ("budgets: [{scope: platform, unit: apples, period: day}]", "not a valid choice|apples"),
        ("prices: [{model: ti ny, starts_at: 2026-01-01T00:00:00+00:00, free: true}]", "of a local model"),
        ("upstreams: [{name: a, base_url: gopher://x}]", "Give an address"),
        ("policies: [{option: colour, allowed: true}]", "not a valid choice|colour"),
    ],
)
def test_a_row_that_cannot_be_is_named_and_nothing_of_the_file_is_done(row, told):
    text = f"version: 1\ntenants: [{{slug: first, name: First}}]\n{row}"

    with pytest.raises(ValidationError, match=told) as raised:
        applied(text)

    assert "first" not in str(raised.value)
    assert not Tenant.objects.exists()


def test_a_team_with_members_is_not_removed():
    applied(FILE)
    tenant = Tenant.objects.get(slug="physics")
    ada = create_user(username="ada", email="ada@example.org", actor="ops")
    add_member(tenant=tenant, user=ada, actor="ops", team=Team.objects.get())

    with pytest.raises(ValidationError, match="something belongs to it still"):
        applied("version: 1", prune=True)

    assert Budget.objects.count() == 4


@pytest.mark.django_db(transaction=True)
def test_the_commands_show_do_and_write(tmp_path, capsys, monkeypatch):
    file = tmp_path / "gateway.yaml"
    file.write_text(FILE)

    call_command("apply", str(file), dry_run=True)
    shown = capsys.readouterr().out
    assert "+ tenants slug=physics  name: Physics Department, time_zone: Europe/Berlin" in shown
    assert "15 changes would be made. Nothing was done." in shown
    assert not Tenant.objects.exists()

    call_command("apply", str(file), json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["applied"], len(told["changes"]), list(told["secrets"])) == (True, 15, ["physics: nightly"])

    call_command("export_config", output=str(tmp_path / "again.yaml"))
    monkeypatch.setattr("sys.stdin", io.StringIO((tmp_path / "again.yaml").read_text()))
    call_command("apply", "-", prune=True)
    assert capsys.readouterr().out == "Everything is as the file says.\n"

    with pytest.raises(CommandError, match="cannot be read"):
        call_command("apply", str(tmp_path / "none.yaml"))


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
VALUES: dict[type, st.SearchStrategy[Any]] = {
    str: ANY_TEXT,
    int: st.integers(-(2**60), 2**60),
    bool: st.booleans(),
    list: st.lists(ANY_TEXT, max_size=3),
    type(None): st.none(),
    datetime: st.datetimes(datetime(1990, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
}

MODELS = st.sampled_from(["tiny:1b", "hf.co/org/model-gguf:q4_0"])
WRITTEN_ONE_WAY = {
    "address_blocks": st.none() | st.just(["192.0.2.0/24"]),
    "model": MODELS,
    "alias": MODELS,
}


@st.composite
def documents(draw):
    made = {}
    for section, shape in SHAPES.items():
        columns = dict.fromkeys(shape.identity, (str,)) | {
            name: types for name, (types, _) in shape.fields.items()
        }
        values = {name: st.one_of(*[VALUES[kind] for kind in types]) for name, types in columns.items()}
        rows = draw(
            st.lists(
                # What is written in one way only is not any text.
                st.fixed_dictionaries(values | {name: WRITTEN_ONE_WAY[name] for name in shape.canonical}),
                max_size=3,
            )
        )
        made[section] = {shape.identity_of(row): row for row in rows}
    return made


@given(documents())
def test_whatever_is_written_is_read_as_the_same(wanted):
    assert document.read(document.written(wanted, SHAPES), SHAPES) == wanted


def test_the_page_names_every_section_and_setting():
    page = (Path(__file__).parent.parent / "docs" / "declared.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", page, re.MULTILINE))

    assert list(rows) == list(SHAPES)
    for section, shape in SHAPES.items():
        named = set(re.findall(r"`(\w+)`", rows[section]))
        hidden = (
            {"tenant", "team", "member", "key", "model", "upstream"} if "whose" in rows[section] else set()
        )
        assert named | hidden == {*shape.identity, *shape.fields} | hidden
