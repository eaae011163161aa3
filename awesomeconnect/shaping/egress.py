"""The egress queue of one connection: what waits to be sealed and sent, by traffic class.

Strict priority between the eight classes, FIFO inside one. What leaves is decided at departure, record by
record (`Egress.take`), because a sealed record can neither be dropped nor overtaken.

An entry of a class queue is either a blob of whole frames that fits one record, or one large frame, which
leaves in pieces so that a more urgent class waits for one piece only. Entries are shared between receivers.

Every class has a byte cap. What does not fit is lost for this receiver, and told: either the caller refuses it
to the sender, or `Egress.lose` puts a GAP frame at the place of the loss. After an overflow a class takes
nothing more until it has drained to half of its cap, so that one GAP stands for many losses.

A barrier frame leaves when everything queued before it, in all classes, has left.

Both the relay and the client library send through this queue. It knows neither sockets nor keys nor time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain
from operator import add

from attrs import frozen

from awesomeconnect.errors import ErrorCode
from awesomeconnect.wire.fragments import CHUNK_BYTES, is_fragmented, piece
from awesomeconnect.wire.framing import FRAGMENT_ABOVE_BYTES, LENGTH_BYTES
from awesomeconnect.wire.messages import Gap, TrafficClass, encode_frame
from awesomeconnect.wire.records import MAX_PLAINTEXT

CLASSES = 8
CONTROL = int(TrafficClass.CONTROL)


@frozen
class EgressLimits:
    """Bounds of one connection's queues, in bytes."""

    #: Above this a sender is asked to pause. 1 MiB is 0.8 s of a 10 Mbit/s link.
    high_water_bytes: int = 1 << 20
    #: Per class. Eight high-water marks: what several waiting publishers have under way when PAUSE reaches them.
    class_bytes: int = 8 << 20
    #: All classes together: two full ones.
    total_bytes: int = 16 << 20

    @property
    def low_water_bytes(self) -> int:
        """Below this a paused sender is told to resume."""
        return self.high_water_bytes // 2


class Egress:
    """Class queues with strict priority, byte caps, gaps, pauses and barriers.

    Attributes:
        queued: bytes waiting, per class.
        departed: bytes that have left, per class: queued bytes are at ``departed + queued``.
        ready: bit ``c`` is set while class ``c`` has something queued.
        held: bit ``c`` is set while the receiver has paused class ``c``.
        total: bytes waiting in all classes.
        barrier_bytes: what the barriers that wait take; like ``queued[CONTROL]``, whoever queues them watches it.
        limits: the bounds.
    """

    __slots__ = (
        "_barriers",
        "_caps",
        "_gaps",
        "_offsets",
        "_queues",
        "barrier_bytes",
        "departed",
        "held",
        "limits",
        "queued",
        "ready",
        "total",
    )

    def __init__(self, limits: EgressLimits) -> None:
        self.limits = limits
        self.queued = [0] * CLASSES
        self.departed = [0] * CLASSES
        self.ready = 0
        self.held = 0
        self.total = 0
        self.barrier_bytes = 0
        self._queues: list[deque[bytes] | None] = [None] * CLASSES
        # Made on first use, so that an idle connection stays small:
        self._caps: dict[int, int] | None = None  # lowered caps of classes that have overflowed
        self._gaps: dict[tuple[int, str], list[int]] | None = None  # (class, room) -> [messages, bytes]
        self._offsets: dict[int, int] | None = None  # bytes already sent of the large frame heading a class
        self._barriers: deque[tuple[list[int], bytes]] | None = None  # what must have departed before it

    def push(self, traffic_class: int, entry: bytes) -> bool:
        """Queue an entry: a blob of whole frames that fits a record, or one large frame.

        Returns:
            False, and nothing is queued, when the class or the whole queue is full.
        """
        if not self.has_room(traffic_class, len(entry)):
            return False
        self._append(traffic_class, entry)
        return True

    def has_room(self, traffic_class: int, size: int) -> bool:
        """Whether a class takes ``size`` bytes more; if not, it is closed until it has drained to half its cap."""
        if self.queued[traffic_class] + size <= self.limits.class_bytes and (
            self.total + size <= self.limits.total_bytes
        ):
            if self._caps is None:
                return True
            if not self._recovered(traffic_class):
                return False
            # The GAP frames that take the place of what was lost need room as well.
            if self.queued[traffic_class] + size <= self.limits.class_bytes and (
                self.total + size <= self.limits.total_bytes
            ):
                return True
        self._overflowed(traffic_class)
        return False

    def push_control(self, frame: bytes) -> None:
        """Queue a small control frame. Never refused: whoever queues them watches ``queued[CONTROL]``."""
        self._append(CONTROL, frame)

    def push_barrier(self, frame: bytes) -> None:
        """Queue a control frame that leaves after everything queued until now, but for paused classes."""
        self._place_gaps(0)
        if not self.ready and not self._barriers:
            self.push_control(frame)
            return
        if self._barriers is None:
            self._barriers = deque()
        self._barriers.append(([*map(add, self.departed, self.queued)], frame))
        self.barrier_bytes += len(frame) + _MARKS_BYTES

    def push_in_order(self, frame: bytes) -> None:
        """Queue a control frame that overtakes no barrier: JOIN, JOINED and MEMBERS after LEAVE or LEFT."""
        if self._barriers:
            self.push_barrier(frame)
        else:
            self.push_control(frame)

    def lose(self, traffic_class: int, room: str, messages: int, size: int) -> None:
        """Note messages of a room that found the queue full; a GAP takes their place."""
        if self._gaps is None:
            self._gaps = {}
        gap = self._gaps.setdefault((traffic_class, room), [0, 0])
        gap[0] += messages
        gap[1] += size
        if not self.ready >> traffic_class & 1:
            self._place_gaps(~(1 << traffic_class))

    def pause(self, traffic_class: int) -> None:
        """Let nothing of a class leave until `resume`."""
        self.held |= 1 << traffic_class

    def resume(self, traffic_class: int) -> None:
        """End a `pause`."""
        self.held &= ~(1 << traffic_class)

    @property
    def is_drained(self) -> bool:
        """Whether nothing may leave now."""
        return not self.ready & ~self.held

    def take(self, limit: int = MAX_PLAINTEXT) -> bytes:
        """Remove what leaves next, at most ``limit`` bytes (17,408 or more): the plaintext of one record.

        Returns:
            Whole frames; empty when nothing may leave.
        """
        return self._take_only(FRAGMENT_ABOVE_BYTES) or self._take(limit)

    def take_paced(self, room_bytes: int) -> bytes:
        """`take` for a slow path: what is URGENT, or else one piece of a lower class.

        Args:
            room_bytes: how much may leave of classes below URGENT: 0, or at least 1,024. What is longer is cut:
                a blob between its frames, an application message into fragments.

        Returns:
            Whole frames; empty when nothing may leave.
        """
        if only := self._take_only(min(room_bytes, FRAGMENT_ABOVE_BYTES)):
            return only
        parts: list[bytes] = []
        if self._barriers:
            self._raise_barriers()
        while True:
            leaving = self.ready & ~self.held
            if leaving >= _URGENT:
                self._fill(parts, FRAGMENT_ABOVE_BYTES, leaving & -_URGENT)
            elif leaving and room_bytes:
                piece_bytes = min(room_bytes, CHUNK_BYTES)
                self._fill(parts, piece_bytes + _SLACK_BYTES, leaving, piece_bytes)
            if parts or not (self._place_gaps(self.ready) or self._raise_barriers()):
                return b"".join(parts)

    @property
    def has_urgent(self) -> bool:
        """Whether something URGENT, or a control frame, may leave now."""
        return self.ready & ~self.held >= _URGENT

    def entries(self) -> Iterator[bytes]:
        """Everything that waits, most urgent first; a large frame whole, though a part of it may have left."""
        return chain.from_iterable(queue for queue in reversed(self._queues) if queue)

    def clear(self) -> None:
        """Drop everything: the connection is gone."""
        self._queues = [None] * CLASSES
        self.queued = [0] * CLASSES
        self.ready = self.total = self.barrier_bytes = 0
        self._caps = self._gaps = self._offsets = self._barriers = None

    def _take_only(self, most_bytes: int) -> bytes:
        """The usual case: one class with one small blob, and nothing else going on; empty in any other."""
        leaving = self.ready & ~self.held
        if leaving and not leaving & (leaving - 1) and self._barriers is None and self._gaps is None:
            traffic_class = leaving.bit_length() - 1
            queue = self._queues[traffic_class]
            assert queue is not None
            if len(queue) == 1 and len(queue[0]) <= most_bytes and not self._offsets:
                entry = queue.popleft()
                if traffic_class == CONTROL:
                    self._queues[CONTROL] = None  # WELCOME is the last for long: 760 bytes of an idle connection
                self.queued[traffic_class] = 0
                self.departed[traffic_class] += len(entry)
                self.ready &= ~leaving
                self.total -= len(entry)
                return entry
        return b""

    def _take(self, limit: int) -> bytes:
        parts: list[bytes] = []
        if self._barriers:
            self._raise_barriers()
        while True:
            limit = self._fill(parts, limit, self.ready & ~self.held)
            if limit < _ROOM_FOR_CONTROL or not (self._place_gaps(self.ready) or self._raise_barriers()):
                return b"".join(parts)

    def _fill(self, parts: list[bytes], room: int, leaving: int, piece_bytes: int = CHUNK_BYTES) -> int:
        """Move entries into ``parts`` in order of urgency; the room that is left, 0 when one did not fit."""
        longest = piece_bytes + _SLACK_BYTES
        while leaving:
            traffic_class = leaving.bit_length() - 1
            leaving &= ~(1 << traffic_class)
            queue = self._queues[traffic_class]
            assert queue is not None
            while queue:
                entry = queue[0]
                if (len(entry) > longest and is_fragmented(entry, longest)) or (
                    self._offsets and traffic_class in self._offsets
                ):
                    part, left = self._next_piece(traffic_class, entry, room, piece_bytes)
                    if not part:
                        return 0
                    if left:
                        queue.popleft()
                elif len(entry) <= room or not (parts or self._cut(queue, room)):
                    part = queue.popleft()
                    self._left(traffic_class, len(part))
                elif parts:
                    return 0
                else:
                    continue
                parts.append(part)
                room -= len(part)
            self.ready &= ~(1 << traffic_class)
        return room

    def _next_piece(self, traffic_class: int, entry: bytes, room: int, size: int) -> tuple[bytes, bool]:
        """A fragment of the large frame at the head of a class, and whether it was the last."""
        if self._offsets is None:
            self._offsets = {}
        offset = self._offsets.get(traffic_class, LENGTH_BYTES)
        part, following = piece(entry, offset, traffic_class, room, size)
        if following == len(entry):
            self._offsets.pop(traffic_class, None)
            self._left(traffic_class, following - offset)
            return part, True
        if part:
            self._offsets[traffic_class] = following
            # The length prefix is not sent; it leaves the account with the first piece.
            self._left(traffic_class, following - (0 if offset == LENGTH_BYTES else offset))
        return part, False

    @staticmethod
    def _cut(queue: deque[bytes], room: int) -> bool:
        """Divide the blob at the head of a queue where as many frames as fit end, or else after its first frame.

        Returns:
            False when it is one frame.
        """
        blob = queue[0]
        cut = following = LENGTH_BYTES + int.from_bytes(blob[:LENGTH_BYTES], "big")
        while following <= room:
            cut = following
            following += LENGTH_BYTES + int.from_bytes(blob[cut : cut + LENGTH_BYTES], "big")
        if cut == len(blob):
            return False
        queue[0] = blob[cut:]
        queue.appendleft(blob[:cut])
        return True

    def _left(self, traffic_class: int, size: int) -> None:
        self.queued[traffic_class] -= size
        self.departed[traffic_class] += size
        self.total -= size

    def _raise_barriers(self) -> bool:
        """Queue the barriers whose time has come; whether there were any."""
        if not self._barriers:
            self._barriers = None
            return False
        raised = False
        while self._barriers and self._may_leave(self._barriers[0][0]):
            frame = self._barriers.popleft()[1]
            self.barrier_bytes -= len(frame) + _MARKS_BYTES
            self.push_control(frame)
            raised = True
        return raised

    def _may_leave(self, before: list[int]) -> bool:
        return all(
            departed >= mark or self.held >> traffic_class & 1
            for traffic_class, (departed, mark) in enumerate(zip(self.departed, before, strict=True))
        )

    def _overflowed(self, traffic_class: int) -> None:
        if self._caps is None:
            self._caps = {}
        self._caps[traffic_class] = self.limits.class_bytes // 2

    def _recovered(self, traffic_class: int) -> bool:
        """Whether a class that may have overflowed has room again; if so, what it lost is told first."""
        assert self._caps is not None
        cap = self._caps.get(traffic_class)
        if cap is not None:
            if self.queued[traffic_class] > cap:
                return False
            del self._caps[traffic_class]
            if not self._caps:
                self._caps = None
        self._place_gaps(~(1 << traffic_class))
        return True

    def _place_gaps(self, except_classes: int) -> bool:
        """Queue the GAP frames of losses not told yet, but for classes of a bit set; whether there were any."""
        if not self._gaps:
            return False
        placed = [key for key in self._gaps if not except_classes >> key[0] & 1]
        for traffic_class, room in placed:
            messages, size = self._gaps.pop((traffic_class, room))
            gap = Gap(room, None, traffic_class, messages, size, ErrorCode.RECEIVER_CONGESTED)
            self._append(traffic_class, encode_frame(gap))
        if not self._gaps:
            self._gaps = None
        return bool(placed)

    def _append(self, traffic_class: int, entry: bytes) -> None:
        queue = self._queues[traffic_class]
        if queue is None:
            queue = self._queues[traffic_class] = deque()
        queue.append(entry)
        self.queued[traffic_class] += len(entry)
        self.total += len(entry)
        self.ready |= 1 << traffic_class


_URGENT = 1 << TrafficClass.URGENT
#: A frame that is a little longer than a piece travels whole.
_SLACK_BYTES = FRAGMENT_ABOVE_BYTES - CHUNK_BYTES
#: What a barrier's marks take: a tuple, and a list of eight integers.
_MARKS_BYTES = 384
#: Room that any control frame fits, so that a barrier may join the record that empties the queues.
_ROOM_FOR_CONTROL = 1_024
