"""Server CPU per delivered message: our relay, encrypted, beside nats-server in plaintext, in one run.

    python -m tests.benchmarks.deliveries [--workload NAME]... [--rounds N] [--json FILE]

Rounds are interleaved (A B A B ...), so that what else the machine does meets both; ratios are taken within
a round and given as median and spread. Only this file knows both the servers and the load generator.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import statistics
from collections.abc import Iterable
from pathlib import Path

import attrs
import click

from awesomeconnect.bench import processes
from awesomeconnect.bench.generator import Job
from awesomeconnect.bench.processes import Cores, generator
from awesomeconnect.bench.workloads import STREAMS, Workload

from .servers import SYSTEMS, Absent, Failed, Server, System, cores, relay_with

YARDSTICK = "nats"
RATIO = f"ratio_to_{YARDSTICK}"
PLAIN, VARIED = "relay", "relay+"
RATIO_TO_PLAIN = f"ratio_to_{PLAIN}"
SATURATED = 0.95


@attrs.frozen
class Measurement:
    """One system in one round of one workload."""

    deliveries: int
    wall_s: float
    server_cpu_s: float
    generator_cpu_s: float
    server_rss_bytes: int

    @property
    def cpu_us_per_delivery(self) -> float:
        return self.server_cpu_s * 1e6 / self.deliveries


def measure(system: str, server: Server, workload: Workload, seconds: float, on: Cores) -> Measurement:
    """Run the load generator once, on the given cores, against a running server."""
    job = Job(system.removesuffix("+"), server.address, workload, seconds)
    with generator(job, on, "tests.benchmarks.generator") as load:
        load.expect("ready")
        before_ns = server.cpu_ns()
        load.go()
        done = load.expect("done")
        return Measurement(
            deliveries=done["deliveries"],
            wall_s=done["wall_s"],
            server_cpu_s=(server.cpu_ns() - before_ns) / 1e9,
            generator_cpu_s=done["cpu_s"],
            server_rss_bytes=server.rss_bytes(),
        )


def rounds(
    systems: Iterable[System], workload: Workload, count: int, seconds: float, pin: bool
) -> dict[str, list[Measurement]]:
    """Measure every system once a round, on servers started afresh for this workload."""
    everywhere = frozenset(os.sched_getaffinity(0))
    server_cores, generator_cores = cores() if pin else (everywhere, everywhere)
    with contextlib.ExitStack() as stack:
        servers = {system.name: stack.enter_context(system.run(server_cores)) for system in systems}
        results: dict[str, list[Measurement]] = {name: [] for name in servers}
        for number in range(1, count + 1):
            for name, server in servers.items():
                result = measure(name, server, workload, seconds, generator_cores)
                results[name].append(result)
                click.echo(
                    f"{workload.name} round {number}/{count} {name}: "
                    f"{result.cpu_us_per_delivery:.3f} µs per delivery",
                    err=True,
                )
        return results


# ---- report --------------------------------------------------------------------------------------------


@attrs.frozen
class Spread:
    """A figure over the rounds."""

    rounds: list[float]
    median: float
    min: float
    max: float

    @classmethod
    def of(cls, rounds: Iterable[float]) -> Spread:
        values = list(rounds)
        return cls(values, statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.min:.3f}-{self.max:.3f})"


Summary = dict[str, dict[str, Spread]]
"""Of one workload: system -> figure -> spread; what `--json` holds and the table shows."""


def summarise(results: dict[str, list[Measurement]]) -> Summary:
    summary: Summary = {}
    for name, rows in results.items():
        summary[name] = {
            "cpu_us_per_delivery": Spread.of(row.cpu_us_per_delivery for row in rows),
            "deliveries_per_s": Spread.of(row.deliveries / row.wall_s for row in rows),
            "server_cpu_fraction": Spread.of(row.server_cpu_s / row.wall_s for row in rows),
            "generator_cpu_fraction": Spread.of(row.generator_cpu_s / row.wall_s for row in rows),
            "server_rss_bytes": Spread.of(row.server_rss_bytes for row in rows),
        }
        if YARDSTICK in results:
            pairs = zip(rows, results[YARDSTICK], strict=True)
            summary[name][RATIO] = _ratio(pairs)
        if name == VARIED and PLAIN in results:
            summary[name][RATIO_TO_PLAIN] = _ratio(zip(rows, results[PLAIN], strict=True))
    return summary


def _ratio(pairs: Iterable[tuple[Measurement, Measurement]]) -> Spread:
    return Spread.of(row.cpu_us_per_delivery / peer.cpu_us_per_delivery for row, peer in pairs)


def _table(workload: Workload, summary: Summary) -> str:
    lines = [
        f"\n{workload.name}: {workload.payload_bytes} B, {workload.publishers or workload.members} -> "
        f"{workload.members}, {workload.pack} messages per send, window {workload.window}",
        f"  {'':8}{'server µs per delivery':>26}{'deliveries/s':>14}{'server':>8}{'generator':>11}"
        f"{'RSS MiB':>9}{'ratio to ' + YARDSTICK:>24}",
    ]
    for name, figures in summary.items():
        server = figures["server_cpu_fraction"].median
        generator = figures["generator_cpu_fraction"].median
        lines.append(
            f"  {name:8}{figures['cpu_us_per_delivery']!s:>26}{figures['deliveries_per_s'].median:>14,.0f}"
            f"{server:>8.0%}{generator:>11.0%}{figures['server_rss_bytes'].median / 2**20:>9.1f}"
            + (f"{figures[RATIO]!s:>24}" if RATIO in figures and name != YARDSTICK else "")
            + (f"  {figures[RATIO_TO_PLAIN]} to {PLAIN}" if RATIO_TO_PLAIN in figures else "")
            + ("  the generator is the bottleneck" if generator > SATURATED > server else "")
        )
    return "\n".join(lines)


@click.command()
@click.option("--workload", "names", multiple=True, type=click.Choice(list(STREAMS)), help="Default: fanout, pair.")
@click.option("--system", "wanted", multiple=True, type=click.Choice(list(SYSTEMS)), help="Default: all.")
@click.option("--rounds", "count", default=5, show_default=True, type=click.IntRange(1))
@click.option("--seconds", default=3.0, show_default=True, type=click.FloatRange(0.1, 15), help="Per measurement.")
@click.option("--pack", type=click.IntRange(1), help="Messages per send, and per client record.")
@click.option("--window", type=click.IntRange(1), help="Messages published and not yet received by all.")
@click.option("--pin/--no-pin", default=False, show_default=True, help="Server and generator on a core each.")
@click.option(
    "--serve-with",
    metavar="ARGUMENTS",
    help=f"Also measure {VARIED}, a relay with these arguments of `awesomeconnect serve`, beside the plain one.",
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write all figures here."
)
def main(
    names: tuple[str, ...],
    wanted: tuple[str, ...],
    count: int,
    seconds: float,
    pack: int | None,
    window: int | None,
    pin: bool,
    serve_with: str | None,
    json_file: Path | None,
) -> None:
    """Server CPU per delivered message of the relay beside nats-server's."""
    versions: dict[str, str] = {}
    systems_under_test = {name: SYSTEMS[name] for name in wanted or SYSTEMS}
    if serve_with is not None:
        systems_under_test[VARIED] = relay_with(VARIED, shlex.split(serve_with))
    for name, system_under_test in systems_under_test.items():
        try:
            versions[name] = system_under_test.version()
        except Absent as absent:
            click.echo(f"left out: {absent}", err=True)
    workloads = {}
    for name in names or ("fanout", "pair"):
        workload = STREAMS[name]
        try:
            workload = attrs.evolve(workload, pack=pack or workload.pack, window=window or workload.window)
            results = rounds([systems_under_test[name] for name in versions], workload, count, seconds, pin)
        except (Failed, processes.Failed, ValueError) as problem:
            raise click.ClickException(str(problem)) from problem
        summary = summarise(results)
        click.echo(_table(workload, summary))
        systems = {system: {key: attrs.asdict(of) for key, of in row.items()} for system, row in summary.items()}
        workloads[name] = {**attrs.asdict(workload), "systems": systems}
    if json_file is not None:
        report = {
            "versions": versions,
            "python": platform.python_version(),
            "machine": f"{platform.platform()}, {os.cpu_count()} cores",
            "seconds": seconds,
            "pinned": pin,
            "serve_with": serve_with,
            "workloads": workloads,
        }
        json_file.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
