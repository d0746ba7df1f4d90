"""The snippets that people are given are run, as they are, against a running gateway."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html import unescape
from typing import Any

import pytest
from django.test import Client

from proxy.catalog import published_at
from proxy.snippets import environment, snippets
from tenants.redis import redis_now
from tests.conftest import House, eventually
from tests.people import a_browser, a_person
from tests.test_portal_keys import create

SECRET = re.compile(r"tg_[0-9A-Za-z]{58}")
# A shell as somebody has it, without what this test run sets.
SURROUNDINGS = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}


def run(*command: str, **variables: str) -> str:
    """What a command prints; fails if it fails, or warns."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=SURROUNDINGS | variables, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def by_curl(text: str) -> str:
    return run("bash", "-c", text)


def by_python(text: str) -> str:
    return run(sys.executable, "-W", "error::DeprecationWarning", "-c", text)


def by_node(text: str) -> str:
    node = shutil.which("node")
    if node is None:
        pytest.skip("a snippet for Node.js runs where Node.js is installed; nothing else here reads modules")
    return run(node, "--input-type=module", "--eval", text)


RUNNERS: dict[str, Callable[[str], str]] = {
    "curl": by_curl,
    "openai": by_python,
    "ollama": by_python,
    "javascript": by_node,
}


def shown_snippets(page: Any) -> dict[str, str]:
    """The texts that stand on the page of a new key, by their ids."""
    found = re.findall(
        r'<pre class="snippet".*?><code id="(\w+)">(.*?)</code></pre>', page.content.decode(), re.DOTALL
    )
    return {name: unescape(text) for name, text in found}


@pytest.fixture
def created(house: House) -> Any:
    """The page of a key that somebody has just created, whose visitors come to the gateway's own address."""
    owner = a_browser(a_person("owner", house.acme))
    owner.defaults["HTTP_HOST"] = house.gateway.url.removeprefix("http://")
    # The gateway remembers the models of the test before; what a page knows has to be found again.
    eventually(lambda: redis_now().exists(published_at("sim")))
    page = create(owner)
    assert page.status_code == 200
    return page


@pytest.mark.parametrize("name", RUNNERS)
def test_each_snippet_runs_as_it_stands_on_the_page(house: House, created: Any, name: str) -> None:
    answer = RUNNERS[name](shown_snippets(created)[name])

    assert answer.strip()
    [entry] = house.booked()
    assert (entry.key, entry.operation, entry.outcome) == ("nightly", "chat", "completed")


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(
            "from openai import OpenAI\n"
            "print(OpenAI().chat.completions.create(model='tiny:1b', "
            "messages=[{'role': 'user', 'content': 'hello'}]).choices[0].message.content)",
            id="openai",
        ),
        pytest.param(
            "import ollama\n"
            "print(ollama.chat('tiny:1b', messages=[{'role': 'user', 'content': 'hello'}]).message.content)",
            id="ollama",
        ),
        pytest.param(
            "from anthropic import Anthropic\n"
            "print(Anthropic().messages.create(model='tiny:1b', max_tokens=50, "
            "messages=[{'role': 'user', 'content': 'hello'}]).content[0].text)",
            id="anthropic",
        ),
    ],
)
def test_the_lines_for_env_are_all_that_a_client_needs(house: House, created: Any, program: str) -> None:
    lines = shown_snippets(created)["environment"].split()
    variables = dict(line.split("=", 1) for line in lines)

    answer = run(sys.executable, "-c", program, **variables)

    assert answer.strip()
    assert house.booked()[0].key == "nightly"


def test_every_snippet_is_run_here(house: House, created: Any) -> None:
    assert set(shown_snippets(created)) == {*RUNNERS, "environment"}


@pytest.mark.parametrize(
    "part",
    [
        {"address": 'http://x"; rm -rf ~'},
        {"address": "http://x\nHost: y"},
        {"model": "tiny'); evil('"},
        {"model": ""},
        {"secret": "tg_$(id)"},
    ],
)
def test_nothing_gets_into_a_snippet_that_a_shell_would_take_for_something_else(part: dict[str, str]) -> None:
    parts = {"address": "http://gateway.example", "secret": "tg_x", "model": "tiny:1b"} | part

    with pytest.raises(ValueError, match="cannot stand in a snippet"):
        snippets(**parts)


def test_a_host_that_is_none_of_ours_is_refused_before_it_gets_into_a_snippet(house: House) -> None:
    owner: Client = a_browser(a_person("owner", house.acme))

    answer = owner.get("/portal/acme/keys/new/", HTTP_HOST='x"; rm -rf ~')

    assert answer.status_code == 400


def test_the_lines_for_env_end_with_a_line_break() -> None:
    assert environment("http://gateway.example", "tg_x").endswith("tg_x\n")
