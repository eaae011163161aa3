"""Messages that have arrived and wait for the application, by traffic class and bounded in bytes.

The reader of the connection puts, and never waits. Above the high-water mark of a class the relay is asked to
pause it; what it had under way still finds room up to the cap. Beyond the cap messages are lost here, and a
report takes their place. The most urgent class is handed out first, FIFO inside a class.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from attrs import evolve

from awesomeconnect.client.events import GapReport, Message
from awesomeconnect.client.waiting import Signal
from awesomeconnect.errors import ErrorCode
from awesomeconnect.reliable.segments import CONTROL_CLASS

CLASSES = 7  # without CONTROL
#: What a waiting message is charged beside its payload: about its frame. So what was under way in socket buffers
#: when the relay paused, however small its messages, is charged little more than it took there.
OVERHEAD_BYTES = 64


class Inbox:
    """Waiting messages, and gaps at their places.

    Args:
        high_bytes: above this, `pause` is called for the class; at half of it, `resume`.
        cap_bytes: above this, messages are lost.
        pause: asks the relay to hold a class.
        resume: lets it go on.
        report: told of a gap when the application has had everything before it.

    Attributes:
        paused: bit ``c`` is set while class ``c`` is paused.
        lost: messages lost here so far.
    """

    def __init__(
        self,
        high_bytes: int,
        cap_bytes: int,
        pause: Callable[[int], None],
        resume: Callable[[int], None],
        report: Callable[[GapReport], None],
    ) -> None:
        self._high_bytes = high_bytes
        self._cap_bytes = cap_bytes
        self._pause = pause
        self._resume = resume
        self._report = report
        self._queues: list[deque[Message | GapReport]] = [deque() for _ in range(CLASSES)]
        self._queued = [0] * CLASSES
        self._ready = 0
        self.paused = 0
        self.lost = 0
        self.arrived = Signal()

    @property
    def queued_bytes(self) -> int:
        """What waits, payloads and overhead."""
        return sum(self._queued)

    def put(self, message: Message) -> None:
        """Take a message that arrived."""
        traffic_class = message.traffic_class
        size = len(message.payload) + OVERHEAD_BYTES
        queued = self._queued[traffic_class] + size
        if queued > self._cap_bytes:
            self._lose(message)
        else:
            self.add(message)

    def has_room(self, traffic_class: int, size: int) -> bool:
        """Whether a payload of this size would find room."""
        return self._queued[traffic_class] + size + OVERHEAD_BYTES <= self._cap_bytes

    def add(self, message: Message) -> None:
        """As `put`, for what must not be lost any more: `has_room` was asked before."""
        traffic_class = message.traffic_class
        queued = self._queued[traffic_class] + len(message.payload) + OVERHEAD_BYTES
        self._queued[traffic_class] = queued
        self._append(traffic_class, message)
        # SPEC flow-control.md: A client that uses reliable mode MUST NOT pause class 6, in which acknowledgements
        #   travel.
        if queued > self._high_bytes and traffic_class != CONTROL_CLASS and not self.paused >> traffic_class & 1:
            self.paused |= 1 << traffic_class
            self._pause(traffic_class)

    def put_gap(self, gap: GapReport) -> None:
        """Take a report of a loss; it is told in its place."""
        queue = self._queues[gap.traffic_class]
        last = queue[-1] if queue else None
        if isinstance(last, GapReport) and last.local == gap.local and last.sequences is gap.sequences is None:
            queue[-1] = evolve(
                last,
                room=last.room if last.room == gap.room else None,
                sender=last.sender if last.sender == gap.sender else None,
                count=last.count + gap.count,
                lost_bytes=last.lost_bytes + gap.lost_bytes,
            )
        else:
            self._append(gap.traffic_class, gap)

    def take(self) -> Message | None:
        """The next message; None when there is none."""
        while self._ready:
            traffic_class = self._ready.bit_length() - 1
            queue = self._queues[traffic_class]
            item = queue.popleft()
            if not queue:
                self._ready &= ~(1 << traffic_class)
            if isinstance(item, GapReport):
                self._report(item)
                continue
            queued = self._queued[traffic_class] - len(item.payload) - OVERHEAD_BYTES
            self._queued[traffic_class] = queued
            if self.paused >> traffic_class & 1 and queued <= self._high_bytes // 2:
                self.paused &= ~(1 << traffic_class)
                self._resume(traffic_class)
            return item
        return None

    def _append(self, traffic_class: int, item: Message | GapReport) -> None:
        self._queues[traffic_class].append(item)
        self._ready |= 1 << traffic_class
        self.arrived.notify()

    def _lose(self, message: Message) -> None:
        self.lost += 1
        self.put_gap(
            GapReport(
                message.room,
                message.sender,
                message.traffic_class,
                1,
                len(message.payload),
                ErrorCode.RECEIVER_CONGESTED,
                local=True,
            )
        )
