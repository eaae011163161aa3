"""One measurement: a job for a load generator, and what a server's process uses meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from awesomeconnect.bench.generator import Job
from awesomeconnect.bench.processes import Failed, Generator, cpu_ns, rss_bytes
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
    began = started = time.perf_counter()
    cpu_before_ns = rss_before_bytes = 0
    for event in load.events():
        match event.pop("event"):
            case "ready":
                cpu_before_ns, rss_before_bytes = _look(pid)
                began = started = time.perf_counter()
                load.go()
            case "opened":  # connecting is over, and what follows is about idleness
                cpu_before_ns, _ = _look(pid)
                started = time.perf_counter()
            case "progress":
                progress(event["done"], time.perf_counter() - began)
            case "done":
                cpu_after_ns, rss_after_bytes = _look(pid)
                usage = Usage(
                    cpu_s=(cpu_after_ns - cpu_before_ns) / 1e9,
                    wall_s=time.perf_counter() - started,
                    rss_bytes=rss_after_bytes,
                    growth_bytes=rss_after_bytes - rss_before_bytes,
                )
                cores = len(os.sched_getaffinity(0))
                return Result(job, event, None if pid is None else usage, cores)
    raise AssertionError("events end with an error")


def _look(pid: int | None) -> tuple[int, int]:
    """CPU time in ns and resident memory in bytes."""
    if pid is None:
        return 0, 0
    try:
        return cpu_ns(pid), rss_bytes(pid)
    except OSError:
        raise Failed(f"there is no process {pid} any more") from None
