"""The house in which most tests live: a gateway process, a simulated Ollama, a tenant with a key.

The gateway and the Ollama start once per run. Each test begins with empty
tables and an empty Redis, and everything it does goes through the gateway's
own port, as a client would.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import hypothesis
import pytest
import pytest_django
from django.conf import settings
from django.db import connection
from django.test import Client, TransactionTestCase, override_settings
from whitenoise.middleware import WhiteNoiseMiddleware

from budgets import ledger
from budgets.counters import CLOCK, EPOCH, HOLDS, redis_in_bytes
from budgets.models import CounterEpoch, LedgerEntry
from budgets.rebuild import ensure_epoch
from config.embedded import Valkey
from keys.models import ApiKey
from keys.services import issue_key
from proxy.catalog import published_at
from proxy.models import Upstream
from proxy.services import save_upstream
from proxy.simulator.server import SimulatorThread
from tenants.models import Tenant, User
from tenants.redis import redis_now
from tenants.services import create_tenant
from tests.emptying import empty_tables
from tests.gateway import Gateway, SharedGateway
from tests.servers import TEMPLATE

# Fixtures ``browser``, ``page`` and ``owner``; ``mail`` and ``http``.
pytest_plugins = ["tests.browser", "tests.receivers"]

# Only what never comes takes as long; a machine with other work may need some of it.
PATIENCE_SECONDS = 30

# How long an example takes is a matter of what else the machine does. A run tries the same examples as the
# one before, so what fails is what was changed; ``--hypothesis-profile=search`` looks for others.
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True)
hypothesis.settings.register_profile("search", deadline=None, derandomize=False)
hypothesis.settings.load_profile("tests")


def eventually(condition: Callable[[], Any], seconds: float = PATIENCE_SECONDS) -> Any:
    """The first true value of ``condition``, asked again and again; fails when it never comes."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"still {value!r} after {seconds} s"
        time.sleep(0.01)
    return value


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files that need the gateway behind all others, and among both those with slow tests first.

    Once it runs it hears of every change and puts it in force, also where a
    test wants to see what is so before. And the workers get whole files: a long
    one that comes last is waited for when all others are through.
    """
    with_gateway = {item.path for item in items if "gateway" in getattr(item, "fixturenames", ())}
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: (item.path in with_gateway, item.path not in slow))


@pytest.fixture(scope="session")
def django_db_modify_db_settings(
    django_db_modify_db_settings_parallel_suffix: None,
    django_db_blocker: pytest_django.DjangoDbBlocker,
    tmp_path_factory: pytest.TempPathFactory,
    worker_id: str,
) -> None:
    """Let each worker copy a database that the first one has migrated: a tenth of the work."""
    if worker_id == "master":
        return
    with (
        (tmp_path_factory.getbasetemp().parent / "migrated").open("a") as migrated,
        django_db_blocker.unblock(),
    ):
        fcntl.flock(migrated, fcntl.LOCK_EX)
        if not migrated.seek(0, os.SEEK_END):
            _migrate(TEMPLATE)
            migrated.write("yes")
    connection.settings_dict["TEST"]["TEMPLATE"] = TEMPLATE


def _migrate(database: str) -> None:
    """Make ``database``, anew if a run that was killed has left it; nobody is connected to it after."""
    ours, own = connection.settings_dict["NAME"], connection.settings_dict["TEST"]["NAME"]
    connection.settings_dict["TEST"]["NAME"] = database
    connection.creation.create_test_db(verbosity=0, autoclobber=True, serialize=False)
    connection.creation.destroy_test_db(ours, verbosity=0, keepdb=True)
    connection.close_pool()  # type: ignore[attr-defined]  # PostgreSQL's have one
    connection.settings_dict["TEST"]["NAME"] = own


@pytest.fixture(scope="session", autouse=True)
def speed() -> Iterator[None]:
    """What takes long in production on purpose, or in Django by default, and tests nothing of ours."""
    quick_hash = override_settings(PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"])
    with quick_hash, pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransactionTestCase, "_fixture_teardown", empty_tables)
        patch.setattr(WhiteNoiseMiddleware, "add_files_from_finders", _add_files_found_once())
        # Every HTTP client reads all certificates of the system; here they talk to 127.0.0.1 in plain text.
        patch.setattr(ssl, "create_default_context", lambda **_: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        yield


def _add_files_found_once() -> Callable[[WhiteNoiseMiddleware], None]:
    """How the site finds its static files, which it does once; here each test client is a site of its own."""
    find = WhiteNoiseMiddleware.add_files_from_finders
    found: dict[str, dict[str, Any]] = {}

    def add(site: WhiteNoiseMiddleware) -> None:
        if site.static_prefix not in found:
            find(site)
            found[site.static_prefix] = dict(site.files)
        site.files.update(found[site.static_prefix])

    return add


@pytest.fixture(scope="session")
def ollama_server() -> Iterator[SimulatorThread]:
    with SimulatorThread() as server:
        yield server


@pytest.fixture
def ollama(ollama_server: SimulatorThread) -> SimulatorThread:
    """The simulated Ollama as new: nothing scripted, nothing received."""
    ollama_server.reset()
    return ollama_server


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """A server of its own for what others may not meet: the usual one serves all processes of the run."""
    directory = tmp_path_factory.mktemp("valkey")
    with Valkey(directory / "data", log=directory / "log", durable=False) as server:
        yield server


@pytest.fixture(scope="session")
def gateway(django_db_setup: None) -> Iterator[Gateway]:
    with SharedGateway() as running:
        _shared[settings.REDIS_URL] = running
        yield running
        _shared.clear()


# While it runs: by the address of its Redis.
_shared: dict[str, SharedGateway] = {}


@pytest.fixture
def admin_client(db: None, client: Client) -> Client:
    """A signed-in superuser; by a password it would take as long as hashing one."""
    client.force_login(User.objects.create(username="admin", is_staff=True, is_superuser=True))
    return client


@pytest.fixture
def acme() -> Tenant:
    """A tenant whose days begin before those of UTC; files that need another one have their own."""
    return create_tenant(slug="acme", name="ACME", actor="test", time_zone="Europe/Berlin")


def furnish(ollama: SimulatorThread) -> None:
    """Empty Redis, and put in what every house has: counters that may be believed, an upstream.

    The mark of the counters stays all the time, and the time of the last call is
    none before this: a gateway that saw either gone would take that for a loss, and
    send again what it booked for the test before. For the same reason the shared one is
    renewed if a test has changed the mark. The models of the upstream stay, because a
    gateway goes on knowing them while a page, which asks Redis, would find none.
    """
    _let_calls_end()
    epoch: bytes | None = redis_in_bytes().get(EPOCH)
    shared = _shared.get(settings.REDIS_URL)
    if shared is not None and shared.mark not in (None, epoch):
        shared.renew()
    models = redis_now().get(published_at("sim"))
    emptying = redis_now().pipeline(transaction=True)
    emptying.flushdb()
    if epoch is not None:
        CounterEpoch.objects.create(epoch=epoch.decode())
        emptying.set(EPOCH, epoch)
        seconds, microseconds = redis_now().time()
        emptying.set(CLOCK, seconds * 1000 + microseconds // 1000)
    if models is not None:
        emptying.set(published_at("sim"), models, px=int(settings.CATALOG_MAX_AGE_SECONDS * 1000))
    emptying.execute()
    ensure_epoch()
    if shared is not None:
        shared.mark = redis_in_bytes().get(EPOCH)
    save_upstream(upstream=Upstream(name="sim", base_url=ollama.url), actor="test")


def _let_calls_end() -> None:
    """Wait a moment until the calls of the last test are booked: else they would be in the books of this one.

    Those of a process that was killed do not end.
    """
    with contextlib.suppress(AssertionError):
        eventually(lambda: not redis_now().zcard(HOLDS), seconds=1)


@dataclass(frozen=True)
class Caller:
    """A key with its secret, and a client that uses it."""

    key: ApiKey
    secret: str
    http: httpx.Client

    def chat(self, content: str = "hello there", **fields: Any) -> httpx.Response:
        """One native chat."""
        body = {"model": "tiny:1b", "messages": [{"role": "user", "content": content}], **fields}
        return self.http.post("/api/chat", json=body)


@pytest.fixture
def house(transactional_db: None, ollama: SimulatorThread, gateway: Gateway) -> Iterator[House]:
    furnish(ollama)
    with House(gateway, ollama).opened() as house:
        yield house


class House:
    """A tenant ``acme`` that may use every model, and its callers."""

    def __init__(self, gateway: Gateway, ollama: SimulatorThread) -> None:
        self.gateway = gateway
        self.ollama = ollama
        self._clients: list[httpx.Client] = []

    def opened(self) -> House:
        self.acme = create_tenant(slug="acme", name="ACME", actor="test", allow_all_models=True)
        return self

    def __enter__(self) -> House:
        self.ada = self.caller()
        answer = httpx.Response(0)

        def knows_models() -> bool:
            nonlocal answer
            answer = self.ada.http.get("/v1/models")
            return answer.status_code == 200

        # The gateway looks for models when the house is new to it.
        try:
            eventually(knows_models)
        except AssertionError as why:
            raise AssertionError(f"{why}: {answer.text}\n{self.gateway.log()}") from why
        return self

    def __exit__(self, *exc: object) -> None:
        for client in self._clients:
            client.close()

    def caller(self, tenant: Tenant | None = None, **options: Any) -> Caller:
        """A new key of ``tenant``, or of ``acme``."""
        key, secret = issue_key(
            tenant=tenant or self.acme, label=f"key {len(self._clients)}", actor="test", **options
        )
        client = httpx.Client(
            base_url=self.gateway.url,
            headers={"Authorization": f"Bearer {secret}"},
            timeout=30,
            trust_env=False,
        )
        self._clients.append(client)
        return Caller(key, secret, client)

    def booked(self, count: int = 1) -> list[LedgerEntry]:
        """The ledger once ``count`` entries stand in it, in the order in which the calls came.

        A call may be settled after the next one, for its client has the answer before.
        """

        def entries() -> list[LedgerEntry]:
            ledger.drain()
            found = list(LedgerEntry.objects.order_by("request_id", "id"))
            return found if len(found) >= count else []

        found: list[LedgerEntry] = eventually(entries)
        assert len(found) == count
        return found
