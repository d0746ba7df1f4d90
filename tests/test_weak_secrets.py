"""A gateway does not serve with secrets that protect nothing."""

from __future__ import annotations

import secrets
import subprocess
import sys

import pytest
from django.test import override_settings

from config.trial_secrets import make_trial_secret
from config.weak_secrets import weaknesses
from tests.gateway import ROOT, environment

GOOD, OTHER = secrets.token_urlsafe(48), secrets.token_urlsafe(48)
OWN = {"SECRET_KEY": GOOD, "KEY_PEPPER": OTHER}
TRIALS = {"SECRET_KEY": make_trial_secret(), "KEY_PEPPER": make_trial_secret()}
EVERYWHERE = "0.0.0.0"  # noqa: S104 - who may listen there is what is tested


@pytest.mark.parametrize(
    ("key", "pepper", "told"),
    [
        pytest.param(GOOD, OTHER, "", id="good"),
        pytest.param(secrets.token_hex(32), "0123456789abcdef" * 2, "", id="hexadecimal"),
        pytest.param(GOOD[:49], OTHER, "SECRET_KEY has 49 characters and needs 50", id="short"),
        pytest.param(GOOD, OTHER[:31], "KEY_PEPPER has 31 characters and needs 32", id="short pepper"),
        pytest.param("abc" * 20, OTHER, "made of 3 different", id="few characters"),
        pytest.param("django-insecure-" + GOOD, OTHER, "an example's", id="generated for development"),
        pytest.param(GOOD, "ChangeMe" + OTHER, "an example's", id="to be changed"),
        pytest.param(make_trial_secret(), OTHER, "SECRET_KEY was made by a quickstart", id="a trial's"),
        pytest.param(GOOD, make_trial_secret(), "KEY_PEPPER was made by a quickstart", id="a trial's pepper"),
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


@pytest.mark.parametrize(
    ("host", "arguments", "changed", "told"),
    [
        pytest.param("127.0.0.1", [], {"SECRET_KEY": "short"}, "has 5 characters and needs 50", id="short"),
        pytest.param("127.0.0.1", [], {"SECRET_KEY": "short", "DEBUG": "true"}, "Serving", id="debugging"),
        pytest.param("127.0.0.1", [], {}, "KEY_PEPPER was made by a quickstart", id="a trial's, by hand"),
        pytest.param("127.0.0.1", ["--trial"], {}, "Serving", id="a trial's, on trial"),
        pytest.param("::1", ["--trial"], {"SECRET_KEY": GOOD}, "Serving", id="partly a trial's, on trial"),
        pytest.param(EVERYWHERE, ["--trial"], {}, "made by a quickstart", id="a trial's, for everybody"),
        pytest.param(EVERYWHERE, [], OWN, "Serving", id="own"),
    ],
)  # fmt: skip
def test_serve_refuses_them_but_for_debugging_and_trials_on_one_machine(host, arguments, changed, told):
    command = [sys.executable, str(ROOT / "manage.py"), "serve", *arguments, "--host", host, "--port", "0"]

    with subprocess.Popen(
        command, cwd=ROOT, env={**environment(), **TRIALS, **changed},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        line = process.stdout.readline()
        process.terminate()
        process.stdout.read()

    assert told in line


@pytest.mark.parametrize(("changed", "status"), [({}, 1), (OWN, 0)], ids=["a trial's", "own"])
def test_the_check_of_a_deployment_names_them_for_those_who_run_another_server(changed, status):
    checked = subprocess.run(
        [sys.executable, str(ROOT / "manage.py"), "check", "--deploy"],
        cwd=ROOT, env={**environment(), **TRIALS, **changed}, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert checked.returncode == status, checked.stderr
    assert checked.stderr.count("(config.E001)") == 2 * status
