"""What became of the messages that were sent: ordinals, verdicts, and what stays unknown.

The relay names a refused message by its ordinal: its number among all PUBLISH, SEND and ANYCAST of the connection
in the order in which their last byte went out. Nothing is said about accepted ones; a PONG to a flush PING
says that everything before the PING has its verdict. So between two PONGs it must be remembered where
which ordinals went, and no more than that.

This module knows neither queues nor connections.
"""

from __future__ import annotations

from collections import deque

from awesomeconnect.client.waiting import Answer
from awesomeconnect.errors import OutcomeUnknown, Refused, RemoteProtocolError
from awesomeconnect.identity import short_key
from awesomeconnect.wire.framing import LENGTH_BYTES
from awesomeconnect.wire.messages import (
    Content,
    Reject,
    anycast_prefix,
    payload_head,
    publish_prefix,
    send_prefix,
)

#: Payload lengths of a flow whose heads are kept.
MAX_HEADS = 64
#: Of a flush PING. Keepalive PINGs have tokens of another length.
TOKEN_BYTES = 8


class Flow:
    """One destination in one class with one content: what all messages to it have in common.

    Attributes:
        target: the room or key, as PAUSE names it.
        about: the same for people.
        is_repaired: the endpoints repair what is lost, so an outcome that is unknown is nobody's concern.
        is_resent: ... and send it again on every connection.
    """

    __slots__ = ("_heads", "_prefix", "about", "content", "is_repaired", "is_resent", "target", "traffic_class")

    def __init__(self, target: str | bytes, traffic_class: int, content: int, about: str, prefix: bytes) -> None:
        self.target = target
        self.traffic_class = traffic_class
        self.content = content
        self.is_repaired = content in (Content.RELIABLE, Content.REPAIR)
        self.is_resent = self.is_repaired and (content == Content.REPAIR or isinstance(target, bytes))
        self.about = about
        self._prefix = prefix
        self._heads: dict[int, bytes] = {}

    @classmethod
    def publish(cls, room: str, traffic_class: int, content: int) -> Flow:
        """To all members of a room."""
        about = f"publish to room {room!r}"
        return cls(room, traffic_class, content, about, publish_prefix(room, traffic_class, content))

    @classmethod
    def send(cls, peer: bytes, traffic_class: int, content: int) -> Flow:
        """To one peer."""
        about = f"send to {short_key(peer)}"
        return cls(peer, traffic_class, content, about, send_prefix(peer, traffic_class, content))

    @classmethod
    def anycast(cls, room: str, traffic_class: int, content: int) -> Flow:
        """To any one member of a room."""
        about = f"send to any member of room {room!r}"
        return cls(room, traffic_class, content, about, anycast_prefix(room, traffic_class, content))

    def head(self, size: int) -> bytes:
        """The frame of a payload of ``size`` bytes up to the payload."""
        head = self._heads.get(size)
        if head is None:
            body = self._prefix + payload_head(size)
            head = (len(body) + size).to_bytes(LENGTH_BYTES, "big") + body
            if len(self._heads) >= MAX_HEADS:
                self._heads.clear()
            self._heads[size] = head
        return head


class Receipt:
    """A message that was handed to the library.

    Attributes:
        ordinal: its number on the connection, as refusals name it; None until its last byte has left.
        connection: the number of that connection in this process; None until then.
    """

    __slots__ = ("connection", "end", "flow", "ordinal", "size")

    def __init__(self, flow: Flow, size: int) -> None:
        self.flow = flow
        self.size = size  # of the payload
        self.end = 0  # it has left when its class has departed this far
        self.ordinal: int | None = None
        self.connection: int | None = None

    def __repr__(self) -> str:
        return f"Receipt(ordinal={self.ordinal}, connection={self.connection})"


class Flush:
    """A flush PING: what its PONG will decide.

    Attributes:
        answer: given True by the PONG, False when the connection breaks.
    """

    __slots__ = ("answer", "ordinal", "put_bytes", "token", "waiting")

    def __init__(self, number: int, ordinal: int, put_bytes: int, waiting: list[Receipt]) -> None:
        self.token = number.to_bytes(TOKEN_BYTES, "big")
        self.ordinal = ordinal  # what had left when it was queued
        self.put_bytes = put_bytes
        self.waiting = waiting  # the last message of each class that leaves before it
        self.answer: Answer[bool] = Answer()

    def mark(self) -> int:
        """The last ordinal that the PONG decides."""
        return max([self.ordinal, *(receipt.ordinal or 0 for receipt in self.waiting)])

    def is_decided(self, ordinal: int) -> bool:
        """Whether all it asks for is decided when everything up to this ordinal is."""
        return self.mark() <= ordinal and all(receipt.ordinal is not None for receipt in self.waiting)


class Problems:
    """What `Node.flush` raises: refusals and unknown outcomes since they were last taken.

    Attributes:
        forgotten: problems that found the list full.
    """

    def __init__(self, kept: int) -> None:
        self.forgotten = 0
        self._kept = kept
        self._problems: list[Refused | OutcomeUnknown] = []

    def note(self, problem: Refused | OutcomeUnknown) -> None:
        """Keep a problem for the next flush."""
        problems = self._problems
        last = problems[-1] if problems else None
        if isinstance(last, Refused) and isinstance(problem, Refused) and _go_on(last, problem):
            problems.pop()
            ordinals = range(last.ordinals.start, problem.ordinals.stop)
            problem = type(problem)(
                str(problem), problem.code, retry_after_ms=problem.retry_after_ms, ordinals=ordinals
            )
        if len(problems) >= self._kept:
            self.forgotten += 1
        else:
            problems.append(problem)

    def take(self) -> list[Refused | OutcomeUnknown]:
        """The problems so far, which are then no longer kept."""
        problems, self._problems = self._problems, []
        self.forgotten = 0
        return problems


class Verdicts:
    """What is known of the messages of one connection. Ordinals count from 1.

    Attributes:
        connection: its number.
        sent: ordinal of the last message that left.
        decided: everything up to this ordinal has its verdict.
    """

    def __init__(self, connection: int) -> None:
        self.connection = connection
        self.sent = 0
        self.decided = 0
        self._flows: deque[tuple[int, Flow]] = deque()  # (first ordinal, flow), runs not decided yet

    @property
    def is_settled(self) -> bool:
        """Whether everything that has left has its verdict."""
        return self.decided == self.sent

    def departed(self, receipt: Receipt) -> None:
        """The last byte of a message has left."""
        self.sent += 1
        receipt.ordinal = self.sent
        receipt.connection = self.connection
        if not self._flows or self._flows[-1][1] is not receipt.flow:
            self._flows.append((self.sent, receipt.flow))

    def decide(self, ordinal: int) -> None:
        """Everything up to this ordinal has its verdict."""
        if ordinal <= self.decided:
            return
        self.decided = ordinal
        flows = self._flows
        while len(flows) > 1 and flows[1][0] <= ordinal + 1:
            flows.popleft()

    def judge(self, reject: Reject) -> tuple[Refused, Flow | None]:
        """What a REJECT says, and where the first message went if that is remembered.

        Raises:
            RemoteProtocolError: it names messages that were not sent.
        """
        ordinals = range(reject.first, reject.first + reject.count)
        if ordinals.stop - 1 > self.sent:
            raise RemoteProtocolError(f"REJECT of message {ordinals.stop - 1}; {self.sent} were sent")
        flow = next((flow for first, flow in reversed(self._flows) if first <= reject.first), None)
        if reject.first <= self.decided:
            flow = None
        about = flow.about if flow is not None else "a message accepted before"
        refused = Refused.from_code(reject.code, about, retry_after_ms=reject.retry_after_ms, ordinals=ordinals)
        return refused, flow

    def flows(self, ordinals: range) -> list[Flow]:
        """The flows of messages without a verdict, one for each run of them."""
        runs = list(self._flows)
        ends = [first for first, _flow in runs[1:]]
        return [
            flow
            for (first, flow), end in zip(runs, [*ends, self.sent + 1], strict=False)
            if first < ordinals.stop and max(ordinals.start, self.decided + 1) < end
        ]

    def broke(self) -> OutcomeUnknown | None:
        """The connection is gone: the messages without a verdict, if any."""
        unknown = range(self.decided + 1, self.sent + 1)
        if all(flow.is_repaired for flow in self.flows(unknown)):
            unknown = range(0)
        self.decided = self.sent
        self._flows.clear()
        if not unknown:
            return None
        return OutcomeUnknown(
            f"the connection broke before the relay's verdict on {_count(unknown)} arrived; "
            "they may or may not have been delivered",
            unknown,
        )


def _go_on(last: Refused, problem: Refused) -> bool:
    """Whether a refusal is the same as the last one, of the messages that follow."""
    return last.ordinals.stop == problem.ordinals.start and str(last) == str(problem)


def _count(ordinals: range) -> str:
    return "1 message" if len(ordinals) == 1 else f"{len(ordinals)} messages"
