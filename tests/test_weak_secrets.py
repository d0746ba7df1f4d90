"""A gateway does not serve with secrets that protect nothing."""

from __future__ import annotations

import secrets
import subprocess
import sys

import pytest
from django.test import override_settings

from config.weak_secrets import weaknesses
from tests.gateway import ROOT, environment

GOOD, OTHER = secrets.token_urlsafe(48), secrets.token_urlsafe(48)


@pytest.mark.parametrize(
    ("key", "pepper", "told"),
    [
        pytest.param(GOOD, OTHER, "", id="good"),
        pytest.param(secrets.token_hex(32), secrets.token_hex(16), "", id="hexadecimal"),
        pytest.param(GOOD[:49], OTHER, "SECRET_KEY has 49 characters and needs 50", id="short"),
        pytest.param(GOOD, OTHER[:31], "KEY_PEPPER has 31 characters and needs 32", id="short pepper"),
        pytest.param("abc" * 20, OTHER, "made of 3 different", id="few characters"),
        pytest.param("django-insecure-" + GOOD, OTHER, "an example's", id="generated for development"),
        pytest.param(GOOD, "ChangeMe" + OTHER, "an example's", id="to be changed"),
        pytest.param(GOOD, GOOD, "are the same", id="one for both"),
    ],
)
def test_what_protects_nothing_is_named(key, pepper, told):
    with override_settings(SECRET_KEY=key, KEY_PEPPER=pepper):
        found = " ".join(weaknesses())

    assert told in found
    assert bool(told) == bool(found)
    assert key not in found


@pytest.mark.parametrize(
    ("token", "weak"), [("", False), (GOOD[:19], True), (GOOD[:20], False)], ids=["none", "short", "good"]
)
def test_a_token_for_metrics_that_can_be_guessed_is_named(token, weak):
    with override_settings(SECRET_KEY=GOOD, KEY_PEPPER=OTHER, METRICS_TOKEN=token):
        found = " ".join(weaknesses())

    assert ("METRICS_TOKEN" in found) is weak


@pytest.mark.parametrize(("debug", "serves"), [("false", False), ("true", True)])
def test_serve_refuses_them_but_for_debugging(debug, serves):
    arguments = [sys.executable, str(ROOT / "manage.py"), "serve", "--port", "0"]
    env = {**environment(), "SECRET_KEY": "short", "DEBUG": debug}

    with subprocess.Popen(
        arguments, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.terminate()
        process.stdout.read()

    assert ("Serving" in line) is serves
    assert ("SECRET_KEY has 5 characters and needs 50." in line) is not serves
