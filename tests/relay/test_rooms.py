"""Rooms and peers: order, flags, pages, presence, slots, and the choice of anycast."""

from __future__ import annotations

import gc
from itertools import pairwise
from typing import Any

import pytest
from attrs import define, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from awesomeconnect.errors import ErrorCode
from awesomeconnect.relay.admission import judge_room
from awesomeconnect.relay.rooms import Place, Registry, Room
from awesomeconnect.wire.messages import Attributes, JoinFlags, Member, MembersPage, Presence, encode_frame

WATCH, OBSERVE = JoinFlags.WATCH, JoinFlags.OBSERVE
PAGE = 49_152


@define(eq=False)
class Queue:
    """What a registry needs of an egress queue: nothing but how full it is."""

    total: int = 0


@define(eq=False)
class Node:
    """What a registry needs of a connection, and the queue beside it."""

    key: bytes
    attributes: Attributes = field(factory=dict)
    rooms: dict[Room, Place] = field(factory=dict)
    egress: Queue = field(factory=Queue)


def node(number: int, **attributes: Any) -> Node:
    return Node(number.to_bytes(32, "big"), attributes)


class House:
    """A registry with short names for what tests do."""

    def __init__(self) -> None:
        self.registry = Registry()

    def join(self, one: Node, flags: int = 0, room: str = "x") -> Room:
        return self.registry.join(one, one.egress, room, flags)

    def leave(self, one: Node, room: str = "x") -> bool:
        return self.registry.leave(one, one.egress, room)


@pytest.fixture
def house() -> House:
    return House()


def members_of(room: Room, page_bytes: int = 1 << 20) -> list[Member]:
    """All pages of a room."""
    members: list[Member] = []
    after: int | None = 0
    while after is not None:
        page = room.page(after, page_bytes)
        assert (page.room, page.code, page.version) == (room.name, ErrorCode.OK, room.version)
        assert len(encode_frame(page)) <= page_bytes or len(page.page) == 1
        members += page.page
        after = page.next
        assert after is None or after == page.page[-1].joined
    return members


def keys_of(room: Room) -> list[int]:
    return [int.from_bytes(member.key, "big") for member in members_of(room)]


# ---- joining and leaving -----------------------------------------------------------------------------


def test_members_are_kept_in_join_order(house: House) -> None:
    a, b, c = node(1), node(2), node(3)
    for one in (b, a, c):
        room = house.join(one)
    assert keys_of(room) == [2, 1, 3]
    assert house.leave(a)
    house.join(a)
    assert keys_of(room) == [2, 3, 1]
    assert [member.joined for member in members_of(room)] == [1, 3, 4]
    assert list(room.members) == [b.egress, c.egress, a.egress]
    assert list(room.members.values()) == [b, c, a]
    assert room.version == 5


def test_a_change_of_flags_keeps_the_place(house: House) -> None:
    a, b = node(1), node(2)
    room = house.join(a)
    house.join(b)
    version = room.version
    house.join(a, WATCH)
    assert keys_of(room) == [1, 2]
    assert list(room.audience) == [a]
    house.join(a)
    assert not room.audience
    assert room.version == version


def test_observers_are_not_members(house: House) -> None:
    a, eye = node(1), node(2)
    house.join(a)
    room = house.join(eye, OBSERVE | WATCH)
    assert keys_of(room) == [1]
    assert list(room.members) == [a.egress]
    assert list(room.audience) == [eye]
    assert room.version == 1
    house.join(eye, OBSERVE)
    assert not room.audience
    assert house.leave(eye)
    assert room.version == 1
    assert not eye.rooms


def test_between_member_and_observer_one_leaves_and_joins(house: House) -> None:
    a, b = node(1), node(2)
    room = house.join(a)
    house.join(b)
    house.join(a, OBSERVE)
    assert keys_of(room) == [2]
    assert room.version == 3
    house.join(a)
    assert keys_of(room) == [2, 1]
    assert room.version == 4
    assert members_of(room)[-1].joined == 3


def test_leaving_a_room_one_is_not_in_changes_nothing(house: House) -> None:
    a, b = node(1), node(2)
    assert not house.leave(a)
    room = house.join(a)
    assert not house.leave(b)
    assert house.leave(a)
    assert not house.leave(a)
    assert room.version == 2


def test_leave_all(house: House) -> None:
    a, b = node(1), node(2)
    rooms = [house.join(a, flags, name) for flags, name in ((0, "x"), (WATCH, "y"), (OBSERVE, "z"))]
    house.join(b, 0, "x")
    assert house.registry.leave_all(a, a.egress) == rooms
    assert not a.rooms
    assert [len(room.members) for room in rooms] == [1, 0, 0]
    assert not any(room.audience for room in rooms)
    assert house.registry.leave_all(a, a.egress) == []


# ---- slots -------------------------------------------------------------------------------------------


def test_a_room_lives_as_long_as_somebody_holds_it(house: House) -> None:
    a = node(1)
    house.join(a)
    assert [room.name for room in house.registry.rooms()] == ["x"]
    route = house.registry.room("x")
    house.leave(a)
    assert house.registry.find_room("x") is route, "a sender's cached route holds it"
    assert list(house.registry.rooms()) == []
    assert house.join(a) is route, "emptied and filled again it is the same slot"
    assert route.version == 3
    house.leave(a)
    del route
    gc.collect()
    assert house.registry.find_room("x") is None
    assert house.join(a).version == 1


def test_an_observer_keeps_a_room(house: House) -> None:
    eye = node(1)
    house.join(eye, OBSERVE)
    gc.collect()
    assert house.registry.find_room("x") is not None
    assert list(house.registry.rooms()) == []


def test_a_peer_lives_as_long_as_somebody_holds_it(house: House) -> None:
    key = bytes(32)
    slot = house.registry.peer(key)
    assert house.registry.peer(key) is slot
    assert house.registry.find_peer(key) is slot
    assert (slot.key, slot.node, slot.egress) == (key, None, None)
    del slot
    gc.collect()
    assert house.registry.find_peer(key) is None


# ---- pages -------------------------------------------------------------------------------------------


def test_an_empty_room_has_an_empty_page(house: House) -> None:
    room = house.registry.room("x")
    assert room.page(0, 2_048) == MembersPage("x", ErrorCode.OK, 0)


@pytest.mark.parametrize("page_bytes", [2_048, 5_000, 49_152])
@pytest.mark.parametrize("attribute_bytes", [0, 20, 950])
def test_pages_hold_everyone_once(house: House, page_bytes: int, attribute_bytes: int) -> None:
    for number in range(1, 200):
        room = house.join(node(number, text="x" * attribute_bytes), 0, "é" * 64)
    assert [int.from_bytes(member.key, "big") for member in members_of(room, page_bytes)] == list(range(1, 200))
    assert room.page(room.last_joined, page_bytes).page == ()
    assert room.page(198, page_bytes).next is None


def test_a_page_has_at_least_one_member(house: House) -> None:
    room = house.join(node(1, text="x" * 1_000))
    house.join(node(2))
    page = room.page(0, 100)
    assert (len(page.page), page.next) == (1, 1)


# ---- presence ----------------------------------------------------------------------------------------


def test_without_an_audience_nothing_is_remembered(house: House) -> None:
    a = node(1)
    room = house.join(a)
    assert not room.has_news
    assert room.take_changes(PAGE) == []
    house.join(a, WATCH)
    house.join(node(2))
    assert room.has_news
    told = room.take_changes(PAGE)
    assert [(change.base, change.version, len(change.joined)) for change in told] == [(1, 2, 1)]
    assert not room.has_news
    assert room.take_changes(PAGE) == []


def test_left_and_joined_again_is_told_in_one(house: House) -> None:
    a, b = node(1), node(2)
    room = house.join(a, WATCH)
    house.join(b)
    room.take_changes(PAGE)
    house.leave(b)
    house.join(b)
    [told] = room.take_changes(PAGE)
    assert told == Presence("x", 2, 4, (b.key,), (Member(b.key, 3),))


def test_joined_and_left_again(house: House) -> None:
    a, b = node(1), node(2)
    room = house.join(a, WATCH)
    house.join(b)
    house.leave(b)
    told = room.take_changes(PAGE)
    assert apply({}, told) == {}
    assert (told[0].base, told[-1].version) == (1, 3)


@pytest.mark.parametrize("page_bytes", [2_048, 5_000, PAGE])
def test_a_large_change_is_cut(house: House, page_bytes: int) -> None:
    room = house.join(node(1), WATCH, "é" * 64)
    everyone = [node(number, text="x" * (number * 10)) for number in range(2, 102)]
    for one in everyone:
        house.join(one, 0, "é" * 64)
    for one in everyone[:50]:
        house.leave(one, "é" * 64)
    told = room.take_changes(page_bytes)
    assert all(len(encode_frame(change)) <= page_bytes for change in told)
    assert [change.base for change in told] == [1, *(change.version for change in told[:-1])]
    assert told[-1].version == 151
    assert list(apply({}, told)) == [one.key for one in everyone[50:]]


def apply(known: dict[bytes, int], told: list[Presence]) -> dict[bytes, int]:
    """What a client that knows these members knows after PRESENCE: key -> joined."""
    for change in told:
        for key in change.left:
            known.pop(key, None)
        known.update((member.key, member.joined) for member in change.joined)
    return known


class PresenceMachine(RuleBasedStateMachine):
    """Nodes come, go and watch; every watcher's list must become the room's, whenever it began to watch."""

    nodes = st.integers(0, 5)

    def __init__(self) -> None:
        super().__init__()
        self.house = House()
        self.nodes_ = [node(number) for number in range(6)]
        self.room = self.house.registry.room("x")
        self.lists: dict[Node, dict[bytes, int]] = {}
        self.versions: dict[Node, int] = {}
        self.members: dict[Node, int] = {}  # the model: join order
        self.joins = self.changes = 0

    @initialize()
    def somebody_watches(self) -> None:
        self.join(0, WATCH | OBSERVE)

    @rule(number=nodes, flags=st.integers(0, 3))
    def join(self, number: int, flags: int) -> None:
        one = self.nodes_[number]
        self.house.join(one, flags)
        if flags & OBSERVE:
            self.changes += self.members.pop(one, None) is not None
        elif one not in self.members:
            self.joins += 1
            self.changes += 1
            self.members[one] = self.joins
        if flags & WATCH and one not in self.lists:
            self.versions[one] = self.room.version  # of JOINED
            self.lists[one] = {member.key: member.joined for member in members_of(self.room, 200)}
        elif not flags & WATCH:
            self.lists.pop(one, None)

    @rule(number=nodes)
    def leave(self, number: int) -> None:
        one = self.nodes_[number]
        was_in = one in self.room.members.values() or self.room in one.rooms
        assert self.house.leave(one) == was_in
        self.changes += self.members.pop(one, None) is not None
        self.lists.pop(one, None)

    @precondition(lambda self: self.room.has_news)
    @rule()
    def tell(self) -> None:
        told = self.room.take_changes(PAGE)
        for before, after in pairwise(told):
            assert before.version == after.base
        assert told[-1].version == self.room.version
        assert set(self.room.audience) == set(self.lists)
        for one, known in self.lists.items():
            assert told[0].base <= self.versions[one], "a watcher would have to list again"
            apply(known, told)
            self.versions[one] = told[-1].version

    @invariant()
    def the_room_is_as_it_should_be(self) -> None:
        listed = members_of(self.room, 200)
        expected = [(one.key, joined) for one, joined in self.members.items()]
        assert [(member.key, member.joined) for member in listed] == expected
        assert list(self.room.members.values()) == list(self.members)
        assert self.room.version == self.changes
        for one, known in self.lists.items():
            if not self.room.has_news:
                assert known == {member.key: member.joined for member in listed}
                assert self.versions[one] == self.room.version


def test_presence_reproduces_the_membership() -> None:
    run_state_machine_as_test(
        PresenceMachine, settings=settings(max_examples=100, stateful_step_count=40, deadline=None)
    )


# ---- anycast -----------------------------------------------------------------------------------------


def test_anycast_takes_turns_among_idle_members(house: House) -> None:
    everyone = [node(number) for number in range(5)]
    for one in everyone:
        room = house.join(one)
    everyone[2].egress.total = 100
    idle = [everyone[n].egress for n in (1, 3, 4)]
    chosen = [room.anycast_order(everyone[0].egress)[0] for _ in range(6)]
    start = idle.index(chosen[0])
    assert chosen == (idle[start:] + idle[:start]) * 2


def test_anycast_takes_turns_among_equally_busy_members(house: House) -> None:
    everyone = [node(number) for number in range(4)]
    for one in everyone:
        room = house.join(one)
        one.egress.total = 100
    chosen = [room.anycast_order(None)[0] for _ in range(8)]
    assert chosen == [one.egress for one in everyone] * 2


def test_anycast_prefers_the_least_busy(house: House) -> None:
    everyone = [node(number) for number in range(4)]
    for one, total in zip(everyone, (10, 50, 20, 30), strict=True):
        room = house.join(one)
        one.egress.total = total
    a, b, c, d = (one.egress for one in everyone)
    for _ in range(3):
        assert room.anycast_order(None) == [a, c, d, b]
        assert room.anycast_order(a) == [c, d, b]
    b.total = 0
    for _ in range(4):
        assert room.anycast_order(a)[0] is b


def test_anycast_knows_who_left(house: House) -> None:
    a, b = node(1), node(2)
    house.join(a)
    room = house.join(b)
    assert {id(room.anycast_order(None)[0]) for _ in range(2)} == {id(a.egress), id(b.egress)}
    house.leave(a)
    assert [room.anycast_order(None)[0] for _ in range(2)] == [b.egress, b.egress]


def test_anycast_needs_another_member(house: House) -> None:
    a, eye = node(1), node(2)
    room = house.join(a)
    house.join(eye, OBSERVE)
    assert room.anycast_order(a.egress) == []
    assert room.anycast_order(eye.egress) == [a.egress]
    assert house.registry.room("empty").anycast_order(None) == []


# ---- admission ---------------------------------------------------------------------------------------

OWNER = bytes(range(32))


@pytest.mark.parametrize(
    ("key", "room", "code"),
    [
        (OWNER, "lobby", ErrorCode.OK),
        (OWNER, f"@{OWNER.hex()}/private", ErrorCode.OK),
        (bytes(32), f"@{OWNER.hex()}/private", ErrorCode.CAPABILITY_REQUIRED),
        (OWNER, "@lobby", ErrorCode.BAD_ROOM),
        (OWNER, f"@{OWNER.hex()}/", ErrorCode.BAD_ROOM),
        (OWNER, "bell\x07", ErrorCode.BAD_ROOM),
        (OWNER, "", ErrorCode.BAD_ROOM),
    ],
)
def test_who_may_use_a_room(key: bytes, room: str, code: ErrorCode) -> None:
    assert judge_room(key, room) is code
