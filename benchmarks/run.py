"""Measure the gateway beside nginx and beside its upstream alone: ``python3 benchmarks/run.py``.

Starts everything itself, measures round after round, and prints the sixteen
bars. Ends with status 1 if a bar was measured and not met.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from config import bootstrap  # noqa: E402

if __name__ == "__main__":
    bootstrap.build_environment()
    bootstrap.enter_environment()

from benchmarks import native, scenarios, servers  # noqa: E402
from benchmarks.bars import BARS, Result, Run, Verdict, figures_of  # noqa: E402
from benchmarks.counting import Count, PostgresRequests, Relay, RespRequests, counted  # noqa: E402
from benchmarks.native import Load, NotMeasuredError  # noqa: E402
from benchmarks.processes import Strangers, allow_many_files, move  # noqa: E402
from benchmarks.scenarios import SCENARIOS, Scenario  # noqa: E402
from benchmarks.servers import Server  # noqa: E402
from config.embedded import Postgres, Valkey, remove_directory  # noqa: E402

ROUTES = ("/v1/chat/completions", "/api/chat")
FILES_WANTED = 16384
# Two sockets for each idle stream, and some.
FILES_FOR_IDLE_STREAMS = 2500


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    rounds: int
    bars: frozenset[int]
    quick: bool
    json: Path | None
    route: str


@dataclasses.dataclass(frozen=True, slots=True)
class Bench:
    """Everything that runs for the whole time of a run."""

    directory: Path
    environment: Mapping[str, str]
    secret: str
    load: Load
    gateway_cores: frozenset[int]
    other_cores: frozenset[int]
    upstream: Server
    around: Mapping[str, int]
    """Processes that serve every target, by name."""


def main() -> int:
    options = read_options(sys.argv[1:])
    run = Run()
    results: list[dict[str, dict[str, Result]]] = []
    strangers: list[float] = []
    notes: list[str] = []
    try:
        with prepared(options.route) as bench:
            measure(bench, options, run, results, strangers, notes)
    except NotMeasuredError as exc:
        for bar in BARS:
            run.miss([part.figure for part in bar.parts], str(exc))
    verdicts = [run.verdict(bar) for bar in BARS if bar.number in options.bars]
    say(report(verdicts, results, strangers, notes, options))
    if options.json:
        options.json.write_text(json.dumps(as_json(verdicts, run, results, strangers), indent=1) + "\n")
    return int(any(verdict.word == "FAIL" for verdict in verdicts))


def read_options(arguments: list[str]) -> Options:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often everything is measured (5)")
    parser.add_argument("--bars", default="1-16", help="which bars, such as 1,2,6-8 (all)")
    parser.add_argument("--quick", action="store_true", help="one short round: does it work at all?")
    parser.add_argument("--json", type=Path, help="write every figure into this file too")
    parser.add_argument("--route", choices=ROUTES, default=ROUTES[0], help="what the callers call")
    given = parser.parse_args(arguments)
    if given.rounds < 1:
        parser.error("--rounds: at least 1")
    try:
        bars = numbers(given.bars)
    except ValueError:
        parser.error(f"--bars: numbers from 1 to {len(BARS)}, such as 1,2,6-8")
    return Options(1 if given.quick else given.rounds, bars, given.quick, given.json, given.route)


def numbers(text: str) -> frozenset[int]:
    """The numbers of bars in ``1,2,6-8``; raises ``ValueError`` for any other text."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    if not found or not found <= {bar.number for bar in BARS}:
        raise ValueError(text)
    return frozenset(found)


@contextlib.contextmanager
def prepared(route: str) -> Iterator[Bench]:
    """Build, start and fill everything that is measured with, and end it afterwards."""
    allow_many_files(FILES_WANTED)
    cores = sorted(os.sched_getaffinity(0))
    gateway_cores, other_cores = frozenset(cores[:1]), frozenset(cores[1:] or cores)
    os.sched_setaffinity(0, other_cores)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tollgate-benchmark-")))
        # The account under which root's PostgreSQL runs passes through here to its data.
        directory.chmod(0o711)
        progress("building the upstream and the load generator")
        native.build(directory)
        progress("starting PostgreSQL and Valkey, migrating, making a tenant")
        around: dict[str, int] = {}
        environment = stack.enter_context(stores(directory, around))
        upstream = stack.enter_context(servers.upstream(directory, other_cores))
        around["upstream"] = upstream.pid
        servers.manage(environment, "manage.py", "migrate", "--verbosity", "0")
        made = json.loads(servers.manage(environment, "-m", "benchmarks.tenant", str(upstream.port)))
        stack.callback(servers.manage, environment, "-m", "benchmarks.tenant", "remove", made["tenant"])
        yield Bench(
            directory,
            environment,
            made["secret"],
            Load(directory, route, made["secret"]),
            gateway_cores,
            other_cores,
            upstream,
            around,
        )


@contextlib.contextmanager
def stores(directory: Path, around: dict[str, int]) -> Iterator[dict[str, str]]:
    """The environment of the gateway: its stores, those given or embedded ones, and its settings."""
    with contextlib.ExitStack() as stack:
        environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "config.settings",
            "SECRET_KEY": secrets.token_hex(32),
            "KEY_PEPPER": secrets.token_hex(32),
            "SPOOL_DIR": str(directory / "spool"),
            # No drain runs beside the measured second; the journal may grow for the whole run.
            "MAX_BACKLOG": "100000000",
        }
        if "DATABASE_URL" not in environment:
            stack.callback(remove_directory, directory / "postgres")
            postgres = stack.enter_context(
                Postgres(directory / "postgres", log=directory / "postgres.log", durable=True)
            )
            environment["DATABASE_URL"] = postgres.url
        if "REDIS_URL" not in environment:
            valkey = stack.enter_context(
                Valkey(directory / "valkey", log=directory / "valkey.log", durable=True)
            )
            environment["REDIS_URL"] = valkey.url
            if valkey.process is not None:
                around["Valkey"] = valkey.process.pid
        yield environment


def measure(
    bench: Bench,
    options: Options,
    run: Run,
    results: list[dict[str, dict[str, Result]]],
    strangers: list[float],
    notes: list[str],
) -> None:
    """All rounds, one after the other."""
    chosen = [
        scenarios.quick(scenario) if options.quick else scenario
        for scenario in SCENARIOS
        if scenario.bars & options.bars
    ]
    together = [scenario for scenario in chosen if scenarios.TWO_CORES in scenario.targets]
    alone = [scenario for scenario in chosen if scenario not in together]
    wanted = {target for scenario in chosen for target in scenario.targets}
    with contextlib.ExitStack() as stack:
        targets: dict[str, Server] = {"direct": bench.upstream}
        if "nginx" in wanted:
            try:
                targets["nginx"] = stack.enter_context(
                    servers.nginx(bench.directory, bench.upstream.port, bench.gateway_cores)
                )
            except NotMeasuredError as exc:
                run.miss(["rate_to_nginx", "cpu_to_nginx", "chunk_cpu_to_nginx"], str(exc))
        if "gateway" in wanted or 13 in options.bars:
            targets["gateway"] = stack.enter_context(started(bench))
        for number in range(options.rounds):
            watch = Strangers()
            results.append(one_round(bench, alone, targets, run, number))
            run.add(figures_of(results[-1]))
            if 13 in options.bars:
                progress(f"round {number + 1}: clients that hang up")
                with failing(run, 13):
                    run.add(
                        scenarios.client_gone(
                            bench.load,
                            targets["gateway"],
                            bench.upstream,
                            times=20 if options.quick else 100,
                            first_tag=1000 * (number + 1),
                        )
                    )
            memory(bench, options, run, number)
            strangers.append(watch.share())
        if scenarios.TWO_CORES in wanted:
            # Its workers share the core of the gateway, so they run only now.
            if bench.gateway_cores == bench.other_cores:
                run.miss(["two_workers"], "this machine has one core")
            else:
                targets[scenarios.ONE_CORE] = targets["gateway"]
                targets[scenarios.TWO_CORES] = stack.enter_context(
                    started(bench, cores=two_cores(bench), workers=2)
                )
            for number in range(options.rounds):
                results.append(one_round(bench, together, targets, run, number))
                run.add(figures_of(results[-1]))
    if 16 in options.bars:
        progress("counting round trips")
        with failing(run, 16):
            round_trips(bench, run, notes)


@contextlib.contextmanager
def started(bench: Bench, *, cores: frozenset[int] | None = None, workers: int = 1) -> Iterator[Server]:
    """A gateway, warm for the first calls."""
    with servers.gateway(
        bench.directory, bench.environment, bench.secret, cores=cores or bench.gateway_cores, workers=workers
    ) as gateway:
        yield gateway


def two_cores(bench: Bench) -> frozenset[int]:
    return bench.gateway_cores | {min(bench.other_cores)}


@contextlib.contextmanager
def surroundings(bench: Bench, target: str) -> Iterator[None]:
    """Have what is around a target where it is measured with it, usually on the cores it does not have."""
    cores = {scenarios.ONE_CORE: bench.gateway_cores, scenarios.TWO_CORES: two_cores(bench)}.get(target)
    if cores is None:
        yield
        return
    pids = [os.getpid(), *bench.around.values()]
    move(pids, cores)
    try:
        yield
    finally:
        move(pids, bench.other_cores)


@contextlib.contextmanager
def failing(run: Run, bar: int) -> Iterator[None]:
    """Let a bar fail, not the run, when its measurement breaks."""
    try:
        yield
    except RuntimeError as exc:
        text = str(exc)
        reason = text if text.startswith("errors") else f"errors: {text}"
        run.miss([part.figure for part in BARS[bar - 1].parts], reason)


def one_round(
    bench: Bench, chosen: list[Scenario], targets: Mapping[str, Server], run: Run, number: int
) -> dict[str, dict[str, Result]]:
    """Measure every scenario on every target; each round begins with another target."""
    found: dict[str, dict[str, Result]] = {}
    for scenario in chosen:
        present = [target for target in scenario.targets if target in targets]
        first = number % len(present)
        for target in present[first:] + present[:first]:
            progress(f"round {number + 1}: {scenario.name}, {target}")
            with surroundings(bench, target):
                result = scenarios.measure(
                    bench.load, scenario, targets[target], bench.upstream, bench.around
                )
            if result.errors or not result.pieces:
                reason = (
                    f"errors: {result.errors} with {scenario.name}, {target}; first: {result.first_error}"
                )
                for bar in scenario.bars:
                    run.miss([part.figure for part in BARS[bar - 1].parts], reason)
                continue
            found.setdefault(scenario.name, {})[target] = result
    return found


def memory(bench: Bench, options: Options, run: Run, number: int) -> None:
    """The two bars of memory, each in a fresh process."""
    if 11 in options.bars:
        if allow_many_files(FILES_WANTED) < FILES_FOR_IDLE_STREAMS:
            run.miss(["stream_kib"], "too few open files are allowed here (ulimit -n)")
        else:
            progress(f"round {number + 1}: 1,000 idle streams")
            with failing(run, 11), started(bench) as fresh:
                run.add(scenarios.memory_per_stream(bench.load, fresh, bench.upstream, streams=1000))
    if 12 in options.bars:
        progress(f"round {number + 1}: a client that reads nothing")
        with failing(run, 12), started(bench) as fresh:
            seconds = 1.0 if options.quick else 3.0
            run.add(scenarios.memory_when_stuck(bench.load, fresh, bench.upstream, seconds=seconds))


def round_trips(bench: Bench, run: Run, notes: list[str]) -> None:
    """What one warm call asks of Redis and PostgreSQL, less what goes on without any call."""
    redis, postgres = (urlsplit(bench.environment[name]) for name in ("REDIS_URL", "DATABASE_URL"))
    with (
        Relay(redis.hostname or "127.0.0.1", redis.port or 6379, RespRequests) as to_redis,
        Relay(postgres.hostname or "127.0.0.1", postgres.port or 5432, PostgresRequests) as to_postgres,
    ):
        relays = {"redis": to_redis, "postgres": to_postgres}
        environment = {
            **bench.environment,
            "REDIS_URL": through(bench.environment["REDIS_URL"], to_redis.port),
            "DATABASE_URL": through(bench.environment["DATABASE_URL"], to_postgres.port),
            # The relay has to be able to read along.
            "PGSSLMODE": "disable",
            "PGGSSENCMODE": "disable",
            # One more process stands in between, on the core of the load generator.
            "REDIS_TIMEOUT_SECONDS": "2",
        }
        with servers.gateway(
            bench.directory, environment, bench.secret, cores=bench.gateway_cores
        ) as gateway:
            span = {"warmup_ms": 500, "measure_ms": 1500}
            bench.load.run("run", gateway.port, 1, span)
            with counted(relays) as idle:
                time.sleep(2.5)
            with counted(relays) as busy:
                began = time.monotonic()
                told = bench.load.run("run", gateway.port, 1, span)
                scenarios.wait_until_quiet(bench.upstream)
                time.sleep(0.5)
                passed = time.monotonic() - began
    if told["errors"]:
        raise RuntimeError(f"errors: {told['errors']}; first: {told['first_error']}")
    calls: int = told["total_answers"]

    def per_call(busy_count: int, idle_count: int) -> float:
        return (busy_count - idle_count * passed / 2.5) / calls

    run.add(
        {
            "redis_trips": round(per_call(busy["redis"].round_trips, idle["redis"].round_trips), 1),
            "sql_statements": round(
                per_call(busy["postgres"].requests.total(), idle["postgres"].requests.total()), 1
            ),
        }
    )
    for name in relays:
        asked = ", ".join(f"{what} {count / calls:.3f}" for what, count in often(busy[name], calls))
        notes.append(f"{name}, per call over {calls} calls: {asked or 'nothing'}")


def often(count: Count, calls: int) -> list[tuple[str, int]]:
    """What was asked in at least one of a thousand calls, the most frequent first."""
    return [(what, times) for what, times in count.requests.most_common() if times * 1000 >= calls]


def through(url: str, port: int) -> str:
    """``url`` with the relay at ``port`` in place of its server."""
    parts = urlsplit(url)
    credentials, at, _ = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{credentials}{at}127.0.0.1:{port}").geturl()


def report(
    verdicts: list[Verdict],
    results: list[dict[str, dict[str, Result]]],
    strangers: list[float],
    notes: list[str],
    options: Options,
) -> str:
    lines = [""]
    if results:
        lines += targets_table(results)
    if strangers:
        busiest = max(strangers)
        lines += [f"Other work took {statistics.median(strangers):.0%} of all cores, {busiest:.0%} at most."]
        if busiest > 0.05:
            lines.append("That is too much for figures to rely on: repeat this on a quiet machine.")
    lines += notes
    count = f"{options.rounds} round{'s' if options.rounds > 1 else ''}"
    lines += [
        "",
        f"{'#':>2}  {'bar (medians of ' + count + ')':56} {'floor':>14} {'aim':>14} {'reached':>18}",
    ]
    for verdict in verdicts:
        lines.append(verdict_line(verdict))
        if verdict.reason:
            lines.append(f"    {verdict.reason}")
    return "\n".join(lines)


def targets_table(results: list[dict[str, dict[str, Result]]]) -> list[str]:
    """What was measured of each target, so that one can see that the harness is not the limit."""
    header = (
        "answers/s",
        "pieces/s",
        "p50 ms",
        "p99 ms",
        "first p50",
        "transit p50",
        "µs/answer",
        "µs/piece",
        "around",
    )
    lines = [f"{'':30}" + "".join(f"{title:>12}" for title in header)]
    for name in dict.fromkeys(name for found in results for name in found):
        for target in dict.fromkeys(target for found in results for target in found.get(name, {})):
            measured = [found[name][target] for found in results if target in found.get(name, {})]
            columns = (
                median(result.answers_per_second for result in measured),
                median(result.pieces_per_second for result in measured),
                median(result.whole.p50 / 1000 if result.whole else None for result in measured),
                median(result.whole.p99 / 1000 if result.whole else None for result in measured),
                median(result.first.p50 / 1000 if result.first else None for result in measured),
                median(result.transit.p50 / 1000 if result.transit else None for result in measured),
                median(result.cpu_us / result.answers if result.answers else None for result in measured),
                median(result.cpu_us / result.pieces for result in measured),
                median(result.cores_around for result in measured),
            )
            lines.append(f"{name + ', ' + target:30}" + "".join(f"{shown(value):>12}" for value in columns))
    return [
        *lines,
        "",
        "µs: processor time of the target. around: cores kept busy by the generator, upstream and Valkey.",
    ]


def median(values: Iterator[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return statistics.median(present) if present else None


def shown(value: float | None) -> str:
    """A number with about three digits that count."""
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def verdict_line(verdict: Verdict) -> str:
    parts = verdict.bar.parts
    unit = f" {parts[0].unit}" if parts[0].unit else ""
    sign = "≥" if parts[0].at_least else "≤"
    floor = f"{sign} {' / '.join(shown(part.floor) for part in parts)}{unit}"
    aim = f"{sign} {' / '.join(shown(part.aim) for part in parts)}{unit}"
    reached = " / ".join(shown(value) for value in verdict.reached) + unit if verdict.reached else "-"
    return (
        f"{verdict.bar.number:>2}  {verdict.bar.what:56} {floor:>14} {aim:>14} {reached:>18}  {verdict.word}"
    )


def as_json(
    verdicts: list[Verdict],
    run: Run,
    results: list[dict[str, dict[str, Result]]],
    strangers: list[float],
) -> dict[str, object]:
    return {
        "bars": [
            {
                "number": verdict.bar.number,
                "what": verdict.bar.what,
                "parts": [dataclasses.asdict(part) for part in verdict.bar.parts],
                "reached": verdict.reached,
                "verdict": verdict.word,
                "reason": verdict.reason,
            }
            for verdict in verdicts
        ],
        "figures": run.figures,
        "rounds": [
            {
                name: {target: dataclasses.asdict(result) for target, result in by_target.items()}
                for name, by_target in found.items()
            }
            for found in results
        ],
        "other_work": strangers,
    }


def progress(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')}  {text}\n")
    sys.stderr.flush()


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
