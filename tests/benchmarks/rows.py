"""What is compared: the rows of the table, with their targets, and how a row's raw figures become its figures.

Knows no processes: `compare` runs the rows, `report` shows what was found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from awesomeconnect.bench.workloads import WORKLOADS, Workload

NATS_RATIO = "ratio_to_nats"


@attrs.frozen
class Target:
    """What a figure of a system is to reach, in the median of the rounds."""

    figure: str
    limit: float
    system: str = "relay"
    at_least: bool = False

    def is_met(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit


@attrs.frozen
class Lane:
    """One of those that are measured in turn: a system, under the name that it has in this row."""

    name: str
    system: str
    idle: int = 0


EVERYBODY = tuple(Lane(name, name) for name in ("relay", "nats", "redis", "mosquitto"))
RELAY_ONLY = (Lane("relay", "relay"),)
PASSES_ONLY = (Lane("relay", "relay_passes"),)
URGENT_TARGETS = (Target("longest_pass_cpu_ms", 15), Target("p99_us", 10_000))


@attrs.frozen
class Row:
    """A row: `kind`, if it is not the workload's, as in `generator.KINDS`; and `figure`, which ratios are taken of.

    `seconds` and `rounds` where they differ from those of the run. `flood` is what another process does meanwhile.
    With `urgent` the row's own messages are of class URGENT, 200 a second.
    """

    name: str
    title: str
    workload: Workload
    kind: str = ""
    figure: str = "cpu_us_per_delivery"
    lanes: tuple[Lane, ...] = EVERYBODY
    targets: tuple[Target, ...] = ()
    seconds: float | None = None
    rounds: int | None = None
    flood: Workload | None = None
    flood_kind: str = ""
    urgent: bool = False


@attrs.frozen
class Raw:
    """One measurement: what the generator found, and what the server used meanwhile."""

    found: dict[str, Any]
    cpu_s: float
    waited_s: float
    rss_bytes: float
    rss_growth_bytes: float


def _stream(raw: Raw) -> dict[str, float]:
    deliveries, wall_s = raw.found["deliveries"], raw.found["wall_s"]
    return {
        "cpu_us_per_delivery": raw.cpu_s * 1e6 / deliveries,
        "deliveries_per_s": deliveries / wall_s,
        "deliveries_per_cpu_s": deliveries / raw.cpu_s,
        "server_cpu_fraction": raw.cpu_s / wall_s,
        "server_waited_fraction": raw.waited_s / wall_s,
        "generator_cpu_fraction": raw.found["cpu_s"] / wall_s,
        "server_rss_bytes": raw.rss_bytes,
    }


def _round_trips(raw: Raw) -> dict[str, float]:
    latency_us = {f"{name}_us": value for name, value in raw.found["latency_us"].items()}
    return {
        **latency_us,
        "cpu_us_per_round_trip": raw.cpu_s * 1e6 / raw.found["messages"],
        "server_waited_fraction": raw.waited_s / raw.found["wall_s"],
    }


def _handshakes(raw: Raw) -> dict[str, float]:
    return {
        "handshakes_per_cpu_s": raw.found["handshakes"] / raw.cpu_s,
        "handshakes_per_s": raw.found["handshakes"] / raw.found["wall_s"],
        "server_cpu_fraction": raw.cpu_s / raw.found["wall_s"],
    }


def _growth(raw: Raw) -> dict[str, float]:
    connections = raw.found["connections"]
    return {
        "kib_per_connection": raw.rss_growth_bytes / connections / 1024,
        "server_rss_bytes": raw.rss_bytes,
        "cpu_us_per_connection": raw.cpu_s * 1e6 / connections,
    }


def _silence(raw: Raw) -> dict[str, float]:
    return {"server_cpu_fraction": raw.cpu_s / raw.found["wall_s"], "server_rss_bytes": raw.rss_bytes}


#: kind -> from raw figures to those of the report
FIGURES: dict[str, Callable[[Raw], dict[str, float]]] = {
    "stream": _stream,
    "rtt": _round_trips,
    "herd": _handshakes,
    "growth": _growth,
    "silence": _silence,
}


@attrs.frozen
class Scale:
    """How much of everything: `many` connections in the rows of many, `step` more in each round of `memory`."""

    rounds: int = 3
    seconds: float = 1.25
    many: int = 5_000
    step: int = 1_000
    idle_s: float = 60.0


QUICK = Scale(rounds=2, seconds=0.5, many=1_000, step=300, idle_s=10.0)
ACTIVE = 100


def table(scale: Scale) -> list[Row]:
    """The rows with targets, and those beside them."""
    many = scale.many
    pair = WORKLOADS["pair"]
    rtt, idle = WORKLOADS["rtt"], WORKLOADS["idle"]
    return [
        Row("fanout", "128 B, 1 -> 100", WORKLOADS["fanout"], targets=(Target(NATS_RATIO, 0.45),)),
        Row("room", "200 B, room of 20 x 20", WORKLOADS["room"], targets=(Target(NATS_RATIO, 0.45),)),
        Row("pair", "128 B, 1 -> 1, packed", pair, targets=(Target(NATS_RATIO, 1.5),)),
        Row("pair_single", "128 B, 1 -> 1, one message per record", attrs.evolve(pair, pack=1)),
        Row("pair16k", "16 KiB, 1 -> 1", WORKLOADS["pair16k"], targets=(Target(NATS_RATIO, 0.75),)),
        Row(
            "fanout_many",
            f"128 B, 1 -> {many:,}",
            Workload("fanout_many", payload_bytes=128, publishers=1, members=many, pack=8, window=64),
            targets=(Target(NATS_RATIO, 0.5),),
            seconds=scale.seconds * 1.5,
        ),
        Row(
            "rtt",
            "round trip 128 B, latency p50",
            rtt,
            figure="p50_us",
            targets=(Target(NATS_RATIO, 1.25),),
            rounds=scale.rounds + 2,
            seconds=scale.seconds / 2,
        ),
        Row(
            "memory",
            "memory per idle connection",
            attrs.evolve(idle, members=scale.step),
            kind="growth",
            figure="kib_per_connection",
            targets=(Target(NATS_RATIO, 0.45), Target("kib_per_connection", 9)),
        ),
        Row(
            "handshakes",
            "handshakes per CPU second",
            WORKLOADS["connect"],
            kind="herd",
            figure="handshakes_per_cpu_s",
            lanes=RELAY_ONLY,
            targets=(Target("handshakes_per_cpu_s", 1_500, at_least=True),),
        ),
        Row(
            "crowd",
            f"128 B, 1 -> {ACTIVE} beside {many - ACTIVE:,} idle connections",
            attrs.evolve(WORKLOADS["fanout"], name="crowd"),
            lanes=(Lane("relay", "relay"), Lane("relay_crowded", "relay", idle=many - ACTIVE)),
            targets=(Target("ratio_to_relay", 1.5, system="relay_crowded"),),
        ),
        Row(
            "flood",
            "urgent round trips while 20 flood a room of 20",
            attrs.evolve(rtt, window=64),
            figure="p99_us",
            lanes=PASSES_ONLY,
            targets=URGENT_TARGETS,
            urgent=True,
            seconds=scale.seconds * 2,
            flood=attrs.evolve(WORKLOADS["room"], name="flood", pack=64),
            flood_kind="flood",
        ),
        Row(
            "busy",
            "the same beside a busy room of 20 x 20",
            attrs.evolve(rtt, window=64),
            figure="p99_us",
            lanes=PASSES_ONLY,
            targets=URGENT_TARGETS,
            urgent=True,
            seconds=scale.seconds * 2,
            flood=attrs.evolve(WORKLOADS["room"], name="busy", pack=64),
        ),
        Row(
            "idle",
            f"CPU with {many:,} idle connections",
            attrs.evolve(idle, members=many),
            kind="silence",
            figure="server_cpu_fraction",
            lanes=RELAY_ONLY,
            targets=(Target("server_cpu_fraction", 0.01),),
            seconds=scale.idle_s,
            rounds=1,
        ),
    ]


def growth(scale: Scale) -> dict[str, dict[int, Row]]:
    """What is varied -> its value -> the row."""
    rounds, seconds = max(1, scale.rounds - 1), scale.seconds / 2

    def row(axis: str, value: int, idle: int = 0, **changes: int) -> Row:
        workload = attrs.evolve(WORKLOADS["fanout"], name=f"{axis}_{value}", **changes)
        lanes = tuple(attrs.evolve(lane, idle=idle) for lane in EVERYBODY)
        return Row(workload.name, f"{axis}: {value:,}", workload, lanes=lanes, rounds=rounds, seconds=seconds)

    def sized(payload_bytes: int) -> Row:
        pack = max(1, min(64, 50_000 // payload_bytes))
        window = max(pack, min(1_024, 786_432 // payload_bytes))
        return row("payload", payload_bytes, payload_bytes=payload_bytes, members=10, pack=pack, window=window)

    connections = sorted({10, 100, min(1_000, scale.many), scale.many})
    return {
        "members": {members: row("members", members, members=members) for members in (1, 10, 100, 1_000)},
        "payload": {payload_bytes: sized(payload_bytes) for payload_bytes in (64, 256, 1_024, 4_096, 16_384)},
        "connections": {count: row("connections", count, idle=count - 10, members=9) for count in connections},
    }
