"""The load generator's process: one job, told and reported in lines of JSON.

    python -m awesomeconnect.bench.generator JOB

It connects everybody, runs a short warm-up and prints {"event": "ready"}. For the line that it then reads from
stdin it does the job, waits until every member has received everything, and prints {"event": "done", ...}.
Connections stay open until stdin ends. What goes wrong is {"event": "failed", "reason": ...}, and exit code 1.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Mapping

import attrs

from awesomeconnect.bench.load import Connect, Load, LoadError
from awesomeconnect.bench.relay_client import RelayClient
from awesomeconnect.bench.workloads import Workload
from awesomeconnect.errors import AwesomeConnectError

WARM_UP_S = 0.25


@attrs.frozen
class Job:
    """A workload for a server at `address`, which speaks what `system` names, for `seconds`."""

    system: str
    address: str
    workload: Workload
    seconds: float

    @classmethod
    def parse(cls, text: str) -> Job:
        """A job from the JSON of `attrs.asdict`."""
        fields = json.loads(text)
        return cls(**{**fields, "workload": Workload(**fields["workload"])})


def _tell(**event: object) -> None:
    print(json.dumps(event), flush=True)


def _run(job: Job, connect: Connect) -> None:
    load = Load(connect, job.address, job.workload)
    load.run(WARM_UP_S)
    gc.collect()
    gc.disable()
    _tell(event="ready")
    if not sys.stdin.readline():
        return
    before, cpu_s, wall_s = load.published, time.process_time(), time.perf_counter()
    load.run(job.seconds)
    messages = load.published - before
    _tell(
        event="done",
        messages=messages,
        deliveries=messages * job.workload.deliveries_per_message,
        cpu_s=time.process_time() - cpu_s,
        wall_s=time.perf_counter() - wall_s,
    )
    sys.stdin.read()


def main(systems: Mapping[str, Connect]) -> None:
    """Do the job that the command line holds; `systems` are those that can be asked for."""
    try:
        job = Job.parse(sys.argv[1])
        _run(job, systems[job.system])
    except (LoadError, OSError, AwesomeConnectError) as error:
        _tell(event="failed", reason=f"{type(error).__name__}: {error}")
        os._exit(1)


if __name__ == "__main__":
    main({"relay": RelayClient})
