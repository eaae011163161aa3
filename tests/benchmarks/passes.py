"""Our relay in a process that measures the passes of its scheduler: how long nobody else has a turn.

    python -m tests.benchmarks.passes KEY_FILE

It says that it is ready as `awesomeconnect serve --json` does. For SIGUSR1 it prints one line of JSON: the longest
pass since it was asked before, in CPU time, and in wall time, which counts what the machine gave to others.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import trio

from awesomeconnect.identity import Identity, RelayAddress
from awesomeconnect.server import Relay
from awesomeconnect.server.listeners import open_listeners


class PassTimes(trio.abc.Instrument):
    """A pass is what Trio runs between two looks at the sockets."""

    def __init__(self) -> None:
        self.count = 0
        self.wall_s = self.cpu_s = 0.0
        self._begin = self._cpu_begin = 0.0

    def after_io_wait(self, timeout: float) -> None:
        self._begin, self._cpu_begin = time.perf_counter(), time.thread_time()

    def before_io_wait(self, timeout: float) -> None:
        if self._begin:
            self.count += 1
            self.wall_s = max(self.wall_s, time.perf_counter() - self._begin)
            self.cpu_s = max(self.cpu_s, time.thread_time() - self._cpu_begin)

    def report(self) -> dict[str, float]:
        """The figures since the last report."""
        longest = {"longest_pass_wall_ms": self.wall_s * 1e3, "longest_pass_cpu_ms": self.cpu_s * 1e3}
        found = {"passes": self.count, **longest}
        self.count, self.wall_s, self.cpu_s = 0, 0.0, 0.0
        return found


async def serve(times: PassTimes, identity: Identity) -> None:
    listeners = open_listeners("127.0.0.1:0")
    with trio.open_signal_receiver(signal.SIGUSR1) as signals:
        async with trio.open_nursery() as nursery:
            await nursery.start(Relay(identity).serve, listeners)
            address = RelayAddress(identity.public_key, *listeners[0].getsockname())
            print(json.dumps({"event": "ready", "addresses": [str(address)]}), flush=True)
            async for _ in signals:
                print(json.dumps(times.report()), flush=True)


def main() -> None:
    times = PassTimes()
    trio.run(serve, times, Identity.load_or_create(Path(sys.argv[1])), instruments=[times])


if __name__ == "__main__":
    main()
