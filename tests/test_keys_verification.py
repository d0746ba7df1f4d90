import asyncio
import threading
import time
from datetime import timedelta

import pytest
from django.db import connection, connections, transaction
from django.db.backends.postgresql.base import DatabaseWrapper
from django.utils.timezone import now

from keys import callers, secrets, services, verification
from keys.exceptions import InvalidKey, KeysUnavailable
from keys.lifetimes import Grace
from keys.models import ApiKey, KeySecret
from keys.verification import Caller, identify, reload
from tenants import generations
from tenants import services as tenant_services
from tenants.clock import clock
from tenants.models import Tenant, User
from tenants.redis import redis_now
from tests.conftest import eventually

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def no_numbers():
    redis_now().delete(generations.NUMBERS)
    yield
    redis_now().delete(generations.NUMBERS)


@pytest.fixture
def acme():
    return tenant_services.create_tenant(
        slug="acme",
        name="ACME",
        actor="root",
        time_zone="Europe/Berlin",
        week_start=7,
        models=["tiny:latest"],
    )


@pytest.fixture
def issued(acme):
    return services.issue_key(tenant=acme, label="nightly", actor="root")


@pytest.fixture
def loads(monkeypatch):
    """The public ids that were looked up in the database, in order."""
    looked_up = []
    real = callers.load

    def load(public_id):
        looked_up.append(public_id)
        return real(public_id)

    monkeypatch.setattr(verification, "load", load)
    return looked_up


def public_id_of(secret: str) -> str:
    public_id = secrets.public_id_of(secret)
    assert public_id is not None
    return public_id


def bearer(secret):
    return {"authorization": f"Bearer {secret}"}


async def aside(work):
    """Run ``work``, which uses the database, in a thread."""

    def and_close():
        try:
            return work()
        finally:
            connection.close()

    return await asyncio.to_thread(and_close)


async def reason_of(headers):
    with pytest.raises(InvalidKey) as refused:
        await identify(headers)
    assert str(refused.value) == "invalid key"
    return refused.value.reason


def test_a_caller_is_a_snapshot_of_the_key_and_what_stands_above_it(acme):
    user = tenant_services.create_user(username="ada", email="ada@example.org", actor="root")
    team = tenant_services.create_team(tenant=acme, name="Research", actor="root")
    member = tenant_services.add_member(tenant=acme, user=user, team=team, actor="root")
    ends = now() + timedelta(days=1)
    key, secret = services.issue_key(
        tenant=acme, member=member, label="nightly", actor="root", expires_at=ends
    )

    caller = asyncio.run(identify(bearer(secret)))

    assert caller == Caller(
        public_id=public_id_of(secret),
        digest=secrets.digest(secret),
        key_id=key.pk,
        key="nightly",
        tenant_id=acme.pk,
        tenant="acme",
        tenant_active=True,
        team_id=team.pk,
        team="Research",
        member_id=member.pk,
        member="ada",
        time_zone="Europe/Berlin",
        week_start=7,
        allow_all_models=False,
        models=frozenset({"tiny:latest"}),
        expires_at_ms=int(ends.timestamp() * 1000),
        revoked=False,
        policy={},
        tenant_generation=4,
        platform_generation=0,
    )
    assert secret not in repr(caller)


@pytest.mark.parametrize(
    ("tenant_all", "tenant_models", "key_all", "key_models", "expected"),
    [
        pytest.param(False, None, None, None, (False, None), id="nobody has said anything"),
        pytest.param(True, None, None, None, (True, None), id="key follows a tenant that allows all"),
        pytest.param(False, ["a"], None, None, (False, {"a"}), id="key follows a tenant with a list"),
        pytest.param(False, ["a"], None, ["b"], (False, {"b"}), id="the key's list counts"),
        pytest.param(False, ["a"], None, [], (False, set()), id="an empty list allows nothing"),
        pytest.param(True, None, False, ["b"], (False, {"b"}), id="the key says no to all"),
        pytest.param(False, [], True, None, (True, set()), id="the key says yes to all"),
    ],
)
def test_what_key_and_tenant_say_about_models(tenant_all, tenant_models, key_all, key_models, expected):
    tenant = tenant_services.create_tenant(
        slug="acme", name="ACME", actor="root", allow_all_models=tenant_all, models=tenant_models
    )
    _, secret = services.issue_key(
        tenant=tenant, label="x", actor="root", allow_all_models=key_all, models=key_models
    )

    caller = asyncio.run(identify(bearer(secret)))

    assert (caller.allow_all_models, caller.models) == expected


def test_a_secret_comes_as_bearer_or_in_x_api_key(issued):
    key, secret = issued

    async def ask():
        for headers in (
            {"authorization": f"Bearer {secret}"},
            {"authorization": f"bearer {secret}"},
            {"x-api-key": secret},
            {"authorization": f"Bearer {secret}", "x-api-key": secret},
        ):
            assert (await identify(headers)).key_id == key.pk

    asyncio.run(ask())


def test_every_bad_secret_gets_the_same_refusal(acme, issued):
    _, secret = issued
    _, other = services.issue_key(tenant=acme, label="other", actor="root")
    _, unknown = secrets.mint()
    wrong = _same_public_id(secret)

    async def ask():
        assert await reason_of({}) == "no secret"
        for headers in (
            {"authorization": ""},
            {"authorization": secret},
            {"authorization": f"Basic {secret}"},
            {"authorization": f"Bearer{secret}"},
        ):
            assert await reason_of(headers) == "not a bearer secret"
        for headers in (
            {"x-api-key": ""},
            {"x-api-key": f"Bearer {secret}"},
            bearer(f"{secret}, Bearer {secret}"),
            bearer(f"{secret},Bearer {other}"),
            bearer(f"{secret} {secret}"),
            bearer(f" {secret}"),
            bearer("tg_' OR pg_sleep(5)--"),
            bearer(secret[:-1]),
            bearer("é" * 61),
            bearer(""),
        ):
            assert await reason_of(headers) == "malformed secret"
        assert await reason_of(bearer(secret) | {"x-api-key": other}) == "two secrets"
        assert await reason_of(bearer(unknown)) == "unknown secret"
        assert await reason_of(bearer(wrong)) == "wrong secret"

    asyncio.run(ask())


def _same_public_id(secret):
    """A secret of the right format with the public id of ``secret`` and another random part."""
    body = secret[:15] + "0" * 40
    return body + secrets._checksum(body)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda: ApiKey.objects.update(revoked_at=now()), "revoked"),
        (lambda: ApiKey.objects.update(created_at=now() - timedelta(2), expires_at=now()), "expired"),
        (lambda: KeySecret.objects.update(retires_at=now()), "expired"),
        (lambda: KeySecret.objects.update(retires_at=now(), retires_on_use=True), "succeeded"),
        (lambda: ApiKey.objects.update(disabled_at=now()), "disabled"),
        (lambda: Tenant.objects.update(state="suspended"), "tenant suspended"),
        (lambda: User.objects.update(is_active=False), "revoked"),
        (lambda: KeySecret.objects.all().delete(), "unknown secret"),
    ],
)
def test_what_is_no_longer_good_is_refused_after_a_reload_and_by_new_processes(spoil, reason, acme):
    user = tenant_services.create_user(username="ada", email="", actor="root")
    member = tenant_services.add_member(tenant=acme, user=user, actor="root")
    _, secret = services.issue_key(tenant=acme, member=member, label="nightly", actor="root")

    async def ask():
        caller = await identify(bearer(secret))
        await aside(spoil)
        with pytest.raises(InvalidKey) as refused:
            await reload(caller.public_id)
        assert refused.value.reason == reason
        assert await reason_of(bearer(secret)) == reason

    asyncio.run(ask())
    assert asyncio.run(reason_of(bearer(secret))) == reason


def test_a_key_that_expires_while_it_is_known_is_refused_without_a_look_up(monkeypatch, acme, loads):
    ends = now() + timedelta(hours=1)
    _, secret = services.issue_key(tenant=acme, label="brief", actor="root", expires_at=ends)

    async def ask():
        caller = await identify(bearer(secret))
        assert caller.expires_at_ms is not None
        ends_at = caller.expires_at_ms
        monkeypatch.setattr(clock, "now_ms", lambda: ends_at - 1)
        await identify(bearer(secret))
        monkeypatch.setattr(clock, "now_ms", lambda: ends_at)
        assert await reason_of(bearer(secret)) == "expired"

    asyncio.run(ask())
    assert len(loads) == 1


def test_while_rotating_both_secrets_open_the_key(issued):
    key, first = issued
    _, second = services.rotate_key(key=key, actor="root", grace=Grace.HOUR)

    async def ask():
        callers = [await identify(bearer(secret)) for secret in (first, second)]
        assert [caller.key_id for caller in callers] == [key.pk, key.pk]
        assert callers[0].expires_at_ms is not None
        assert callers[1].expires_at_ms is None

    asyncio.run(ask())


def test_a_known_key_is_identified_without_the_database(issued, loads):
    _, secret = issued

    async def ask():
        for _ in range(100):
            await identify(bearer(secret))
        assert await reason_of(bearer(_same_public_id(secret))) == "wrong secret"

    asyncio.run(ask())
    assert len(loads) == 1


def test_many_who_ask_for_a_new_key_at_once_share_one_look_up(issued, loads):
    _, secret = issued

    async def ask():
        callers = await asyncio.gather(*[identify(bearer(secret)) for _ in range(50)])
        assert len({id(caller) for caller in callers}) == 1

    asyncio.run(ask())
    assert len(loads) == 1


def test_a_client_that_leaves_does_not_take_the_look_up_from_the_others(issued, loads):
    _, secret = issued

    async def ask():
        leaves, stays = (asyncio.create_task(identify(bearer(secret))) for _ in range(2))
        await asyncio.sleep(0)
        leaves.cancel()
        assert (await stays).key == "nightly"
        assert leaves.cancelled()

    asyncio.run(ask())
    assert len(loads) == 1


def test_a_reload_never_joins_a_look_up_that_left_before_it(monkeypatch, issued):
    key, secret = issued
    read, go_on = threading.Event(), threading.Event()
    real = callers.load
    revoked = []

    def slow_load(public_id):
        caller = real(public_id)
        assert caller is not None
        revoked.append(caller.revoked)
        read.set()
        go_on.wait(30)
        return caller

    monkeypatch.setattr(verification, "load", slow_load)

    async def ask():
        early = asyncio.create_task(identify(bearer(secret)))
        await asyncio.to_thread(read.wait, 30)
        await aside(lambda: services.revoke_key(key=key, actor="root", reason="lost"))
        late = asyncio.create_task(reload(public_id_of(secret)))
        await asyncio.sleep(0)
        go_on.set()
        # The early one finds in Redis that it has read old news, and reads again.
        for look_up in (early, late):
            with pytest.raises(InvalidKey):
                await look_up

    asyncio.run(ask())
    assert revoked == [False, True, True]


@pytest.mark.timeout(20)
def test_a_reload_that_meets_a_look_up_at_its_landing_reads_anew(issued, loads):
    public_id = public_id_of(issued[1])

    async def ask():
        known = verification._known()
        landing = asyncio.get_running_loop().create_future()
        landing.add_done_callback(lambda landed: known._land(public_id, landed))
        known._flights[public_id] = verification._Flight(time.monotonic() - 1, landing)
        # Over, and still on the list: the loop has not turned since.
        landing.set_result(None)
        return await reload(public_id)

    assert asyncio.run(ask()).key == "nightly"
    assert loads == [public_id]


def test_a_reload_puts_lost_generations_back_into_redis(acme, issued):
    _, secret = issued
    redis_now().delete(generations.NUMBERS)

    async def ask():
        await identify(bearer(secret))
        await aside(lambda: redis_now().delete(generations.NUMBERS))
        return await reload(public_id_of(secret))

    caller = asyncio.run(ask())

    numbers = redis_now().zmscore(generations.NUMBERS, [acme.pk.hex, "platform"])
    assert numbers == [caller.tenant_generation, caller.platform_generation] == [2, 0]


def test_a_database_back_from_a_backup_makes_every_snapshot_old(acme, issued):
    _, secret = issued
    redis_now().zadd(generations.NUMBERS, {acme.pk.hex: 9, "platform": 4})

    caller = asyncio.run(identify(bearer(secret)))

    assert (caller.tenant_generation, caller.platform_generation) == (10, 5)
    assert redis_now().zmscore(generations.NUMBERS, [acme.pk.hex, "platform"]) == [10, 5]


def test_without_redis_a_new_key_is_unavailable_before_the_database_is_asked(settings, issued, loads):
    _, secret = issued
    settings.REDIS_URL = "redis://127.0.0.1:1/0"

    with pytest.raises(KeysUnavailable):
        asyncio.run(identify(bearer(secret)))

    assert loads == []


def test_guessing_asks_the_database_within_limits_and_never_hides_a_known_key(monkeypatch, issued, loads):
    monkeypatch.setattr(verification, "UNKNOWN_PER_SECOND", 20.0)
    _, secret = issued
    refused, unavailable = [], []

    async def guess():
        try:
            await identify(bearer(secrets.mint()[1]))
        except InvalidKey as exc:
            refused.append(exc)
        except KeysUnavailable as exc:
            unavailable.append(exc)

    async def ask():
        await identify(bearer(secret))
        started = time.monotonic()
        await asyncio.gather(*[guess() for _ in range(2000)])
        seconds = time.monotonic() - started
        assert (await identify(bearer(secret))).key == "nightly"
        return seconds

    seconds = asyncio.run(ask())

    assert len(loads) <= 1 + verification.UNKNOWN_PER_SECOND * (1 + seconds)
    # A look-up that takes too long is no answer either.
    assert 0 < len(refused) <= len(loads) - 1
    assert len(refused) + len(unavailable) == 2000
    assert {exc.retry_after for exc in unavailable} == {1.0}


def test_keys_that_exist_do_not_use_up_what_is_left_for_guesses(monkeypatch, acme):
    monkeypatch.setattr(verification, "UNKNOWN_PER_SECOND", 2.0)
    issued = [services.issue_key(tenant=acme, label=str(number), actor="root")[1] for number in range(8)]

    async def ask():
        for secret in issued:
            await identify(bearer(secret))

    asyncio.run(ask())


def test_an_unknown_secret_is_looked_up_once_in_a_while(monkeypatch, loads):
    monkeypatch.setattr(verification, "UNKNOWN_SECONDS", 3600.0)
    _, secret = secrets.mint()

    async def ask():
        for _ in range(20):
            assert await reason_of(bearer(secret)) == "unknown secret"
        assert len(loads) == 1
        monkeypatch.setattr(verification, "UNKNOWN_SECONDS", 0.0)
        verification._known()._unknown_until.clear()
        await reason_of(bearer(secret))
        await reason_of(bearer(secret))
        assert len(loads) == 3

    asyncio.run(ask())


def test_what_is_remembered_is_bounded(monkeypatch, acme):
    monkeypatch.setattr(verification, "CALLERS", 3)
    monkeypatch.setattr(verification, "UNKNOWN_SECRETS", 3)
    issued = [services.issue_key(tenant=acme, label=str(number), actor="root")[1] for number in range(5)]

    async def ask():
        for secret in issued:
            await identify(bearer(secret))
            await identify(bearer(issued[0]))
            await reason_of(bearer(secrets.mint()[1]))
        known = verification._known()
        assert list(known._callers) == [secrets.public_id_of(issued[place]) for place in (3, 4, 0)]
        assert len(known._unknown_until) == 3
        assert known._flights == {}

    asyncio.run(ask())


def test_a_database_that_hangs_makes_keys_unavailable_and_not_invalid(monkeypatch, issued):
    _, secret = issued
    monkeypatch.setattr(verification, "LOAD_SECONDS", 0.2)

    async def ask():
        with pytest.raises(KeysUnavailable):
            await identify(bearer(secret))

    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("LOCK TABLE keys_keysecret IN ACCESS EXCLUSIVE MODE")
        asyncio.run(ask())

    monkeypatch.undo()
    assert asyncio.run(identify(bearer(secret))).key == "nightly"


def test_a_database_error_makes_keys_unavailable_and_not_invalid(issued, caplog):
    _, secret = issued

    async def ask():
        with pytest.raises(KeysUnavailable):
            await identify(bearer(secret))

    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE keys_keysecret RENAME TO gone")
        try:
            asyncio.run(ask())
        finally:
            cursor.execute("ALTER TABLE gone RENAME TO keys_keysecret")

    assert "cannot be read" in caplog.text
    assert asyncio.run(identify(bearer(secret))).key == "nightly"


def test_after_all_connections_broke_keys_are_unavailable_for_moments_and_never_invalid(issued):
    _, secret = issued
    asyncio.run(identify(bearer(secret)))
    with connection.cursor() as cursor:
        # Not what PostgreSQL itself does there now and then, which we may not end.
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()"
        )

    async def ask():
        deadline = time.monotonic() + 60
        while True:
            try:
                return await identify(bearer(secret))
            except KeysUnavailable:
                assert time.monotonic() < deadline

    assert asyncio.run(ask()).key == "nightly"


def test_a_look_up_gives_its_connection_back(acme):
    issued = [services.issue_key(tenant=acme, label=str(number), actor="root")[1] for number in range(12)]

    async def ask():
        await asyncio.gather(*[identify(bearer(secret)) for secret in issued])

    asyncio.run(ask())
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND state LIKE 'idle in%'"
        )
        assert cursor.fetchone() == (0,)
    ours = connections["default"]
    assert isinstance(ours, DatabaseWrapper)

    def all_back() -> bool:
        """Also those that were wanted, came too late for whoever waited, and count before they are there."""
        pool = ours.pool.get_stats()
        return bool(pool["pool_available"] >= pool["pool_size"] - 1)

    eventually(all_back)
