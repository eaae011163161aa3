"""The node's egress queue: what was published and has not left, across reconnects.

It is the relay's `Egress` with a receipt beside every message. Ordinals belong to departure, not to calls: an
urgent message overtakes queued bulk. Within what `Egress.take` returns the more urgent class comes first and a
class is FIFO, so the receipts can be numbered afterwards from the bytes that each class has lost.

Messages that had not left when a connection broke leave on the next one. Control frames and barriers die with
their connection.
"""

from __future__ import annotations

from collections import deque

from awesomeconnect.client.receipts import Flow, Flush, Receipt, Verdicts
from awesomeconnect.client.waiting import Signal
from awesomeconnect.errors import ErrorCode, OutcomeUnknown, PayloadTooLarge
from awesomeconnect.shaping.egress import CONTROL, Egress, EgressLimits
from awesomeconnect.wire.messages import Join, Members, Message, Ping, PingKind, encode_frame, is_barrier
from awesomeconnect.wire.records import MAX_PLAINTEXT

_PUBLISHED = (1 << CONTROL) - 1


class Outbox(Egress):
    """Messages and control frames that wait to be sent, and what is known of those that were.

    Args:
        queue_bytes, queue_messages: what one class holds before publishers wait.
        flush_messages, flush_bytes: what leaves without a verdict before the library asks for one.
        kept_problems: problems kept for `Node.flush`.

    Attributes:
        verdicts: of the messages that have left.
        filled: something was queued.
        progress: a full class has room again, or verdicts have arrived.
    """

    __slots__ = (
        "_asked_at",
        "_decided_bytes",
        "_flush_bytes",
        "_flush_messages",
        "_flushes",
        "_pending",
        "_pings",
        "_queue_bytes",
        "_queue_messages",
        "filled",
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
    ) -> None:
        super().__init__(EgressLimits())
        self.verdicts = Verdicts(kept_problems)
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
        self._asked_at = (0, 0)  # ordinal and bytes gone at the last PING that the library sent by itself

    # ---- publishers ----------------------------------------------------------------------------------

    def is_full(self, traffic_class: int, size: int) -> bool:
        """Whether a publisher must wait. A message always finds room in an empty class, however large it is."""
        queued = self.queued[traffic_class]
        return queued > 0 and (
            queued + size > self._queue_bytes or len(self._pending[traffic_class]) >= self._queue_messages
        )

    def put(self, flow: Flow, payload: bytes) -> Receipt:
        """Queue a message."""
        receipt = Receipt(flow, len(payload))
        self._put(receipt, flow.head(len(payload)) + payload)
        self.filled.notify()
        return receipt

    @property
    def undecided_bytes(self) -> int:
        """Bytes put that have no verdict, as far as is known."""
        return self._departed_bytes + self.queued_bytes - self._decided_bytes

    @property
    def queued_messages(self) -> int:
        """Messages that have not left."""
        return sum(map(len, self._pending))

    @property
    def queued_bytes(self) -> int:
        """Their frames, but for what has left of large ones."""
        return sum(self.queued[:CONTROL])

    @property
    def is_settled(self) -> bool:
        """Whether everything put has left and has its verdict."""
        return not self.ready & _PUBLISHED and self.verdicts.decided == self.verdicts.sent

    def flush(self) -> Flush:
        """Ask for the verdict on everything put so far."""
        waiting = [pending[-1] for pending in self._pending if pending]
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

    # ---- departure -----------------------------------------------------------------------------------

    def take(self, limit: int = MAX_PLAINTEXT) -> bytes:
        """As `Egress.take`; numbers the messages whose last byte is in what it returns."""
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

    # ---- the relay's verdicts ------------------------------------------------------------------------

    def on_pong(self, token: bytes) -> None:
        """A flush PING was answered, and with it all before it. A token that is not known is ignored."""
        flushes = self._flushes
        if not any(flush.token == token for flush in flushes):
            return
        while True:
            flush = flushes.popleft()
            self.verdicts.decide(flush.mark())
            self._decided_bytes = max(self._decided_bytes, flush.put_bytes)
            flush.answer.give(True)
            if flush.token == token:
                break
        self.progress.notify()

    # ---- connections ---------------------------------------------------------------------------------

    def opened(self, connection: int, payload_bytes: int) -> None:
        """A connection is up. Messages that did not leave on the last one leave now, unless they are too long."""
        unsent = [
            (receipt, frame)
            for pending, queue in zip(self._pending, self._queues[:CONTROL], strict=True)
            for receipt, frame in zip(pending, queue or (), strict=True)
        ]
        self.clear()
        self._pending = [deque() for _ in range(CONTROL)]
        self._decided_bytes = self._departed_bytes
        self._asked_at = (0, self._departed_bytes)
        self.verdicts.opened(connection)
        for receipt, frame in unsent:
            if receipt.size > payload_bytes:
                self.verdicts.note(too_large(receipt.flow, receipt.size, payload_bytes))
            else:
                self._put(receipt, frame)

    def broke(self) -> OutcomeUnknown | None:
        """The connection is gone; the messages whose outcome stays unknown, if any."""
        unknown = self.verdicts.broke()
        if unknown is not None:
            self.verdicts.note(unknown)
        flushes, self._flushes = self._flushes, deque()
        for flush in flushes:
            flush.answer.give(False)
        self.progress.notify()
        return unknown

    def _new_flush(self, put_bytes: int, waiting: list[Receipt]) -> Flush:
        self._pings += 1
        flush = Flush(self._pings, self.verdicts.sent, put_bytes, waiting)
        self._flushes.append(flush)
        return flush

    def _put(self, receipt: Receipt, frame: bytes) -> None:
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
