"""One stream of unicast messages at its receiver: order, duplicates, and what to acknowledge.

    arrived ──> in order: handed to the inbox ──> taken by the application
        └─────> buffered until what is missing has come, or is below the base

Only what was taken counts as delivered; what has arrived and waits is held, and not sent again. A message that
expires in the inbox is neither: the sender, who counted from earlier, has given it up.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from awesomeconnect.reliable.segments import Ack, Segment, ranges_of
from awesomeconnect.reliable.settings import ReliableSettings
from awesomeconnect.reliable.stores import StoredStream


class Arrival(NamedTuple):
    """A message that is next in its stream.

    Attributes:
        sender, room, traffic_class: of its stream; ``room`` None for unicast.
        origin: the stream to which `IncomingStream.taken` belongs; None in a room, where nothing is acknowledged.
        expires_at_ms: not to be handed over later.
    """

    sender: bytes
    room: str | None
    traffic_class: int
    sequence: int
    content: int
    payload: bytes
    expires_at_ms: int
    origin: IncomingStream | None


class IncomingStream:
    """See the module's docstring.

    Args:
        first: the sequence that it begins with.

    Attributes:
        next: everything below it was taken, or is below the base; what is lower is not handed over.
        ack_at_ms: when an ack is due; None: nothing is to be said.
        buffered_bytes: out of order.
        forget_at_ms: from when on the stream may be forgotten.
    """

    __slots__ = (
        "_buffer",
        "_expected",
        "_gone",
        "_settings",
        "_taken",
        "ack_at_ms",
        "buffered_bytes",
        "forget_at_ms",
        "incarnation",
        "longest_ms",
        "next",
        "sender",
        "traffic_class",
        "woken_at_ms",
    )

    def __init__(
        self, sender: bytes, traffic_class: int, incarnation: bytes, first: int, settings: ReliableSettings
    ) -> None:
        self.sender = sender
        self.traffic_class = traffic_class
        self.incarnation = incarnation
        self.next = first
        self.ack_at_ms: int | None = None
        self.buffered_bytes = 0
        self.longest_ms = 0
        self.forget_at_ms = 0
        self.woken_at_ms: int | None = None  # the agenda's
        self._settings = settings
        self._expected = first  # all below was handed to the inbox, or is gone
        self._taken: set[int] = set()  # from next on
        self._gone: set[int] = set()  # expired in the inbox, from next on
        self._buffer: dict[int, Arrival] = {}  # above the expected one

    @classmethod
    def restored(cls, stored: StoredStream, now_ms: int, settings: ReliableSettings) -> IncomingStream:
        """A stream of which an earlier process has taken messages."""
        stream = cls(stored.sender, stored.traffic_class, stored.incarnation, stored.next, settings)
        stream._taken = set(stored.beyond)
        stream.longest_ms = stored.longest_ms
        stream.forget_at_ms = now_ms + 2 * stored.longest_ms
        return stream

    def stored(self, unix_ms: int) -> StoredStream:
        """What an earlier process has taken, for the next one."""
        return StoredStream(
            self.sender,
            self.traffic_class,
            self.incarnation,
            self.next,
            sorted(self._taken),
            self.longest_ms,
            unix_ms,
        )

    def on_segment(self, segment: Segment, now_ms: int, room_bytes: int) -> list[Arrival]:
        """Take a segment in; the messages that are next now, in order.

        Args:
            room_bytes: what may be buffered out of order.
        """
        _incarnation, sequence, base, expires_ms, content, payload = segment
        self._used(expires_ms, now_ms)
        arrivals = self._raise_base(base) if base > self.next else []
        if sequence == self._expected:
            expires_at_ms = now_ms + expires_ms
            arrivals.append(
                Arrival(self.sender, None, self.traffic_class, sequence, content, payload, expires_at_ms, self)
            )
            self._expected = sequence + 1
            if self._buffer or self._taken:
                arrivals += self._unbuffer()
            if self.ack_at_ms is None:
                # SPEC reliable.md: A receiver SHOULD send an ack for a message that its application has not taken
                #   within 100 ms.
                self.ack_at_ms = now_ms + self._settings.ack_delay_ms
            return arrivals
        # SPEC reliable.md: A receiver MUST send an ack when it gets a segment that it has already, when it gets one
        #   whose predecessor is missing, and when it gets a mark.
        self.ack_at_ms = now_ms
        is_new = sequence > self._expected and sequence not in self._buffer and sequence not in self._taken
        # SPEC reliable.md: A receiver MAY leave a segment out that it has no room for, as if it had not arrived.
        is_near = sequence - self._expected < self._settings.ahead_messages
        if is_new and is_near and len(segment.payload) <= room_bytes:
            self._buffer[sequence] = self._arrival(segment, now_ms)
            self.buffered_bytes += len(segment.payload)
        return arrivals

    def on_mark(self, base: int, now_ms: int) -> list[Arrival]:
        """The sender says where it is; the messages that are next now."""
        self._used(self.longest_ms, now_ms)
        self.ack_at_ms = now_ms
        return self._raise_base(base) if base > self.next else []

    def may_hand_over(self, arrival: Arrival, now_ms: int) -> bool:
        """Whether the application may still have a message; asked when it takes it from the inbox."""
        # SPEC reliable.md: A receiver MUST NOT hand over a message whose sequence is lower than the base that it
        #   knows.
        # SPEC reliable.md: A receiver MUST NOT hand over a message later than expires_ms after its segment arrived.
        if arrival.sequence < self.next:
            return False
        if arrival.expires_at_ms <= now_ms:
            self.spoiled(arrival)
            return False
        return True

    def taken(self, sequence: int, now_ms: int) -> None:
        """The application has taken a message."""
        self.ack_at_ms = now_ms
        if sequence == self.next:
            self.next += 1
            if self._taken:
                self._skip_taken()
        elif sequence > self.next:
            self._taken.add(sequence)

    def spoiled(self, arrival: Arrival) -> None:
        """A message is of no use: it is neither handed over nor acknowledged."""
        # SPEC reliable.md: A receiver MUST go on with the messages behind one that it drops because it has expired,
        #   and MUST name the dropped one neither in next nor in taken nor in held.
        if arrival.sequence >= self.next:
            self._gone.add(arrival.sequence)

    def ack(self, receiver: bytes) -> Ack:
        """What to tell the sender now."""
        # SPEC reliable.md: A receiver MUST acknowledge in next and taken only messages that it has handed over.
        self.ack_at_ms = None
        held = [
            sequence
            for sequence in range(self.next, self._expected)
            if sequence not in self._taken and sequence not in self._gone
        ]
        taken = ranges_of(sorted(self._taken)) if self._taken else ()
        if self._buffer:
            held += sorted(self._buffer)
        return Ack(receiver, self.incarnation, self.traffic_class, self.next, taken, ranges_of(held))

    def _used(self, expires_ms: int, now_ms: int) -> None:
        # SPEC reliable.md: A receiver MUST remember a stream for at least twice the longest expires_ms that it saw
        #   in it after the last segment of it.
        if expires_ms > self.longest_ms:
            self.longest_ms = expires_ms
        self.forget_at_ms = now_ms + 2 * self.longest_ms

    def _arrival(self, segment: Segment, now_ms: int) -> Arrival:
        return Arrival(
            self.sender,
            None,
            self.traffic_class,
            segment.sequence,
            segment.content,
            segment.payload,
            now_ms + segment.expires_ms,
            self,
        )

    def _raise_base(self, base: int) -> list[Arrival]:
        """Nothing below comes any more."""
        # SPEC reliable.md: A receiver MUST take everything below a greater base as gone, and go on with the base.
        for sequence in [sequence for sequence in self._buffer if sequence < base]:
            self.buffered_bytes -= len(self._buffer.pop(sequence).payload)
        self.next, self._expected = base, max(base, self._expected)
        self._taken = {sequence for sequence in self._taken if sequence >= base}
        self._gone = {sequence for sequence in self._gone if sequence >= base}
        self._skip_taken()
        return list(self._unbuffer())

    def _unbuffer(self) -> Iterator[Arrival]:
        while True:
            if self._expected in self._taken:  # by an earlier process
                self._expected += 1
            elif (arrival := self._buffer.pop(self._expected, None)) is not None:
                self.buffered_bytes -= len(arrival.payload)
                self._expected += 1
                yield arrival
            else:
                return

    def _skip_taken(self) -> None:
        while self.next in self._taken:
            self._taken.remove(self.next)
            self.next += 1
