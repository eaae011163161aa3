"""What a node published to rooms lately: kept for receivers that miss some of it, until it is too old or too much.

One stream for each room and class, one bound for all: what was published longest ago goes first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from awesomeconnect.reliable.segments import Segment, StreamMark

#: What a kept message costs besides its payload.
OVERHEAD_BYTES = 128


class Kept:
    """A published message.

    Attributes:
        requesters: who asked for it since it was last published.
        quiet_until_ms: until then requests are answered by what was just published.
    """

    __slots__ = ("content", "expires_at_ms", "payload", "quiet_until_ms", "requesters")

    def __init__(self, content: int, payload: bytes, expires_at_ms: int) -> None:
        self.content = content
        self.payload = payload
        self.expires_at_ms = expires_at_ms
        self.requesters: set[bytes] = set()
        self.quiet_until_ms = 0


class RingStream:
    """The messages of one room and class that are kept.

    Attributes:
        next_sequence: what the next message will have.
    """

    def __init__(self, room: str, traffic_class: int, incarnation: bytes, first: int) -> None:
        self.room = room
        self.traffic_class = traffic_class
        self.incarnation = incarnation
        self.next_sequence = first
        self._kept: deque[Kept] = deque()  # the last ones, without holes

    @property
    def base(self) -> int:
        """The lowest sequence that is kept; the next one when none is."""
        return self.next_sequence - len(self._kept)

    @property
    def mark(self) -> StreamMark:
        """Where the stream is."""
        return StreamMark(self.traffic_class, self.base, self.next_sequence)

    def kept(self, sequence: int) -> Kept | None:
        """The message of a sequence, if it is kept."""
        at = sequence - self.base
        return self._kept[at] if 0 <= at < len(self._kept) else None

    def segment(self, sequence: int, kept: Kept, now_ms: int) -> Segment:
        """What carries a kept message now."""
        remaining_ms = max(kept.expires_at_ms - now_ms, 1)
        return Segment(self.incarnation, sequence, self.base, remaining_ms, kept.content, kept.payload)

    def add(self, kept: Kept) -> int:
        """Keep a message; its sequence."""
        self._kept.append(kept)
        self.next_sequence += 1
        return self.next_sequence - 1

    def pop(self) -> Kept:
        """Let the oldest message go."""
        return self._kept.popleft()

    @property
    def oldest(self) -> Kept:
        """The oldest message that is kept."""
        return self._kept[0]


class Ring:
    """All that is kept.

    Args:
        most_bytes: payloads and overhead; the newest message is kept whatever its size.
        most_streams: streams whose place is remembered.
    """

    def __init__(self, most_bytes: int, most_streams: int) -> None:
        self._most_bytes = most_bytes
        self._most_streams = most_streams
        self._floor = 1  # above all sequences of streams that were forgotten
        self._streams: dict[tuple[str, int], RingStream] = {}
        self._order: deque[RingStream] = deque()  # of all messages, the oldest first
        self.bytes = 0

    def stream(self, room: str, traffic_class: int) -> RingStream | None:
        """The stream of a room and class, if something was ever published there."""
        return self._streams.get((room, traffic_class))

    def streams(self, room: str) -> Iterator[RingStream]:
        """The streams of a room in which messages are kept."""
        for traffic_class in range(7):
            stream = self._streams.get((room, traffic_class))
            if stream is not None and stream.base < stream.next_sequence:
                yield stream

    def add(self, room: str, traffic_class: int, incarnation: bytes, kept: Kept) -> tuple[RingStream, int]:
        """Keep a message that is published now; its stream and sequence."""
        stream = self._streams.get((room, traffic_class))
        if stream is None:
            if len(self._streams) >= self._most_streams:
                self._forget_empty()
            stream = self._streams[room, traffic_class] = RingStream(room, traffic_class, incarnation, self._floor)
        sequence = stream.add(kept)
        self._order.append(stream)
        self.bytes += len(kept.payload) + OVERHEAD_BYTES
        # SPEC reliable.md: A sender MUST keep the messages that it published in a ring that is bounded in bytes,
        #   and MUST NOT keep one longer than its expires_ms.
        while self.bytes > self._most_bytes and len(self._order) > 1:
            self._pop()
        return stream, sequence

    def expire(self, now_ms: int) -> None:
        """Let go what is too old."""
        while self._order and self._order[0].oldest.expires_at_ms <= now_ms:
            self._pop()

    def _forget_empty(self) -> None:
        for key, stream in list(self._streams.items()):
            if stream.base == stream.next_sequence:
                self._floor = max(self._floor, stream.next_sequence)
                del self._streams[key]

    def _pop(self) -> None:
        self.bytes -= len(self._order.popleft().pop().payload) + OVERHEAD_BYTES
