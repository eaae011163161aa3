"""Latency of urgent messages behind a bulk transfer, over a slow link, beside nats-server.

    python -m tests.benchmarks.urgent                      # 10 Mbit/s, about a minute; needs root
    python -m tests.benchmarks.urgent --rate 8 --rate-steps 8,4,16
    python -m tests.benchmarks.urgent --rtt 40
    python -m tests.benchmarks.urgent --json

Only this file knows the link, the servers and the load together. README.md says how to read the figures.
"""

from __future__ import annotations

import contextlib
import json
import math
import shlex
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import click

from .link import SENDER_IP, Link, Unable, describe, inside, link
from .servers import NATS, RELAY, Absent, Failed, Server, System, cores, relay_with

MESSAGE_BYTES = 900_000
#: A transfer that takes longer has failed: five times what the slowest sensible link needs.
PATIENCE_S = 60
FIRST_SECOND_S = 1.0


@attrs.frozen
class Transfer:
    """One system, one bulk transfer. Urgent messages as (seconds after the start, latency in ms)."""

    urgent: list[tuple[float, float]]
    urgent_lost: int
    bulk_bytes: int
    bulk_s: float
    queueing_us: dict[str, list[int]]
    server_cpu_s: float


#: Our relay with other arguments, beside the plain one.
CHANGED = "awesomeconnect+"


def _systems(namespace: str, arguments: list[str]) -> dict[str, System]:
    """The servers of `servers.py`, started inside the namespace."""

    def moved(system: System, name: str) -> System:
        def command(directory: Path) -> list[str]:
            line = [SENDER_IP if word == "127.0.0.1" else word for word in system.command(directory)]
            line = [f"{SENDER_IP}:0" if word == "127.0.0.1:0" else word for word in line]
            return inside(namespace, *line)

        return attrs.evolve(system, name=name, command=command)

    systems = {"awesomeconnect": RELAY, "nats-server": NATS}
    if arguments:
        systems[CHANGED] = relay_with(CHANGED, arguments)
    return {name: moved(system, name) for name, system in systems.items()}


@contextlib.contextmanager
def _client(namespace: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.benchmarks.urgent_load", *map(str, arguments)]
    process = subprocess.Popen(
        inside(namespace, *command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        _event(process, "ready")
        yield process
    finally:
        process.kill()
        process.communicate()


def _event(process: subprocess.Popen[str], expected: str) -> dict[str, Any]:
    assert process.stdout is not None
    late = threading.Timer(PATIENCE_S, process.kill)
    late.start()
    try:
        line = process.stdout.readline()
    finally:
        late.cancel()
    event: dict[str, Any] = json.loads(line) if line else {}
    if event.get("event") != expected:
        raise click.ClickException(f"a client of the benchmark ended, or nothing came for {PATIENCE_S} s")
    return event


def _tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def transfer(
    over: Link, system: str, server: Server, messages: int, interval_ms: float, steps: list[float]
) -> Transfer:
    """Run one transfer over fresh connections."""
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(_client(over.reader, "read", system, server.address, messages))
        urgent = stack.enter_context(_client(over.sender, "urgent", system, server.address, interval_ms))
        bulk = stack.enter_context(_client(over.sender, "bulk", system, server.address, messages, MESSAGE_BYTES))
        if steps:
            over.set_rate(steps[0])
        _tell(reader)
        cpu_ns, start_ns = server.cpu_ns(), time.monotonic_ns()
        _tell(urgent)
        _tell(bulk)
        step_s = messages * MESSAGE_BYTES * 8e-6 / sum(steps) if steps else 0.0
        timers = [threading.Timer(step_s * at, over.set_rate, [rate]) for at, rate in enumerate(steps) if at]
        for timer in timers:
            stack.callback(timer.cancel)
            timer.start()
        _event(reader, "bulk")
        cpu_ns = server.cpu_ns() - cpu_ns
        _tell(urgent)
        done = _event(reader, "done")
        end_ns = done["bulk"][-1]
        return Transfer(
            urgent=[
                ((sent - start_ns) / 1e9, (received - sent) / 1e6)
                for sent, received in done["urgent"]
                if sent < end_ns
            ],
            urgent_lost=done["urgent_lost"],
            bulk_bytes=messages * MESSAGE_BYTES,
            bulk_s=(end_ns - start_ns) / 1e9,
            queueing_us=done["queueing_us"],
            server_cpu_s=cpu_ns / 1e9,
        )


# ---- report --------------------------------------------------------------------------------------------


def percentile(values: list[float], percent: float) -> float:
    """The smallest value that at least `percent` of all do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def _latencies(prefix: str, values: list[float]) -> dict[str, float | int]:
    return {
        f"{prefix}_p50_ms": round(percentile(values, 50), 2),
        f"{prefix}_p99_ms": round(percentile(values, 99), 2),
        f"{prefix}_max_ms": round(max(values), 2),
        f"{prefix}_samples": len(values),
    }


def summarise(transfers: list[Transfer]) -> dict[str, Any]:
    """The figures of one system; `urgent_*` without the first second of each transfer, which has its own."""
    samples = [sample for transfer in transfers for sample in transfer.urgent]
    first = [latency for at, latency in samples if at < FIRST_SECOND_S]
    later = [latency for at, latency in samples if at >= FIRST_SECOND_S]
    rates = [transfer.bulk_bytes / 1e6 / transfer.bulk_s for transfer in transfers]
    return {
        **_latencies("urgent", later or first),
        "urgent_lost": sum(transfer.urgent_lost for transfer in transfers),
        "bulk_mb_per_s": round(statistics.median(rates), 4),
        "bulk_mb_per_s_each": [round(rate, 4) for rate in rates],
        **_latencies("first_second", first),
        **_latencies("all", first + later),
        "queueing_us": {
            what: [
                max(column) for column in zip(*(transfer.queueing_us[what] for transfer in transfers), strict=True)
            ]
            for what in transfers[0].queueing_us
        },
        "server_cpu_fraction": round(
            sum(transfer.server_cpu_s for transfer in transfers) / sum(transfer.bulk_s for transfer in transfers), 4
        ),
    }


def _table(summary: dict[str, dict[str, Any]]) -> str:
    columns = (
        ("urgent_p50_ms", "p50"),
        ("urgent_p99_ms", "p99"),
        ("urgent_max_ms", "max"),
        ("first_second_p99_ms", "p99, 1st s"),
        ("urgent_lost", "lost"),
        ("bulk_mb_per_s", "bulk MB/s"),
        ("server_cpu_fraction", "server CPU"),
    )
    lines = [f"{'urgent latency, ms':18}" + "".join(f"{title:>12}" for _, title in columns)]
    for system, figures in summary.items():
        lines.append(f"{system:18}" + "".join(f"{figures[key]:>12,.4g}" for key, _ in columns))
    for system, figures in summary.items():
        for traffic_class, bound_us in enumerate(figures["queueing_us"].get("bound", ())):
            if bound_us:
                longest_us = figures["queueing_us"]["longest"][traffic_class]
                line = f"class {traffic_class} waited in the relay for {longest_us / 1e3:,.2f} ms at most"
                lines.append(f"{system}: {line}; the bound is {bound_us / 1e3:,.2f} ms")
    return "\n".join(lines)


def _plot(results: dict[str, list[Transfer]], file: Path, title: str) -> None:
    try:
        import matplotlib
    except ImportError:
        click.echo("no plot: matplotlib is not installed (pip install '.[benchmark]')", err=True)
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for colour, (system, transfers) in zip(("tab:blue", "tab:orange", "tab:green"), results.items(), strict=False):
        for number, each in enumerate(transfers):
            at, latency = zip(*each.urgent, strict=True)
            axes.plot(at, latency, ".", markersize=2, color=colour, label=system if not number else None)
    axes.set(xlabel="seconds after the start of the transfer", ylabel="latency of urgent messages, ms", title=title)
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend(markerscale=5)
    figure.savefig(file, dpi=150)
    click.echo(f"plot: {file}", err=True)


def _rates(_context: click.Context, _parameter: click.Parameter, text: str | None) -> list[float]:
    try:
        rates = [float(part) for part in text.split(",")] if text else []
    except ValueError:
        rates = [0.0]
    if any(rate <= 0 for rate in rates):
        raise click.BadParameter("numbers above 0 with commas between them, for example 8,4,16")
    return rates


@click.command()
@click.option("--rate", default=10.0, show_default=True, type=click.FloatRange(0.5, 1000), help="Mbit/s.")
@click.option("--rate-steps", "steps", callback=_rates, help="The rate changes during a transfer, as 8,4,16.")
@click.option("--rtt", "rtt_ms", default=0.0, type=click.FloatRange(0, 500), help="Round trip added, ms.")
@click.option("--unlimited", is_flag=True, help="No limit of the rate.")
@click.option("--megabytes", default=10.0, show_default=True, type=click.FloatRange(1), help="Bulk per transfer.")
@click.option("--interval", "interval_ms", default=10.0, show_default=True, type=click.FloatRange(1), help="ms.")
@click.option("--transfers", default=3, show_default=True, type=click.IntRange(1), help="Of each system.")
@click.option("--system", "wanted", multiple=True, type=click.Choice(["awesomeconnect", "nats-server"]))
@click.option("--serve-with", default="", help="Also a relay with these arguments, as --no-pacing.")
@click.option("--congestion-control", default="", help="Of TCP, as cubic or bbr.  [default: the system's]")
@click.option("--plot", "plot_file", type=click.Path(path_type=Path, dir_okay=False), help="Draw it, as a PNG.")
@click.option("--json", "as_json", is_flag=True, help="One object on standard output.")
def main(
    rate: float,
    steps: list[float],
    rtt_ms: float,
    unlimited: bool,
    megabytes: float,
    interval_ms: float,
    transfers: int,
    wanted: tuple[str, ...],
    serve_with: str,
    congestion_control: str,
    plot_file: Path | None,
    as_json: bool,
) -> None:
    """Latency of urgent messages behind a bulk transfer, over a slow link, beside nats-server."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the link is taken away
    limit = None if unlimited else (steps or [rate])[0]
    messages = max(1, round(megabytes * 1e6 / MESSAGE_BYTES))
    try:
        with link(limit, rtt_ms, congestion_control) as over:
            conditions = {
                "limit": describe(limit),
                "rate_steps_mbit_per_s": steps,
                "added_rtt_ms": rtt_ms,
                "congestion_control": over.congestion_control,
                "bulk": f"{messages} x {MESSAGE_BYTES} B",
                "urgent": f"200 B every {interval_ms:g} ms",
                "transfers": transfers,
            }
            click.echo("; ".join(f"{key}: {value}" for key, value in conditions.items()), err=True)
            results = _run(over, wanted, shlex.split(serve_with), transfers, messages, interval_ms, steps)
    except (Unable, Failed) as problem:
        raise click.ClickException(str(problem)) from problem
    summary = {system: summarise(each) for system, each in results.items()}
    if plot_file is not None:
        _plot(results, plot_file, f"{conditions['limit']}, {over.congestion_control}, +{rtt_ms:g} ms")
    if as_json:
        click.echo(json.dumps({**summary, "conditions": conditions}))
    else:
        click.echo(_table(summary))


def _run(
    over: Link,
    wanted: tuple[str, ...],
    arguments: list[str],
    transfers: int,
    messages: int,
    interval_ms: float,
    steps: list[float],
) -> dict[str, list[Transfer]]:
    """Transfers in turn, so that what else the machine does meets both systems."""
    results: dict[str, list[Transfer]] = {}
    with contextlib.ExitStack() as stack:
        servers: dict[str, Server] = {}
        for name, system in _systems(over.sender, arguments).items():
            if wanted and name not in (*wanted, CHANGED):
                continue
            try:
                servers[name] = stack.enter_context(system.run(frozenset().union(*cores())))
            except Absent as absent:
                click.echo(f"left out: {absent}", err=True)
        for number in range(1, transfers + 1):
            for name, server in servers.items():
                each = transfer(over, name.rstrip("+"), server, messages, interval_ms, steps)
                results.setdefault(name, []).append(each)
                latencies = [latency for _, latency in each.urgent]
                click.echo(
                    f"{name} {number}/{transfers}: p99 {percentile(latencies, 99):.1f} ms, "
                    f"{each.bulk_bytes / 1e6 / each.bulk_s:.3f} MB/s",
                    err=True,
                )
    return results


if __name__ == "__main__":
    main()
