"""The closed loop over the connections of one workload, the same for every system; and what it asks of them.

Publishers take turns; a batch of `pack` messages leaves in one send() as soon as that keeps at most `window`
messages published and not yet received by every member. A member's own count as received.

Nothing may be lost and nothing else may arrive. Deliveries of a workload all have one size, so a member's bytes
tell its messages, and at the end they must be exact. One member per run also opens all that it receives and finds
the payload in every message; the others only count bytes (for the relay: walk record lengths, without
decryption), which keeps the generator from becoming the bottleneck.
"""

from __future__ import annotations

import random
import select
import socket
import time
from collections.abc import Callable
from itertools import cycle, repeat
from typing import Protocol, TypeAlias

from awesomeconnect.bench.workloads import ROOM, Workload

CONNECT_S = 10
STALL_S = 5.0
RECEIVE_BYTES = 262_144


class LoadError(Exception):
    """A measurement failed."""


class Refused(LoadError):
    """The server answered with an error, or closed the connection."""


class Lost(LoadError):
    """Deliveries did not arrive, or something else did."""


class Client(Protocol):
    """One connection, member of a room from the start unless that is None.

    A client connects and joins with blocking calls when it is made; from then on the loop owns its socket and
    asks the client only to translate bytes. It does not count, wait for others or measure time.
    """

    socket: socket.socket

    def settle(self) -> None:
        """Wait until the server will send nothing but deliveries."""

    def messages(self, room: str, payload: bytes, count: int) -> bytes:
        """`count` messages to `room`, encoded once and sent many times."""

    def delivery(self, room: str, payload: bytes) -> bytes:
        """A delivery as `open` returns it. Another sender's differs in no length."""

    def seal(self, plaintext: bytes) -> bytes:
        """Bytes for the socket."""

    def measure(self, data: memoryview) -> int:
        """Bytes of deliveries in `data`. Of one client either `measure` or `open` is called, never both."""

    def open(self, data: memoryview) -> bytes:
        """The deliveries in `data`, possibly starting and ending within one."""

    def hear(self, data: memoryview) -> None:
        """What a connection outside the room is told. Raises Refused unless it is harmless."""


#: From the server's address and the room to be in to a connection.
Connect: TypeAlias = Callable[[str, str | None], Client]


class Load:
    """The connections of one workload and the loop over them."""

    def __init__(self, connect: Connect, address: str, workload: Workload) -> None:
        self._workload = workload
        self._payload = random.Random(0).randbytes(workload.payload_bytes)
        members = [connect(address, ROOM) for _ in range(workload.members)]
        outside = [connect(address, None) for _ in range(workload.publishers)]
        for client in (*members, *outside):
            client.settle()
            client.socket.setblocking(False)

        self._batch = members[0].messages(ROOM, self._payload, workload.pack)
        delivery = members[0].delivery(ROOM, self._payload)
        self._delivery_bytes, self._payload_at = len(delivery), delivery.rindex(self._payload)
        self._batch_bytes = workload.pack * self._delivery_bytes  # as a member sees it
        self._published_bytes = 0
        self._received_bytes = [0] * workload.members
        self._rest = b""  # the opening member's unfinished delivery
        self._unsent: tuple[Client, memoryview] | None = None

        self._buffer = memoryview(bytearray(RECEIVE_BYTES))
        self._epoll = select.epoll()
        self._on_readable: dict[int, Callable[[], None]] = {}
        for index, client in enumerate(members):
            self._register(client, self._opener(client) if index == 0 else self._counter(index, client))
        for client in outside:
            self._register(client, self._listener(client))
        # A publisher and its place in _received_bytes, where it has one.
        inside = [(client, index) for index, client in enumerate(members)]
        self._turns = cycle([(client, None) for client in outside] or inside)

    @property
    def published(self) -> int:
        return self._published_bytes // self._delivery_bytes

    def run(self, seconds: float) -> None:
        """Publish for `seconds`, then wait for the last delivery.

        Raises:
            Lost: the count of some member is not exact, or stood still for 5 s.
            Refused: the server said so.
        """
        window_bytes = self._workload.window * self._delivery_bytes - self._batch_bytes
        received_bytes, on_readable, poll = self._received_bytes, self._on_readable, self._epoll.poll
        deadline = time.monotonic() + seconds
        while True:
            slowest = min(received_bytes)
            if time.monotonic() < deadline:
                while self._unsent is None and self._published_bytes - slowest <= window_bytes:
                    self._publish()
                    slowest = min(received_bytes)
            elif slowest >= self._published_bytes and self._unsent is None:
                break
            events = poll(STALL_S)
            if not events:
                break
            for descriptor, event in events:
                if event & select.EPOLLOUT:
                    self._send_rest()
                if event & ~select.EPOLLOUT:
                    on_readable[descriptor]()
        if set(received_bytes) != {self._published_bytes}:
            behind = [self._published_bytes - count for count in received_bytes]
            raise Lost(
                f"{self.published} messages of {self._delivery_bytes} bytes published; members are between "
                f"{min(behind)} and {max(behind)} bytes behind"
            )

    def _publish(self) -> None:
        client, member = next(self._turns)
        self._published_bytes += self._batch_bytes
        if member is not None:
            self._received_bytes[member] += self._batch_bytes
        self._send(client, memoryview(client.seal(self._batch)))

    def _send(self, client: Client, data: memoryview) -> None:
        try:
            sent = client.socket.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self._unsent = client, data[sent:]
            self._epoll.modify(client.socket, select.EPOLLIN | select.EPOLLOUT)

    def _send_rest(self) -> None:
        assert self._unsent is not None
        client, data = self._unsent
        self._unsent = None
        self._epoll.modify(client.socket, select.EPOLLIN)
        self._send(client, data)

    def _register(self, client: Client, on_readable: Callable[[], None]) -> None:
        self._epoll.register(client.socket, select.EPOLLIN)
        self._on_readable[client.socket.fileno()] = on_readable

    def _counter(self, index: int, client: Client) -> Callable[[], None]:
        received_bytes, receive, buffer = self._received_bytes, self._receive, self._buffer
        measure, recv_into = client.measure, client.socket.recv_into

        def count() -> None:
            received_bytes[index] += measure(buffer[: receive(recv_into)])

        return count

    def _opener(self, client: Client) -> Callable[[], None]:
        """The first member, which looks into what it gets."""

        def check() -> None:
            data = client.open(self._buffer[: self._receive(client.socket.recv_into)])
            self._received_bytes[0] += len(data)
            data = self._rest + data
            whole = len(data) - len(data) % self._delivery_bytes
            payloads_at = range(self._payload_at, whole, self._delivery_bytes)
            if not all(map(data.startswith, repeat(self._payload), payloads_at)):
                raise Lost(f"something else than deliveries arrived: {data[:200]!r}")
            self._rest = data[whole:]

        return check

    def _listener(self, client: Client) -> Callable[[], None]:
        return lambda: client.hear(self._buffer[: self._receive(client.socket.recv_into)])

    def _receive(self, recv_into: Callable[[memoryview], int]) -> int:
        count = recv_into(self._buffer)
        if not count:
            raise Refused("the server closed a connection")
        return count
