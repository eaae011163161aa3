"""The load generator's process for all systems: `awesomeconnect.bench`, and measurements that use it again.

    python -m tests.benchmarks.generator TASK            (started by compare.py)

It connects everybody and prints {"event": "ready"}. For each line that it then reads from stdin it takes one
measurement and prints {"event": "done", ...} with what it found, and "ready" again. Connections stay open until
stdin ends. What goes wrong is {"event": "failed", ...}, and exit code 1.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import attrs

from awesomeconnect.bench.generator import WARM_UP_S, Job
from awesomeconnect.bench.load import (
    ALIVE_S,
    CONNECT_S,
    RECEIVE_BYTES,
    STALL_S,
    Client,
    Closed,
    Connect,
    Limits,
    LoadError,
    Loop,
    Stream,
    describe,
)
from awesomeconnect.bench.rtt import RoundTrips
from awesomeconnect.bench.workloads import ROOM, Workload
from awesomeconnect.errors import AwesomeConnectError
from awesomeconnect.identity import Identity, RelayAddress
from awesomeconnect.wire.connection import ClientConnection
from awesomeconnect.wire.messages import Hello, Incarnation, Welcome

from .clients import CLIENTS, ECHOING
from .servers import raise_file_limit

HERD = 64
#: The relay asks after 25 s of silence; and what it is given to hear one sign of life.
SIGNS_S = 8.0
SIGN_S = 1e-4


@attrs.frozen
class Task(Job):
    """A job, which may be one of the `KINDS` that only comparisons need, beside `idle` further connections."""

    kind: str = ""
    idle: int = 0

    @classmethod
    def parse(cls, text: str) -> Task:
        """A task from the JSON of `attrs.asdict`."""
        fields = json.loads(text)
        return cls(**{**fields, "workload": Workload(**fields["workload"])})


class Measurement(Protocol):
    """Everybody is connected when it is made."""

    def run(self, limits: Limits) -> dict[str, Any]:
        """Take one measurement."""


class Herd:
    """Nodes of the relay that come 64 at a time, as after its restart, and leave when they are let in."""

    def __init__(self, _loop: Loop, _connect: Connect, address: str, _workload: Workload) -> None:
        relay = RelayAddress.parse(address)
        assert relay.host is not None, "benchmarks run over TCP"
        self._place = relay.host, relay.port
        self._key = relay.key

    def run(self, limits: Limits) -> dict[str, Any]:
        handshakes = 0
        deadline = time.monotonic() + limits.seconds
        while time.monotonic() < deadline:
            self._come()
            handshakes += HERD
        return {"handshakes": handshakes}

    def _come(self) -> None:
        """In steps, each for all of them, so that the relay always has something to do."""
        with contextlib.ExitStack() as stack:
            nodes = []
            for _ in range(HERD):
                connected = stack.enter_context(socket.create_connection(self._place, CONNECT_S))
                nodes.append((connected, ClientConnection(Identity.generate(), self._key)))
            for connected, connection in nodes:
                connected.sendall(connection.handshake_bytes())
            hello = Hello(1, Incarnation(1, bytes(8)), 1)
            for connected, connection in nodes:
                while not connection.is_established:
                    connection.receive(self._received(connected))
                frames = connection.send(hello)
                connected.sendall(connection.handshake_bytes() + frames)
            for connected, connection in nodes:
                while type(connection.next_message()) is not Welcome:
                    connection.receive(self._received(connected))

    def _received(self, connected: socket.socket) -> bytes:
        data = connected.recv(RECEIVE_BYTES)
        if not data:
            raise Closed("the relay closed a connection")
        return data


class Growth:
    """So many connections more in each measurement."""

    def __init__(self, loop: Loop, connect: Connect, address: str, workload: Workload) -> None:
        self._loop = loop
        self._connect = connect
        self._address = address
        self._step = workload.members
        self.run(Limits(0))

    def run(self, limits: Limits) -> dict[str, Any]:
        clients = [self._connect(self._address, None) for _ in range(self._step)]
        for client in clients:  # all have settled when the slowest has
            client.settle()
            self._loop.listen(client)
        return {"connections": len(clients)}


class Silence:
    """Connections that only answer the relay's PINGs."""

    def __init__(self, loop: Loop, connect: Connect, address: str, workload: Workload) -> None:
        self._loop = loop
        for _ in range(workload.members):
            loop.listen(connect(address, None))

    def run(self, limits: Limits) -> dict[str, Any]:
        deadline = time.monotonic() + limits.seconds
        while (left_s := deadline - time.monotonic()) > 0:
            self._loop.turn(left_s)
        return {}


class Flood:
    """Members of one room who send as much as their sockets take, whatever the server says, and read it all."""

    def __init__(self, loop: Loop, connect: Connect, address: str, workload: Workload) -> None:
        self._epoll = select.epoll()
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))
        members = [connect(address, ROOM) for _ in range(workload.members)]
        self._batch = members[0].messages(ROOM, bytes(workload.payload_bytes), workload.pack)
        self._unsent = {member.socket.fileno(): (member, memoryview(b"")) for member in members}
        for member in members:
            member.socket.setblocking(False)
            self._epoll.register(member.socket, select.EPOLLIN | select.EPOLLOUT)

    def run(self, limits: Limits) -> dict[str, Any]:
        received_bytes = 0
        deadline = time.monotonic() + limits.seconds
        while time.monotonic() < deadline:
            for descriptor, event in self._epoll.poll(STALL_S):
                member, unsent = self._unsent[descriptor]
                if event & select.EPOLLIN:
                    received = member.socket.recv_into(self._buffer)
                    if not received:
                        raise Closed("the server closed a connection")
                    received_bytes += received
                if event & select.EPOLLOUT:
                    unsent = unsent or memoryview(member.seal(self._batch))
                    self._unsent[descriptor] = member, unsent[member.socket.send(unsent) :]
        return {"received_bytes": received_bytes}


KINDS: dict[str, Callable[[Loop, Connect, str, Workload], Measurement]] = {
    "stream": Stream,
    "rtt": RoundTrips,
    "herd": Herd,
    "growth": Growth,
    "silence": Silence,
    "flood": Flood,
}


#: Kinds whose connections must be told nothing but messages while they are measured.
SPEAKING = ("stream", "rtt")


class Generator:
    """The connections of a task, and their signs of life, which come between measurements, not during them."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._kind = task.kind or str(task.workload.kind)
        self._clients: list[Client] = []
        self._signs_at = time.monotonic() + SIGNS_S
        self._loop = Loop()
        idle = [self._connect(task.address, None) for _ in range(task.idle)]
        for client in idle:
            client.settle()
            self._loop.listen(client)
        self._measurement = KINDS[self._kind](self._loop, self._connect, task.address, task.workload)
        self._signs_at = 0.0
        self.rest()
        if self._kind in SPEAKING:
            self._measurement.run(Limits(WARM_UP_S, rate=task.rate))

    def _connect(self, address: str, room: str | None) -> Client:
        client = CLIENTS[self._task.system](address, room, **self._task.options)
        self._clients.append(client)
        if time.monotonic() >= self._signs_at:  # thousands of connections take their time
            for silent in self._clients:
                silent.socket.sendall(silent.sign_of_life())
            self._signs_at = time.monotonic() + SIGNS_S
        return client

    def measure(self) -> dict[str, Any]:
        """One measurement, and what it took."""
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        found = self._measurement.run(Limits(self._task.seconds, self._task.messages, self._task.rate))
        found |= {"cpu_s": time.process_time() - cpu_s, "wall_s": time.perf_counter() - wall_s}
        if self._kind == "stream" and self._task.system in ECHOING and not self._task.workload.publishers:
            found["deliveries"] += found["messages"]
        return found

    def rest(self) -> None:
        """Say now what would be due during the next measurement, and wait until the server has heard it."""
        if self._kind in SPEAKING and time.monotonic() >= self._signs_at:
            self._loop.tick(time.monotonic() + ALIVE_S, 0)
            time.sleep(SIGN_S * len(self._clients))
            self._signs_at = time.monotonic() + SIGNS_S


def _tell(event: str, **fields: object) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


def main() -> None:
    """Do the task that the command line holds."""
    raise_file_limit()
    try:
        generator = Generator(Task.parse(sys.argv[1]))
        gc.collect()
        gc.disable()
        _tell("ready")
        while True:
            while not select.select([sys.stdin], [], [], SIGNS_S)[0]:
                generator.rest()
            if not sys.stdin.readline():
                break
            _tell("done", **generator.measure())
            generator.rest()
            _tell("ready")
    except (LoadError, OSError, AwesomeConnectError) as error:
        _tell("failed", **describe(error))
        os._exit(1)


if __name__ == "__main__":
    main()
