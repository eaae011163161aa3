"""What a measurement found: figures per delivery, handshake or connection, and what set the pace.

Pure arithmetic on what the load generator counted and on what the server's process used meanwhile.
"""

from __future__ import annotations

from typing import Any

import attrs

from awesomeconnect.bench.generator import Job
from awesomeconnect.bench.histogram import PERCENTILES
from awesomeconnect.bench.workloads import Kind

#: A process that used so much of its core was waited for.
SATURATED = 0.9
#: Who waited for a core for so much of the time could not go at its own pace.
CROWDED = 0.1

LATENCIES = tuple(f"latency_{name}_us" for name in (*PERCENTILES, "max"))
#: All that `Result.fields` can have, in its order.
COLUMNS = (
    "workload", "payload_bytes", "traffic_class", "publishers", "members", "pack", "window", "rate", "wall_s",
    "messages", "messages_per_s", "deliveries", "deliveries_per_s", "payload_bytes_per_s", "handshakes",
    "handshakes_per_s", "connections", *LATENCIES, "server_cpu_us_per_delivery", "deliveries_per_server_cpu_s",
    "server_cpu_us_per_handshake", "handshakes_per_server_cpu_s", "server_bytes_per_connection", "server_rss_bytes",
    "server_cpu_fraction", "server_waited_fraction", "generator_cpu_fraction", "generator_waited_fraction",
    "bottleneck", "interrupted",
)  # fmt: skip


@attrs.frozen
class Usage:
    """What the server's process used while it was measured.

    Attributes:
        cpu_s: CPU time, user and system, of all threads.
        waited_s: how long its main thread was ready to run and found no core free.
        wall_s: the time over which both were counted.
        rss_bytes: resident memory at the end.
        growth_bytes: how much that is more than at the beginning.
    """

    cpu_s: float
    waited_s: float
    wall_s: float
    rss_bytes: int
    growth_bytes: int


@attrs.frozen
class Result:
    """One workload's.

    Attributes:
        job: what was asked.
        counted: what the generator reported with "done", and `waited_s`, as in `Usage`.
        usage: None where the server is not on this machine, or not known by its process.
        cores: how many the generator may use.
        interrupted: it was ended early.
    """

    job: Job
    counted: dict[str, Any]
    usage: Usage | None
    cores: int
    interrupted: bool = False

    @property
    def wall_s(self) -> float:
        """From the first message until everything had arrived."""
        return float(self.counted["wall_s"])

    @property
    def done(self) -> int:
        """Deliveries, handshakes or connections."""
        return int(
            next(self.counted[name] for name in ("deliveries", "handshakes", "connections") if name in self.counted)
        )

    @property
    def per_s(self) -> float:
        """`done` in a second of the measurement."""
        return self.done / self.wall_s

    @property
    def cpu_s_each(self) -> float | None:
        """The server's CPU time for one delivery or handshake; None where it is not known."""
        return self.usage.cpu_s / self.done if self.usage is not None and self.done else None

    @property
    def bytes_each(self) -> float | None:
        """The server's memory for one idle connection; None where it is not known."""
        return self.usage.growth_bytes / self.done if self.usage is not None and self.done else None

    @property
    def server_cpu_fraction(self) -> float | None:
        """How much of a core the server used."""
        return None if self.usage is None else self.usage.cpu_s / self.usage.wall_s

    @property
    def generator_cpu_fraction(self) -> float:
        """How much the generator used of the cores that it can use: one, or one for each of its processes."""
        return float(self.counted["cpu_s"]) / self.wall_s / self._generator_cores

    @property
    def server_waited_fraction(self) -> float | None:
        """How much of the time the server waited for a core; None where it is not known."""
        return None if self.usage is None else self.usage.waited_s / self.usage.wall_s

    @property
    def generator_waited_fraction(self) -> float:
        """The same for the generator, but for the processes that it starts."""
        return float(self.counted["waited_s"]) / self.wall_s

    @property
    def bottleneck(self) -> str:
        """What set the pace: "server", "generator", or the "machine", whose cores were busy; empty if none did.

        None did when messages were sent at a rate or one by one, or waited for the path to a server elsewhere.
        """
        server, generator = self.server_cpu_fraction, self.generator_cpu_fraction
        if self.job.workload.kind is Kind.IDLE:
            return ""
        if server is not None and server >= SATURATED:
            return "server"
        if generator >= SATURATED:
            return "generator"
        return "machine" if max(self.server_waited_fraction or 0, self.generator_waited_fraction) >= CROWDED else ""

    def fields(self) -> dict[str, Any]:
        """Everything that is known, flat, by the names of `COLUMNS`."""
        job, workload, usage = self.job, self.job.workload, self.usage
        counted = {name: value for name, value in self.counted.items() if name in COLUMNS}
        fields: dict[str, Any] = {
            "workload": workload.name,
            "members": workload.members,
            "rate": job.rate,
            **counted,
            **{f"latency_{name}_us": value for name, value in self.counted.get("latency_us", {}).items()},
            "generator_cpu_fraction": self.generator_cpu_fraction,
            "generator_waited_fraction": self.generator_waited_fraction,
            "bottleneck": self.bottleneck,
            "interrupted": self.interrupted,
        }
        if workload.payload_bytes:
            fields |= {
                "payload_bytes": workload.payload_bytes,
                "traffic_class": job.options.get("traffic_class"),
                "publishers": workload.publishers,
                "pack": workload.pack,
                "window": workload.window,
                "messages_per_s": self.counted["messages"] / self.wall_s,
                "deliveries_per_s": self.per_s,
                "payload_bytes_per_s": self.per_s * workload.payload_bytes,
            }
        elif workload.kind is Kind.CONNECT:
            fields["handshakes_per_s"] = self.per_s
        if usage is not None:
            fields |= {
                "server_rss_bytes": usage.rss_bytes,
                "server_cpu_fraction": self.server_cpu_fraction,
                "server_waited_fraction": self.server_waited_fraction,
            }
            if workload.kind is Kind.IDLE:
                fields["server_bytes_per_connection"] = self.bytes_each
            elif self.cpu_s_each:
                what = "handshake" if workload.kind is Kind.CONNECT else "delivery"
                many = "handshakes" if workload.kind is Kind.CONNECT else "deliveries"
                fields[f"server_cpu_us_per_{what}"] = self.cpu_s_each * 1e6
                fields[f"{many}_per_server_cpu_s"] = 1 / self.cpu_s_each
        return {name: _rounded(fields[name]) for name in COLUMNS if fields.get(name) is not None}

    @property
    def _generator_cores(self) -> int:
        return min(self.job.workload.members, self.cores) if self.job.workload.kind is Kind.CONNECT else 1


def _rounded(value: Any) -> Any:
    """Seven digits: more than any of it is worth."""
    return float(f"{value:.7g}") if isinstance(value, float) else value
