"""Figures over rounds: spreads, ratios, verdicts; the table, the JSON and the plots of what `compare` measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs

from awesomeconnect.bench.workloads import Kind

from .rows import Row, Target

SYSTEMS = ("relay", "nats", "redis", "mosquitto")
YARDSTICK = "nats"
SATURATED = 0.95


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
        return f"{number(self.median)} ({number(self.min)}-{number(self.max)})"


def number(value: float) -> str:
    """Three significant digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


Rounds = dict[str, list[dict[str, float]]]
"""Lane -> per round: figure -> value."""


@attrs.frozen
class Result:
    """A row that was measured: lane -> figure -> spread; and why lanes are missing."""

    row: Row
    lanes: dict[str, dict[str, Spread]]
    missing: dict[str, str]

    @classmethod
    def of(cls, row: Row, rounds: Rounds, missing: dict[str, str]) -> Result:
        """Ratios are taken within a round, so that what else the machine does meets both sides."""
        lanes: dict[str, dict[str, Spread]] = {}
        for lane, measured in rounds.items():
            figures = {name: Spread.of(each[name] for each in measured) for name in measured[0]}
            for base in (YARDSTICK, "relay"):
                if base in rounds and base != lane and (base != "relay" or lane.startswith("relay")):
                    pairs = zip(measured, rounds[base], strict=True)
                    ratios = [own[row.figure] / other[row.figure] for own, other in pairs]
                    figures[f"ratio_to_{base}"] = Spread.of(ratios)
            lanes[lane] = figures
        return cls(row, lanes, missing)

    def value(self, target: Target) -> Spread | None:
        return self.lanes.get(target.system, {}).get(target.figure)

    def verdict(self, target: Target) -> str:
        value = self.value(target)
        if value is None:
            return "not measured"
        return "met" if target.is_met(value.median) else "MISSED"

    def is_generator_bound(self, lane: str) -> bool:
        figures = self.lanes[lane]
        if "generator_cpu_fraction" not in figures or "server_cpu_fraction" not in figures:
            return False
        return figures["generator_cpu_fraction"].median > SATURATED > figures["server_cpu_fraction"].median

    def as_json(self) -> dict[str, Any]:
        """Medians under the names of the figures, and beside them their spread."""
        return {
            "title": self.row.title,
            "workload": attrs.asdict(self.row.workload),
            "systems": {
                lane: {
                    **{name: spread.median for name, spread in figures.items()},
                    "generator_is_the_bottleneck": self.is_generator_bound(lane),
                    "spread": {name: attrs.asdict(spread) for name, spread in figures.items()},
                }
                for lane, figures in self.lanes.items()
            },
            "missing": self.missing,
            "targets": [
                {
                    **attrs.asdict(target),
                    "value": None if (value := self.value(target)) is None else value.median,
                    "verdict": self.verdict(target),
                }
                for target in self.row.targets
            ],
        }


#: figure -> heading, in the order of the columns
_COLUMNS = {
    "cpu_us_per_delivery": "server µs per delivery",
    "p50_us": "p50 µs",
    "p99_us": "p99 µs",
    "kib_per_connection": "KiB per connection",
    "handshakes_per_cpu_s": "handshakes per CPU s",
    "handshakes_per_s": "handshakes/s",
    "deliveries_per_s": "deliveries/s",
    "longest_pass_cpu_ms": "longest pass, CPU ms",
    "longest_pass_wall_ms": "wall ms",
    "server_cpu_fraction": "server CPU",
    "server_waited_fraction": "waited",
    "generator_cpu_fraction": "generator CPU",
    "ratio_to_nats": "ratio to nats",
    "ratio_to_relay": "ratio to relay",
}


def details(result: Result) -> str:
    """Everything that is worth showing of a row: a line for each lane."""
    row, workload = result.row, result.row.workload
    shown = [name for name in _COLUMNS if any(name in figures for figures in result.lanes.values())]
    title = f"\n{row.name}: {row.title}"
    if workload.kind is Kind.STREAM:
        title += f" ({workload.pack} messages per send, window {workload.window})"
    cells = [["", *(_COLUMNS[name] for name in shown), ""]]
    for lane, figures in result.lanes.items():
        note = "the generator is the bottleneck" if result.is_generator_bound(lane) else ""
        cells.append([f"  {lane:14}", *(_cell(row, figures, name) for name in shown), note])
    lines = [title, *_aligned(cells)]
    lines += [f"  {lane:14} left out: {reason}" for lane, reason in result.missing.items()]
    return "\n".join(lines)


def _cell(row: Row, figures: dict[str, Spread], name: str) -> str:
    """The row's own figure and ratios with their spread, others as medians."""
    if name not in figures:
        return ""
    spread = figures[name]
    return str(spread) if name == row.figure or name.startswith("ratio") else number(spread.median)


def verdicts(results: Iterable[Result]) -> str:
    """The table: a line for each target, and for each row without one."""
    cells = [["", *SYSTEMS, "ratio to nats (spread)", "target", "verdict"]]
    for result in results:
        row = result.row
        medians = [number(lane[row.figure].median) if lane else "" for lane in map(result.lanes.get, SYSTEMS)]
        ratio = result.lanes.get("relay", {}).get("ratio_to_nats", "")
        line = [f"{row.title}, {_UNITS[row.figure]}", *medians, str(ratio)]
        for target in row.targets:
            value = result.value(target)
            sign = ">=" if target.at_least else "<="
            shown = f"{target.figure} {sign} {number(target.limit)}"
            found = "" if value is None else f", {number(value.median)}"
            cells.append([*line, shown, result.verdict(target) + found])
            line = [""] * len(line)
        if not row.targets:
            cells.append([*line, "none", ""])
    return "\n".join(["", *_aligned(cells, to_the_left=(0, 6, 7))])


def _aligned(cells: list[list[str]], to_the_left: tuple[int, ...] = (0,)) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "   ".join(
            f"{cell:<{width}}" if at in to_the_left else f"{cell:>{width}}"
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]


_UNITS = {
    "cpu_us_per_delivery": "µs",
    "p50_us": "µs",
    "p99_us": "p99 µs",
    "kib_per_connection": "KiB",
    "handshakes_per_cpu_s": "1/s",
    "server_cpu_fraction": "of a core",
}

# ---- plots ---------------------------------------------------------------------------------------------

_AXES = {
    "members": "members of the room (128 B from one publisher)",
    "payload": "payload, bytes (one publisher, 10 members)",
    "connections": "connections, of which 10 are active (128 B)",
}
_COLOURS = {"relay": "tab:blue", "nats": "tab:orange", "redis": "tab:red", "mosquitto": "tab:green"}


class NoPlots(Exception):
    """matplotlib is not installed."""


def plot(growth: dict[str, dict[int, Result]], directory: Path) -> list[Path]:
    """Deliveries per CPU second against what grows: a PNG each, with the spread of the rounds.

    Raises:
        NoPlots: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise NoPlots("matplotlib is not installed (pip install '.[benchmark]')") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    directory.mkdir(parents=True, exist_ok=True)
    files = []
    for axis, results in growth.items():
        figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
        for lane in dict.fromkeys(lane for result in results.values() for lane in result.lanes):
            found = {
                value: result.lanes[lane]["deliveries_per_cpu_s"]
                for value, result in results.items()
                if lane in result.lanes
            }
            medians = [spread.median for spread in found.values()]
            below = [spread.median - spread.min for spread in found.values()]
            above = [spread.max - spread.median for spread in found.values()]
            colour = _COLOURS.get(lane)
            axes.errorbar(list(found), medians, (below, above), marker="o", capsize=3, label=lane, color=colour)
        axes.set(xscale="log", yscale="log", xlabel=_AXES[axis], ylabel="deliveries per CPU second of the server")
        axes.grid(alpha=0.3, which="both")
        axes.legend()
        files.append(directory / f"{axis}.png")
        figure.savefig(files[-1], dpi=150)
        pyplot.close(figure)
    return files
