"""``manage.py quickstart``: set up, start and prove a whole gateway on this machine.

This process starts all others and looks after them. It has no threads and
loads no Django, so that each child can be told to end with it (``children``).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shlex
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn, cast

from config import proof
from config.data_directory import DataDirectory, InUseError
from config.embedded import EmbeddedServerError, Postgres, Valkey, free_port
from config.progress import say, step
from config.proof import AskingError
from config.supervisor import PartError, Supervisor
from config.trial_secrets import is_loopback, is_trial_secret, make_trial_secret

USUAL_OLLAMA = "http://127.0.0.1:11434"
READY_SECONDS = 90
# How long a part may take to stop: web lets its streams run out first.
WEB_PATIENCE = 60
PATIENCE = 20
INTERRUPTED = 130
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# What goes into quickstart.env, in this order.
REMEMBERED = [
    "GATEWAY_URL", "DEMO_KEY", "DATABASE_URL", "REDIS_URL", "OLLAMA_URL", "ADMIN_USER", "ADMIN_PASSWORD",
    "SECRET_KEY", "KEY_PEPPER", "SPOOL_DIR", "EXPORT_DIR",
]  # fmt: skip


class PortTakenError(Exception):
    """Something else listens where the gateway should."""


class TrialSecretError(Exception):
    """Other machines would reach a gateway whose secrets were made for a trial."""


def main(arguments: Sequence[str]) -> int:
    """Run until stopped, or with ``--check`` until proven; returns the exit status."""
    options = _parse(arguments)
    # Whatever a terminal can show, no sign that it cannot may end us.
    cast("io.TextIOWrapper", sys.stdout).reconfigure(errors="replace")
    _take_signals()
    try:
        return _run(options, DataDirectory(options.data_dir))
    except KeyboardInterrupt:
        return INTERRUPTED
    except (
        InUseError, PortTakenError, TrialSecretError, EmbeddedServerError, PartError, AskingError
    ) as exc:  # fmt: skip
        say(f"\n{exc}")
        return 1


def _run(options: argparse.Namespace, data: DataDirectory) -> int:
    with data.lock(), Supervisor(data.logs) as supervisor:
        say(f"Tollgate in {data.path}")
        remembered = data.remembered()
        environment = _environment(options, data, remembered)
        model = _start_all(options, data, supervisor, environment, remembered)
        proven = _prove(environment, supervisor, model)
        if options.check:
            return 0 if proven else 1
        # Being stopped is how this is meant to end, from the first word of the box on.
        with contextlib.suppress(KeyboardInterrupt):
            _show_box(environment, remembered, data, model)
            supervisor.watch()
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="manage.py quickstart",
        description="Set up, start and prove a gateway. DATABASE_URL, REDIS_URL and OLLAMA_URL name servers "
        "of your own; what is not named is started here.",
    )
    parser.add_argument(
        "--check", action="store_true", help="stop after the proof; the exit status tells how it went"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument(
        "--port", type=int, default=8000, help="port; 0 takes a free one (default: %(default)s)"
    )
    parser.add_argument("--data-dir", type=Path, default=DataDirectory().path, help="default: %(default)s")
    return parser.parse_args(arguments)


def _environment(
    options: argparse.Namespace, data: DataDirectory, remembered: Mapping[str, str]
) -> dict[str, str]:
    """The environment of all parts: ours, the gateway's address, and its secrets as in the last run."""
    port = options.port or free_port()
    _demand_free(options.host, port)
    environment = {
        "SECRET_KEY": remembered.get("SECRET_KEY") or make_trial_secret(),
        "KEY_PEPPER": remembered.get("KEY_PEPPER") or make_trial_secret(),
        "SPOOL_DIR": str(data.spool),
        "EXPORT_DIR": str(data.exports),
        # What is set to nothing is as good as not set.
        **{name: value for name, value in os.environ.items() if value},
        "GATEWAY_URL": f"http://{_reachable(options.host)}:{port}",
    }
    if not is_loopback(options.host):
        _demand_own_secrets(options.host, environment)
        names = ["localhost", "127.0.0.1", "[::1]", _reachable(options.host), socket.gethostname()]
        environment.setdefault("ALLOWED_HOSTS", ",".join(names))
        # Its error pages show settings to whoever can reach them.
        environment["DEBUG"] = "false"
    return environment


def _start_all(
    options: argparse.Namespace,
    data: DataDirectory,
    supervisor: Supervisor,
    environment: dict[str, str],
    remembered: Mapping[str, str],
) -> str:
    """Start and prepare everything, in order, and write ``quickstart.env``; returns a model that can chat."""
    _demand_ollama(environment)
    _start_servers(environment, data, supervisor)
    with step("migrations"):
        supervisor.run(["migrate"], environment)
    model = _find_ollama(environment, supervisor)
    with step("demo data") as current:
        wishes = {
            "ollama_url": environment["OLLAMA_URL"],
            "demo_key": remembered.get("DEMO_KEY", ""),
            "admin_password": remembered.get("ADMIN_PASSWORD", ""),
        }
        prepared = json.loads(supervisor.run(["demo", "prepare"], environment, json.dumps(wishes)))
        current.result = "operator, tenant, member, budget and key are there"
    environment["ADMIN_USER"] = "admin"
    environment["ADMIN_PASSWORD"] = prepared["admin_password"]
    environment["DEMO_KEY"] = prepared["demo_key"]
    data.remember({name: environment[name] for name in REMEMBERED})
    with step("gateway") as current:
        _start_gateway(environment, supervisor, options.host)
        url = environment["GATEWAY_URL"]
        proof.wait_until_ready(f"{url}/readyz", READY_SECONDS, supervisor.check)
        # Ready is before it has asked Ollama for its models.
        proof.wait_until_ready(
            f"{url}/v1/models/{model}", READY_SECONDS, supervisor.check, key=environment["DEMO_KEY"]
        )
        current.result = f"web, worker and beat are ready at {url}"
    return model


def _demand_ollama(environment: Mapping[str, str]) -> None:
    """Raise ``AskingError`` if an Ollama is named and does not answer, before anything else takes time."""
    url = environment.get("OLLAMA_URL", "").rstrip("/")
    if url and not proof.answers(f"{url}/api/version"):
        raise AskingError(f"OLLAMA_URL names {url}, but no Ollama answers there.")


def _start_servers(environment: dict[str, str], data: DataDirectory, supervisor: Supervisor) -> None:
    """Start the servers that the environment does not name, and name them there."""
    servers = {
        "DATABASE_URL": Postgres(data.postgres, log=supervisor.log_of("postgres"), durable=True),
        "REDIS_URL": Valkey(data.valkey, log=supervisor.log_of("valkey"), durable=True),
    }
    for name, server in servers.items():
        if name in environment:
            say(f"  {server.name:<15}         yours, named by {name}")
            continue
        with step(server.name) as current:
            supervisor.start_server(server)
            environment[name] = server.url
            current.result = f"127.0.0.1:{server.port}"


def _find_ollama(environment: dict[str, str], supervisor: Supervisor) -> str:
    """Put the address of an Ollama into the environment and return the model for the proof.

    Without a name it is the one at the usual address, or else the simulated one.
    Raises ``AskingError`` when it has no model.
    """
    with step("Ollama") as current:
        url = environment.get("OLLAMA_URL", "").rstrip("/")
        if url:
            current.result = f"yours, at {url}"
        elif proof.answers(f"{USUAL_OLLAMA}/api/version"):
            url = USUAL_OLLAMA
            current.result = f"found at {url}"
        else:
            port = free_port()
            url = f"http://127.0.0.1:{port}"
            supervisor.start(
                "ollama",
                ["manage.py", "simulate_ollama", "--port", str(port)],
                environment,
                patience=PATIENCE,
            )
            proof.wait_until_ready(f"{url}/api/version", READY_SECONDS, supervisor.check)
            current.result = (
                f"none at {USUAL_OLLAMA}, so a SIMULATED one runs at {url}: its answers are made up"
            )
        environment["OLLAMA_URL"] = url
        model = proof.chat_model_of(url)
    if model is None:
        raise AskingError(f"The Ollama at {url} has no model that can chat. Get one: ollama pull llama3.2:1b")
    return model


def _start_gateway(environment: Mapping[str, str], supervisor: Supervisor, host: str) -> None:
    celery = ["-m", "celery", "--app", "config.celery"]
    # Django's checks would have both load every page there is, beside the web process that needs them.
    unchecked = {**environment, "CELERY_SKIP_CHECKS": "1"}
    supervisor.start("beat", [*celery, "beat", "--pidfile", ""], unchecked, patience=PATIENCE)
    # Threads, not processes: a worker's children could outlive it.
    worker = ["worker", "--pool", "threads", "--concurrency", "2", "--without-gossip", "--without-mingle"]
    supervisor.start("worker", [*celery, *worker], unchecked, patience=PATIENCE)
    port = environment["GATEWAY_URL"].rpartition(":")[2]
    serve = ["manage.py", "serve", "--trial", "--host", host, "--port", port]
    supervisor.start("web", serve, environment, patience=WEB_PATIENCE)


def _prove(environment: dict[str, str], supervisor: Supervisor, model: str) -> bool:
    """Chat through the gateway and find the call in the ledger; returns whether both tell the same tokens."""
    with step("proof") as current:
        answer = proof.chat(environment["GATEWAY_URL"], key=environment["DEMO_KEY"], model=model)
        current.result = (
            f"{model} said {answer.text[:60]!r}: {answer.input_tokens} tokens in, {answer.output_tokens} out"
        )
    with step("ledger") as current:
        entry = json.loads(supervisor.run(["demo", "booked", answer.request_id], environment))
        current.result = (
            f"entry {entry['number']}: {entry['tenant']}, {entry['key']}, {entry['model']}, "
            f"{entry['input_tokens']} tokens in, {entry['output_tokens']} out, {entry['outcome']}"
        )
    same = (entry["input_tokens"], entry["output_tokens"]) == (answer.input_tokens, answer.output_tokens)
    if not same:
        say("\nThe ledger does not tell the tokens that the client was told.")
    return same


def _show_box(
    environment: dict[str, str], remembered: dict[str, str], data: DataDirectory, model: str
) -> None:
    """Tell a person what they need next. A secret is shown when it is new; after that the file has it."""

    def once(name: str) -> str:
        return environment[name] if environment[name] != remembered.get(name) else f"{name} in the file below"

    url = environment["GATEWAY_URL"]
    question = json.dumps(
        {"model": model, "messages": [{"role": "user", "content": "Hello"}], "stream": True}
    )
    lines = [
        f"gateway    {url}/v1 (OpenAI), {url} (Ollama)",
        f"key        {once('DEMO_KEY')}",
        f"admin      {url}/admin/",
        f"portal     {url}/portal/",
        f"login      admin, {once('ADMIN_PASSWORD') or 'with the password that you gave it'}",
        f"all this   {data.environment_file}",
        "",
        "Ctrl-C stops, `manage.py quickstart` continues, `manage.py reset` deletes.",
    ]
    width = max(map(len, lines))
    rule = "─" * (width + 2)
    say("\n".join(["", f"┌{rule}┐", *(f"│ {line:<{width}} │" for line in lines), f"└{rule}┘", ""]))
    say(
        f". {shlex.quote(str(data.environment_file))}; curl -sN $GATEWAY_URL/v1/chat/completions "
        f'-H "Authorization: Bearer $DEMO_KEY" -d {shlex.quote(question)}\n'
    )


def _take_signals() -> None:
    """Let SIGTERM and a closed terminal stop us as Ctrl-C does; a second one does not wait for anything."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        for name in STOPPING:
            signal.signal(name, hurry)
        raise KeyboardInterrupt

    def hurry(number: int, frame: FrameType | None) -> NoReturn:
        # Our children are told by the kernel.
        os._exit(INTERRUPTED)

    for name in STOPPING:
        signal.signal(name, stop)


def _demand_free(host: str, port: int) -> None:
    """Raise ``PortTakenError`` if the gateway could not listen there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            raise PortTakenError(
                f"Cannot listen at {host} port {port}: {exc.strerror}. Try --port 0."
            ) from exc


def _demand_own_secrets(host: str, environment: Mapping[str, str]) -> None:
    """Raise ``TrialSecretError`` if a secret of the environment was made by a quickstart."""
    if ours := [name for name in ("SECRET_KEY", "KEY_PEPPER") if is_trial_secret(environment[name])]:
        raise TrialSecretError(
            f"At {host} others reach the gateway, and {' and '.join(ours)} would be a quickstart's. "
            "Set your own in the environment, once; quickstart.env keeps what is set:\n"
            "  python3 -c 'import secrets; print(secrets.token_urlsafe(48))'\n"
            "With another KEY_PEPPER no secret that was issued before works any more: "
            "take a new --data-dir, or issue new ones."
        )


def _reachable(host: str) -> str:
    """``host`` as it stands in an address; for all addresses of the machine its loopback."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not listened at
    return f"[{host}]" if ":" in host else host
