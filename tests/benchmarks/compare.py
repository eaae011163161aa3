"""Our relay, encrypted, beside nats-server, redis-server and mosquitto in plaintext: the same work, in one run.

    python -m tests.benchmarks.compare                           # the whole table, with targets; about 6 minutes
    python -m tests.benchmarks.compare --quick --plot plots      # smaller; and how cost grows, as PNGs
    python -m tests.benchmarks.compare --workload room --rounds 9 --json figures.json

Rounds are interleaved (A B C D B C D A ...), so that what else the machine does meets all; ratios are taken within
a round and given as median and spread. README.md says how to read the figures. Only this file knows both the
servers and the load generator.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import click

from awesomeconnect.bench import processes
from awesomeconnect.bench.processes import Cores, Generator, generator
from awesomeconnect.wire.messages import TrafficClass

from .generator import Task
from .report import NoPlots, Result, Rounds, details, plot, verdicts
from .rows import FIGURES, QUICK, Lane, Raw, Row, Scale, growth, table
from .servers import PASSES, SYSTEMS, Absent, Failed, Server, System, cores, raise_file_limit, relay_with

MODULE = "tests.benchmarks.generator"
VARIED = "relay+"
GROWTH = "growth"
#: How much longer than the measurement the flood lasts, so that it covers it.
FLOOD_MARGIN_S = 0.5
#: Messages a second, one due every 5 ms.
URGENT_RATE = 200


class Contestant:
    """A lane of a row at work: a server of its own and the generator that is connected to it."""

    def __init__(self, server: Server, load: Generator, flood: Generator | None) -> None:
        self._server = server
        self._load = load
        self._flood = flood

    def wait_ready(self) -> None:
        """Until the generator is ready for a measurement.

        Raises:
            processes.Failed: it has failed.
        """
        self._load.expect("ready")
        if self._flood is not None:
            self._flood.expect("ready")

    def measure(self, kind: str) -> dict[str, float]:
        """One measurement; the generator is ready for the next one when it returns."""
        server = self._server
        if self._flood is not None:
            self._passes()
            self._flood.go()
        cpu_ns, waited_ns, rss_bytes = server.cpu_ns(), server.waited_ns(), server.rss_bytes()
        self._load.go()
        found = self._load.expect("done")
        cpu_s, waited_s = (server.cpu_ns() - cpu_ns) / 1e9, (server.waited_ns() - waited_ns) / 1e9
        rss_after_bytes = server.rss_bytes()
        figures = FIGURES[kind](Raw(found, cpu_s, waited_s, rss_after_bytes, rss_after_bytes - rss_bytes))
        if self._flood is not None:
            figures |= self._passes()
            self._flood.expect("done")
        self.wait_ready()
        return figures

    def _passes(self) -> dict[str, float]:
        process = self._server.process
        assert process.stdout is not None
        process.send_signal(signal.SIGUSR1)
        found: dict[str, float] = json.loads(process.stdout.readline())
        return found


def compare(row: Row, systems: dict[str, System], scale: Scale, pin: bool) -> Result:
    """Measure every lane of a row once a round, on servers started afresh."""
    seconds = scale.seconds if row.seconds is None else row.seconds
    count = row.rounds or scale.rounds
    rounds: Rounds = {}
    missing: dict[str, str] = {}

    @contextlib.contextmanager
    def failures_of(name: str) -> Iterator[None]:
        try:
            yield
        except (Failed, processes.Failed) as failure:
            missing[name] = str(failure)
            rounds.pop(name, None)

    with contextlib.ExitStack() as stack:
        at_work: dict[str, Contestant] = {}
        for lane in row.lanes:
            if lane.system in systems:
                with failures_of(lane.name):
                    at_work[lane.name] = _start(stack, row, lane, systems[lane.system], seconds, pin)
        for name, contestant in at_work.items():
            with failures_of(name):
                contestant.wait_ready()
        for number in range(1, count + 1):
            first = number % len(row.lanes)
            for lane in row.lanes[first:] + row.lanes[:first]:
                if lane.name not in at_work or lane.name in missing:
                    continue
                with failures_of(lane.name):
                    figures = at_work[lane.name].measure(row.kind or str(row.workload.kind))
                    rounds.setdefault(lane.name, []).append(figures)
                    told = f"{row.figure} {figures[row.figure]:.4g}"
                    click.echo(f"{row.name} {number}/{count} {lane.name}: {told}", err=True)
    in_order = {lane.name: rounds[lane.name] for lane in row.lanes if lane.name in rounds}
    return Result.of(row, in_order, missing)


def _start(
    stack: contextlib.ExitStack, row: Row, lane: Lane, system: System, seconds: float, pin: bool
) -> Contestant:
    everywhere = frozenset(os.sched_getaffinity(0))
    server_cores, generator_cores = cores() if pin else (everywhere, everywhere)
    server = stack.enter_context(system.run(server_cores))
    speaks = lane.system.partition("_")[0].removesuffix("+")

    def load(task: Task, on: Cores) -> Generator:
        return stack.enter_context(generator(task, on, MODULE))

    flood = None
    if row.flood is not None:
        task = Task(speaks, server.address, row.flood, seconds + FLOOD_MARGIN_S, kind=row.flood_kind)
        flood = load(task, generator_cores)
    task = Task(speaks, server.address, row.workload, seconds, kind=row.kind, idle=lane.idle)
    if row.urgent:
        task = attrs.evolve(task, rate=URGENT_RATE, options={"traffic_class": int(TrafficClass.URGENT)})
    return Contestant(server, load(task, generator_cores), flood)


def _names() -> list[str]:
    return [*(row.name for row in table(Scale())), GROWTH]


@click.command()
@click.option("--workload", "names", multiple=True, type=click.Choice(_names()), help="Default: all but growth.")
@click.option("--system", "wanted", multiple=True, type=click.Choice(list(SYSTEMS)), help="Default: all.")
@click.option("--quick", is_flag=True, help="Fewer rounds and connections, and shorter ones: about 2 minutes.")
@click.option("--rounds", "count", type=click.IntRange(1), help="Of most rows.  [default: 3; 2 if quick]")
@click.option("--seconds", type=click.FloatRange(0.1, 15), help="Per measurement.  [default: 1.25; 0.5 if quick]")
@click.option("--pin/--no-pin", default=False, show_default=True, help="Server and generator on a core each.")
@click.option(
    "--serve-with",
    metavar="ARGUMENTS",
    help=f"Also measure {VARIED}, a relay with these arguments of `awesomeconnect serve`, beside the plain one.",
)
@click.option(
    "--plot",
    "plots",
    type=click.Path(path_type=Path, file_okay=False),
    help="Also measure growth, and draw it here, as PNGs.",
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write all figures here."
)
def main(
    names: tuple[str, ...],
    wanted: tuple[str, ...],
    quick: bool,
    count: int | None,
    seconds: float | None,
    pin: bool,
    serve_with: str | None,
    plots: Path | None,
    json_file: Path | None,
) -> None:
    """Compare the relay with nats-server, redis-server and mosquitto; targets are ratios to nats-server."""
    raise_file_limit()
    scale = QUICK if quick else Scale()
    scale = attrs.evolve(scale, rounds=count or scale.rounds, seconds=seconds or scale.seconds)
    systems, versions = _present(wanted, serve_with)
    rows = [row for row in table(scale) if not names or row.name in names]
    varieties = growth(scale) if plots is not None or GROWTH in names else {}

    def measured(row: Row) -> Result:
        if VARIED in systems and any(lane.system == "nats" for lane in row.lanes):
            row = attrs.evolve(row, lanes=(row.lanes[0], Lane(VARIED, VARIED, row.lanes[0].idle), *row.lanes[1:]))
        result = compare(row, systems, scale, pin)
        click.echo(details(result))
        return result

    results = [measured(row) for row in rows if any(lane.system in systems for lane in row.lanes)]
    grown = {axis: {value: measured(row) for value, row in each.items()} for axis, each in varieties.items()}
    click.echo(verdicts(results))
    if plots is not None:
        try:
            for file in plot(grown, plots):
                click.echo(f"plot: {file}", err=True)
        except NoPlots as problem:
            click.echo(f"no plots: {problem}", err=True)
    if json_file is not None:
        report = {
            "versions": versions,
            "python": platform.python_version(),
            "machine": f"{platform.platform()}, {os.cpu_count()} cores",
            "scale": attrs.asdict(scale),
            "pinned": pin,
            "serve_with": serve_with,
            "workloads": {result.row.name: result.as_json() for result in results},
            GROWTH: {axis: {value: each.as_json() for value, each in by.items()} for axis, by in grown.items()},
        }
        json_file.write_text(json.dumps(report, indent=2) + "\n")


def _present(wanted: tuple[str, ...], serve_with: str | None) -> tuple[dict[str, System], dict[str, str]]:
    """The systems that are installed here, and their versions; absent ones are named."""
    systems: dict[str, Any] = {name: SYSTEMS[name] for name in wanted or SYSTEMS}
    versions = {}
    for name in list(systems):
        try:
            versions[name] = systems[name].version()
        except Absent as absent:
            click.echo(f"left out: {absent}", err=True)
            del systems[name]
    if "relay" in systems:
        systems["relay_passes"] = PASSES
    if serve_with is not None:
        systems[VARIED] = relay_with(VARIED, shlex.split(serve_with))
    return systems, versions


if __name__ == "__main__":
    main()
