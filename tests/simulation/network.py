"""A network in memory, with the faults of real ones: hosts, paths between them, and connections made of bytes.

Every direction of a connection is bounded and has a latency, a rate, and reads of few bytes. Connections are reset
at any byte, stall, or go silent so that one side, or both, learn nothing. A host is killed, also at the very byte
that it sends or at the read that it makes, loses its power, stands still, or is cut off. What the kernel of a dead
process does, happens here, too: what it had sent still arrives, then the end of the stream, or a reset where
something was unread.

One task moves everything that is under way. Times are multiples of `GRID_S`, so that a few moments do for many
events.
"""

from __future__ import annotations

import errno
import math
import random
from collections import deque
from collections.abc import Callable
from enum import Enum
from heapq import heappop, heappush
from typing import Any
from zlib import crc32

import anyio
import trio
from attrs import define, field, frozen

from awesomeconnect.server.tcpinfo import Path

#: Everything arrives at a multiple of this.
GRID_S = 0.001
#: Two hosts' worth of retransmissions: a connection attempt that nobody answers ends after this.
SYN_TIMEOUT_S = 127.0

Trace = Callable[..., None]


class Closed(trio.ClosedResourceError, anyio.ClosedResourceError):
    """What waiting for a closed socket raises: in trio's words for the relay, in anyio's for the client library."""


class _Mark(Enum):
    """What travels behind the bytes."""

    END = "end"
    RESET = "reset"


@frozen
class Weather:
    """What a path is like.

    Attributes:
        latency_s, jitter_s: of one direction; the jitter is added, and never changes the order.
        rate_bytes_per_s: of each direction.
        capacity_bytes: what is under way, or has arrived and was not read, in one direction.
        crumbs: so many of the first bytes are read a few at a time.
        is_known: whether the relay's kernel tells about the path.
    """

    latency_s: float = 0.01
    jitter_s: float = 0.0
    rate_bytes_per_s: float = math.inf
    capacity_bytes: int = 1 << 16
    crumbs: int = 0
    is_known: bool = False


@define(eq=False)
class Host:
    """A machine with one process.

    Attributes:
        is_on: the process runs; what it does otherwise has no effect.
        is_frozen: the process stands still, the kernel does not.
        is_cut_off: nothing comes or goes, until it does again.
        died: called when one of the fuses below has killed the process.
        bytes_left: bytes that it may send before it is killed; None: no such fuse.
        reads_left: reads that it may make before it is killed.
    """

    name: str
    network: Network
    is_on: bool = True
    has_power: bool = True
    is_frozen: bool = False
    is_cut_off: bool = False
    died: Callable[[], None] = lambda: None
    bytes_left: int | None = None
    reads_left: int | None = None
    ends: dict[End, None] = field(factory=dict)
    _thawed: list[Callable[[], None]] = field(factory=list)

    def kill(self) -> None:
        """SIGKILL: the kernel closes what the process had open."""
        if self.is_on:
            self.is_on = False
            self.network.trace("killed", self.name)
            for end in [*self.ends]:
                end.hang_up()
            self.died()

    def lose_power(self) -> None:
        """Nobody is told. What was under way from here still arrives."""
        if self.is_on:
            self.is_on = self.has_power = False
            self.network.trace("lost power", self.name)
            for end in [*self.ends]:
                end.vanish()
            self.died()

    def freeze(self) -> None:
        """SIGSTOP, as others see it: nothing is read or written."""
        self.is_frozen = True

    def thaw(self) -> None:
        """SIGCONT."""
        self.is_frozen = False
        thawed, self._thawed = self._thawed, []
        for call in thawed:
            call()
        for end in self.ends:
            end.wake()

    def when_awake(self, call: Callable[[], None]) -> None:
        """Call now, or when the process goes on."""
        if self.is_frozen:
            self._thawed.append(call)
        else:
            call()

    def cut_off(self) -> None:
        """Unplug the cable: segments are sent again and again."""
        self.is_cut_off = True

    def plug_in(self) -> None:
        """What was sent meanwhile arrives."""
        self.is_cut_off = False
        for end in self.ends:
            end.incoming.deliver()
            end.outgoing.deliver()


@define(eq=False)
class Line:
    """One direction of a connection.

    Attributes:
        arrived: what can be read.
        is_lost: whatever is sent disappears from now on.
        bytes_left: the connection is reset after so many bytes; None: it is not.
    """

    network: Network
    weather: Weather
    random: random.Random
    sender: End = field(init=False)
    receiver: End = field(init=False)
    arrived: bytearray = field(factory=bytearray)
    is_ended: bool = False
    is_reset: bool = False
    is_lost: bool = False
    bytes_left: int | None = None
    sent_bytes: int = 0
    landed_bytes: int = 0
    crumbs: int = 0
    _flying: deque[tuple[float, bytes | _Mark]] = field(factory=deque)
    _flying_bytes: int = 0
    _due: float = 0.0

    @property
    def room_bytes(self) -> int:
        """What a send takes now."""
        return self.weather.capacity_bytes - self._flying_bytes - len(self.arrived)

    def send(self, item: bytes | _Mark) -> None:
        """Put bytes, or what ends them, on their way."""
        weather, size = self.weather, len(item) if isinstance(item, bytes) else 0
        due = trio.current_time() + weather.latency_s + self.random.random() * weather.jitter_s
        due = max(self._due, due) + size / weather.rate_bytes_per_s
        self._due = math.ceil(due / GRID_S) * GRID_S
        self._flying.append((self._due, item))
        self._flying_bytes += size
        self.sent_bytes += size
        self.network.at(self._due, self.deliver)

    def forget(self) -> None:
        """What is under way is lost."""
        self._flying.clear()
        self._flying_bytes = 0

    def deliver(self) -> None:
        """Hand over what is due, unless something is in the way."""
        now = trio.current_time()
        while self._flying and self._flying[0][0] <= now:
            if self.is_lost or self.sender.host.is_cut_off or self.receiver.host.is_cut_off:
                return
            item = self._flying.popleft()[1]
            if isinstance(item, bytes):
                self._flying_bytes -= len(item)
                self.landed_bytes += len(item)
            self.receiver.take(item)
            self.sender.wake_writers()


class End:
    """One end of a connection, as its process sees it: a transport for the relay and for the client library."""

    def __init__(self, host: Host, peer: str, incoming: Line, outgoing: Line) -> None:
        self.host = host
        self.peer = peer
        self.incoming = incoming
        self.outgoing = outgoing
        self.is_closed = False
        self._is_mute = False  # the machine is gone: it does not even reset what arrives
        self._readers = trio.lowlevel.ParkingLot()
        self._writers = trio.lowlevel.ParkingLot()
        incoming.receiver = outgoing.sender = self
        host.ends[self] = None
        self.path: Callable[[], Path] | None = self._path if outgoing.weather.is_known else None

    # ---- what the process does -----------------------------------------------------------------------

    def recv_into(self, buffer: Any) -> int:
        """As a non-blocking socket."""
        host, incoming = self.host, self.incoming
        self._check()
        if not host.is_on or host.is_frozen:
            raise BlockingIOError(errno.EAGAIN, "nothing has arrived")
        if incoming.is_reset and not incoming.arrived:
            raise ConnectionResetError(errno.ECONNRESET, "reset by the other end")
        size = min(len(buffer), len(incoming.arrived))
        if incoming.crumbs > 0:
            size = min(size, incoming.random.randint(1, 4))
            incoming.crumbs -= size
        if not size:
            if incoming.is_ended:
                return 0
            raise BlockingIOError(errno.EAGAIN, "nothing has arrived")
        buffer[:size] = incoming.arrived[:size]
        del incoming.arrived[:size]
        incoming.sender.wake_writers()
        if host.reads_left is not None:
            host.reads_left -= 1
            if host.reads_left <= 0:
                host.reads_left = None
                host.kill()
        return size

    def send(self, data: Any) -> int:
        """As a non-blocking socket."""
        host, outgoing = self.host, self.outgoing
        self._check()
        if not host.is_on:
            return len(data)  # nobody sees what a dead process does
        if self.incoming.is_reset:
            raise BrokenPipeError(errno.EPIPE, "reset by the other end")
        size = 0 if host.is_frozen else min(len(data), outgoing.room_bytes)
        if host.bytes_left is not None:
            size = min(size, host.bytes_left)
        if outgoing.bytes_left is not None:
            size = min(size, outgoing.bytes_left)
        if size <= 0:
            raise BlockingIOError(errno.EAGAIN, "the buffer is full")
        sent = bytes(data[:size])
        host.network.trace_bytes(self, sent)
        outgoing.send(sent)
        if outgoing.bytes_left is not None:
            outgoing.bytes_left -= size
            if not outgoing.bytes_left:
                outgoing.bytes_left = None
                self.reset()
        if host.bytes_left is not None:
            host.bytes_left -= size
            if not host.bytes_left:
                host.bytes_left = None
                host.kill()
                return len(data)
        return size

    async def wait_readable(self) -> None:
        """As trio's, for a socket."""
        await trio.lowlevel.checkpoint()
        while not self._is_readable():
            self._check_waiting()
            await self._readers.park()

    async def wait_writable(self) -> None:
        """As trio's, for a socket."""
        await trio.lowlevel.checkpoint()
        while not self._is_writable():
            self._check_waiting()
            await self._writers.park()

    def half_close(self) -> None:
        """As ``shutdown(SHUT_WR)``."""
        self._check()
        if self.host.is_on:
            self.outgoing.send(_Mark.END)

    def close(self) -> None:
        """As a socket's; also from a process that is dead already."""
        if self.host.is_on:
            self.hang_up()
        elif not self.is_closed:
            self.is_closed = True
            self.wake()

    # ---- what the kernel does ------------------------------------------------------------------------

    def hang_up(self) -> None:
        """Close this end: an end of the stream for the other, or a reset where something was not read."""
        if self.is_closed:
            return
        self.is_closed = True
        self.host.ends.pop(self, None)
        if self.incoming.arrived:
            if self.outgoing.random.random() < 0.5:
                self.outgoing.forget()
            self.outgoing.send(_Mark.RESET)
        elif not self.incoming.is_reset:
            self.outgoing.send(_Mark.END)
        self.incoming.arrived.clear()
        self.wake()

    def vanish(self) -> None:
        """The machine is gone."""
        self.host.ends.pop(self, None)
        self.is_closed = self._is_mute = True
        self.wake()

    def reset(self) -> None:
        """Something on the path resets the connection; both ends learn it in their time."""
        for line in (self.incoming, self.outgoing):
            if line.random.random() < 0.5:
                line.forget()
            line.send(_Mark.RESET)

    def go_silent(self, *, is_told: bool = False) -> None:
        """Nothing comes through any more, in both directions.

        Args:
            is_told: this end learns it, by a reset; the other never does.
        """
        self.incoming.is_lost = self.outgoing.is_lost = True
        if is_told:
            self.incoming.is_reset = True
            self.wake()

    def take(self, item: bytes | _Mark) -> None:
        """Something arrives here."""
        incoming = self.incoming
        if item is _Mark.RESET:
            incoming.is_reset = True
            if incoming.random.random() < 0.5:
                incoming.arrived.clear()
            self.outgoing.forget()
        elif self.is_closed:
            if isinstance(item, bytes) and not (self._is_mute and not self.host.has_power):
                self.outgoing.forget()
                self.outgoing.send(_Mark.RESET)
        elif item is _Mark.END:
            incoming.is_ended = True
        elif isinstance(item, bytes) and not incoming.is_reset:
            incoming.arrived += item
        self.wake()

    def wake(self) -> None:
        """Who waits looks again."""
        self._readers.unpark_all()
        self._writers.unpark_all()

    def wake_writers(self) -> None:
        """There may be room."""
        self._writers.unpark_all()

    def _is_readable(self) -> bool:
        incoming, host = self.incoming, self.host
        something = incoming.arrived or incoming.is_ended or incoming.is_reset
        return bool(something) and host.is_on and not host.is_frozen and not self.is_closed

    def _is_writable(self) -> bool:
        host = self.host
        has_room = self.outgoing.room_bytes > 0 or self.incoming.is_reset
        return has_room and host.is_on and not host.is_frozen and not self.is_closed

    def _check_waiting(self) -> None:
        if self.is_closed and self.host.is_on:  # a dead process notices nothing
            raise Closed("closed while it was waited for")

    def _check(self) -> None:
        if self.is_closed and self.host.is_on:
            raise OSError(errno.EBADF, "closed")

    def _path(self) -> Path:
        line = self.outgoing
        round_trip_us = round((2 * line.weather.latency_s + line.weather.jitter_s) * 1e6)
        return round_trip_us, line.landed_bytes, 0, round(2 * line.weather.latency_s * 1e6)


Accept = Callable[[End], None]


class Network:
    """All connections, and the one task that moves what is under way.

    Args:
        random: draws jitter, and what a reset destroys.
        trace: told of what happens, ``trace(event, who, **details)``.
        weather: draws what a new connection's path is like.
        note_bytes: told of every send, for the hash of the run.
    """

    def __init__(
        self,
        random: random.Random,
        trace: Trace,
        weather: Callable[[], Weather],
        note_bytes: Callable[[str, int, int], None],
    ) -> None:
        self.random = random
        self.trace = trace
        self.weather = weather
        self._note_bytes = note_bytes
        self._places: dict[str, tuple[Host, Accept]] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbered = 0
        self._scope = trio.CancelScope()
        self._connected = 0

    async def run(self) -> None:
        """Move what is under way, for ever."""
        while True:
            with trio.CancelScope(deadline=self._events[0][0] if self._events else math.inf) as self._scope:
                await trio.sleep_forever()
            now = trio.current_time()
            while self._events and self._events[0][0] <= now:
                heappop(self._events)[2]()

    def at(self, when: float, call: Callable[[], None]) -> None:
        """Call something then."""
        self._numbered += 1
        heappush(self._events, (when, self._numbered, call))
        if when < self._scope.deadline:
            self._scope.deadline = when

    def listen(self, place: str, host: Host, accept: Accept) -> None:
        """Connections to a place lead to a host, until it is no longer on."""
        self._places[place] = (host, accept)

    def forsake(self, place: str, host: Host) -> None:
        """The host listens there no more."""
        if place in self._places and self._places[place][0] is host:
            del self._places[place]

    async def dial(self, host: Host, place: str) -> End:
        """A connection from a host to a place.

        Raises:
            OSError: nobody listens there, or nobody answers.
        """
        weather = self.weather()
        await trio.sleep(math.ceil(2 * weather.latency_s / GRID_S) * GRID_S)
        there, accept = self._places.get(place, (None, None))
        if host.is_cut_off or (there is not None and (there.is_cut_off or not there.has_power)):
            await trio.sleep(SYN_TIMEOUT_S)
            raise TimeoutError(errno.ETIMEDOUT, "nobody answers")
        if there is None or accept is None or not there.is_on:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "nobody listens there")
        self._connected += 1
        name = f"{host.name}>{place}#{self._connected}"
        up, down = Line(self, weather, self.random), Line(self, weather, self.random)
        up.crumbs = down.crumbs = weather.crumbs
        ours, theirs = End(host, name, down, up), End(there, name, up, down)
        there.when_awake(lambda: accept(theirs))
        return ours

    def trace_bytes(self, end: End, sent: bytes) -> None:
        """Bytes leave an end."""
        self._note_bytes(f"{end.peer}@{end.host.name}", len(sent), crc32(sent))
