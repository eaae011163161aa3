"""The loop over the connections of a workload, the same for every system; and what it asks of them.

`Stream` is the load of one room. Publishers take turns; a batch of `pack` messages leaves in one send() as soon
as that keeps at most `window` messages published and not yet received by every member. A member's own count as
received.

Nothing may be lost and nothing else may arrive. Deliveries of a workload all have one size, so a member's bytes
tell its messages, and at the end they must be exact. One member per run also opens all that it receives and finds
the payload in every message; the others only count bytes (for the relay: walk record lengths, without
decryption), which keeps the generator from becoming the bottleneck.

With a rate the loop is open: a batch is due at its time, whatever became of those before it, and its latency counts
from then, also when it leaves later. So a server that stalls cannot hide it (coordinated omission).
"""

from __future__ import annotations

import errno
import math
import random
import select
import socket
import time
from collections.abc import Callable
from itertools import cycle, repeat
from typing import Any, Protocol, TypeAlias

import attrs

from awesomeconnect.bench.histogram import Histogram
from awesomeconnect.bench.workloads import ROOM, Workload

CONNECT_S = 10
STALL_S = 5.0
RECEIVE_BYTES = 262_144
PROGRESS_S = 0.2
#: Members that only listen say something so often: relays ask those that are silent, and the answer would count.
ALIVE_S = 10.0

_ADVICE = {
    errno.EADDRNOTAVAIL: "no local port is left for another connection to this address; use fewer",
    errno.EMFILE: "this process may not open more files; raise the limit (ulimit -n), or use fewer connections",
    errno.ENFILE: "the system cannot open more files; use fewer connections",
}


class LoadError(Exception):
    """A measurement failed.

    Attributes:
        error: the name of the error, that of another process too.
    """

    def __init__(self, reason: str, error: str = "") -> None:
        super().__init__(reason)
        self.error = error or type(self).__name__


class Refused(LoadError):
    """The server answered with an error, or lets nobody in."""


class TooFast(Refused):
    """The server allows less traffic than was sent."""


class Closed(LoadError):
    """The server closed a connection."""


class Lost(LoadError):
    """Deliveries did not arrive, or something else did."""


class Stopped(LoadError):
    """Whoever asked for the measurement does not want it any more."""


def describe(error: Exception) -> dict[str, str]:
    """The name of an error and what it says, for another process."""
    if isinstance(error, LoadError):
        return {"error": error.error, "reason": str(error)}
    reason = str(error)
    if isinstance(error, OSError):
        reason = _ADVICE.get(error.errno or 0) or error.strerror or reason
    return {"error": type(error).__name__, "reason": reason}


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

    def hear(self, data: memoryview) -> bytes:
        """What a connection outside the room is told; the answer, if any. Raises Refused unless it is harmless."""

    def sign_of_life(self) -> bytes:
        """Bytes for the socket that are not answered; none where silence is allowed."""


#: From the server's address and the room to be in to a connection.
Connect: TypeAlias = Callable[[str, str | None], Client]


@attrs.frozen
class Limits:
    """How long a measurement lasts: so many seconds, or messages if that comes first; `rate` messages a second."""

    seconds: float
    messages: int | None = None
    rate: float | None = None


class Loop:
    """Connections and the epoll over them.

    Args:
        control: a file descriptor; as soon as it is readable the measurement ends early.
        tell: called with an event and its fields; "progress" comes from time to time, with what is ``done``.

    Attributes:
        unsent: what sockets have not taken yet, by file descriptor.
        is_stopped: `control` was readable.
        tell: see above.
    """

    def __init__(
        self, control: int | None = None, tell: Callable[..., None] = lambda _event, **_fields: None
    ) -> None:
        self._epoll = select.epoll()  # before all connections: select() takes low file descriptors only
        self._control = control
        self._report_at = 0.0
        self._alive_at = time.monotonic() + ALIVE_S
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))
        self._on_readable: dict[int, Callable[[], None]] = {}
        self._clients: list[Client] = []
        self.unsent: dict[int, tuple[Client, memoryview]] = {}
        self.is_stopped = False
        self.tell = tell
        if control is not None:
            self.watch(control, self._stop)

    def check(self) -> None:
        """Between two steps that take long.

        Raises:
            Stopped: `control` is readable.
        """
        if self._control is not None and select.select([self._control], [], [], 0)[0]:
            raise Stopped("stopped before the measurement had begun")

    def add(self, client: Client, on_data: Callable[[memoryview], None]) -> None:
        """Watch a connection; all that arrives goes to `on_data`."""
        client.socket.setblocking(False)
        recv_into, buffer = client.socket.recv_into, self._buffer

        def read() -> None:
            try:
                count = recv_into(buffer)
            except ConnectionError:
                count = 0
            if not count:
                raise Closed("the server closed a connection")
            on_data(buffer[:count])

        self.watch(client.socket.fileno(), read)
        self._clients.append(client)

    def listen(self, client: Client) -> None:
        """Watch a connection that is in no room."""

        def hear(data: memoryview) -> None:
            if answer := client.hear(data):
                self.send(client, answer)

        self.add(client, hear)

    def watch(self, descriptor: int, on_readable: Callable[[], None]) -> None:
        """Call `on_readable` whenever there is something to read."""
        self._epoll.register(descriptor, select.EPOLLIN)
        self._on_readable[descriptor] = on_readable

    def forget(self, descriptor: int) -> None:
        """Undo `watch`."""
        self._epoll.unregister(descriptor)
        del self._on_readable[descriptor]

    def send(self, client: Client, data: bytes) -> None:
        """Send, now or as soon as the socket takes it."""
        descriptor = client.socket.fileno()
        if descriptor in self.unsent:
            self.unsent[descriptor] = client, memoryview(bytes(self.unsent[descriptor][1]) + data)
        else:
            self._send(client, descriptor, memoryview(data))

    def turn(self, timeout_s: float) -> bool:
        """Handle what has arrived, or wait for it; whether something had."""
        if timeout_s < 1:  # epoll counts in milliseconds
            select.select([self._epoll], [], [], max(timeout_s, 0))
            timeout_s = 0
        events = self._epoll.poll(timeout_s)
        on_readable = self._on_readable
        for descriptor, event in events:
            if event & select.EPOLLOUT:
                client, data = self.unsent.pop(descriptor)
                self._epoll.modify(descriptor, select.EPOLLIN)
                self._send(client, descriptor, data)
            if event & ~select.EPOLLOUT:
                on_readable[descriptor]()
        return bool(events)

    def tick(self, now: float, done: int) -> None:
        """What is due from time to time."""
        if now >= self._report_at:
            self._report_at = now + PROGRESS_S
            self.tell("progress", done=done)
        if now >= self._alive_at:
            self._alive_at = now + ALIVE_S
            for client in self._clients:
                # What a socket has not taken will be a sign of life too.
                if client.socket.fileno() not in self.unsent and (sign := client.sign_of_life()):
                    self.send(client, sign)

    def _send(self, client: Client, descriptor: int, data: memoryview) -> None:
        try:
            sent = client.socket.send(data)
        except BlockingIOError:
            sent = 0
        except ConnectionError:
            raise Closed("the server closed a connection") from None
        if sent < len(data):
            self.unsent[descriptor] = client, data[sent:]
            self._epoll.modify(descriptor, select.EPOLLIN | select.EPOLLOUT)

    def _stop(self) -> None:
        self.is_stopped = True
        assert self._control is not None
        self.forget(self._control)


class Stream:
    """Messages to one room, as fast as the window allows or at a rate."""

    def __init__(self, loop: Loop, connect: Connect, address: str, workload: Workload, room: str = ROOM) -> None:
        self._loop = loop
        self._workload = workload
        self._payload = random.Random(0).randbytes(workload.payload_bytes)
        members, outside = [], []
        for _ in range(workload.members):
            loop.check()
            members.append(connect(address, room))
        for _ in range(workload.publishers):
            loop.check()
            outside.append(connect(address, None))
        for client in (*members, *outside):
            client.settle()

        self._batch = members[0].messages(room, self._payload, workload.pack)
        delivery = members[0].delivery(room, self._payload)
        self._delivery_bytes, self._payload_at = len(delivery), delivery.rindex(self._payload)
        self._batch_bytes = workload.pack * self._delivery_bytes  # as a member sees it
        self._published_bytes = 0
        self._received_bytes = [0] * workload.members
        self._rest = b""  # the opening member's unfinished delivery
        self._latencies: _Latencies | None = None

        for index, client in enumerate(members):
            loop.add(client, self._opener(client) if index == 0 else self._counter(index, client))
        for client in outside:
            loop.listen(client)
        # A publisher and its place in _received_bytes, where it has one.
        inside = [(client, index) for index, client in enumerate(members)]
        self._turns = cycle([(client, None) for client in outside] or inside)

    def run(self, limits: Limits) -> dict[str, Any]:
        """Publish, then wait for the last delivery. Messages come in whole batches.

        Returns:
            `messages`, `deliveries`, and `latency_us` if there was a rate and one publisher: from one alone all
            messages arrive in the order of sending, so that a delivery's number tells when it was due.

        Raises:
            Lost: the count of some member is not exact, or stood still for 5 s.
            Refused: the server said so.
        """
        loop, received_bytes = self._loop, self._received_bytes
        first_bytes = self._published_bytes
        most_bytes = math.inf
        if limits.messages is not None:
            most_bytes = first_bytes + math.ceil(limits.messages / self._workload.pack) * self._batch_bytes
        window_bytes = self._workload.window * self._delivery_bytes - self._batch_bytes
        start = heard = time.monotonic()
        deadline = start + limits.seconds
        clock = Clock(start, limits.rate / self._workload.pack) if limits.rate else None
        if clock is not None and self._workload.publishers == 1:
            self._latencies = _Latencies(clock, first_bytes, self._batch_bytes, len(received_bytes))
        while True:
            slowest = min(received_bytes)
            now = time.monotonic()
            loop.tick(now, (slowest - first_bytes) // self._delivery_bytes)
            wait_s = STALL_S
            if now < deadline and self._published_bytes < most_bytes and not loop.is_stopped:
                while (
                    not loop.unsent
                    and self._published_bytes - slowest <= window_bytes
                    and self._published_bytes < most_bytes
                ):
                    if clock is not None and (early_s := clock.wait_s(now)) > 0:
                        wait_s = min(early_s, deadline - now, STALL_S)
                        break
                    self._publish()
                    heard = now
                    slowest = min(received_bytes)
            elif slowest >= self._published_bytes and not loop.unsent:
                break
            if loop.turn(wait_s):
                heard = time.monotonic()
            elif slowest < self._published_bytes and time.monotonic() - heard >= STALL_S:
                break
        self._check_all_arrived()
        messages = (self._published_bytes - first_bytes) // self._delivery_bytes
        return {
            "messages": messages,
            "deliveries": messages * self._workload.deliveries_per_message,
            "latency_us": {} if self._latencies is None else self._latencies.histogram.summary_us(),
        }

    def _check_all_arrived(self) -> None:
        if set(self._received_bytes) != {self._published_bytes}:
            behind = [self._published_bytes - count for count in self._received_bytes]
            published = self._published_bytes // self._delivery_bytes
            raise Lost(
                f"{published} messages of {self._delivery_bytes} bytes published; "
                f"members are between {min(behind)} and {max(behind)} bytes behind"
            )

    def _publish(self) -> None:
        client, member = next(self._turns)
        self._published_bytes += self._batch_bytes
        if member is not None:
            self._received_bytes[member] += self._batch_bytes
        self._loop.send(client, client.seal(self._batch))

    def _counter(self, index: int, client: Client) -> Callable[[memoryview], None]:
        received_bytes, measure = self._received_bytes, client.measure

        def count(data: memoryview) -> None:
            received_bytes[index] += measure(data)
            if self._latencies is not None:
                self._latencies.note(index, received_bytes[index])

        return count

    def _opener(self, client: Client) -> Callable[[memoryview], None]:
        """The first member, which looks into what it gets."""

        def check(data: memoryview) -> None:
            opened = client.open(data)
            self._received_bytes[0] += len(opened)
            opened = self._rest + opened
            whole = len(opened) - len(opened) % self._delivery_bytes
            payloads_at = range(self._payload_at, whole, self._delivery_bytes)
            if not all(map(opened.startswith, repeat(self._payload), payloads_at)):
                raise Lost(f"something else than deliveries arrived: {opened[:200]!r}")
            self._rest = opened[whole:]
            if self._latencies is not None:
                self._latencies.note(0, self._received_bytes[0])

        return check


class Clock:
    """When things are due that happen at a rate, by their number from 0."""

    def __init__(self, start: float, rate: float) -> None:
        self._start = start
        self._interval_s = 1 / rate
        self._next = 0

    def wait_s(self, now: float) -> float:
        """How long until the next one is due; when that is over, 0 or less, it counts as begun."""
        wait_s = self.due(self._next) - now
        if wait_s <= 0:
            self._next += 1
        return wait_s

    def due(self, number: int) -> float:
        return self._start + number * self._interval_s


class _Latencies:
    """From when a batch was due until a member has all of it, for each batch and member."""

    def __init__(self, clock: Clock, first_bytes: int, batch_bytes: int, members: int) -> None:
        self.histogram = Histogram()
        self._clock = clock
        self._first_bytes = first_bytes
        self._batch_bytes = batch_bytes
        self._noted = [0] * members  # batches

    def note(self, member: int, received_bytes: int) -> None:
        """A member has received so much."""
        now = time.monotonic()
        batches = (received_bytes - self._first_bytes) // self._batch_bytes
        for number in range(self._noted[member], batches):
            self.histogram.record(round((now - self._clock.due(number)) * 1e9))
        self._noted[member] = batches
