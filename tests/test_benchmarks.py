"""The benchmark harness: its arithmetic, its counting, and that its parts build and run."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from django.db import connection

from benchmarks import exports, furnishing, native, pages, scenarios, servers
from benchmarks.bars import BARS, Part, Percentiles, Result, Run, figures_of, percentile
from benchmarks.counting import Count, PostgresRequests, Relay, RespRequests, counted
from benchmarks.ledger_rows import FILL
from benchmarks.native import Load, NotMeasuredError
from benchmarks.processes import cpu_seconds, resident_bytes, tree
from benchmarks.run import numbers, through
from benchmarks.scenarios import Scenario
from benchmarks.servers import Server
from tenants.services import create_tenant
from tests.conftest import eventually
from tests.counting import empty_redis
from tests.gateway import environment

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
needs_nginx = pytest.mark.skipif(
    shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None, reason="there is no nginx"
)


def times(p50: float, p99: float) -> Percentiles:
    return Percentiles(count=100, p50=p50, p90=p99, p99=p99, max=p99)


def result(answers: int = 100, cpu_us: int = 100, p50: float = 100, p99: float = 200) -> Result:
    """One second with ``answers`` whole answers of ten pieces each."""
    return Result(
        1.0, answers, answers * 10, 0, "", cpu_us, {}, times(p50, p99), times(p50, p99), times(p50, p99)
    )


def test_there_are_sixteen_bars_and_no_aim_is_easier_than_its_floor() -> None:
    assert [bar.number for bar in BARS] == list(range(1, 17))
    for part in [part for bar in BARS for part in bar.parts]:
        assert part.meets(part.aim, part.floor)


def test_ratios_are_taken_within_a_round() -> None:
    round_of = {
        "16 callers": {"nginx": result(1000, 16_000), "gateway": result(50, 16_000, p50=100, p99=250)},
        "256 callers": {"gateway": result(40)},
        "64 callers": {"one core": result(50), "two cores": result(90)},
    }

    figures = figures_of(round_of)

    assert figures == {
        "rate_to_nginx": 0.05,
        "cpu_to_nginx": pytest.approx(20),
        "tail": 2.5,
        "rate_256_to_16": 0.8,
        "two_workers": 1.8,
    }


def test_added_times_are_those_of_the_gateway_less_those_of_the_upstream_alone() -> None:
    direct, gateway = result(p50=100, p99=500), result(p50=1100, p99=2500)

    figures = figures_of({"1 caller": {"direct": direct, "gateway": gateway}})

    assert figures == {"added_p50_ms": 1.0, "added_p99_ms": 2.0}


def test_nothing_is_made_up_where_nginx_is_missing() -> None:
    figures = figures_of({"16 callers": {"direct": result(), "gateway": result()}})

    assert set(figures) == {"tail"}


@pytest.mark.parametrize(
    ("values", "word"),
    [
        pytest.param([1.0, 1.0, 9.0], "aim", id="the median counts, not the worst round"),
        pytest.param([1.2, 1.2, 1.2], "pass", id="between floor and aim"),
        pytest.param([1.6, 1.6, 0.1], "FAIL", id="below the floor"),
    ],
)
def test_a_bar_is_judged_by_the_median_of_its_rounds(values: list[float], word: str) -> None:
    run = Run()
    for value in values:
        run.add({"added_p50_ms": value, "added_p99_ms": 1.0})

    assert run.verdict(BARS[2]).word == word


def test_a_bar_with_errors_fails_and_one_without_its_tools_is_not_measured() -> None:
    run = Run()
    run.add({"tail": 1.0})
    run.miss(["tail"], "errors: 3 with 16 callers")
    run.miss(["rate_to_nginx"], "nginx is not installed")

    assert run.verdict(BARS[3]).word == "FAIL"
    assert run.verdict(BARS[0]).word == "not measured"
    assert run.verdict(BARS[0]).reason == "nginx is not installed"


@pytest.mark.parametrize(
    ("share", "expected"),
    [pytest.param(0.5, 2, id="median"), pytest.param(0.99, 4, id="p99"), pytest.param(0.001, 1, id="least")],
)
def test_percentile(share: float, expected: int) -> None:
    assert percentile([4, 1, 3, 2], share) == expected


def test_a_part_that_wants_at_least_is_met_by_equal() -> None:
    assert Part("x", 0.9, 0.98, at_least=True).meets(0.9, 0.9)


def test_numbers_of_bars_are_read_and_unknown_ones_are_refused() -> None:
    assert numbers("1,6-8") == {1, 6, 7, 8}
    with pytest.raises(ValueError, match="17"):
        numbers("17")


@pytest.mark.parametrize("cut", range(1, 40))
def test_redis_commands_are_recognised_however_they_are_cut(cut: int) -> None:
    sent = b"*2\r\n$3\r\nGET\r\n$3\r\na\r\n\r\n" + b"*3\r\n$7\r\nevalsha\r\n$10\r\n0123456789\r\n$1\r\n0\r\n"
    requests = RespRequests()

    found = requests.feed(sent[:cut]) + requests.feed(sent[cut:])

    assert found == ["GET", "EVALSHA 01234567"]


def postgres_message(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


@pytest.mark.parametrize("cut", range(1, 60))
def test_statements_are_recognised_however_they_are_cut(cut: int) -> None:
    sent = (
        postgres_message(b"", b"\0\3\0\0user\0x\0\0")
        + postgres_message(b"Q", b"BEGIN\0")
        + postgres_message(b"P", b"\0SELECT 1\0\0\0")
        + postgres_message(b"E", b"\0\0\0\0\0")
        + postgres_message(b"S", b"")
    )
    requests = PostgresRequests()

    found = requests.feed(sent[:cut]) + requests.feed(sent[cut:])

    assert found == ["BEGIN", "SELECT 1"]


@contextlib.contextmanager
def parrot() -> Iterator[int]:
    """A server that sends everything back, for one connection."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                while data := connection.recv(65536):
                    connection.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def test_commands_sent_together_are_one_round_trip() -> None:
    ping = b"*1\r\n$4\r\nPING\r\n"
    with parrot() as port, Relay("127.0.0.1", port, RespRequests) as relay:
        relays = {"redis": relay}
        with (
            counted(relays) as found,
            socket.create_connection(("127.0.0.1", relay.port), timeout=10) as client,
        ):
            for sent in (ping, ping * 3):
                client.sendall(sent)
                echoed = b""
                while len(echoed) < len(sent):
                    echoed += client.recv(1024)

    assert found["redis"] == Count(2, found["redis"].requests)
    assert found["redis"].requests == {"PING": 4}


def test_an_address_is_sent_through_the_relay_with_its_credentials() -> None:
    assert through("redis://:pass@db.internal:6379/3", 7000) == "redis://:pass@127.0.0.1:7000/3"


def test_our_own_process_is_read() -> None:
    assert os.getpid() in tree(os.getpid())
    assert cpu_seconds(os.getpid()) > 0
    assert resident_bytes(os.getpid()) > 2**20


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("benchmark")
    native.build(directory)
    return directory


@pytest.fixture(scope="module")
def upstream(built: Path) -> Iterator[Server]:
    with servers.upstream(built, os.sched_getaffinity(0)) as server:
        yield server


def short(callers: int = 4, **options: int) -> Scenario:
    return Scenario("short", callers, ("direct",), frozenset(), options, measure_ms=300, warmup_ms=50)


def answered(
    load: Load, scenario: Scenario, target: Server, upstream: Server, around: Mapping[str, int]
) -> Result:
    """What is found where something is answered: in so short a span a busy machine may not come to it."""

    def found() -> Result | None:
        result = scenarios.measure(load, scenario, target, upstream, around)
        assert result.errors == 0, result.first_error
        return result if result.answers > 1 and result.whole is not None else None

    result: Result = eventually(found)
    return result


@needs_compiler
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="single"),
        pytest.param({"stream": 1, "pieces": 7}, id="streamed"),
        pytest.param({"prompt": 2**20}, id="1-MiB prompt"),
    ],
)
def test_generator_and_upstream_understand_each_other(
    built: Path, upstream: Server, path: str, options: dict[str, int]
) -> None:
    found = answered(Load(built, path, "s"), short(**options), upstream, upstream, {"upstream": upstream.pid})

    assert found.whole is not None
    assert 0 < found.whole.p50 <= found.whole.p90 <= found.whole.p99 <= found.whole.max
    assert set(found.around_us) == {"load generator", "upstream"}


@needs_compiler
def test_pieces_come_at_their_pace(built: Path, upstream: Server) -> None:
    paced = short(2, stream=1, pieces=10, every_us=20_000)

    found = answered(Load(built, "/api/chat", "s"), paced, upstream, upstream, {})

    # Between ten pieces lie nine times 20 ms at least; what was held up may come faster afterwards.
    assert found.whole is not None
    assert found.whole.p50 >= 9 * 20_000
    assert found.pieces_per_second > 0


@needs_compiler
def test_a_wrong_path_is_an_error_and_not_a_fast_answer(built: Path, upstream: Server) -> None:
    found = scenarios.measure(Load(built, "/v1/nothing", "s"), short(), upstream, upstream, {})

    assert found.answers == 0
    assert found.errors > 0
    assert "404" in found.first_error


@needs_compiler
def test_nobody_listening_is_an_error(built: Path, upstream: Server) -> None:
    # Taken, so that nobody else comes to listen there.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = Server("nobody", taken.getsockname()[1], upstream.pid)
        found = scenarios.measure(Load(built, "/api/chat", "s"), short(), nobody, upstream, {})

    assert found.answers == 0
    assert found.errors > 0


@needs_compiler
def test_the_upstream_sees_at_once_that_a_client_hung_up(built: Path, upstream: Server) -> None:
    load = Load(built, "/api/chat", "s")

    tries = [
        scenarios.client_gone(load, upstream, upstream, times=5, first_tag=first) for first in (100, 200, 300)
    ]

    assert all(0 < one["gone_p50_ms"] <= one["gone_max_ms"] for one in tries)
    # The quickest: the machine of the tests has other work.
    assert min(one["gone_max_ms"] for one in tries) < 1000


@needs_compiler
def test_idle_and_stuck_streams_are_held_open_while_memory_is_read(built: Path, upstream: Server) -> None:
    load = Load(built, "/v1/chat/completions", "s")

    idle = scenarios.memory_per_stream(load, upstream, upstream, streams=20)
    stuck = scenarios.memory_when_stuck(load, upstream, upstream, seconds=0.3)

    # The upstream holds a stream in less than what its process gives back meanwhile.
    assert -8 < idle["stream_kib"] < 64
    assert stuck["stuck_mib"] < 8


@needs_compiler
@needs_nginx
def test_nginx_passes_streams_on(built: Path, upstream: Server) -> None:
    streamed = short(2, stream=1, pieces=5)

    with servers.nginx(built, upstream.port, os.sched_getaffinity(0)) as nginx:
        found = answered(Load(built, "/v1/chat/completions", "s"), streamed, nginx, upstream, {})

    assert found.pieces_per_second > 0


def test_no_compiler_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(NotMeasuredError, match="compiler"):
        native.build(tmp_path)


@pytest.mark.parametrize(("most", "rows"), [(None, 280), (100, 100), (0, 0)])
def test_an_export_is_measured_in_a_process_of_its_own(
    transactional_db: None, tmp_path: Path, most: int | None, rows: int
) -> None:
    acme = create_tenant(slug="acme", name="ACME", actor="test")
    with connection.cursor() as cursor:
        cursor.execute(
            FILL, {"rows": 280, "tenant_id": acme.pk, "tenant": "acme", "first_day": exports.first_day()}
        )

    figure = exports.measured(["--profile", "requests"], most, 280, environment(), tmp_path)

    assert (figure.entries, figure.rows) == (rows, rows)
    assert figure.bytes == (tmp_path / "export").stat().st_size
    assert figure.seconds > 0
    assert figure.peak_bytes > 2**24


# Each page is asked for several times over.
@pytest.mark.timeout(600)
def test_every_page_of_the_url_table_is_asked_for(transactional_db: None) -> None:
    empty_redis()
    furnishing.furnish(280, people=2)

    found, without = pages.measured(repeats=0)

    assert {page.status for page in found} <= {200, 302}
    assert {"/portal/acme/usage/", "/admin/", "/admin/budgets/ledgerentry/"} <= {
        page.address for page in found
    }
    assert not {route for route in without if route.startswith("admin/")}
    assert "actual time" in pages.explained(found[0])
    assert len(list(pages.report(found, without))) == 1 + len(found) + len(without)
