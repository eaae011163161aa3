"""What waits to be sent, which ordinals it gets when it leaves, and what the relay's verdicts say of it."""

from __future__ import annotations

import random

import pytest

from awesomeconnect.client.outbox import Outbox
from awesomeconnect.client.receipts import MAX_HEADS, Flow, Problems, Receipt, Verdicts
from awesomeconnect.errors import (
    ErrorCode,
    NoMembers,
    OutcomeUnknown,
    PayloadTooLarge,
    Refused,
    RemoteProtocolError,
)
from awesomeconnect.wire.fragments import Reassembler
from awesomeconnect.wire.framing import LENGTH_BYTES
from awesomeconnect.wire.messages import (
    Anycast,
    Fragment,
    Join,
    Leave,
    Message,
    Ping,
    PingKind,
    Publish,
    Reject,
    Role,
    Send,
    decode_body,
)

pytestmark = pytest.mark.anyio

PEER = bytes(range(32))
COUNTED = (Publish, Send, Anycast)


def new_outbox(
    queue_bytes: int = 1 << 20,
    queue_messages: int = 1_000,
    flush_messages: int = 1_000_000,
    flush_bytes: int = 1 << 40,
    kept_problems: int = 10,
) -> Outbox:
    outbox = Outbox(queue_bytes, queue_messages, flush_messages, flush_bytes, kept_problems, lambda: 0)
    outbox.opened(1, 1 << 20)
    return outbox


def flow(traffic_class: int = 1, room: str = "room", content: int = 0) -> Flow:
    return Flow.publish(room, traffic_class, content)


class Wire:
    """What a relay makes of an outbox."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._fragments = Reassembler(1 << 21, {})
        self.messages: list[Message] = []

    def take(self, records: int = 1_000, limit: int = 65_519) -> list[Message]:
        """Messages whose last byte left in these records."""
        taken: list[Message] = []
        for _ in range(records):
            plaintext = self._outbox.take(limit)
            if not plaintext:
                break
            at = 0
            while at < len(plaintext):
                end = at + LENGTH_BYTES + int.from_bytes(plaintext[at : at + LENGTH_BYTES], "big")
                body: bytes | None = plaintext[at + LENGTH_BYTES : end]
                at = end
                assert body is not None
                message = decode_body(body, Role.CLIENT)
                if isinstance(message, Fragment):
                    body = self._fragments.add(message)
                    message = decode_body(body, Role.CLIENT) if body else None
                if message is not None:
                    taken.append(message)
        self.messages += taken
        return taken

    @property
    def counted(self) -> list[Message]:
        return [message for message in self.messages if isinstance(message, COUNTED)]


async def test_frames_are_what_the_messages_say() -> None:
    outbox = new_outbox()
    wire = Wire(outbox)
    outbox.put(Flow.publish("room", 3, 0), b"a")
    outbox.put(Flow.send(PEER, 2, 4), b"b" * 300)
    outbox.put(Flow.anycast("room", 1, 0), b"c" * 70_000)
    assert wire.take() == [
        Publish("room", 3, 0, b"a"),
        Send(PEER, 2, 4, b"b" * 300),
        Anycast("room", 1, 0, b"c" * 70_000),
    ]


async def test_heads_are_kept_for_some_lengths() -> None:
    one = flow()
    for size in range(3 * MAX_HEADS):
        frame = one.head(size) + bytes(size)
        assert decode_body(frame[LENGTH_BYTES:], Role.CLIENT) == Publish("room", 1, 0, bytes(size))


async def test_ordinals_follow_departure_across_classes() -> None:
    outbox = new_outbox()
    wire = Wire(outbox)
    bulk = outbox.put(flow(0), bytes(100_000))
    data = outbox.put(flow(1), b"data")
    urgent = outbox.put(flow(5), b"urgent")
    wire.take(records=1)
    assert (urgent.ordinal, data.ordinal, bulk.ordinal) == (1, 2, None)
    late = outbox.put(flow(5), b"late")
    wire.take()
    assert (late.ordinal, bulk.ordinal) == (3, 4)
    assert {late.connection, bulk.connection} == {1}
    assert [len(message.payload) for message in wire.counted] == [6, 4, 4, 100_000]  # type: ignore[union-attr]


async def test_ordinals_agree_with_the_relays_count() -> None:
    chance = random.Random(1)
    outbox = new_outbox(flush_messages=7)
    wire = Wire(outbox)
    receipts: dict[bytes, Receipt] = {}
    for number in range(2_000):
        if chance.random() < 0.6:
            size = chance.choice((8, 8, 100, 1_000, 17_300, 17_500, 40_000))
            payload = number.to_bytes(8, "big") + bytes(size)
            receipts[payload[:8]] = outbox.put(flow(chance.randrange(7)), payload)
        if chance.random() < 0.1:
            outbox.flush()
        if chance.random() < 0.5:
            wire.take(chance.randrange(3), chance.choice((17_408, 30_000, 65_519)))
    wire.take()
    assert len(wire.counted) == len(receipts)
    for ordinal, message in enumerate(wire.counted, 1):
        assert receipts[message.payload[:8]].ordinal == ordinal  # type: ignore[union-attr]
    pings = [message for message in wire.messages if isinstance(message, Ping)]
    outbox.on_pong(pings[-1].token)
    assert outbox.is_settled
    assert outbox.undecided_bytes == outbox.queued_bytes == outbox.queued_messages == 0


async def test_a_flush_decides_what_was_put_before_it_and_what_overtook_that() -> None:
    outbox = new_outbox()
    wire = Wire(outbox)
    slow = outbox.put(flow(0), bytes(100_000))
    flush = outbox.flush()
    wire.take(records=1)
    fast = outbox.put(flow(5), b"fast")
    after = outbox.put(flow(0), b"after")
    taken = wire.take()
    assert taken[-1] == Ping(PingKind.FLUSH, flush.token) or isinstance(taken[-2], Ping)
    assert (fast.ordinal, slow.ordinal, after.ordinal) == (1, 2, 3)
    assert not outbox.is_settled
    assert outbox.is_asking
    outbox.on_pong(b"no such")
    assert outbox.is_asking
    outbox.on_pong(flush.token)
    assert await flush.answer.wait()
    assert outbox.verdicts.decided == 2
    outbox.broke()
    (unknown,) = outbox.problems.take()
    assert unknown.ordinals == range(3, 4)


async def test_a_pong_answers_earlier_flushes() -> None:
    outbox = new_outbox()
    Wire(outbox).take()
    outbox.put(flow(), b"")
    flushes = [outbox.flush() for _ in range(3)]
    Wire(outbox).take()
    outbox.on_pong(flushes[1].token)
    assert await flushes[0].answer.wait()
    assert await flushes[1].answer.wait()
    assert outbox.is_asking
    outbox.broke()
    assert not await flushes[2].answer.wait()


async def test_the_library_asks_by_itself() -> None:
    outbox = new_outbox(flush_messages=256, flush_bytes=1 << 20)
    wire = Wire(outbox)
    for _ in range(300):
        outbox.put(flow(), bytes(100))
    assert isinstance(wire.take()[-1], Ping)
    for _ in range(2):
        outbox.put(flow(), bytes(600_000))
    taken = wire.take()
    assert [type(message) for message in taken] == [Publish, Ping, Publish]  # at 1 MiB, inside the second
    assert isinstance(taken[1], Ping)
    outbox.on_pong(taken[1].token)
    assert outbox.verdicts.decided == 301
    assert outbox.undecided_bytes < 600_000


async def test_full_classes() -> None:
    outbox = new_outbox(queue_bytes=1_000, queue_messages=5)
    assert not outbox.is_full(flow(1), 1_000_000)
    outbox.put(flow(), bytes(1_000_000))
    assert outbox.is_full(flow(1), 0)
    assert not outbox.is_full(flow(2), 0)
    for _ in range(5):
        outbox.put(flow(2), b"")
    assert outbox.is_full(flow(2), 0)
    assert outbox.queued_messages == 6


async def test_joins_stay_behind_leaves() -> None:
    outbox = new_outbox()
    wire = Wire(outbox)
    outbox.put(flow(0), bytes(30_000))
    outbox.tell(Leave("room"))
    outbox.tell(Join("room"))
    outbox.tell(Ping(PingKind.KEEPALIVE))
    assert [type(message) for message in wire.take()] == [Ping, Publish, Leave, Join]


async def test_what_did_not_leave_leaves_on_the_next_connection() -> None:
    outbox = new_outbox()
    wire = Wire(outbox)
    first = outbox.put(flow(0), bytes(100_000))
    gone = outbox.put(flow(5), b"gone")
    last = outbox.put(flow(0), b"last")
    outbox.flush()
    wire.take(records=1)
    assert gone.ordinal == 1
    outbox.broke()
    (unknown,) = outbox.problems.take()
    assert unknown.ordinals == range(1, 2)
    outbox.broke()
    outbox.opened(2, 1 << 20)
    wire = Wire(outbox)
    assert [len(message.payload) for message in wire.take()] == [100_000, 4]  # type: ignore[union-attr]
    assert [(receipt.ordinal, receipt.connection) for receipt in (first, last)] == [(1, 2), (2, 2)]
    assert outbox.problems.take() == []


async def test_what_the_next_relay_does_not_take_is_refused_here() -> None:
    outbox = new_outbox()
    outbox.put(flow(), bytes(5_000))
    outbox.put(flow(), bytes(4_096))
    outbox.broke()
    outbox.opened(2, 4_096)
    assert [len(message.payload) for message in Wire(outbox).take()] == [4_096]  # type: ignore[union-attr]
    (problem,) = outbox.problems.take()
    assert isinstance(problem, PayloadTooLarge)
    assert "the payload has 5,000 bytes, the relay takes 4,096 at most" in str(problem)


# ---- verdicts ------------------------------------------------------------------------------------------


def sent(*flows: Flow) -> Verdicts:
    verdicts = Verdicts(1)
    for one in flows:
        verdicts.departed(Receipt(one, 0))
    return verdicts


async def test_a_reject_names_where_the_message_went() -> None:
    red, blue = flow(room="red"), flow(room="blue")
    verdicts = sent(red, red, blue, red)
    for ordinal, room in ((1, "red"), (2, "red"), (3, "blue"), (4, "red")):
        refused, found = verdicts.judge(Reject(ordinal, 1, ErrorCode.NO_MEMBERS, 7))
        assert isinstance(refused, NoMembers)
        assert f"room '{room}'" in str(refused)
        assert refused.ordinals == range(ordinal, ordinal + 1)
        assert refused.retry_after_ms == 7
        assert found is (red if room == "red" else blue)


async def test_a_reject_after_the_verdict_is_still_told() -> None:
    verdicts = sent(flow(), flow())
    verdicts.decide(1)
    verdicts.decide(1)
    refused, found = verdicts.judge(Reject(1, 1, ErrorCode.RECEIVER_GONE))
    assert found is None
    assert str(refused).startswith("a message accepted before: the receiver disconnected")
    assert verdicts.judge(Reject(2, 1, ErrorCode.NO_MEMBERS))[1] is not None


async def test_a_reject_of_what_was_not_sent_breaks_the_protocol() -> None:
    with pytest.raises(RemoteProtocolError, match="REJECT of message 3; 2 were sent"):
        sent(flow(), flow()).judge(Reject(2, 2, ErrorCode.NO_MEMBERS))


async def test_problems_in_a_row_are_one() -> None:
    verdicts = sent(*[flow()] * 5)
    problems = Problems(10)
    for first, count in ((1, 1), (2, 2), (5, 1)):
        problems.note(verdicts.judge(Reject(first, count, ErrorCode.NO_MEMBERS))[0])
    taken = problems.take()
    assert [problem.ordinals for problem in taken] == [range(1, 4), range(5, 6)]
    assert all(type(problem) is NoMembers for problem in taken)
    assert problems.take() == []


async def test_problems_are_bounded() -> None:
    problems = Problems(2)
    for number in range(5):
        problems.note(Refused(str(number), 1))
    assert problems.forgotten == 3
    assert len(problems.take()) == 2
    assert problems.forgotten == 0


async def test_many_unknown_outcomes() -> None:
    verdicts = sent(*[flow()] * 5)
    unknown = verdicts.broke()
    assert isinstance(unknown, OutcomeUnknown)
    assert "verdict on 5 messages arrived" in str(unknown)
