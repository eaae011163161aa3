"""How ``bench`` shows what it measures: bars while it does, then a table, JSON lines or CSV."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

import click

from awesomeconnect.bench.histogram import PERCENTILES
from awesomeconnect.bench.load import Limits
from awesomeconnect.bench.results import COLUMNS, Result
from awesomeconnect.bench.workloads import Kind, Workload
from awesomeconnect.cli.text import json_line
from awesomeconnect.wire.records import MAX_PLAINTEXT

if TYPE_CHECKING:
    from rich.table import Table

_LEGEND = (
    "deliveries (rtt: two a round trip) or handshakes a second; the relay's CPU time or memory for each, and how "
    "many a CPU-second makes; how busy relay and load generator were, in cores; the relay's memory\n"
)
#: Width of a table where there is no terminal.
_WIDTH = 100


class Report:
    """Results as they come. JSON and CSV are printed line by line, the table at the end, also after an error."""

    def __init__(self, as_json: bool, as_csv: bool) -> None:
        self._as_json = as_json
        self._csv = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n") if as_csv else None
        self._results: list[Result] = []

    def __enter__(self) -> Self:
        if self._csv is not None:
            self._csv.writeheader()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        if self._results and not self._as_json and self._csv is None:
            self._print_tables()

    def add(self, result: Result) -> None:
        """One more."""
        self._results.append(result)
        if self._as_json:
            click.echo(json_line(**result.fields()))
        elif self._csv is not None:
            self._csv.writerow(result.fields())
            sys.stdout.flush()

    @contextmanager
    def progress(self, workload: Workload, limits: Limits) -> Iterator[Callable[[int, float], None]]:
        """A bar on a terminal; what it yields is told how much is done, and for how long the work goes on."""
        if not sys.stderr.isatty():
            yield lambda _done, _s: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[pace]}"),
        )
        is_idle = workload.kind is Kind.IDLE
        total = workload.members if is_idle else limits.messages or limits.seconds
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(f"{workload.name} {_what(workload)}", total=total, pace="connecting")

            def update(done: int, elapsed_s: float) -> None:
                rate = done * workload.deliveries_per_message / max(elapsed_s, 0.1)
                pace = f"{done:,} connected" if is_idle else f"{rate:,.0f}/s"
                bar.update(task, completed=done if is_idle or limits.messages else elapsed_s, pace=pace)

            yield update

    def _print_tables(self) -> None:
        from rich.console import Console

        console = Console(width=None if sys.stdout.isatty() else _WIDTH)
        console.print(_table(self._results))
        console.print(_LEGEND, style="dim", highlight=False, soft_wrap=True)
        if any(result.counted.get("latency_us") for result in self._results):
            console.print(_latency_table(self._results))
        for result in self._results:
            for note in _notes(result):
                console.print(f"{result.job.workload.name}: {note}", highlight=False, soft_wrap=True)
        if any(result.usage is None for result in self._results):
            console.print(
                "what the relay used is known with --pid, on its machine", highlight=False, soft_wrap=True
            )


def _table(results: list[Result]) -> Table:
    """Narrow enough for 80 columns."""
    table = _empty_table()
    table.add_column("workload", no_wrap=True)
    table.add_column("")
    for column in ("a second", "each", "a CPU-s", "relay", "load", "MiB"):
        table.add_column(column, justify="right")
    for result in results:
        workload, usage = result.job.workload, result.usage
        table.add_row(
            workload.name,
            _what(workload),
            *(_idle_cells(result) if workload.kind is Kind.IDLE else _busy_cells(result)),
            "" if usage is None else f"{usage.rss_bytes / (1 << 20):.1f}",
        )
    return table


def _empty_table() -> Table:
    from rich.table import Table

    return Table(box=None, padding=(0, 1, 0, 0), header_style="underline")


def _busy_cells(result: Result) -> tuple[str, ...]:
    each_s = result.cpu_s_each
    return (
        f"{result.per_s:,.0f}",
        "" if each_s is None else _microseconds(each_s),
        "" if not each_s else f"{1 / each_s:,.0f}",
        _percent(result.server_cpu_fraction),
        _percent(result.generator_cpu_fraction),
    )


def _idle_cells(result: Result) -> tuple[str, ...]:
    each_bytes = result.bytes_each
    return (
        "",
        "" if each_bytes is None else f"{each_bytes / 1024:.1f} KiB",
        "",
        "" if result.server_cpu_fraction is None else f"{result.server_cpu_fraction:.1%}",
        "",
    )


def _latency_table(results: list[Result]) -> Table:
    table = _empty_table()
    table.add_column("latency, ms", no_wrap=True)
    table.add_column("")
    for name in (*PERCENTILES, "max"):
        table.add_column(name.replace("_", "."), justify="right")
    for result in results:
        if latency_us := result.counted.get("latency_us"):
            what = "of connecting" if result.job.workload.kind is Kind.CONNECT else _what(result.job.workload)
            figures = (f"{latency_us[name] / 1e3:,.3f}" for name in (*PERCENTILES, "max"))
            table.add_row(result.job.workload.name, what, *figures)
    return table


def _what(workload: Workload) -> str:
    """A workload in numbers."""
    match workload.kind:
        case Kind.CONNECT:
            return f"{workload.members} at a time"
        case Kind.IDLE:
            return f"{workload.members:,} connections"
        case Kind.RTT:
            pairs = "" if workload.members == 1 else f", {workload.members:,} pairs"
            window = "" if workload.window == 1 else f", {workload.window} under way"
            return f"{workload.payload_bytes:,} B{pairs}{window}"
    publishers = workload.publishers or workload.members
    packed = "in pieces" if workload.payload_bytes > MAX_PLAINTEXT else f"pack {workload.pack}"
    return f"{workload.payload_bytes:,} B, {publishers:,} -> {workload.members:,}, {packed}"


def _microseconds(time_s: float) -> str:
    time_us = time_s * 1e6
    return f"{time_us:,.0f} µs" if time_us >= 100 else f"{time_us:.3g} µs"


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{fraction:.0%}"


def _notes(result: Result) -> Iterator[str]:
    """What must be said about a result."""
    if result.interrupted:
        yield "interrupted; the figures are of what was done until then"
    if result.bottleneck == "generator":
        yield (
            "the load generator was the bottleneck, and the relay waited for it: the relay can do more a second. "
            "CPU for each is the relay's own"
        )
    wanted = result.job.rate
    if wanted is not None and not result.interrupted:
        reached = result.counted.get("messages", result.done) / result.wall_s
        if reached < 0.95 * wanted and result.job.messages is None:
            yield f"{reached:,.1f} a second were sent, not the {wanted:,.1f} asked for; latency counts the delay"
