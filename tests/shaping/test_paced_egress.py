"""What leaves towards a slow receiver: urgent messages at once, all else in pieces, nothing lost or reordered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from awesomeconnect.shaping.egress import Egress, EgressLimits
from awesomeconnect.wire.fragments import FRAGMENT_HEAD_BYTES, OpenFrame, Reassembler
from awesomeconnect.wire.framing import FRAGMENT_ABOVE_BYTES
from awesomeconnect.wire.messages import (
    Deliver,
    Fragment,
    Gap,
    Left,
    Member,
    MembersPage,
    Message,
    Mode,
    Ping,
    Role,
    TrafficClass,
    decode_body,
    encode_frame,
)
from awesomeconnect.wire.records import MAX_PLAINTEXT
from tests.wire.playbook import frames_of

KEY = bytes(range(32))
BULK, DATA, URGENT = TrafficClass.BULK, TrafficClass.DATA, TrafficClass.URGENT
#: What a piece may be longer than the room that was given.
SLACK_BYTES = 1_088


def deliver(number: int, traffic_class: int, size: int) -> bytes:
    payload = number.to_bytes(8, "big") + bytes(max(size - 60, 0))
    return encode_frame(Deliver(Mode.BROADCAST, KEY, "room", traffic_class, 0, payload))


class Reader:
    """The other side: the messages of the records, fragments put together."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._open: dict[int, OpenFrame] = {}
        self._reassembler = Reassembler(1 << 30, self._open)

    def feed(self, record: bytes) -> None:
        for body in frames_of(record):
            message = decode_body(body, Role.RELAY)
            if isinstance(message, Fragment):
                whole = self._reassembler.add(message)
                message = decode_body(whole, Role.RELAY) if whole else None
            elif isinstance(message, Deliver):
                assert message.traffic_class not in self._open
            if message is not None:
                self.messages.append(message)

    @property
    def numbers(self) -> list[int]:
        return [int.from_bytes(m.payload[:8], "big") for m in self.messages if isinstance(m, Deliver)]


@pytest.fixture
def egress() -> Egress:
    return Egress(EgressLimits())


def test_urgent_waits_for_one_piece_at_most(egress: Egress) -> None:
    """Property 9: whatever was taken before, the next record is the urgent message, alone."""
    egress.push(BULK, deliver(1, BULK, 900_000))
    egress.push(DATA, b"".join(deliver(n, DATA, 300) for n in range(100)))
    for room in (1_024, 3_000, 16_320, 65_536):
        assert 0 < len(egress.take_paced(room)) <= min(room, 16_320) + SLACK_BYTES
        urgent = deliver(2, URGENT, 200)
        egress.push(URGENT, urgent)
        assert egress.take_paced(room) == urgent


def test_without_room_only_urgent_leaves(egress: Egress) -> None:
    control, urgent = encode_frame(Ping(0, b"")), deliver(1, URGENT, 200)
    egress.push(DATA, deliver(2, DATA, 200))
    egress.push(URGENT, urgent)
    egress.push_control(control)
    assert egress.has_urgent
    assert egress.take_paced(0) == control + urgent
    assert not egress.has_urgent
    assert egress.take_paced(0) == b""
    assert egress.take_paced(1_024) == deliver(2, DATA, 200)


def test_a_paused_urgent_class_is_not_urgent(egress: Egress) -> None:
    egress.push(URGENT, deliver(1, URGENT, 200))
    egress.pause(URGENT)
    assert not egress.has_urgent
    assert egress.take_paced(16_320) == b""


def test_a_blob_is_cut_between_frames(egress: Egress) -> None:
    frames = [deliver(number, DATA, 900) for number in range(10)]
    egress.push(DATA, b"".join(frames))
    taken = []
    while record := egress.take_paced(2_000):
        taken.append(record)
    assert taken == [b"".join(frames[at : at + 3]) for at in range(0, 10, 3)]
    assert egress.is_drained
    assert egress.total == 0


def test_a_message_that_is_short_elsewhere_leaves_in_fragments(egress: Egress) -> None:
    egress.push(DATA, deliver(1, DATA, 16_000) + deliver(2, DATA, 100))
    sizes = []
    reader = Reader()
    while record := egress.take_paced(4_000):
        sizes.append(len(record))
        reader.feed(record)
    assert sizes[0] == 4_000 + FRAGMENT_HEAD_BYTES
    assert max(sizes) <= 4_000 + SLACK_BYTES
    assert reader.numbers == [1, 2]


def test_a_path_that_becomes_fast_finishes_what_was_begun(egress: Egress) -> None:
    egress.push(DATA, deliver(1, DATA, 5_000))
    reader = Reader()
    reader.feed(egress.take_paced(1_024))
    reader.feed(egress.take())
    assert reader.numbers == [1]
    assert egress.is_drained
    assert egress.total == 0


def test_control_frames_are_never_cut(egress: Egress) -> None:
    page = encode_frame(MembersPage("r", 0, 1, tuple(Member(KEY, n, {"name": "n" * 900}) for n in range(40))))
    egress.push(2, page + deliver(1, 2, 100))
    assert egress.take_paced(1_024) == page
    assert egress.take_paced(1_024) == deliver(1, 2, 100)


def test_a_barrier_does_not_wait_for_later_bulk(egress: Egress) -> None:
    first = deliver(1, BULK, 2_000)
    egress.push(BULK, first)
    egress.push_barrier(encode_frame(Left("room")))
    egress.push(BULK, deliver(2, BULK, 200_000))
    assert b"room" not in egress.take_paced(0)
    while egress.departed[BULK] < len(first):
        egress.take_paced(1_024)
    assert egress.take_paced(0) == encode_frame(Left("room"))


def test_a_barrier_does_not_wait_for_later_bulk_on_a_fast_path(egress: Egress) -> None:
    egress.push(BULK, deliver(1, BULK, 100_000))
    egress.push_barrier(encode_frame(Left("room")))
    egress.push(BULK, deliver(2, BULK, 2_000_000))
    for _ in range(2):
        egress.take()
    assert egress.take().startswith(encode_frame(Left("room")))


def test_a_loss_is_told_at_its_place() -> None:
    egress = Egress(EgressLimits(class_bytes=10_000, total_bytes=20_000))
    egress.push(DATA, deliver(1, DATA, 9_000))
    assert not egress.push(DATA, deliver(2, DATA, 9_000))
    egress.lose(DATA, "room", 1, 9_000)
    reader = Reader()
    while record := egress.take_paced(1_024):
        reader.feed(record)
    kinds = [type(message) for message in reader.messages]
    assert kinds == [Deliver, Gap]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([BULK, DATA, URGENT]),
            st.lists(
                st.sampled_from([60, 300, 1_500, FRAGMENT_ABOVE_BYTES, 40_000, 70_000]), min_size=1, max_size=4
            ),
        ),
        max_size=8,
    ),
    st.lists(st.sampled_from([-1, 0, 1_024, 1_500, 5_000, 16_320, 100_000]), min_size=1),
)
def test_everything_arrives_once_and_in_order(queued: list[tuple[int, list[int]]], rooms: list[int]) -> None:
    """Properties 7 and 10: exact reassembly and order within a class, whatever room there is when; -1: unpaced."""
    egress, reader = Egress(EgressLimits()), Reader()
    expected: dict[int, list[int]] = {BULK: [], DATA: [], URGENT: []}
    number = 0
    for traffic_class, sizes in queued:
        blob = b""
        for size in sizes:
            frame = deliver(number, traffic_class, size)
            expected[traffic_class].append(number)
            number += 1
            if size > FRAGMENT_ABOVE_BYTES or len(blob) + len(frame) > MAX_PLAINTEXT:
                if blob:
                    egress.push(traffic_class, blob)
                blob = b""
            if size > FRAGMENT_ABOVE_BYTES:
                egress.push(traffic_class, frame)
            else:
                blob += frame
        if blob:
            egress.push(traffic_class, blob)
    turn = 0
    while egress.ready:
        room = rooms[turn % len(rooms)] if turn < 1_000 else 16_320
        record = egress.take() if room < 0 else egress.take_paced(room)
        assert len(record) <= (MAX_PLAINTEXT if room < 0 else max(FRAGMENT_ABOVE_BYTES, room + SLACK_BYTES))
        reader.feed(record)
        turn += 1
    for traffic_class, numbers in expected.items():
        arrived = [m for m in reader.messages if isinstance(m, Deliver) and m.traffic_class == traffic_class]
        assert [int.from_bytes(message.payload[:8], "big") for message in arrived] == numbers
    assert egress.total == 0
    assert egress.queued == [0] * 8
