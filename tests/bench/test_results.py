"""Figures of a result, and what set its pace."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from awesomeconnect.bench.generator import Job
from awesomeconnect.bench.results import COLUMNS, Result, Usage
from awesomeconnect.bench.workloads import WORKLOADS

LATENCY = {"p50": 1.0, "p90": 2.0, "p99": 3.0, "p99_9": 4.0, "max": 5.0}


def result(name: str, counted: dict[str, Any], server_cpu_s: float | None = 1.0, cpu_s: float = 0.5) -> Result:
    usage = None if server_cpu_s is None else Usage(server_cpu_s, 0.1, 2.0, 50_000_000, 9_000)
    job = Job("relay", "ac://", WORKLOADS[name], 2.0, options={"traffic_class": 5})
    return Result(job, {**counted, "wall_s": 2.0, "cpu_s": cpu_s, "waited_s": 0.02}, usage, cores=4)


def test_a_stream() -> None:
    fields = result("fanout", {"messages": 1_000, "deliveries": 100_000, "latency_us": LATENCY}).fields()
    assert fields == {
        "workload": "fanout",
        "payload_bytes": 128,
        "traffic_class": 5,
        "publishers": 1,
        "members": 100,
        "pack": 8,
        "window": 256,
        "wall_s": 2.0,
        "messages": 1_000,
        "messages_per_s": 500.0,
        "deliveries": 100_000,
        "deliveries_per_s": 50_000.0,
        "payload_bytes_per_s": 6_400_000.0,
        "latency_p50_us": 1.0,
        "latency_p90_us": 2.0,
        "latency_p99_us": 3.0,
        "latency_p99_9_us": 4.0,
        "latency_max_us": 5.0,
        "server_cpu_us_per_delivery": 10.0,
        "deliveries_per_server_cpu_s": 100_000.0,
        "server_rss_bytes": 50_000_000,
        "server_cpu_fraction": 0.5,
        "server_waited_fraction": 0.05,
        "generator_cpu_fraction": 0.25,
        "generator_waited_fraction": 0.01,
        "bottleneck": "",
        "interrupted": False,
    }


def test_handshakes_and_idle_connections() -> None:
    fields = result("connect", {"handshakes": 4_000, "latency_us": LATENCY}).fields()
    assert (fields["handshakes_per_s"], fields["server_cpu_us_per_handshake"]) == (2_000, 250)
    assert fields["handshakes_per_server_cpu_s"] == 4_000
    assert "payload_bytes" not in fields
    fields = result("idle", {"connections": 1_000}, server_cpu_s=0.02).fields()
    assert (fields["server_bytes_per_connection"], fields["server_cpu_fraction"]) == (9.0, 0.01)


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_field_is_a_column_in_its_order(name: str) -> None:
    counted = {"messages": 0, "deliveries": 0} if WORKLOADS[name].payload_bytes else {"connections": 0}
    fields = result(name, counted).fields()
    assert list(fields) == [column for column in COLUMNS if column in fields]


def test_nothing_done_or_a_server_elsewhere_has_no_figures_of_the_server() -> None:
    fields = result("pair", {"messages": 0, "deliveries": 0}).fields()
    assert "server_cpu_us_per_delivery" not in fields
    fields = result("pair", {"messages": 5, "deliveries": 5}, server_cpu_s=None).fields()
    assert not [name for name in fields if "server" in name]


@pytest.mark.parametrize(
    ("server_cpu_s", "cpu_s", "bottleneck"),
    [
        (1.9, 0.5, "server"),
        (1.9, 1.9, "server"),
        (1.0, 1.9, "generator"),
        (None, 1.9, "generator"),
        (None, 1.0, ""),
        (1.0, 1.0, ""),
    ],
)
def test_what_set_the_pace(server_cpu_s: float | None, cpu_s: float, bottleneck: str) -> None:
    assert result("pair", {"deliveries": 5}, server_cpu_s, cpu_s).bottleneck == bottleneck


def test_processes_that_connect_use_a_core_each() -> None:
    found = result("connect", {"handshakes": 5}, cpu_s=5.8)
    assert found.generator_cpu_fraction == pytest.approx(0.725)
    assert found.bottleneck == ""
    assert attrs.evolve(found, cores=2).bottleneck == "generator"


def test_a_crowded_machine() -> None:
    found = result("pair", {"deliveries": 5})
    assert found.usage is not None
    assert attrs.evolve(found, usage=attrs.evolve(found.usage, waited_s=0.3)).bottleneck == "machine"
    assert attrs.evolve(found, counted={**found.counted, "waited_s": 0.3}).bottleneck == "machine"
    saturated = result("pair", {"deliveries": 5}, cpu_s=1.9)
    assert attrs.evolve(saturated, counted={**saturated.counted, "waited_s": 0.1}).bottleneck == "generator"
