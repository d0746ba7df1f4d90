"""The pages tell what is there: settings, names in Redis, commands, codes, links, and examples that run."""

from __future__ import annotations

import asyncio
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import environ
import pytest
from django.apps import apps
from django.conf import settings
from django.core.management import call_command, get_commands
from django.test import override_settings

import budgets.counters
import tenants.generations
from budgets.services import set_budget, set_rate_limit
from config.celery import app as celery
from keys.scopes import SCOPES
from proxy.errors import ANSWERS, INTERNAL, UPSTREAM_REFUSED
from proxy.exceptions import HumanCheckUnavailable
from proxy.human_checks import pass_check
from tenants.redis import redis_now
from tests.conftest import House, eventually
from tests.managing import endpoints, manager

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = sorted(
    page
    for page in ROOT.rglob("*.md")
    if not any(part.startswith(".") for part in page.relative_to(ROOT).parts)
)


def examples(language: str) -> list[str]:
    """The fenced blocks of the README in ``language``."""
    return re.findall(rf"^```{language}\n(.+?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)


def table(page: Path, columns: int) -> list[list[str]]:
    """The first cells of all rows of tables, where the first is one word of code."""
    rows = (
        line.strip("| \n").split(" | ") for line in page.read_text().splitlines() if line.startswith("| `")
    )
    return [[cell.strip("` ") for cell in row[:columns]] for row in rows]


@pytest.fixture
def read_settings(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Every variable that the settings ask the environment for, and its default."""
    read: dict[str, Any] = {}

    class Recording(environ.Env):
        def get_value(
            self, var: str, cast: Any = None, default: Any = environ.Env.NOTSET, parse_default: bool = False
        ) -> Any:
            read[var] = default
            return super().get_value(var, cast, default, parse_default)

    monkeypatch.setattr(environ, "Env", Recording)
    runpy.run_path(str(ROOT / "config" / "settings.py"))
    return read


def shown(default: Any) -> str:
    """A default as the pages write it."""
    if default is environ.Env.NOTSET:
        return "required"
    if default == "":
        return "empty"
    if default == settings.REDIS_URL:
        return "REDIS_URL"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, list):
        return ",".join(default) or "empty"
    return str(default).removeprefix(f"{ROOT}/") or "empty"


def test_every_setting_is_explained_with_its_default(read_settings: dict[str, Any]) -> None:
    explained = table(ROOT / "docs" / "settings.md", 2)

    assert dict(explained) == {name: shown(default) for name, default in read_settings.items()}
    assert len(explained) == len(read_settings)


def test_the_readme_tells_defaults_as_they_are(read_settings: dict[str, Any]) -> None:
    rows = [row for row in table(README, 2) if row[0].isupper()]

    assert len(rows) >= 10
    assert all(default == shown(read_settings[name]) for name, default in rows)


def test_the_readme_names_every_code_with_its_status() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \| (`.+?) \| ", README.read_text(), re.MULTILINE)
    told = {
        (int(status), code)
        for statuses, codes in rows
        for code in re.findall(r"`(\w+)`", codes)
        for status in statuses.split(", ")
    }
    answers = [*ANSWERS.values(), *UPSTREAM_REFUSED.values(), INTERNAL]

    assert {code for _, code in told} == {answer.code for answer in answers}
    assert {(answer.status, answer.code) for answer in answers} <= told


def test_every_command_is_in_the_readme() -> None:
    our_apps = {app.name for app in apps.get_app_configs() if Path(app.path).parent == ROOT}
    ours = {name for name, app in get_commands().items() if app in our_apps}
    named = {row[0] for row in table(README, 1)}

    assert ours
    assert ours <= named


def test_every_page_is_in_the_readme() -> None:
    linked = set(re.findall(r"\]\(docs/([\w.-]+\.md)\)", README.read_text()))

    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= linked


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!\w+:)([^)#]*)(?:#([^)]*))?\)", page.read_text())

    for target, anchor in links:
        there = page.parent / target if target else page
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there), f"{target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """The names by which headings can be linked to."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@contextmanager
def watching_redis() -> Iterator[set[str]]:
    """Collect, until the block is left, the name of every key that anybody touches."""
    redis: Any = redis_now()
    number = redis.connection_pool.connection_kwargs["db"]
    before = redis.config_get("notify-keyspace-events")["notify-keyspace-events"]
    redis.config_set("notify-keyspace-events", "KA")
    touched: set[str] = set()
    channel = f"__keyspace@{number}__:"
    try:
        with redis.pubsub() as events:
            events.psubscribe(f"{channel}*")
            assert events.get_message(timeout=30)["type"] == "psubscribe"
            yield touched
            redis.set("the-end-of-the-test", 1, ex=1)
            for event in events.listen():
                touched.add(event["channel"].decode().removeprefix(channel))
                if "the-end-of-the-test" in touched:
                    break
    finally:
        redis.config_set("notify-keyspace-events", before)
    touched.discard("the-end-of-the-test")


def service_that_is_away() -> override_settings:
    """Settings for human checks with a service where nobody listens."""
    return override_settings(
        HUMAN_CHECK_SERVICE="turnstile", HUMAN_CHECK_SECRET="of nobody", HUMAN_CHECK_URL="http://127.0.0.1:1"
    )


def test_every_name_in_redis_is_on_its_page(house: House) -> None:
    key = house.ada.key
    set_budget(scope="tenant", tenant=house.acme, unit="tokens", period="day", limit=10**6, actor="test")
    for measure in ("tokens_per_minute", "concurrent_requests"):
        set_rate_limit(scope="key", tenant=house.acme, key=key, measure=measure, limit=10**5, actor="test")
        set_rate_limit(scope="run", tenant=house.acme, measure=measure, limit=10**5, actor="test")
    set_budget(scope="run", tenant=house.acme, unit="tokens", period="day", limit=10**6, actor="test")

    with watching_redis() as touched:
        # What was there before is on the page too.
        touched.update(name.decode() for name in redis_now().scan_iter())
        house.ada.http.headers["X-Tollgate-Run"] = "nightly"
        assert house.ada.chat().status_code == 200
        house.booked()
        # The gateway still remembers what was there before Redis was emptied for this test.
        eventually(lambda: redis_now().exists("{p0}:catalog:sim"))
        assert house.ada.chat(model="nobody").status_code == 403
        eventually(lambda: redis_now().exists(budgets.counters.REFUSALS))
        eventually(lambda: redis_now().exists(budgets.counters.TALLIES))
        with service_that_is_away(), pytest.raises(HumanCheckUnavailable):
            asyncio.run(pass_check("a token"))
        with celery.connection_for_write() as broker:
            celery.send_task("budgets.tasks.drain", connection=broker)
        assert manager("tenants:read").get("tenants/").status_code == 200

    constants = {
        value
        for module in (budgets.counters, tenants.generations)
        for value in vars(module).values()
        if isinstance(value, str) and value.startswith("{p0}:")
    }
    names = touched | constants
    patterns = [as_pattern(name) for name in re.findall(r"^\| `([^`]+)` \|", names_page(), re.MULTILINE)]

    assert {kind(name) for name in touched} >= {"budget", "rate", "leases", "hold", "usage", "catalog"}
    assert sorted(name for name in names if not any(pattern.fullmatch(name) for pattern in patterns)) == []
    assert [pattern.pattern for pattern in patterns if not any(map(pattern.fullmatch, names))] == []


def chat(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Hello"}]}


def names_page() -> str:
    return (ROOT / "docs" / "redis.md").read_text()


PLACEHOLDERS = {"<": "[^:]+", "*": ".*"}


def as_pattern(name: str) -> re.Pattern[str]:
    """A name as the page writes it: ``<part>`` stands for one part, ``*`` for any number of them."""
    parts = re.split(r"(<[^>]+>|\*)", name)
    return re.compile("".join(PLACEHOLDERS.get(part[:1], re.escape(part)) for part in parts))


def kind(name: str) -> str:
    return name.removeprefix("{p0}:").partition(":")[0]


def environment_of(house: House) -> dict[str, str]:
    return {**os.environ, "GATEWAY_URL": house.gateway.url, "DEMO_KEY": house.ada.secret, "NO_PROXY": "*"}


def test_the_python_examples_run(house: House) -> None:
    written = examples("python")

    for example in written:
        ran = subprocess.run(
            [sys.executable, "-c", example],
            env=environment_of(house),
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.strip() == house.ollama.calls[-1].text

    assert len(written) == len(house.booked(len(written))) == 3


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_the_curl_examples_run(house: House) -> None:
    written = [example for example in examples("sh") if "curl " in example]

    said = ""
    for example in written:
        ran = subprocess.run(
            ["sh", "-euc", example], env=environment_of(house), capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
        said += ran.stdout

    assert '"id":"tiny:1b"' in said
    assert "data: [DONE]" in said
    assert '"done":true' in said
    assert [entry.outcome for entry in house.booked(2)] == ["completed"] * 2


def test_the_commands_say_what_the_readme_says(house: House) -> None:
    """Ids differ from run to run, and so does the secret; ours is used where the page uses its own."""
    [transcript] = examples("console")
    known: dict[str, str] = {}
    for part in transcript.strip().split("\n\n"):
        line, _, expected = part.partition("\n")
        name, *arguments = shlex.split(line.removeprefix("$ python3 manage.py "))
        if name == "show_usage":
            answer = house.ada.http.post(
                "/api/chat",
                json={**chat("tiny:1b"), "stream": False},
                headers={"Authorization": f"Bearer {known['secret']}"},
            )
            assert answer.status_code == 200
            house.booked()

        said = StringIO()
        call_command(name, *(known.get(argument, argument) for argument in arguments), stdout=said)

        if found := re.search(r"^tg_\w{58}$", said.getvalue(), re.MULTILINE):
            [public_id] = re.findall(r"^tg_(\w{12})…$", expected, re.MULTILINE)
            known |= {"secret": found.group(), public_id: found.group()[3:15]}
        assert without_ids(said.getvalue()) == without_ids(expected)


def without_ids(text: str) -> str:
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID", text)
    return re.sub(r"tg_\w{12}(\w{46}|…)", "SECRET", text).strip()


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_the_examples_of_the_management_api_run(house: House) -> None:
    page = (ROOT / "docs" / "management-api.md").read_text()
    written = re.findall(r"^```sh\n(.+?)^```$", page, re.MULTILINE | re.DOTALL)
    environment = environment_of(house) | {
        "MANAGEMENT_KEY": manager().secret,
        "KEY_ID": str(house.ada.key.pk),
    }

    said = ""
    for example in written:
        ran = subprocess.run(
            ["sh", "-euc", example], env=environment, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
        said += ran.stdout

    assert len(written) == 4
    for told in ('"slug":"acme"', '"retires_on_use":false', '"name":"Research"', '"limit_usd":"25.000000"'):
        assert told in said


def test_the_page_of_the_management_api_names_every_scope_and_address() -> None:
    page = (ROOT / "docs" / "management-api.md").read_text()

    assert set(re.findall(r"`(\w+:(?:read|write))`", page)) == set(SCOPES)
    for endpoint in endpoints():
        assert f"`{endpoint.route.partition('/')[0]}/`" in page
        for name in endpoint.view.filters if endpoint.action == "list" else ():
            assert f"`{name}`" in page, f"{endpoint}: {name}"
