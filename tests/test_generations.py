"""How a change takes force: triggers, the projection into Redis, and the listener."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest
from django.db import connection, transaction

from keys import services as key_services
from keys.callers import Caller, load
from keys.models import ApiKey, KeySecret
from tenants import generations, services
from tenants.models import Generation, Tenant
from tenants.redis import RedisError, redis_now
from tests.counting import NOWHERE

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def no_numbers():
    redis_now().delete(generations.NUMBERS)
    yield
    redis_now().delete(generations.NUMBERS)


@pytest.fixture
def acme():
    return services.create_tenant(slug="acme", name="ACME", actor="root")


@pytest.fixture
def key(acme):
    key, _ = key_services.issue_key(tenant=acme, label="nightly", actor="root")
    return key


def sql(statement, *values):
    with connection.cursor() as cursor:
        cursor.execute(statement, values)


def number_of(tenant):
    return generations.numbers_of(generations.subject_of(tenant.pk))[generations.subject_of(tenant.pk)]


def in_redis(tenant):
    return redis_now().zscore(generations.NUMBERS, generations.subject_of(tenant.pk))


def test_a_new_tenant_is_in_force_when_its_service_returns(acme):
    assert number_of(acme) == 1
    assert in_redis(acme) == 1
    assert generations.in_force(acme.pk)
    assert generations.pending() == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE keys_apikey SET revoked_at = now()",
        "UPDATE keys_apikey SET label = 'weekly'",
        "UPDATE keys_keysecret SET expires_at = now()",
        "DELETE FROM keys_keysecret",
        "UPDATE tenants_tenant SET state = 'suspended'",
        "INSERT INTO tenants_team (id, tenant_id, name) SELECT id, id, 'Lab' FROM tenants_tenant",
        "INSERT INTO tenants_serviceaccount SELECT id, 'build', now(), NULL, NULL, id FROM tenants_tenant",
        "UPDATE keys_apikey SET disabled_at = now()",
        "UPDATE keys_apikey SET scopes = '{chat}', address_blocks = '{192.0.2.0/24}'",
        "UPDATE keys_keysecret SET retires_on_use = true",
    ],
)
def test_plain_sql_raises_the_generation(statement, acme, key):
    before = number_of(acme)

    sql(statement)

    assert number_of(acme) == before + 1
    assert generations.pending() == [generations.subject_of(acme.pk)]
    assert not generations.in_force(acme.pk)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda user: setattr(user, "is_active", False), id="disabled"),
        pytest.param(lambda user: setattr(user, "username", "lovelace"), id="renamed"),
    ],
)
def test_a_change_of_a_user_raises_the_generations_of_their_tenants(change, acme):
    user = services.create_user(username="ada", email="", actor="root")
    globex = services.create_tenant(slug="globex", name="Globex", actor="root")
    elsewhere = services.create_tenant(slug="elsewhere", name="Elsewhere", actor="root")
    for tenant in (acme, globex):
        services.add_member(tenant=tenant, user=user, actor="root")
    before = [number_of(tenant) for tenant in (acme, globex, elsewhere)]

    change(user)
    user.save()

    assert [number_of(tenant) for tenant in (acme, globex, elsewhere)] == [
        before[0] + 1,
        before[1] + 1,
        before[2],
    ]


def test_signing_in_raises_nothing(acme):
    user = services.create_user(username="ada", email="", actor="root")
    services.add_member(tenant=acme, user=user, actor="root")
    before = number_of(acme)

    sql("UPDATE tenants_user SET last_login = now()")

    assert number_of(acme) == before


def test_an_update_that_changes_nothing_raises_nothing(acme, key):
    before = number_of(acme)

    key.save()

    assert number_of(acme) == before


def test_a_row_that_moves_raises_both_tenants(acme, key):
    globex = services.create_tenant(slug="globex", name="Globex", actor="root")
    before = number_of(acme), number_of(globex)

    ApiKey.objects.update(tenant=globex)

    assert (number_of(acme), number_of(globex)) == (before[0] + 1, before[1] + 1)


def test_a_transaction_raises_a_number_once_however_many_rows_it_changes(acme):
    before = number_of(acme)

    with transaction.atomic():
        for count in range(20):
            sql(
                "INSERT INTO tenants_team (id, tenant_id, name) VALUES (gen_random_uuid(), %s, %s)",
                acme.pk,
                count,
            )

    assert number_of(acme) == before + 1


def test_a_change_rolled_back_raises_nothing(acme, key):
    before = number_of(acme)

    with pytest.raises(RuntimeError):
        change_and_fail()

    assert number_of(acme) == before


def change_and_fail():
    with transaction.atomic():
        sql("UPDATE keys_apikey SET label = 'a'")
        raise RuntimeError


def test_a_change_after_a_change_that_was_taken_back_counts(acme, key):
    before = number_of(acme)

    with transaction.atomic():
        with pytest.raises(RuntimeError):
            change_and_fail()
        sql("UPDATE keys_apikey SET label = 'b'")

    assert number_of(acme) == before + 1


def test_a_table_without_a_tenant_raises_the_platform(acme):
    before = generations.numbers_of("platform")["platform"]
    sql("CREATE TABLE settings_of_all (id int, tenant_id uuid)")
    try:
        sql(
            "CREATE TRIGGER of_all AFTER INSERT OR UPDATE OR DELETE ON settings_of_all"
            " FOR EACH ROW EXECUTE FUNCTION tollgate_changed()"
        )
        sql("INSERT INTO settings_of_all VALUES (1, %s)", acme.pk)
        assert generations.numbers_of("platform")["platform"] == before + 1

        sql("DROP TRIGGER of_all ON settings_of_all")
        sql(
            "CREATE TRIGGER of_some AFTER INSERT OR UPDATE OR DELETE ON settings_of_all"
            " FOR EACH ROW EXECUTE FUNCTION tollgate_changed('tenant_id')"
        )
        sql("INSERT INTO settings_of_all VALUES (2, NULL)")
        assert generations.numbers_of("platform")["platform"] == before + 2

        numbers = number_of(acme)
        sql("INSERT INTO settings_of_all VALUES (3, %s)", acme.pk)
        assert generations.numbers_of("platform")["platform"] == before + 2
        assert number_of(acme) == numbers + 1
    finally:
        sql("DROP TABLE settings_of_all")


def test_changes_at_once_are_numbered_without_gaps(acme):
    before = number_of(acme)
    start = threading.Barrier(4)

    def change_often(name):
        try:
            start.wait(30)
            for count in range(10):
                services.create_team(tenant=acme, name=f"{name} {count}", actor="root")
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as people:
        list(people.map(change_often, "abcd"))

    assert number_of(acme) == before + 40
    assert in_redis(acme) == before + 40
    generations.project()
    assert generations.pending() == []


def test_what_is_read_and_its_number_are_of_one_moment(acme, key):
    """The label is written to be the number, so a caller with another one mixes two moments."""
    public_id = KeySecret.objects.get().public_id
    stop = threading.Event()
    seen: list[Caller] = []

    def relabel():
        try:
            while not stop.is_set():
                sql(
                    "UPDATE keys_apikey SET label = number + 1 FROM tenants_generation WHERE subject = %s",
                    generations.subject_of(acme.pk),
                )
        finally:
            connection.close()

    sql("UPDATE keys_apikey SET label = %s", str(number_of(acme) + 1))
    with ThreadPoolExecutor(1) as writer:
        writing = writer.submit(relabel)
        try:
            # However seldom the writer gets its turn, it has had some.
            while len(seen) < 60 or len({caller.key for caller in seen}) < 3:
                caller = load(public_id)
                assert caller is not None
                assert not writing.done()
                seen.append(caller)
        finally:
            stop.set()
        writing.result()

    assert {caller.key == str(caller.tenant_generation) for caller in seen} == {True}


def test_a_change_without_redis_is_pending_and_repeated(settings, acme, key, caplog):
    working = settings.CACHES
    settings.CACHES = NOWHERE
    key_services.revoke_key(key=key, actor="root", reason="lost")
    assert generations.pending() == [generations.subject_of(acme.pk)]
    assert not generations.in_force(acme.pk)
    assert "not in force yet" in caplog.text
    with pytest.raises(RedisError):
        generations.project()

    settings.CACHES = working
    assert not generations.in_force(acme.pk)
    assert generations.project() == 1

    assert generations.in_force(acme.pk)
    assert generations.pending() == []
    assert generations.project() == 0


def test_projecting_twice_at_once_changes_nothing(acme):
    sql("UPDATE tenants_tenant SET name = 'Another'")
    start = threading.Barrier(4)

    def project(_):
        try:
            start.wait(30)
            generations.project()
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as processes:
        list(processes.map(project, range(4)))

    assert in_redis(acme) == number_of(acme) == 2
    assert Generation.objects.get().projected == 2


def test_a_number_in_redis_never_falls(acme):
    sql("UPDATE tenants_tenant SET name = 'Another'")
    generations.project()

    assert asyncio.run(generations.assure({generations.subject_of(acme.pk): 1})) is False
    assert in_redis(acme) == number_of(acme) == 2


def test_a_change_under_way_does_not_hold_up_the_projection_of_others(acme):
    globex = services.create_tenant(slug="globex", name="Globex", actor="root")
    sql("UPDATE tenants_tenant SET name = 'Another'")
    changed, finish = threading.Event(), threading.Event()

    def change_slowly():
        try:
            with transaction.atomic():
                sql("UPDATE tenants_tenant SET name = 'Slow' WHERE slug = 'acme'")
                changed.set()
                finish.wait(30)
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as person:
        slow = person.submit(change_slowly)
        try:
            assert changed.wait(30)
            generations.project()
            assert in_redis(acme) == in_redis(globex) == 2
            assert generations.pending() == [generations.subject_of(acme.pk)]
        finally:
            finish.set()
        slow.result()

    generations.project()
    assert in_redis(acme) == number_of(acme) == 3


def test_a_redis_that_lost_the_numbers_gets_all_of_them_again(acme):
    redis_now().delete(generations.NUMBERS)
    assert generations.project() == 0
    assert not generations.in_force(acme.pk)

    assert generations.project_again() == 1

    assert generations.in_force(acme.pk)


def test_a_database_back_from_a_backup_passes_the_numbers_that_only_redis_has(acme):
    subject = generations.subject_of(acme.pk)
    redis_now().zadd(generations.NUMBERS, {subject: 7, "platform": 3})

    generations.project_again()
    assert number_of(acme) == in_redis(acme) == 8

    assert asyncio.run(generations.assure({subject: 8, "platform": 0})) is False
    assert generations.numbers_of("platform") == {"platform": 4}
    assert redis_now().zscore(generations.NUMBERS, "platform") == 4


def test_projecting_inside_a_transaction_is_refused(acme):
    sql("UPDATE tenants_tenant SET name = 'Another'")

    with pytest.raises(RuntimeError, match="durable"), transaction.atomic():
        generations.project()


def wait_until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def while_listening(work):
    """Run ``work`` in a thread while ``listen`` runs in a loop of its own; then its connection is gone."""

    def and_close():
        try:
            return work()
        finally:
            connection.close()

    async def both():
        listening = asyncio.create_task(generations.listen())
        try:
            return await asyncio.to_thread(and_close)
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    result = asyncio.run(both())
    # PostgreSQL learns a little later that somebody has left, and shows them to the next test until then.
    wait_until(lambda: not listeners())
    return result


def listeners():
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN %'"
        )
        return [pid for (pid,) in cursor.fetchall()]


def test_the_listener_puts_plain_sql_in_force(monkeypatch, acme, key):
    monkeypatch.setattr(generations, "POLL_SECONDS", 60.0)

    def change():
        wait_until(listeners)
        sql("UPDATE keys_apikey SET revoked_at = now()")
        wait_until(lambda: generations.in_force(acme.pk))

    while_listening(change)


def test_the_listener_puts_everything_in_force_when_it_starts(acme):
    redis_now().delete(generations.NUMBERS)

    while_listening(lambda: wait_until(lambda: generations.in_force(acme.pk)))


def test_the_listener_comes_back_after_its_connection_is_lost(acme, key, caplog):
    def lose_and_change():
        wait_until(listeners)
        (first,) = listeners()
        sql("SELECT pg_terminate_backend(%s)", first)
        wait_until(lambda: listeners() and listeners() != [first])
        sql("UPDATE keys_apikey SET revoked_at = now()")
        wait_until(lambda: generations.in_force(acme.pk))

    while_listening(lose_and_change)

    assert "listening for changes stopped" in caplog.text


def test_the_listener_tries_again_after_trouble_with_redis(monkeypatch, settings, acme, key):
    monkeypatch.setattr(generations, "POLL_SECONDS", 0.1)
    working = settings.CACHES
    tried = threading.Event()
    real = generations.project

    def project():
        try:
            return real()
        except RedisError:
            tried.set()
            raise

    monkeypatch.setattr(generations, "project", project)

    def change_without_redis():
        wait_until(listeners)
        settings.CACHES = NOWHERE
        sql("UPDATE keys_apikey SET revoked_at = now()")
        assert tried.wait(30)
        assert generations.pending() == [generations.subject_of(acme.pk)]
        settings.CACHES = working
        wait_until(lambda: generations.in_force(acme.pk))

    while_listening(change_without_redis)


def test_a_subject_is_the_tenant_id_without_hyphens():
    assert (
        generations.subject_of(UUID("01a1fc70-19cf-7b35-80e7-abbcb8bcafe2"))
        == "01a1fc7019cf7b3580e7abbcb8bcafe2"
    )


def test_suspending_is_in_force_when_the_service_returns(acme):
    services.suspend_tenant(tenant=acme, actor="root", reason="unpaid")

    assert Tenant.objects.get().state == "suspended"
    assert in_redis(acme) == number_of(acme) == 2


def test_a_listener_that_is_cancelled_gives_its_connection_back():
    def wait_until_listening():
        try:
            wait_until(listeners)
        finally:
            connection.close()

    async def listen_and_cancel():
        listening = asyncio.create_task(generations.listen())
        await asyncio.to_thread(wait_until_listening)
        listening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await listening

    asyncio.run(listen_and_cancel())

    wait_until(lambda: not listeners())
