"""One stream of a room at a receiver: order, holes, and gaps where a hole cannot be filled.

What comes behind a hole waits until the hole is filled or given up. Each message is handed over, or is in one gap.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from awesomeconnect.reliable.receiver import Arrival
from awesomeconnect.reliable.segments import MAX_RANGES, Range, Segment
from awesomeconnect.reliable.settings import ReliableSettings


class Gap(NamedTuple):
    """Messages of a room that were not handed over and will not be: those from ``first`` to ``last``."""

    sender: bytes
    room: str
    traffic_class: int
    first: int
    last: int


Found: TypeAlias = Arrival | Gap


class RoomStream:
    """See the module's docstring.

    Args:
        first: what it expects first.

    Attributes:
        expected: everything below was handed over, or is in a gap.
        request_at_ms: when to ask for what is missing; None: nothing is.
        buffered_bytes: behind holes.
        forget_at_ms: from when on the stream may be forgotten.
    """

    def __init__(
        self,
        sender: bytes,
        room: str,
        traffic_class: int,
        incarnation: bytes,
        first: int,
        settings: ReliableSettings,
    ) -> None:
        self.sender = sender
        self.room = room
        self.traffic_class = traffic_class
        self.incarnation = incarnation
        self.expected = first
        self.request_at_ms: int | None = None
        self.buffered_bytes = 0
        self.forget_at_ms = 0
        self.woken_at_ms: int | None = None  # the agenda's
        self._settings = settings
        self._next = first  # the highest sequence that was heard of, and one
        self._is_fresh = False  # was in the room before, and is again: what was said meanwhile is not missing
        self._buffer: dict[int, Arrival] = {}
        self._give_up_at_ms = 0
        self._give_up_to = 0  # what was heard of when the patience began
        self._requests = 0
        self._longest_ms = 0

    @property
    def is_missing(self) -> bool:
        """Whether there is a hole."""
        return self.expected < self._next

    @property
    def next_ms(self) -> int | None:
        """When `on_timer` has something to do."""
        if not self.is_missing or self.request_at_ms is None:
            return None
        return min(self.request_at_ms, self._give_up_at_ms)

    def on_segment(self, segment: Segment, now_ms: int, delay_ms: int, room_bytes: int) -> list[Found]:
        """Take a segment in, in whatever form it came; what the application gets now.

        Args:
            delay_ms: how long to wait before asking for what is missing.
            room_bytes: what may be buffered.
        """
        sequence = segment.sequence
        self._longest_ms = max(self._longest_ms, segment.expires_ms)
        self.forget_at_ms = now_ms + 2 * self._longest_ms
        if self._is_fresh and sequence >= self.expected:
            self._begin(sequence)
        found: list[Found] = []
        if sequence >= self.expected and sequence not in self._buffer:
            arrival = Arrival(
                self.sender,
                self.room,
                self.traffic_class,
                sequence,
                segment.content,
                segment.payload,
                now_ms + segment.expires_ms,
                None,
            )
            if sequence == self.expected:
                self.expected += 1
                found.append(arrival)
                found += self._unbuffer()
            elif sequence - self.expected < self._settings.ahead_messages and len(segment.payload) <= room_bytes:
                self._buffer[sequence] = arrival
                self.buffered_bytes += len(segment.payload)
            self._next = max(self._next, sequence + 1, self.expected)
        found += self._give_up(segment.base)
        self._look_for_holes(now_ms, delay_ms)
        return found

    def on_mark(self, base: int, following: int, now_ms: int, delay_ms: int) -> list[Found]:
        """The sender says where it is; what the application gets now."""
        self.forget_at_ms = max(self.forget_at_ms, now_ms + 2 * self._longest_ms)
        if self._is_fresh:
            self._begin(max(following, self.expected))
        self._next = max(self._next, following)
        found = list(self._give_up(base))
        self._look_for_holes(now_ms, delay_ms)
        return found

    def on_timer(self, now_ms: int) -> tuple[list[Found], tuple[Range, ...]]:
        """What the application gets now, and what to ask the sender for."""
        if not self.is_missing or self.request_at_ms is None:
            return [], ()
        found: list[Found] = []
        if now_ms >= self._give_up_at_ms:
            # SPEC reliable.md: A receiver SHOULD give a missing message up when it was not repaired within 20 s.
            found += self._give_up(self._give_up_to)
            self.request_at_ms = None
            self._look_for_holes(now_ms, 0)
        if self.request_at_ms is None or now_ms < self.request_at_ms:
            return found, ()
        # SPEC reliable.md: A receiver SHOULD ask again after 500 ms, then after twice the time each, while it is
        #   connected.
        self.request_at_ms = now_ms + (self._settings.request_again_ms << min(self._requests, 6))
        self._requests += 1
        # SPEC reliable.md: A receiver MUST NOT ask for what has arrived meanwhile.
        return found, tuple(self._holes())[:MAX_RANGES]

    def on_connected(self, now_ms: int, delay_ms: int) -> None:
        """A new connection: patience begins anew."""
        self.request_at_ms = None
        self._look_for_holes(now_ms, delay_ms)

    def end(self) -> list[Found]:
        """Nothing comes any more: what the application gets now."""
        return list(self._give_up(self._next))

    def left(self) -> None:
        """The node is not in the room any more, but may come back."""
        self._begin(max(self.expected, self._next))
        self._is_fresh = True

    def _begin(self, first: int) -> None:
        self.expected = self._next = first
        self.request_at_ms = None
        self.buffered_bytes = 0
        self._buffer.clear()
        self._is_fresh = False

    def _look_for_holes(self, now_ms: int, delay_ms: int) -> None:
        if not self.is_missing:
            self.request_at_ms = None
        elif self.request_at_ms is None:
            self.request_at_ms = now_ms + delay_ms
            self._requests = 0
            self._give_up_at_ms = now_ms + self._settings.repair_ms
            self._give_up_to = self._next

    def _holes(self) -> Iterator[Range]:
        first = self.expected
        for sequence in sorted(self._buffer):
            if sequence > first:
                yield first, sequence - 1
            first = sequence + 1
        if first < self._next:
            yield first, self._next - 1

    def _give_up(self, to: int) -> Iterator[Found]:
        """Hand over what is buffered below a sequence, and tell what is missing there."""
        # SPEC reliable.md: A receiver MUST report each message that it will not hand over to its application in
        #   exactly one gap report.
        for sequence in sorted(self._buffer):
            if sequence >= to or self.expected >= to:
                break
            if sequence > self.expected:
                yield self._gap(sequence)
                yield from self._unbuffer()
        if self.expected < to:
            yield self._gap(to)
            yield from self._unbuffer()
        self._next = max(self._next, self.expected)

    def _gap(self, to: int) -> Gap:
        first, self.expected = self.expected, to
        return Gap(self.sender, self.room, self.traffic_class, first, to - 1)

    def _unbuffer(self) -> Iterator[Found]:
        while (arrival := self._buffer.pop(self.expected, None)) is not None:
            self.buffered_bytes -= len(arrival.payload)
            self.expected += 1
            yield arrival
