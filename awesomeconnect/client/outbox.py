"""The node's egress queue: what was published and has not left, across reconnects.

It is the relay's `Egress` with a receipt beside every message. Ordinals belong to departure, not to calls: an
urgent message overtakes queued bulk. Within what `Egress.take` returns the more urgent class comes first and a
class is FIFO, so the receipts can be numbered afterwards from the bytes that each class has lost.

In classes with a contract, messages wait in lanes before the queue until they may leave, and barriers said after
them wait as well.

Messages that had not left when a connection broke leave on the next one. Control frames and barriers die with
their connection. When the node moves, the next connection begins before the former one has ended: what had left
there still gets its verdict.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from awesomeconnect.client.lanes import Lanes
from awesomeconnect.client.receipts import Flow, Flush, Problems, Receipt, Verdicts
from awesomeconnect.client.waiting import Signal
from awesomeconnect.errors import ErrorCode, PayloadTooLarge
from awesomeconnect.shaping.ats import NS_PER_S
from awesomeconnect.shaping.egress import CONTROL, Egress, EgressLimits
from awesomeconnect.wire.messages import (
    ClassContract,
    Fragment,
    FragmentEnd,
    Join,
    Members,
    Message,
    Ping,
    PingKind,
    encode_frame,
    is_barrier,
)
from awesomeconnect.wire.records import MAX_PLAINTEXT

#: A wait in seconds is not quite the nanoseconds that it stands for.
DUE_SLACK_S = 1e-6
_PUBLISHED = (1 << CONTROL) - 1


class Outbox(Egress):
    """Messages and control frames that wait to be sent, and what is known of those that were.

    Args:
        queue_bytes, queue_messages: what one class holds before publishers wait.
        flush_messages, flush_bytes: what leaves without a verdict before the library asks for one.
        kept_problems: problems kept for `Node.flush`.
        now_ns: the clock that contracts go by.

    Attributes:
        verdicts: of the messages that have left on this connection.
        problems: refusals and unknown outcomes, of all connections.
        filled: something was queued.
        progress: a full class has room again, or verdicts have arrived.
    """

    __slots__ = (
        "_asked_at",
        "_decided_bytes",
        "_flush_bytes",
        "_flush_messages",
        "_flushes",
        "_former",
        "_lanes",
        "_now_ns",
        "_pending",
        "_pings",
        "_queue_bytes",
        "_queue_messages",
        "_waiting_barriers",
        "filled",
        "problems",
        "progress",
        "verdicts",
    )

    def __init__(
        self,
        queue_bytes: int,
        queue_messages: int,
        flush_messages: int,
        flush_bytes: int,
        kept_problems: int,
        now_ns: Callable[[], int],
    ) -> None:
        super().__init__(EgressLimits())
        self.verdicts = Verdicts(0)
        self.problems = Problems(kept_problems)
        self._former: list[Verdicts] = []  # of connections that were left and have not ended
        self.filled = Signal()
        self.progress = Signal()
        self._queue_bytes = queue_bytes
        self._queue_messages = queue_messages
        self._flush_messages = flush_messages
        self._flush_bytes = flush_bytes
        self._pending: list[deque[Receipt]] = [deque() for _ in range(CONTROL)]
        self._decided_bytes = 0  # of those that have departed, those that have a verdict at least
        self._flushes: deque[Flush] = deque()
        self._pings = 0
        self._now_ns = now_ns
        self._lanes = Lanes()
        # (the last message that must have left its lane, the frame)
        self._waiting_barriers: deque[tuple[int, bytes]] = deque()
        self._asked_at = (0, 0)  # ordinal and bytes gone at the last PING that the library sent by itself

    # ---- publishers ----------------------------------------------------------------------------------

    def is_full(self, flow: Flow, size: int) -> bool:
        """Whether a publisher must wait. A message always finds room in an empty class, however large it is."""
        traffic_class = flow.traffic_class
        lane = self._lanes.of(flow) if self._lanes else None
        if lane is not None:
            # SPEC shaping.md: A client SHOULD make publishers wait when a class holds more than a high-water mark,
            #   rather than send beyond a contract.
            queued, messages = lane.queued_bytes, len(lane.waiting)
            most = min(self._queue_bytes, lane.most_bytes)
        else:
            queued, messages = self.queued[traffic_class], len(self._pending[traffic_class])
            most = self._queue_bytes
        return queued > 0 and (queued + size > most or messages >= self._queue_messages)

    def is_early(self, flow: Flow, size: int) -> bool:
        """Whether a message would have to wait for its contract."""
        lane = self._lanes.of(flow) if self._lanes else None
        return lane is not None and not lane.conforms(self._now_ns(), len(flow.head(size)) + size)

    def never_leaves(self, flow: Flow, size: int) -> bool:
        """Whether a message is longer than the burst of its contract."""
        lane = self._lanes.of(flow) if self._lanes else None
        longest = None if lane is None else lane.longest_bytes
        return longest is not None and len(flow.head(size)) + size > longest

    def put(self, flow: Flow, payload: bytes) -> Receipt:
        """Queue a message."""
        receipt = Receipt(flow, len(payload))
        self._put(receipt, flow.head(len(payload)) + payload)
        self.filled.notify()
        return receipt

    def set_contracts(self, contracts: Iterable[ClassContract], room: str | None = None) -> None:
        """Shape what has not begun to leave to other contracts: of the connection, or of a room."""
        # SPEC shaping.md: A client MUST shape what it begins to send after it received a CONTRACT to the contracts
        #   that this CONTRACT names.
        if room is not None and not contracts and not self._lanes.knows(room):
            return
        for traffic_class in self._lanes.set_contracts(contracts, self._now_ns(), room):
            for receipt, frame in self._take_back(traffic_class):
                self._put(receipt, frame)
        self.filled.notify()
        self.progress.notify()

    @property
    def due_s(self) -> float | None:
        """In how many seconds the next message may leave that waits for its contract."""
        due_ns = self._lanes.next_ns if self._lanes else None
        return None if due_ns is None else max(due_ns - self._now_ns(), 0) / NS_PER_S + DUE_SLACK_S

    @property
    def undecided_bytes(self) -> int:
        """Bytes put that have no verdict, as far as is known."""
        return self._departed_bytes + self.queued_bytes - self._decided_bytes

    @property
    def queued_messages(self) -> int:
        """Messages that have not left."""
        return sum(map(len, self._pending)) + sum(len(lane.waiting) for lane in self._lanes)

    @property
    def queued_bytes(self) -> int:
        """Their frames, but for what has left of large ones."""
        return sum(self.queued[:CONTROL]) + sum(lane.queued_bytes for lane in self._lanes)

    def full_classes(self, limit_bytes: int) -> int:
        """Bit ``c`` is set for each class ``c`` in which more than this waits."""
        full = 0
        for traffic_class, queued in enumerate(self.queued[:CONTROL]):
            full |= (queued > limit_bytes) << traffic_class
        for lane in self._lanes if self._lanes else ():
            if lane.queued_bytes > min(limit_bytes, lane.most_bytes):
                full |= 1 << lane.waiting[0][1].flow.traffic_class
        return full

    @property
    def is_settled(self) -> bool:
        """Whether everything put has left and has its verdict."""
        return not self.queued_messages and self.verdicts.is_settled

    async def wait_for_former(self) -> None:
        """Return when the connections that were left have ended."""
        while self._former:
            await self.progress.wait()

    def flush(self) -> Flush:
        """Ask for the verdict on everything put so far."""
        waiting = [pending[-1] for pending in self._pending if pending]
        waiting += [lane.waiting[-1][1] for lane in self._lanes if lane.waiting]
        flush = self._new_flush(self._departed_bytes + self.queued_bytes, waiting)
        self.push_barrier(encode_frame(Ping(PingKind.FLUSH, flush.token)))
        self.filled.notify()
        return flush

    @property
    def is_asking(self) -> bool:
        """Whether the relay owes the answer to a flush PING."""
        return bool(self._flushes)

    def tell(self, message: Message) -> None:
        """Queue a control message."""
        frame = encode_frame(message)
        if is_barrier(message):
            self.push_barrier(frame)
        elif isinstance(message, Join | Members):
            self.push_in_order(frame)  # not before the LEAVE that it was said after
        else:
            self.push_control(frame)
        self.filled.notify()

    def push_barrier(self, frame: bytes) -> None:
        """As `Egress.push_barrier`; what waits in lanes was queued before it, too."""
        if self._waiting_barriers or not self._lanes.has_left(self._lanes.mark):
            self._waiting_barriers.append((self._lanes.mark, frame))
        else:
            super().push_barrier(frame)

    def push_in_order(self, frame: bytes) -> None:
        """As `Egress.push_in_order`."""
        if self._waiting_barriers:
            self.push_barrier(frame)
        else:
            super().push_in_order(frame)

    # ---- departure -----------------------------------------------------------------------------------

    def take(self, limit: int = MAX_PLAINTEXT) -> bytes:
        """As `Egress.take`; numbers the messages whose last byte is in what it returns."""
        if self._lanes or self._waiting_barriers:
            self._leave_lanes()
        if not self.ready & _PUBLISHED:
            return super().take(limit)
        plaintext = super().take(limit)
        for traffic_class in range(CONTROL - 1, -1, -1):
            pending, departed = self._pending[traffic_class], self.departed[traffic_class]
            while pending and pending[0].end <= departed:
                self.verdicts.departed(pending.popleft())
            if self.queued[traffic_class] <= self._queue_bytes // 2:
                self.progress.notify()
        messages, size = self.verdicts.sent - self._asked_at[0], self._departed_bytes - self._asked_at[1]
        if messages >= self._flush_messages or size >= self._flush_bytes:
            # What has left is before it anyway, so it need not wait for what has not.
            self._asked_at = (self.verdicts.sent, self._departed_bytes)
            flush = self._new_flush(self._departed_bytes, [])
            self.push_control(encode_frame(Ping(PingKind.FLUSH, flush.token)))
        return plaintext

    def _leave_lanes(self) -> None:
        """Queue what may leave now, as much as fits the next record."""
        # SPEC shaping.md: A client SHOULD charge a message at the moment at which it could begin to leave, rather
        #   than when the application hands it over.
        lanes, now_ns = self._lanes, self._now_ns()
        while (message := lanes.take(now_ns, self._has_room_for_next)) is not None:
            self._append_message(*message)
            self.progress.notify()
        for receipt in lanes.refused:
            self.problems.note(over_burst(receipt.flow, receipt.size))
        lanes.refused.clear()
        while self._waiting_barriers and lanes.has_left(self._waiting_barriers[0][0]):
            super().push_barrier(self._waiting_barriers.popleft()[1])

    def _has_room_for_next(self, traffic_class: int) -> bool:
        return self.queued[traffic_class] < MAX_PLAINTEXT

    # ---- the relay's verdicts ------------------------------------------------------------------------

    def on_pong(self, token: bytes) -> None:
        """A flush PING was answered, and with it all that left before it. A token that is not known is ignored."""
        answered = next((flush for flush in self._flushes if flush.token == token), None)
        if answered is None:
            return
        decided = answered.mark()
        self.verdicts.decide(decided)
        for flush in [*self._flushes]:
            # One that waits for what was queued before it may have been made earlier, and leave later.
            if flush is answered or flush.is_decided(decided):
                self._flushes.remove(flush)
                self._decided_bytes = max(self._decided_bytes, flush.put_bytes)
                flush.answer.give(True)
            if flush is answered:
                break
        self.progress.notify()

    # ---- connections ---------------------------------------------------------------------------------

    def opened(self, connection: int, payload_bytes: int, contracts: Iterable[ClassContract] = ()) -> None:
        """A connection is up. Messages that did not leave on the last one leave now, unless they are too long."""
        unsent = [
            (receipt, frame)
            for pending, queue in zip(self._pending, self._queues[:CONTROL], strict=True)
            for receipt, frame in zip(pending, queue or (), strict=True)
        ]
        unsent += [(receipt, frame) for lane in self._lanes for _, receipt, frame in lane.waiting]
        self.clear()
        self._pending = [deque() for _ in range(CONTROL)]
        self._waiting_barriers.clear()
        self._lanes = Lanes()
        self._lanes.set_contracts(contracts, self._now_ns())
        self._decided_bytes = self._departed_bytes
        self._asked_at = (0, self._departed_bytes)
        self.verdicts = Verdicts(connection)
        for receipt, frame in unsent:
            if receipt.flow.is_resent:
                continue  # as far as it is still of use
            if receipt.size > payload_bytes:
                self.problems.note(too_large(receipt.flow, receipt.size, payload_bytes))
            else:
                self._put(receipt, frame)

    def broke(self) -> None:
        """The connection is gone: what has no verdict has none any more."""
        self._lose(self.verdicts)
        self._forget_flushes()

    def leave(self) -> tuple[bytes, Verdicts]:
        """Nothing more goes to this connection, but what it returns: the end of messages that have left in part.

        These messages, and all that have not begun to leave, go to the next connection, whole.

        Returns:
            Frames, and the verdicts of this connection; tell its end by `left`.
        """
        begun, self._offsets = self._offsets or {}, None
        self._former.append(self.verdicts)
        self.verdicts = Verdicts(self.verdicts.connection)
        self._forget_flushes()
        aborts = [Fragment(traffic_class, FragmentEnd.ABORT, b"") for traffic_class in begun]
        return b"".join(map(encode_frame, aborts)), self._former[-1]

    def left(self, verdicts: Verdicts, in_order: bool) -> None:
        """A connection that was left has ended.

        Args:
            in_order: the relay has judged everything that was sent.
        """
        self._former.remove(verdicts)
        if not in_order:
            self._lose(verdicts)
        self.progress.notify()

    def _lose(self, verdicts: Verdicts) -> None:
        unknown = verdicts.broke()
        if unknown is not None:
            self.problems.note(unknown)

    def _forget_flushes(self) -> None:
        flushes, self._flushes = self._flushes, deque()
        for flush in flushes:
            flush.answer.give(False)
        self.progress.notify()

    def _new_flush(self, put_bytes: int, waiting: list[Receipt]) -> Flush:
        self._pings += 1
        flush = Flush(self._pings, self.verdicts.sent, put_bytes, waiting)
        self._flushes.append(flush)
        return flush

    def _put(self, receipt: Receipt, frame: bytes) -> None:
        # SPEC shaping.md: A client SHOULD hold messages to a room with a contract apart from the others of the
        #   class.
        lane = self._lanes.of(receipt.flow) if self._lanes else None
        if lane is None:
            self._append_message(receipt, frame)
        else:
            self._lanes.add(lane, receipt, frame)

    def _take_back(self, traffic_class: int) -> list[tuple[Receipt, bytes]]:
        """Remove what is queued in a class and has not begun to leave."""
        queue, pending = self._queues[traffic_class], self._pending[traffic_class]
        begun = self._offsets is not None and traffic_class in self._offsets
        taken: list[tuple[Receipt, bytes]] = []
        while queue and len(queue) > begun:
            frame = queue.pop()
            taken.append((pending.pop(), frame))
            self._forget_queued(traffic_class, len(frame))
        return taken[::-1]

    def _forget_queued(self, traffic_class: int, size: int) -> None:
        self.queued[traffic_class] -= size
        self.total -= size
        if not self._queues[traffic_class]:
            self.ready &= ~(1 << traffic_class)

    def _append_message(self, receipt: Receipt, frame: bytes) -> None:
        traffic_class = receipt.flow.traffic_class
        self._append(traffic_class, frame)
        receipt.end = self.departed[traffic_class] + self.queued[traffic_class]
        self._pending[traffic_class].append(receipt)

    @property
    def _departed_bytes(self) -> int:
        return sum(self.departed[:CONTROL])


def too_large(flow: Flow, size: int, limit: int) -> PayloadTooLarge:
    """A payload that no relay of this limit will take; it was not sent."""
    return PayloadTooLarge(
        f"{flow.about}: the payload has {size:,} bytes, the relay takes {limit:,} at most; "
        "send it in smaller messages",
        ErrorCode.PAYLOAD_TOO_LARGE,
    )


def over_burst(flow: Flow, size: int) -> PayloadTooLarge:
    """A payload that does not fit the burst of its contract; it was not sent."""
    return PayloadTooLarge(
        f"{flow.about}: the payload has {size:,} bytes, more than the contract of class {flow.traffic_class} lets "
        "pass at once; send it in smaller messages, or in another class",
        ErrorCode.PAYLOAD_TOO_LARGE,
    )
