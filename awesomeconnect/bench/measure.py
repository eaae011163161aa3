"""One measurement: a job for a load generator, and what a server's process uses meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import attrs

from awesomeconnect.bench.generator import Job
from awesomeconnect.bench.processes import Failed, Generator, cpu_ns, rss_bytes, waited_ns
from awesomeconnect.bench.results import Result, Usage


def measure(
    load: Generator, job: Job, pid: int | None, progress: Callable[[int, float], None] = lambda _done, _s: None
) -> Result:
    """Let a generator do its job.

    Args:
        pid: the server's process, if it is on this machine.
        progress: told several times a second how much is done, and for how many seconds the work goes on.

    Raises:
        Failed: the generator failed, or there is no such process any more.
    """
    began = time.perf_counter()
    generator_before = before = _Look.at(load.pid)
    for event in load.events():
        match event.pop("event"):
            case "ready":
                began = time.perf_counter()
                generator_before, before = _Look.at(load.pid), _Look.at(pid)
                load.go()
            case "opened":  # connecting is over, and what follows is about idleness
                before = attrs.evolve(_Look.at(pid), rss_bytes=before.rss_bytes)
            case "progress":
                progress(event["done"], time.perf_counter() - began)
            case "done":
                usage = None if pid is None else _Look.at(pid).since(before)
                event["waited_s"] = _Look.at(load.pid).since(generator_before).waited_s
                return Result(job, event, usage, cores=len(os.sched_getaffinity(0)))
    raise AssertionError("events end with an error")


@attrs.frozen
class _Look:
    """What a process has used until now."""

    time_s: float
    cpu_ns: int = 0
    waited_ns: int = 0
    rss_bytes: int = 0

    @classmethod
    def at(cls, pid: int | None) -> _Look:
        """Look at a process of this machine.

        Raises:
            Failed: there is no such process any more.
        """
        now = time.perf_counter()
        if pid is None:
            return cls(now)
        try:
            return cls(now, cpu_ns(pid), waited_ns(pid), rss_bytes(pid))
        except OSError:
            raise Failed(f"there is no process {pid} any more") from None

    def since(self, before: _Look) -> Usage:
        """What was used from one look to this one."""
        return Usage(
            cpu_s=(self.cpu_ns - before.cpu_ns) / 1e9,
            waited_s=(self.waited_ns - before.waited_ns) / 1e9,
            wall_s=self.time_s - before.time_s,
            rss_bytes=self.rss_bytes,
            growth_bytes=self.rss_bytes - before.rss_bytes,
        )
