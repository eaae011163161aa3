"""The load generator's process for all systems: `awesomeconnect.bench.load` and more, one task a process.

    python -m tests.benchmarks.generator TASK            (started by compare.py)

It connects everybody and prints {"event": "ready"}. For each line that it then reads from stdin it takes one
measurement and prints {"event": "done", ...} with what it found, and "ready" again. Connections stay open until
stdin ends. What goes wrong is {"event": "failed", "reason": ...}, and exit code 1.
"""

from __future__ import annotations

import gc
import json
import math
import os
import select
import sys
import time
from collections.abc import Callable
from typing import Protocol

import attrs

from awesomeconnect.bench.generator import WARM_UP_S, Job
from awesomeconnect.bench.load import RECEIVE_BYTES, STALL_S, Client, Load, LoadError, Lost, Refused
from awesomeconnect.bench.workloads import ROOM, Workload
from awesomeconnect.errors import AwesomeConnectError

from .clients import (
    CLIENTS,
    ECHOING,
    TOGETHER,
    BenchmarkClient,
    IdleNode,
    RelayNode,
    UrgentNode,
    idle_nodes,
)
from .servers import raise_file_limit

URGENT_INTERVAL_S = 0.005
#: The relay asks after 25 s of silence whether a client is there, and its question would look like lost deliveries.
STIR_AFTER_S = 8.0
STIR_COST_S = 1e-4


@attrs.frozen
class Task(Job):
    """A job of one of the `KINDS`, beside `idle` further connections that are in no room."""

    kind: str = "load"
    idle: int = 0

    @classmethod
    def parse(cls, text: str) -> Task:
        """A task from the JSON of `attrs.asdict`."""
        fields = json.loads(text)
        return cls(**{**fields, "workload": Workload(**fields["workload"])})


Figures = dict[str, float]


class Kind(Protocol):
    """Everybody is connected when it is made."""

    def measure(self) -> Figures:
        """Take one measurement."""

    def rest(self) -> None:
        """Get ready for the next one."""


class ClosedLoop:
    """`awesomeconnect.bench.load`: deliveries, and what they took."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._clients: list[BenchmarkClient] = []
        idle = [self._connect(task.address, None) for _ in range(task.idle)]
        for client in idle:
            client.settle()
        self._load = Load(self._connect, task.address, task.workload)
        self._stirred_s = 0.0
        self.rest()
        self._load.run(WARM_UP_S)

    def measure(self) -> Figures:
        load, workload = self._load, self._task.workload
        before, cpu_s, wall_s = load.published, time.process_time(), time.perf_counter()
        load.run(self._task.seconds)
        messages = load.published - before
        echoes = self._task.system in ECHOING and not workload.publishers
        return {
            "deliveries": messages * (workload.deliveries_per_message + echoes),
            "generator_cpu_s": time.process_time() - cpu_s,
            "wall_s": time.perf_counter() - wall_s,
        }

    def rest(self) -> None:
        if self._task.system == "relay" and time.monotonic() > self._stirred_s + STIR_AFTER_S:
            for client in self._clients:
                client.stir()
            time.sleep(len(self._clients) * STIR_COST_S)  # until the relay has heard it
            self._stirred_s = time.monotonic()

    def _connect(self, address: str, room: str | None) -> Client:
        client = CLIENTS[self._task.system](address, room)
        self._clients.append(client)
        return client


class RoundTrips:
    """Two connections, each alone in a room; a message to the other's, and an answer: latencies in µs."""

    interval_s = 0.0

    def __init__(self, task: Task) -> None:
        self._task = task
        connect = self._client(task.system)
        payload = bytes(task.workload.payload_bytes)
        rooms = ROOM + "-1", ROOM + "-2"
        self._sides: list[tuple[Client, bytes, int]] = []
        for own, other in zip(rooms, reversed(rooms), strict=True):
            client = connect(task.address, own)
            client.settle()
            client.socket.settimeout(None)  # with a timeout Python asks poll() before each recv()
            length = len(client.delivery(own, payload))
            self._sides.append((client, client.messages(other, payload, 1), length))
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))
        self._round_trips(WARM_UP_S)

    def _client(self, system: str) -> Callable[[str, str | None], Client]:
        return CLIENTS[system]

    def measure(self) -> Figures:
        latencies = sorted(self._round_trips(self._task.seconds))

        def percentile(percent: float) -> float:
            return latencies[math.ceil(len(latencies) * percent / 100) - 1]

        return {
            "p50_us": percentile(50),
            "p99_us": percentile(99),
            "max_us": latencies[-1],
            "round_trips": len(latencies),
        }

    def rest(self) -> None:
        """Nothing that the server says to a silent client comes within the time of a comparison."""

    def _round_trips(self, seconds: float) -> list[float]:
        latencies: list[float] = []
        end = time.monotonic() + seconds
        first, second = self._sides
        while time.monotonic() < end:
            begin = time.perf_counter_ns()
            self._one_way(first, second)
            self._one_way(second, first)
            latencies.append((time.perf_counter_ns() - begin) / 1e3)
            if self.interval_s:
                time.sleep(self.interval_s)
        return latencies

    def _one_way(self, sender: tuple[Client, bytes, int], receiver: tuple[Client, bytes, int]) -> None:
        client, message, _ = sender
        client.socket.sendall(client.seal(message))
        client, _, length = receiver
        while length:
            received = client.socket.recv_into(self._buffer)
            if not received:
                raise Refused("the server closed a connection")
            length -= len(client.open(self._buffer[:received]))
            if length < 0:
                raise Lost("something else than deliveries arrived")


class UrgentRoundTrips(RoundTrips):
    """The same in the relay's class URGENT, 200 times a second or less."""

    interval_s = URGENT_INTERVAL_S

    def _client(self, system: str) -> Callable[[str, str | None], Client]:
        return UrgentNode


class Handshakes:
    """Nodes of the relay, `TOGETHER` at a time, each let in and closed again."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def measure(self) -> Figures:
        count, cpu_s, begin = 0, time.process_time(), time.perf_counter()
        while time.perf_counter() < begin + self._task.seconds:
            for node in idle_nodes(self._task.address, None, TOGETHER):
                node.socket.close()
                count += 1
        return {
            "handshakes": count,
            "generator_cpu_s": time.process_time() - cpu_s,
            "wall_s": time.perf_counter() - begin,
        }

    def rest(self) -> None:
        """There is nobody left who could be asked anything."""


class Growing:
    """As many connections more in each measurement, all members of one room; their number."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._clients: list[Client] = []
        self.measure()

    def measure(self) -> Figures:
        more = [CLIENTS[self._task.system](self._task.address, ROOM) for _ in range(self._task.workload.members)]
        for client in more:
            client.settle()
        self._clients += more
        return {"connections": len(more)}

    def rest(self) -> None:
        """It ends before the first one is asked anything."""


class Silence:
    """Members of one room who send nothing of their own accord; how long that was."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._epoll = select.epoll()
        self._nodes: dict[int, IdleNode] = {}
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))
        for node in idle_nodes(task.address, ROOM, task.workload.members):
            node.socket.setblocking(False)
            self._nodes[node.socket.fileno()] = node
            self._epoll.register(node.socket, select.EPOLLIN)
        self._listen(1.0)

    def measure(self) -> Figures:
        begin = time.perf_counter()
        self._listen(self._task.seconds)
        return {"wall_s": time.perf_counter() - begin}

    def rest(self) -> None:
        """That is all that it does."""

    def _listen(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left_s := end - time.monotonic()) > 0:
            for descriptor, _ in self._epoll.poll(left_s):
                node = self._nodes[descriptor]
                received = node.socket.recv_into(self._buffer)
                if not received:
                    raise Refused("the server closed a connection")
                node.hear(self._buffer[:received])


class Flood:
    """Members of one room who send as much as their sockets take, whatever the relay says; bytes received."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._epoll = select.epoll()
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))
        nodes = [RelayNode(task.address, ROOM) for _ in range(task.workload.members)]
        self._batch = nodes[0].messages(ROOM, bytes(task.workload.payload_bytes), task.workload.pack)
        self._unsent = {node.socket.fileno(): (node, memoryview(b"")) for node in nodes}
        for node in nodes:
            node.socket.setblocking(False)
            self._epoll.register(node.socket, select.EPOLLIN | select.EPOLLOUT)

    def measure(self) -> Figures:
        received = 0
        begin = time.perf_counter()
        while time.perf_counter() < begin + self._task.seconds:
            events = self._epoll.poll(STALL_S)
            for descriptor, event in events:
                node, unsent = self._unsent[descriptor]
                if event & select.EPOLLIN:
                    received += node.socket.recv_into(self._buffer)
                if event & select.EPOLLOUT:
                    unsent = unsent or memoryview(node.seal(self._batch))
                    self._unsent[descriptor] = node, unsent[node.socket.send(unsent) :]
        return {"received_bytes": received, "wall_s": time.perf_counter() - begin}

    def rest(self) -> None:
        """What is under way is read in the next measurement."""


KINDS: dict[str, Callable[[Task], Kind]] = {
    "load": ClosedLoop,
    "round_trips": RoundTrips,
    "urgent_round_trips": UrgentRoundTrips,
    "handshakes": Handshakes,
    "growing": Growing,
    "silence": Silence,
    "flood": Flood,
}


def _tell(event: str, **fields: object) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


def main() -> None:
    """Do the task that the command line holds."""
    try:
        raise_file_limit()
        task = Task.parse(sys.argv[1])
        kind = KINDS[task.kind](task)
        gc.collect()
        gc.disable()
        _tell("ready")
        while sys.stdin.readline():
            _tell("done", **kind.measure())
            kind.rest()
            _tell("ready")
    except (LoadError, OSError, AwesomeConnectError) as error:
        _tell("failed", reason=f"{type(error).__name__}: {error}")
        os._exit(1)


if __name__ == "__main__":
    main()
