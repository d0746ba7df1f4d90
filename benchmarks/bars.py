"""The sixteen bars, and how a run is measured against them. No input, no output.

A *figure* is one number of one round, most of them a ratio or a difference of
two measurements of that same round. What a bar reached is the median of its
figure over the rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of times in microseconds."""

    count: int
    p50: float
    p90: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class Result:
    """What the load generator saw of one target in one measured span.

    ``cpu_us`` is the processor time of the target's processes in that span, and
    ``around_us`` that of each process around it, the generator among them.
    ``whole``, ``first`` and ``transit`` are the times to a whole answer, to its
    first piece, and of each piece on its way from the upstream.
    """

    seconds: float
    answers: int
    pieces: int
    errors: int
    first_error: str
    cpu_us: int
    around_us: Mapping[str, int]
    whole: Percentiles | None
    first: Percentiles | None
    transit: Percentiles | None

    @classmethod
    def from_json(cls, told: Mapping[str, Any], around: Sequence[str] = ()) -> Self:
        """Read the line that ``load run`` prints; the last processes given to it were those ``around``."""
        cpu_us = told["cpu_us"]
        of_target = len(cpu_us) - len(around)
        times = {name: told[name] and Percentiles(**told[name]) for name in ("whole", "first", "transit")}
        return cls(
            seconds=told["seconds"],
            answers=told["answers"],
            pieces=told["pieces"],
            errors=told["errors"],
            first_error=told["first_error"],
            cpu_us=sum(cpu_us[:of_target]),
            around_us={
                "load generator": told["own_cpu_us"],
                **dict(zip(around, cpu_us[of_target:], strict=True)),
            },
            **times,
        )

    @property
    def cores_around(self) -> float:
        """How many cores the harness itself kept busy: near one, it is what was measured."""
        return sum(self.around_us.values()) / 1e6 / self.seconds

    @property
    def answers_per_second(self) -> float:
        return self.answers / self.seconds

    @property
    def pieces_per_second(self) -> float:
        return self.pieces / self.seconds


# What was measured of each target ("direct", "nginx", "gateway") in one scenario of one round.
Targets = Mapping[str, Result]


@dataclass(frozen=True, slots=True)
class Part:
    """One number that a bar sets: at least, or at most, ``floor`` and better ``aim``."""

    figure: str
    floor: float
    aim: float
    unit: str = ""
    at_least: bool = False

    def meets(self, reached: float, bound: float) -> bool:
        return reached >= bound if self.at_least else reached <= bound


@dataclass(frozen=True, slots=True)
class Bar:
    number: int
    what: str
    parts: tuple[Part, ...]


BARS = (
    Bar(1, "req/s ÷ nginx, 16 callers", (Part("rate_to_nginx", 1 / 50, 1 / 25, at_least=True),)),
    Bar(2, "CPU per request ÷ nginx, 16 callers", (Part("cpu_to_nginx", 40, 25),)),
    Bar(
        3,
        "added p50 / p99, 1 caller",
        (Part("added_p50_ms", 1.5, 1.0, "ms"), Part("added_p99_ms", 4, 2, "ms")),
    ),
    Bar(4, "p99 ÷ p50, 16 callers", (Part("tail", 4, 2.5),)),
    Bar(5, "req/s at 256 ÷ at 16 callers", (Part("rate_256_to_16", 0.6, 0.8, at_least=True),)),
    Bar(
        6,
        "first chunk added p50 / p99, 32 paced streams",
        (Part("first_added_p50_ms", 2, 1.4, "ms"), Part("first_added_p99_ms", 6, 3, "ms")),
    ),
    Bar(
        7,
        "added transit of a chunk p50 / p99, 32 paced streams",
        (Part("transit_added_p50_ms", 0.4, 0.2, "ms"), Part("transit_added_p99_ms", 4, 1.5, "ms")),
    ),
    Bar(8, "CPU per chunk ÷ nginx, 32 paced streams", (Part("chunk_cpu_to_nginx", 7, 5),)),
    Bar(9, "chunks/s ÷ direct, 128 paced streams", (Part("chunks_128_to_direct", 0.9, 0.98, at_least=True),)),
    Bar(
        10,
        "chunks/s ÷ direct, 512 streams of 20 tokens/s",
        (Part("chunks_512_to_direct", 0.97, 0.99, at_least=True),),
    ),
    Bar(11, "memory per open stream, 1,000 idle, fresh process", (Part("stream_kib", 64, 40, "KiB"),)),
    Bar(12, "memory growth, a client reads nothing of 40 MiB", (Part("stuck_mib", 8, 2, "MiB"),)),
    Bar(
        13,
        "client gone → upstream closed, p50 / max",
        (Part("gone_p50_ms", 50, 5, "ms"), Part("gone_max_ms", 500, 50, "ms")),
    ),
    Bar(
        14,
        "two workers on two cores ÷ one on one, 64 callers",
        (Part("two_workers", 1.5, 1.8, at_least=True),),
    ),
    Bar(15, "1-MiB prompt, p50", (Part("prompt_ms", 25, 12, "ms"),)),
    Bar(
        16,
        "round trips per warm request: Redis; PostgreSQL",
        (Part("redis_trips", 2, 2), Part("sql_statements", 0, 0)),
    ),
)


def _added_ms(times: Mapping[str, Percentiles | None], share: str) -> float:
    """How much longer it takes through the gateway than without it."""
    gateway, direct = times["gateway"], times["direct"]
    if gateway is None or direct is None:
        raise ValueError("nothing was measured")
    return float(getattr(gateway, share) - getattr(direct, share)) / 1000


def figures_of(scenarios: Mapping[str, Targets]) -> dict[str, float]:
    """The figures of one round, as far as what they are made of was measured in it."""
    figures: dict[str, float] = {}
    sixteen = scenarios.get("16 callers", {})
    if {"nginx", "gateway"} <= sixteen.keys():
        gateway, nginx = sixteen["gateway"], sixteen["nginx"]
        figures["rate_to_nginx"] = gateway.answers_per_second / nginx.answers_per_second
        figures["cpu_to_nginx"] = (gateway.cpu_us / gateway.answers) / (nginx.cpu_us / nginx.answers)
    if "gateway" in sixteen and (whole := sixteen["gateway"].whole):
        figures["tail"] = whole.p99 / whole.p50
        if crowd := scenarios.get("256 callers"):
            figures["rate_256_to_16"] = (
                crowd["gateway"].answers_per_second / sixteen["gateway"].answers_per_second
            )
    one = scenarios.get("1 caller", {})
    if {"direct", "gateway"} <= one.keys():
        times = {target: result.whole for target, result in one.items()}
        figures["added_p50_ms"] = _added_ms(times, "p50")
        figures["added_p99_ms"] = _added_ms(times, "p99")
    paced = scenarios.get("32 paced streams", {})
    if {"direct", "gateway"} <= paced.keys():
        first = {target: result.first for target, result in paced.items()}
        transit = {target: result.transit for target, result in paced.items()}
        figures["first_added_p50_ms"] = _added_ms(first, "p50")
        figures["first_added_p99_ms"] = _added_ms(first, "p99")
        figures["transit_added_p50_ms"] = _added_ms(transit, "p50")
        figures["transit_added_p99_ms"] = _added_ms(transit, "p99")
    if {"nginx", "gateway"} <= paced.keys():
        gateway, nginx = paced["gateway"], paced["nginx"]
        figures["chunk_cpu_to_nginx"] = (gateway.cpu_us / gateway.pieces) / (nginx.cpu_us / nginx.pieces)
    for name, figure in (
        ("128 paced streams", "chunks_128_to_direct"),
        ("512 paced streams", "chunks_512_to_direct"),
    ):
        many = scenarios.get(name, {})
        if {"direct", "gateway"} <= many.keys():
            figures[figure] = many["gateway"].pieces_per_second / many["direct"].pieces_per_second
    prompt = scenarios.get("1-MiB prompt", {})
    if "gateway" in prompt and (whole := prompt["gateway"].whole):
        figures["prompt_ms"] = whole.p50 / 1000
    cores = scenarios.get("64 callers", {})
    if {"one core", "two cores"} <= cores.keys():
        figures["two_workers"] = cores["two cores"].answers_per_second / cores["one core"].answers_per_second
    return figures


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` (0 to 1) of all do not exceed."""
    ordered = sorted(values)
    rank = -(-len(ordered) * round(share * 1000) // 1000)
    return ordered[max(rank, 1) - 1]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one bar came out. ``reached`` is empty when it was not measured."""

    bar: Bar
    reached: tuple[float, ...] = ()
    reason: str = ""

    @property
    def word(self) -> str:
        if not self.reached:
            return "FAIL" if self.reason.startswith("errors") else "not measured"
        pairs = list(zip(self.bar.parts, self.reached, strict=True))
        if not all(part.meets(value, part.floor) for part, value in pairs):
            return "FAIL"
        return "aim" if all(part.meets(value, part.aim) for part, value in pairs) else "pass"


@dataclass(slots=True)
class Run:
    """The figures of all rounds, and why others are missing."""

    figures: dict[str, list[float]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self.figures.setdefault(name, []).append(value)

    def miss(self, figures: Sequence[str], reason: str) -> None:
        """Say why these figures are missing. One that begins with ``errors`` fails their bars."""
        for name in figures:
            self.reasons[name] = reason

    def verdict(self, bar: Bar) -> Verdict:
        for part in bar.parts:
            reason = self.reasons.get(part.figure)
            if reason or part.figure not in self.figures:
                return Verdict(bar, reason=reason or "left out")
        return Verdict(bar, tuple(statistics.median(self.figures[part.figure]) for part in bar.parts))
