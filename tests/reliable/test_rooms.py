"""Rooms: one publisher, some members, and a network that loses frames and cuts."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from awesomeconnect.reliable.endpoint import Endpoint
from awesomeconnect.reliable.outgoing import Outgoing
from awesomeconnect.reliable.receiver import Arrival
from awesomeconnect.reliable.repair import Found, Gap, RoomStream
from awesomeconnect.reliable.segments import Mark, Request, Segment, StreamMark, decode_control, decode_segment
from awesomeconnect.reliable.settings import ReliableSettings
from awesomeconnect.wire.parts import Content, Mode

ROOM = "room"


class Member:
    """A node in the room, and what it was given."""

    def __init__(self, at: int, bounds: ReliableSettings, run: int) -> None:
        self.key = bytes((at,)) * 32
        self.endpoint = Endpoint(run.to_bytes(8, "big") + bytes(8), bytes(32), bounds, lambda: 0.5)
        self.endpoint.rooms.joined(ROOM, 3)
        self.is_connected = False
        self.found: list[Found] = []


class Room:
    """The members 0, 1, 2 …; everybody may publish. Frames to each are in order for each sender and class."""

    def __init__(self, size: int = 3, bounds: ReliableSettings | None = None) -> None:
        self.now_ms = 0
        self.bounds = bounds or ReliableSettings()
        self.runs = size
        self.members = [Member(at, self.bounds, at + 1) for at in range(size)]
        #: (from, to, class) -> frames under way: (mode, outgoing)
        self.wires: dict[tuple[int, int, int], deque[tuple[int, Outgoing]]] = {}
        self.published = 0
        self.frames = 0  # PUBLISH and SEND of all
        for at in range(size):
            self.connect(at)

    def publish(self, at: int, size: int = 0, traffic_class: int = 1) -> None:
        member = self.members[at]
        if member.is_connected:
            self.published += 1
            payload = member.endpoint.publish(
                ROOM, traffic_class, Content.APPLICATION, b"%d" % self.published + bytes(size), self.now_ms
            )
            self._send(at, Outgoing(ROOM, traffic_class, Content.RELIABLE, payload))
            self.poll(at)

    def poll(self, at: int) -> None:
        member = self.members[at]
        for outgoing in member.endpoint.poll(self.now_ms):
            self._send(at, outgoing)
        member.found += member.endpoint.take_found()

    def _send(self, at: int, outgoing: Outgoing) -> None:
        self.frames += 1
        for to, member in enumerate(self.members):
            if member.is_connected and (to != at if outgoing.target == ROOM else member.key == outgoing.target):
                mode = Mode.BROADCAST if outgoing.target == ROOM else Mode.UNICAST
                self.wires.setdefault((at, to, outgoing.traffic_class), deque()).append((mode, outgoing))

    def deliver(self, at: int, to: int, traffic_class: int) -> None:
        wire = self.wires.get((at, to, traffic_class))
        member = self.members[to]
        if wire:
            mode, outgoing = wire.popleft()
            member.found += member.endpoint.on_deliver(
                self.members[at].key,
                mode,
                ROOM if mode == Mode.BROADCAST else None,
                outgoing.traffic_class,
                outgoing.content,
                outgoing.payload,
                self.now_ms,
            )
            self.poll(to)

    def lose(self, at: int, to: int, traffic_class: int) -> None:
        wire = self.wires.get((at, to, traffic_class))
        if wire:
            wire.popleft()

    def cut(self, at: int) -> None:
        member = self.members[at]
        if member.is_connected:
            member.is_connected = False
            member.endpoint.disconnected()
            for (_from, to, _class), wire in self.wires.items():
                if to == at:
                    wire.clear()

    def connect(self, at: int) -> None:
        member = self.members[at]
        if not member.is_connected:
            member.is_connected = True
            member.endpoint.connected(self.now_ms)
            self.poll(at)

    def wait(self, ms: int) -> None:
        until = self.now_ms + ms
        while True:
            times = [m.endpoint.next_ms for m in self.members]
            due = min((at for at in times if at is not None), default=until)
            if due >= until:
                break
            self.now_ms = max(self.now_ms, due)
            for at in range(len(self.members)):
                self.poll(at)
        self.now_ms = until

    def settle(self, within_ms: int) -> None:
        for at in range(len(self.members)):
            self.connect(at)
        until = self.now_ms + within_ms
        while self.now_ms < until:
            self.drain()
            self.wait(20)
        self.drain()

    def drain(self) -> None:
        while any(self.wires.values()):
            for at, to, traffic_class in list(self.wires):
                while self.wires[at, to, traffic_class]:
                    self.deliver(at, to, traffic_class)

    def heard(self, at: int, of: int, traffic_class: int = 1) -> list[tuple[int, int]]:
        """The sequences of a publisher that a member was given, as (first, last); gaps are negative."""
        heard = []
        for found in self.members[at].found:
            if found.sender == self.members[of].key and found.traffic_class == traffic_class:
                if isinstance(found, Gap):
                    heard.append((-found.first, -found.last))
                else:
                    heard.append((found.sequence, found.sequence))
        return heard

    def check(self) -> None:
        """R1: from the first one that was heard on, each message is handed over or in one gap, in order."""
        for at in range(len(self.members)):
            for of in range(len(self.members)):
                for traffic_class in (0, 1):
                    spans = [(abs(a), abs(b)) for a, b in self.heard(at, of, traffic_class)]
                    assert all(first <= last for first, last in spans)
                    assert all(last + 1 == first for (_, last), (first, _) in pairwise(spans)), spans


nodes = st.integers(0, 2)
classes = st.sampled_from((0, 1, 1, 6))
ACTIONS = st.one_of(
    st.tuples(st.just("publish"), nodes, st.sampled_from((0, 0, 300)), st.sampled_from((0, 1))),
    st.tuples(st.just("publish"), nodes, st.sampled_from((0, 0, 300)), st.sampled_from((0, 1))),
    st.tuples(st.just("deliver"), nodes, nodes, classes),
    st.tuples(st.just("deliver"), nodes, nodes, classes),
    st.tuples(st.just("lose"), nodes, nodes, classes),
    st.tuples(st.just("wait"), st.sampled_from((1, 20, 600, 1_100, 25_000))),
    st.tuples(st.just("cut"), nodes),
    st.tuples(st.just("connect"), nodes),
)
TIGHT = ReliableSettings(ring_bytes=1_000, buffer_bytes=700, ahead_messages=4)


@pytest.mark.parametrize("bounds", [ReliableSettings(), TIGHT])
@settings(max_examples=300, deadline=None)
@given(actions=st.lists(ACTIONS, max_size=120))
def test_each_message_is_handed_over_or_in_one_gap(bounds: ReliableSettings, actions: list[tuple]) -> None:  # type: ignore[type-arg]
    room = Room(3, bounds)
    for name, *arguments in actions:
        getattr(room, name)(*arguments)
        room.check()
    room.settle(130_000)
    room.check()
    for at in range(3):
        for of in range(3):
            for traffic_class in (0, 1):
                heard = room.heard(at, of, traffic_class)
                stream = room.members[of].endpoint.rooms._ring.stream(ROOM, traffic_class)
                if heard and stream is not None:
                    assert abs(heard[-1][1]) == stream.next_sequence - 1, "the end was not heard of"
        assert room.members[at].endpoint.rooms._buffered_bytes == 0


@settings(max_examples=100, deadline=None)
@given(lost=st.lists(st.booleans(), min_size=1, max_size=60))
def test_what_the_ring_holds_is_repaired(lost: list[bool]) -> None:
    room = Room(2)
    room.publish(0)
    room.deliver(0, 1, 1)
    for is_lost in lost:
        room.publish(0)
        (room.lose if is_lost else room.deliver)(0, 1, 1)
    room.settle(20_000)
    assert room.heard(1, 0) == [(n, n) for n in range(1, len(lost) + 2)]


def test_a_receiver_that_comes_later_misses_nothing_before() -> None:
    room = Room(2)
    for _ in range(5):
        room.publish(0)
        room.lose(0, 1, 1)
    room.publish(0)
    room.settle(5_000)
    assert room.heard(1, 0) == [(6, 6)]
    silent = Room(2)
    silent.publish(0)
    silent.lose(0, 1, 1)
    silent.settle(5_000)  # a mark tells where the stream is
    silent.publish(0)
    silent.settle(100)
    assert silent.heard(1, 0) == [(2, 2)]


def test_many_requests_for_one_message_bring_one_publish() -> None:
    room = Room(12)
    room.publish(0)
    room.drain()
    room.publish(0)
    for to in range(1, 12):
        room.lose(0, to, 1)
    room.publish(0)
    room.drain()
    before = room.frames
    publisher = room.members[0].endpoint
    for at in range(1, 12):  # all ask before the first answer is there
        streams = room.members[at].endpoint.rooms._streams
        stream = streams[ROOM, room.members[0].key, 1]
        request = Request(ROOM, stream.incarnation, 1, ((2, 2),))
        publisher.rooms.on_request(room.members[at].key, request, room.now_ms)
    room.poll(0)
    assert room.frames - before == 3  # two repairs, one PUBLISH
    room.settle(100)
    for at in range(1, 12):
        assert room.heard(at, 0) == [(1, 1), (2, 2), (3, 3)]


def test_what_the_ring_has_lost_is_one_gap() -> None:
    room = Room(2, ReliableSettings(ring_bytes=1_000))
    room.publish(0)
    room.drain()
    for _ in range(20):
        room.publish(0, 100)
        room.lose(0, 1, 1)
    room.settle(5_000)
    heard = room.heard(1, 0)
    assert heard[:2] == [(1, 1), (-2, -17)]
    assert heard[2:] == [(18, 18), (19, 19), (20, 20), (21, 21)]


def test_a_segment_tells_at_once_what_is_gone() -> None:
    stream = RoomStream(bytes(32), ROOM, 1, bytes(16), 1, ReliableSettings())
    assert len(stream.on_segment(Segment(bytes(16), 1, 1, 1_000, 0, b""), 0, 20, 1_000)) == 1
    gap, arrival = stream.on_segment(Segment(bytes(16), 9, 9, 1_000, 0, b""), 0, 20, 1_000)
    assert gap == Gap(bytes(32), ROOM, 1, 2, 8)
    assert isinstance(arrival, Arrival)
    assert stream.next_ms is None


def test_a_publisher_that_is_gone_ends_in_one_gap() -> None:
    room = Room(2)
    room.publish(0)
    room.drain()
    room.publish(0)
    room.lose(0, 1, 1)
    room.publish(0)
    room.drain()
    room.cut(0)
    room.wires.clear()
    room.wait(19_000)
    assert room.heard(1, 0) == [(1, 1)]
    room.wait(2_000)
    assert room.heard(1, 0) == [(1, 1), (-2, -2), (3, 3)]


def test_a_publisher_that_starts_anew() -> None:
    room = Room(2)
    room.publish(0)
    room.drain()
    room.publish(0)
    room.lose(0, 1, 1)
    room.publish(0)
    room.drain()
    old = room.members[0]
    room.cut(0)
    room.members[0] = Member(0, room.bounds, 99)
    room.connect(0)
    room.publish(0)
    room.settle(1_000)
    assert room.heard(1, 0) == [(1, 1), (-2, -2), (3, 3), (1, 1)]
    room.members[0] = old
    room.connect(0)
    room.publish(0)
    room.settle(1_000)
    assert len(room.heard(1, 0)) == 4  # of a lower incarnation


def test_marks_come_ever_more_rarely_and_end_with_the_ring() -> None:
    room = Room(2)
    room.publish(0)
    times: list[int] = []
    for second in range(600):
        room.wait(1_000)
        if room.wires.get((0, 1, 6)):
            times.append(second)
            room.drain()
    gaps = [after - before for before, after in pairwise(times)]
    assert gaps[:6] == [2, 4, 8, 16, 32, 60]
    assert set(gaps[6:]) == {60}
    assert times[-1] < 300
    assert room.members[0].endpoint.rooms._ring.bytes == 0
    assert room.members[0].endpoint.next_ms is None


def test_leaving_and_coming_back() -> None:
    room = Room(2)
    room.publish(0)
    room.drain()
    member = room.members[1]
    member.endpoint.rooms.left(ROOM)
    for _ in range(3):
        room.publish(0)
        room.lose(0, 1, 1)
    member.endpoint.rooms.joined(ROOM, 2)
    room.publish(0)
    room.settle(5_000)
    assert room.heard(1, 0) == [(1, 1), (5, 5)]


def test_strangers_cannot_have_a_room_repaired_to_them() -> None:
    room = Room(2)
    room.publish(0)
    publisher = room.members[0].endpoint
    other = publisher.publish("other", 1, 0, b"", 0)
    publisher.rooms.on_request(b"x" * 32, Request(ROOM, decode_segment(other).incarnation, 1, ((1, 1),)), 0)
    before = room.frames
    room.poll(0)
    assert room.frames == before
    mark = Mark("elsewhere", bytes(16), (StreamMark(1, 1, 9),))
    publisher.rooms.on_mark(b"x" * 32, "elsewhere", mark, 0, True)
    assert not publisher.rooms._streams


def test_a_request_for_what_is_gone_is_answered_by_a_mark() -> None:
    room = Room(2, ReliableSettings(ring_bytes=1))
    room.publish(0)
    room.drain()
    room.publish(0)
    rooms = room.members[0].endpoint.rooms
    incarnation = rooms._incarnation(ROOM)
    rooms.on_request(room.members[1].key, Request(ROOM, incarnation, 1, ((1, 1),)), 0)
    (outgoing,) = rooms.poll(0)
    assert decode_control(outgoing.payload) == Mark(ROOM, incarnation, (StreamMark(1, 2, 3),))


def test_streams_are_bounded() -> None:
    bounds = ReliableSettings(streams=4, ring_bytes=1)
    room = Room(2, bounds)
    publisher, member = room.members[0].endpoint, room.members[1].endpoint
    for number in range(20):
        name = f"room {number}"
        payload = publisher.publish(name, 1, 0, b"", 0)
        found = member.on_deliver(room.members[0].key, 0, name, 1, Content.RELIABLE, payload, 0)
        assert [type(one) for one in found] == [Arrival]
    assert len(publisher.rooms._ring._streams) <= 4
    assert len(member.rooms._streams) <= 4
