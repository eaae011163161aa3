"""The load generator's process: one job, told and reported in lines of JSON.

    python -m awesomeconnect.bench.generator JOB

It connects everybody, runs a short warm-up and prints {"event": "ready"}. For the line that it then reads from
stdin it does the job, waits until everything has arrived, and prints {"event": "done", ...}. A further line, or the
end of stdin, ends the job early. Connections stay open until stdin ends, so that the server's memory can be read.
Between "ready" and "done" comes {"event": "progress", "done": ...} a few times a second, and "opened" when all
idle connections are. What goes wrong is {"event": "failed", "error": ..., "reason": ...}, and exit code 1.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import attrs

from awesomeconnect.bench.connections import Handshakes, Idle
from awesomeconnect.bench.load import Connect, Limits, LoadError, Loop, Stream, describe
from awesomeconnect.bench.relay_client import OpeningRelayClient, RelayClient
from awesomeconnect.bench.rtt import RoundTrips
from awesomeconnect.bench.workloads import ROOM, Kind, Workload
from awesomeconnect.errors import AwesomeConnectError

WARM_UP_S = 0.25
_CONTROL = 0  # stdin


@attrs.frozen
class Job:
    """A workload for a server at `address`, which speaks what `system` names.

    `seconds`, `messages` and `rate` are those of `Limits`; `options` go to each of the system's clients.
    """

    system: str
    address: str
    workload: Workload
    seconds: float
    messages: int | None = None
    rate: float | None = None
    room: str = ROOM
    options: Mapping[str, Any] = attrs.field(factory=dict)

    @classmethod
    def parse(cls, text: str) -> Job:
        """A job from the JSON of `attrs.asdict`."""
        fields = json.loads(text)
        return cls(**{**fields, "workload": Workload(**fields["workload"])})


def _tell(event: str, **fields: object) -> None:
    try:
        print(json.dumps({"event": event, **fields}), flush=True)
    except BrokenPipeError:  # nobody wants to know any more
        os._exit(1)


def _load(job: Job, loop: Loop, connect: Connect) -> Stream | RoundTrips | Handshakes | Idle:
    match job.workload.kind:
        case Kind.STREAM:
            return Stream(loop, connect, job.address, job.workload, job.room)
        case Kind.RTT:
            return RoundTrips(loop, connect, job.address, job.workload, job.room)
        case Kind.CONNECT:
            return Handshakes(loop, connect, job.address, job.workload)
        case Kind.IDLE:
            return Idle(loop, connect, job.address, job.workload)


def _run(job: Job, connect: Connect) -> None:
    loop = Loop(_CONTROL)
    load = _load(job, loop, connect)
    if not isinstance(load, Idle):
        warm_up_messages = None if job.messages is None else min(job.messages, 2 * job.workload.window)
        load.run(Limits(WARM_UP_S, warm_up_messages, job.rate))
    loop.check()
    gc.collect()
    gc.disable()
    loop.tell = _tell
    _tell("ready")
    if not os.read(_CONTROL, 100):
        return
    cpu_s, wall_s = _cpu_s(), time.perf_counter()
    figures = load.run(Limits(job.seconds, job.messages, job.rate))
    _tell("done", **figures, cpu_s=_cpu_s() - cpu_s, wall_s=time.perf_counter() - wall_s)
    while os.read(_CONTROL, 100):
        pass


def _cpu_s() -> float:
    """Of this process, and of those that it has started and seen end."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def main(systems: Mapping[str, Connect]) -> None:
    """Do the job that the command line holds; `systems` are those that can be asked for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started this process ends it
    _soft, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    try:
        job = Job.parse(sys.argv[1])
        _run(job, partial(systems[job.system], **job.options))
    except (LoadError, OSError, AwesomeConnectError) as error:
        _tell("failed", **describe(error))
        os._exit(1)


if __name__ == "__main__":
    main({"relay": RelayClient, "relay-opened": OpeningRelayClient})
