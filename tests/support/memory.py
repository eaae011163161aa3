"""A connection in memory: two ends with the names of `awesomeconnect.server.transport.Transport`, nothing else.

It behaves like a socket where that matters: a bounded buffer in each direction, sends that are taken in part,
reads of a few bytes, half-closed ends, and a reset when an end is closed with unread bytes in its buffer. It
waits without a clock, so tests run under trio's `MockClock`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import trio
from attrs import define, field

from awesomeconnect.server.tcpinfo import Path


@define(eq=False, slots=True)
class Pipe:
    """One direction: bytes on their way, and who waits for a change."""

    capacity_bytes: int
    data: bytearray = field(factory=bytearray)
    is_ended: bool = False  # nothing more will be written
    is_reset: bool = False  # what was on its way is lost
    is_unread: bool = False  # the reading end is closed
    waiting: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)

    @property
    def room_bytes(self) -> int:
        return self.capacity_bytes - len(self.data)

    def changed(self) -> None:
        self.waiting.unpark_all()


class MemoryTransport:
    """One end of a `memory_pair`.

    Attributes:
        peer: what a log calls the connection.
        path: what is known of the way to the other end: nothing.
        most_read_bytes: what one read returns at most; may be changed at any time.
        most_sent_bytes: what one send takes at most.
        is_closed: whether this end was closed.
    """

    def __init__(self, incoming: Pipe, outgoing: Pipe, peer: str) -> None:
        self.peer = peer
        self.path: Callable[[], Path] | None = None
        self.most_read_bytes = self.most_sent_bytes = 1 << 30
        self.is_closed = False
        self._incoming = incoming
        self._outgoing = outgoing

    @property
    def waiting_bytes(self) -> int:
        """Bytes that have arrived here and were not read."""
        return len(self._incoming.data)

    def recv_into(self, buffer: Any) -> int:
        """Take what has arrived, 0 bytes at the end of the stream.

        Raises:
            BlockingIOError: nothing has arrived.
            OSError: this end is closed, or the connection was reset.
        """
        self._check_open()
        incoming = self._incoming
        if incoming.is_reset:
            raise ConnectionResetError(errno.ECONNRESET, "reset by the other end")
        size = min(len(buffer), len(incoming.data), self.most_read_bytes)
        if not size:
            if incoming.is_ended:
                return 0
            raise BlockingIOError(errno.EAGAIN, "nothing has arrived")
        buffer[:size] = incoming.data[:size]
        del incoming.data[:size]
        incoming.changed()
        return size

    def send(self, data: Any) -> int:
        """Give what fits; how many bytes that were.

        Raises:
            BlockingIOError: nothing fits.
            OSError: this end is closed for sending, or the other for reading.
        """
        self._check_open()
        outgoing = self._outgoing
        if outgoing.is_ended or outgoing.is_unread:
            raise BrokenPipeError(errno.EPIPE, "nobody reads this")
        size = min(len(data), outgoing.room_bytes, self.most_sent_bytes)
        if not size:
            raise BlockingIOError(errno.EAGAIN, "the buffer is full")
        outgoing.data += bytes(data[:size])
        outgoing.changed()
        return size

    async def wait_readable(self) -> None:
        """Wait until `recv_into` would not block.

        Raises:
            trio.ClosedResourceError: this end is closed, or gets closed meanwhile.
        """
        incoming = self._incoming
        await trio.lowlevel.checkpoint()
        while not (self.is_closed or incoming.data or incoming.is_ended or incoming.is_reset):
            await incoming.waiting.park()
        if self.is_closed:
            raise trio.ClosedResourceError("closed while it was waited for")

    async def wait_writable(self) -> None:
        """Wait until `send` would not block; raises as `wait_readable`."""
        outgoing = self._outgoing
        await trio.lowlevel.checkpoint()
        while not (self.is_closed or outgoing.room_bytes or outgoing.is_unread):
            await outgoing.waiting.park()
        if self.is_closed:
            raise trio.ClosedResourceError("closed while it was waited for")

    def half_close(self) -> None:
        """The other end reads what is on its way, then the end of the stream."""
        self._check_open()
        self._outgoing.is_ended = True
        self._outgoing.changed()

    def close(self) -> None:
        """Close this end and wake who waits for it. With unread bytes the connection is reset. Idempotent."""
        if self.is_closed:
            return
        self.is_closed = True
        incoming, outgoing = self._incoming, self._outgoing
        if incoming.data:
            outgoing.data.clear()
            outgoing.is_reset = True
        outgoing.is_ended = True
        incoming.data.clear()
        incoming.is_unread = True
        incoming.changed()
        outgoing.changed()

    def _check_open(self) -> None:
        if self.is_closed:
            raise OSError(errno.EBADF, "closed")


def memory_pair(capacity_bytes: int = 1 << 16, *, peer: str = "memory") -> tuple[MemoryTransport, MemoryTransport]:
    """Both ends of a new connection; each direction holds ``capacity_bytes``."""
    one, other = Pipe(capacity_bytes), Pipe(capacity_bytes)
    return MemoryTransport(one, other, peer), MemoryTransport(other, one, peer)
