"""Connections alone: made and dropped as fast as they come, or kept open and idle."""

from __future__ import annotations

import json
import mmap
import os
import socket
import struct
import time
import traceback
from typing import Any

from awesomeconnect.bench.histogram import Histogram
from awesomeconnect.bench.load import PROGRESS_S, Client, Clock, Connect, Limits, LoadError, Loop, describe
from awesomeconnect.bench.workloads import Workload
from awesomeconnect.errors import AwesomeConnectError

#: A connection that is reset leaves no port behind in TIME_WAIT, of which a machine has 28,000.
_RESET = struct.pack("ii", 1, 0)
_COUNTER = struct.Struct("Q")
#: Idle connections before those that count, so that what the first ones cost once does not.
WARM_UP_CONNECTIONS = 50


class Handshakes:
    """Processes that connect, each one connection at a time, until the server lets them in, and drop it.

    A process each, since the client's side of a handshake takes about as much CPU time as the server's.
    """

    def __init__(self, loop: Loop, connect: Connect, address: str, workload: Workload) -> None:
        self._loop = loop
        self._connect = connect
        self._address = address
        self._workers = workload.members
        # Shared by the processes: a count for each, and whether to end.
        self._memory = mmap.mmap(-1, _COUNTER.size * (self._workers + 1))
        self._results: list[dict[str, Any]] = []

    def run(self, limits: Limits) -> dict[str, Any]:
        """Connect until the time is over or `limits.messages` connections were made; at `limits.rate` at most.

        Returns:
            `handshakes`, and `latency_us` from nothing to a connection that may send, the making of a key included;
            with a rate, from when it was due.

        Raises:
            LoadError: what went wrong first in one of the processes.
        """
        self._results.clear()
        self._memory[:] = bytes(len(self._memory))
        for number in range(self._workers):
            self._start(number, limits)
        while len(self._results) < self._workers:
            self._loop.turn(PROGRESS_S)
            counts = _COUNTER.iter_unpack(self._memory[: _COUNTER.size * self._workers])
            self._loop.tick(time.monotonic(), sum(count for (count,) in counts))
            if self._loop.is_stopped or any("error" in result for result in self._results):
                self._memory[-1] = 1
        histogram = Histogram()
        for result in self._results:
            if "error" in result:
                raise LoadError(**result)
            histogram.add(**result)
        return {"handshakes": histogram.count, "latency_us": histogram.summary_us()}

    def _start(self, number: int, limits: Limits) -> None:
        reader, writer = os.pipe()
        process = os.fork()
        if not process:
            try:
                with open(writer, "w") as pipe:
                    json.dump(self._work(number, limits), pipe)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        os.close(writer)

        def collect() -> None:
            self._loop.forget(reader)
            with open(reader) as pipe:
                self._results.append(
                    json.loads(pipe.read() or '{"reason": "a process of the generator ended", "error": ""}')
                )
            os.waitpid(process, 0)

        self._loop.watch(reader, collect)

    def _work(self, number: int, limits: Limits) -> dict[str, Any]:
        """One process: a dumped histogram, or what went wrong."""
        histogram = Histogram()
        most = None if limits.messages is None else len(range(number, limits.messages, self._workers))
        start = time.monotonic()
        clock = Clock(start, limits.rate / self._workers) if limits.rate else None
        parent = os.getppid()
        try:
            while histogram.count != most and not self._memory[-1] and os.getppid() == parent:
                begin = time.monotonic()
                if begin - start >= limits.seconds:
                    break
                if clock is not None:
                    if (wait_s := clock.wait_s(begin)) > 0:
                        time.sleep(min(wait_s, PROGRESS_S))
                        continue
                    begin = clock.due(histogram.count)
                connection = self._connect(self._address, None).socket
                histogram.record(round((time.monotonic() - begin) * 1e9))
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                connection.close()
                _COUNTER.pack_into(self._memory, number * _COUNTER.size, histogram.count)
        except (LoadError, OSError, AwesomeConnectError) as error:
            return describe(error)
        most_ns, counts = histogram.dump()
        return {"most": most_ns, "counts": counts}


class Idle:
    """Connections that say nothing but what keeps them alive."""

    def __init__(self, loop: Loop, connect: Connect, address: str, workload: Workload) -> None:
        self._loop = loop
        self._connect = connect
        self._address = address
        self._connections = workload.members
        self._kept: list[Client] = []
        for _ in range(min(WARM_UP_CONNECTIONS, self._connections)):
            self._open()

    def run(self, limits: Limits) -> dict[str, Any]:
        """Connect, tell "opened", and stay connected for `limits.seconds`.

        Returns:
            `connections`, without those of the warm-up.

        Raises:
            Stopped: not all were connected.
            Refused: the server said so.
        """
        for done in range(self._connections):
            self._loop.check()
            self._open()
            self._loop.tick(time.monotonic(), done + 1)
        self._loop.tell("opened")
        deadline = time.monotonic() + limits.seconds
        while not self._loop.is_stopped and (rest_s := deadline - time.monotonic()) > 0:
            self._loop.turn(min(rest_s, PROGRESS_S))
            self._loop.tick(time.monotonic(), self._connections)
        return {"connections": self._connections}

    def _open(self) -> None:
        client = self._connect(self._address, None)
        client.settle()
        self._loop.listen(client)
        self._kept.append(client)
