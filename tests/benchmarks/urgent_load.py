"""The three clients of `urgent.py`, a process each, with blocking sockets.

    python -m tests.benchmarks.urgent_load read SYSTEM ADDRESS MESSAGES
    python -m tests.benchmarks.urgent_load bulk SYSTEM ADDRESS MESSAGES BYTES
    python -m tests.benchmarks.urgent_load urgent SYSTEM ADDRESS INTERVAL_MS

Each prints "ready", waits for a line on its standard input, and prints JSON lines. Latency is one way: the
time of CLOCK_MONOTONIC, the same in all processes of a machine, travels in the payload.

Bulk goes out as fast as the system lets it: nats-server takes everything at once; our relay asks the sender to
PAUSE when a receiver's queue is long, and the sender obeys.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

from awesomeconnect.identity import Identity, RelayAddress
from awesomeconnect.wire.connection import ClientConnection
from awesomeconnect.wire.messages import (
    Close,
    Deliver,
    Gap,
    Goaway,
    Hello,
    Incarnation,
    Joined,
    Left,
    Message,
    Pause,
    Ping,
    PingKind,
    Pong,
    Publish,
    Reject,
    Resume,
    RoomIntent,
    Stats,
    StatsReport,
    TrafficClass,
)

ROOM = "urgent"
CONNECT_S = 10
URGENT_BYTES = 200
#: kind, time of sending in ns, number
_STAMP = struct.Struct("!cQI")
BULK, URGENT, LAST = b"b", b"u", b"l"


def stamped(kind: bytes, number: int, size: int) -> bytes:
    """A payload that says when it was sent."""
    return _STAMP.pack(kind, time.monotonic_ns(), number).ljust(size, b"\0")


class Client(Protocol):
    """A connection to a system under test."""

    def publish(self, payload: bytes, urgent: bool) -> None:
        """Send to the room; waits where the system asks the sender to."""

    def deliveries(self) -> Iterator[bytes]:
        """The payloads that arrive, for ever."""

    def queueing_us(self) -> dict[str, Sequence[int]]:
        """How long messages waited in the server for this connection, and the bound, by class; empty if unknown."""


class RelayClient:
    """A node: `ClientConnection` on a blocking socket."""

    def __init__(self, address: str, member: bool) -> None:
        relay = RelayAddress.parse(address)
        assert relay.host is not None
        identity = Identity.generate()
        self._socket = socket.create_connection((relay.host, relay.port), CONNECT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.settimeout(None)
        self._connection = ClientConnection(identity, relay.key)
        self._socket.sendall(self._connection.handshake_bytes())
        while not self._connection.is_established:
            self._connection.receive(self._socket.recv(65_536))
        self._socket.sendall(self._connection.handshake_bytes())
        rooms = (RoomIntent(ROOM),) if member else ()
        incarnation = Incarnation(time.time_ns() // 1_000_000, os.urandom(8))
        self._send(Hello(1, incarnation, 1, {}, rooms))
        self._messages = self._receive()
        while member and type(next(self._messages)) is not Joined:
            pass
        self._paused_until = 0.0
        self._asked = 0

    def publish(self, payload: bytes, urgent: bool) -> None:
        traffic_class = TrafficClass.URGENT if urgent else TrafficClass.BULK
        self._send(Publish(ROOM, traffic_class, 0, payload))
        if not urgent:
            self._wait_for_verdict()

    def deliveries(self) -> Iterator[bytes]:
        for message in self._messages:
            if type(message) is Deliver:
                yield message.payload

    def queueing_us(self) -> dict[str, Sequence[int]]:
        self._send(Stats())
        report = next(message for message in self._messages if isinstance(message, StatsReport))
        return {"longest": report.counters["queueing_max_us"], "bound": report.counters["queueing_bound_us"]}

    def _wait_for_verdict(self) -> None:
        """Until the relay has taken what was sent, and as long as it asks for a pause."""
        self._asked += 1
        token = self._asked.to_bytes(4, "big")
        self._send(Ping(PingKind.FLUSH, token))
        answered = False
        while not answered or time.monotonic() < self._paused_until:
            self._socket.settimeout(max(0.001, self._paused_until - time.monotonic()) if answered else None)
            try:
                message = next(self._messages)
            except TimeoutError:
                self._messages = self._receive()
                continue
            answered = answered or message == Pong(token)
            if type(message) is Pause:
                self._paused_until = time.monotonic() + message.for_ms / 1e3
            elif type(message) is Resume:
                self._paused_until = 0.0
        self._socket.settimeout(None)

    def _send(self, message: Message) -> None:
        self._socket.sendall(self._connection.send(message))

    def _receive(self) -> Iterator[Message]:
        buffer = bytearray(1 << 18)
        while True:
            while (message := self._connection.next_message()) is not None:
                if isinstance(message, Reject | Left | Goaway | Close | Gap):
                    raise SystemExit(f"the relay said {message}")
                yield message
            size = self._socket.recv_into(buffer)
            if not size:
                raise SystemExit("the relay closed the connection")
            self._connection.receive(memoryview(buffer)[:size])


class NatsClient:
    """The protocol's text commands; a member is a subscriber."""

    def __init__(self, address: str, member: bool) -> None:
        host, port = address.rsplit(":", 1)
        self._socket = socket.create_connection((host, int(port)), CONNECT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.settimeout(None)
        subscribe = f"SUB {ROOM} 1\r\n" if member else ""
        self._socket.sendall(f'CONNECT {{"verbose":false,"echo":false}}\r\n{subscribe}PING\r\n'.encode())
        self._file = self._socket.makefile("rb", 1 << 18)
        while self._file.readline() != b"PONG\r\n":
            pass
        if not member:
            threading.Thread(target=self._answer_pings, daemon=True).start()

    def publish(self, payload: bytes, urgent: bool) -> None:
        self._socket.sendall(b"PUB %b %d\r\n%b\r\n" % (ROOM.encode(), len(payload), payload))

    def deliveries(self) -> Iterator[bytes]:
        while line := self._file.readline():
            if line.startswith(b"MSG "):
                yield self._file.read(int(line.split()[-1]) + 2)[:-2]
            elif line == b"PING\r\n":
                self._socket.sendall(b"PONG\r\n")
        raise SystemExit("nats-server closed the connection")

    def queueing_us(self) -> dict[str, Sequence[int]]:
        return {}

    def _answer_pings(self) -> None:
        for _ in self.deliveries():
            pass


CLIENTS: dict[str, type[RelayClient | NatsClient]] = {"awesomeconnect": RelayClient, "nats-server": NatsClient}


def _say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def read(client: Client, messages: int) -> None:
    """Receive until all bulk messages and the last urgent one are here."""
    sys.stdin.readline()
    urgent: list[tuple[int, int]] = []
    bulk: list[int] = []
    for payload in client.deliveries():
        now_ns = time.monotonic_ns()
        kind, sent_ns, number = _STAMP.unpack_from(payload)
        if kind == URGENT:
            urgent.append((sent_ns, now_ns))
        elif kind == BULK:
            bulk.append(now_ns)
            if len(bulk) == messages:
                _say(event="bulk")
        else:
            lost = number - len(urgent)
            _say(event="done", urgent=urgent, bulk=bulk, urgent_lost=lost, queueing_us=client.queueing_us())
            return


def bulk(client: Client, messages: int, size: int) -> None:
    """Publish large messages as fast as it goes."""
    sys.stdin.readline()
    for number in range(messages):
        client.publish(stamped(BULK, number, size), urgent=False)
    sys.stdin.readline()


def urgent(client: Client, interval_s: float) -> None:
    """Publish small messages at fixed times until told to stop."""
    sys.stdin.readline()
    stopped = threading.Event()

    def wait_for_stop() -> None:
        sys.stdin.readline()
        stopped.set()

    threading.Thread(target=wait_for_stop, daemon=True).start()
    due, number = time.monotonic(), 0
    while not stopped.wait(max(0.0, due - time.monotonic())):
        client.publish(stamped(URGENT, number, URGENT_BYTES), urgent=True)
        number += 1
        due += interval_s
    client.publish(stamped(LAST, number, URGENT_BYTES), urgent=True)


def main() -> None:
    """See the module's docstring."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started this process ends it
    role, system, address, *numbers = sys.argv[1:]
    client = CLIENTS[system](address, role == "read")
    _say(event="ready")
    if role == "read":
        read(client, int(numbers[0]))
    elif role == "bulk":
        bulk(client, int(numbers[0]), int(numbers[1]))
    else:
        urgent(client, float(numbers[0]) / 1e3)


if __name__ == "__main__":
    main()
