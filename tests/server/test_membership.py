"""Rooms through the wire: joining and leaving, limits, pages, and presence gathered over a moment."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from awesomeconnect.errors import ErrorCode
from awesomeconnect.identity import Identity
from awesomeconnect.relay.rooms import Place, Room
from awesomeconnect.server import session
from awesomeconnect.shaping.egress import EgressLimits
from awesomeconnect.wire.messages import (
    Attributes,
    Close,
    Deliver,
    Join,
    Joined,
    JoinFlags,
    Leave,
    Left,
    Member,
    Members,
    MembersPage,
    Message,
    Presence,
    Publish,
    Reject,
    RoomIntent,
    encode_frame,
)
from tests.server.conftest import Opener, in_virtual_time
from tests.support.node import Node

pytestmark = in_virtual_time

WATCH, OBSERVE = JoinFlags.WATCH, JoinFlags.OBSERVE
settled = trio.testing.wait_all_tasks_blocked


async def list_members(node: Node, room: str = "x") -> list[Member]:
    members: list[Member] = []
    after: int | None = 0
    while after is not None:
        await node.send(Members(room, after))
        page = await node.expect(MembersPage, room=room, code=ErrorCode.OK)
        assert len(encode_frame(page)) <= 49_152
        members += page.page
        after = page.next
    return members


async def test_members_in_join_order_with_their_attributes(open_house: Opener) -> None:
    house = await open_house()
    nodes = [await house.node("x", attributes={"number": number, "é": None}) for number in range(5)]
    listed = await list_members(nodes[2])
    assert [(m.key, m.joined, m.attributes) for m in listed] == [
        (node.key, number + 1, {"number": number, "é": None}) for number, node in enumerate(nodes)
    ]


async def test_five_hundred_members(open_house: Opener) -> None:
    house = await open_house()
    eye = await house.node(RoomIntent("x", OBSERVE))
    outlet = next(iter(house.relay.sessions)).outlet
    keys = [Identity.from_seed(n.to_bytes(32, "big")).public_key for n in range(1_000, 1_500)]

    class Silent:
        """A member that needs no connection."""

        def __init__(self, key: bytes) -> None:
            self.key = key
            self.attributes: Attributes = {"name": key.hex()[-(key[-1] % 50) :]}
            self.rooms: dict[Room, Place] = {}

    for key in keys:
        house.relay.registry.join(Silent(key), object(), "x", 0)
    listed = await list_members(eye)
    assert [m.key for m in listed] == keys
    assert outlet.is_empty


async def test_long_lists_do_not_keep_others_waiting(open_house: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    house = await open_house()
    other, curious = await house.node("x"), await house.node("x", capacity_bytes=1 << 20)
    pages = 0
    make_page = Room.page

    def page(room: Room, after: int, page_bytes: int) -> MembersPage:
        nonlocal pages
        pages += 1
        return make_page(room, after, page_bytes)

    monkeypatch.setattr(Room, "page", page)
    monkeypatch.setattr(session, "TURN_DELIVERIES", 200)
    await curious.send(*[Members("x")] * 300)
    await other.flush()
    assert pages < 100
    for _ in range(300):
        await curious.expect(MembersPage)


async def test_who_is_not_in_a_room_is_told_nothing(open_house: Opener) -> None:
    house = await open_house()
    await house.node("x")
    stranger = await house.node("y")
    for room, code in {
        "x": ErrorCode.NOT_A_MEMBER,
        "unknown": ErrorCode.NOT_A_MEMBER,
        "@bad": ErrorCode.BAD_ROOM,
        f"@{bytes(32).hex()}/private": ErrorCode.NOT_A_MEMBER,
    }.items():
        await stranger.send(Members(room))
        assert await stranger.receive() == MembersPage(room, code, 0)


async def test_an_observer_sees_and_hears_nothing_else(open_house: Opener) -> None:
    house = await open_house()
    a, eye = await house.node("x"), await house.node()
    joined = await eye.join("x", OBSERVE)
    assert (joined.member_count, joined.version) == (1, 1)
    await a.send(Publish("x", 1, 0, b"only members hear this"))
    await a.expect(Reject, code=ErrorCode.NO_MEMBERS)
    assert [m.key for m in await list_members(eye)] == [a.key]
    await eye.join("x")
    await a.send(Publish("x", 1, 0, b"now"))
    await eye.expect(Deliver, payload=b"now")
    await eye.send(Leave("x"))
    await eye.expect(Left, room="x", code=ErrorCode.OK)


async def test_joined_counts_messages(open_house: Opener) -> None:
    house = await open_house()
    a, _ = await house.node("x"), await house.node("x")
    await a.send(*(Publish("x", 1, 0, b"") for _ in range(7)))
    joined = await (await house.node()).join("x")
    assert (joined.version, joined.member_count, joined.message_count) == (3, 3, 7)


# ---- limits ------------------------------------------------------------------------------------------


async def test_a_full_room(open_house: Opener) -> None:
    house = await open_house(room_members=2)
    a, b, c = await house.node("x"), await house.node("x"), await house.node()
    await c.send(Join("x"))
    await c.expect(Left, room="x", code=ErrorCode.ROOM_FULL)
    await b.join("x", WATCH)
    await c.join("x", OBSERVE)
    await c.send(Join("x"))
    await c.expect(Left, room="x", code=ErrorCode.ROOM_FULL)
    assert [m.key for m in await list_members(a)] == [a.key, b.key]
    await b.send(Leave("x"))
    await b.expect(Left)
    await c.join("x")
    assert [m.key for m in await list_members(a)] == [a.key, c.key]


async def test_too_many_rooms(open_house: Opener) -> None:
    house = await open_house(rooms_per_connection=2)
    node = await house.node("a", "b")
    await node.send(Join("c"))
    await node.expect(Left, room="c", code=ErrorCode.TOO_MANY_ROOMS)
    await node.join("a", WATCH)
    await node.send(Leave("a"))
    await node.expect(Left, room="a", code=ErrorCode.OK)
    await node.join("c")


# ---- presence ----------------------------------------------------------------------------------------


async def test_presence_is_gathered(open_house: Opener) -> None:
    house = await open_house()
    watcher = await house.node(RoomIntent("x", WATCH))
    began = trio.current_time()
    a, b, c = [await house.node("x", attributes={"n": n}) for n in range(3)]
    await b.send(Leave("x"))
    await b.expect(Left)
    presences: list[Presence] = []
    while not presences or presences[-1].version < 5:
        presences.append(await watcher.expect(Presence))
    assert trio.current_time() - began == pytest.approx(0.1)
    assert presences[0].base == 1
    known: dict[bytes, int] = {}
    for presence in presences:
        for key in presence.left:
            known.pop(key, None)
        known.update((m.key, m.joined) for m in presence.joined)
    assert known == {a.key: 2, c.key: 4}
    a.close()
    await watcher.expect(Presence, base=5, version=6, left=(a.key,), joined=())
    assert trio.current_time() - began == pytest.approx(2.1)  # its connection broke
    await c.send(Close())
    await watcher.expect(Presence, base=6, version=7, left=(c.key,))


async def test_a_quick_reconnect_is_told_as_one_change(open_house: Opener) -> None:
    house = await open_house()
    watcher = await house.node(RoomIntent("x", WATCH))
    a, b = await house.node("x"), await house.node("x")
    await watcher.expect(Presence, version=3)
    a.close()
    await trio.sleep(1)
    await house.node("x", identity=a.identity, number=2)
    presence = await watcher.expect(Presence)
    assert (presence.base, presence.version, presence.left) == (3, 5, (a.key,))
    assert [member.key for member in presence.joined] == [a.key]
    b.close()
    await trio.sleep(0.5)
    began = trio.current_time()
    await house.node("x")
    await watcher.expect(Presence, version=7, left=(b.key,))
    assert trio.current_time() - began == pytest.approx(0.1)


async def test_who_does_not_watch_is_not_told(open_house: Opener) -> None:
    house = await open_house()
    node, watcher = await house.node("x"), await house.node(RoomIntent("x", WATCH))
    await house.node("x")
    await watcher.expect(Presence)
    await watcher.join("x")
    await house.node("x")
    await trio.sleep(1)
    assert await node.flush() == await watcher.flush() == []


async def test_watchers_of_several_rooms(open_house: Opener) -> None:
    house = await open_house()
    eye = await house.node(RoomIntent("x", WATCH | OBSERVE), RoomIntent("y", WATCH | OBSERVE))
    await house.node("x", "y", "z")
    told = [await eye.expect(Presence) for _ in range(2)]
    assert {presence.room for presence in told} == {"x", "y"}


async def test_a_watcher_that_becomes_a_member_misses_nothing(open_house: Opener) -> None:
    house = await open_house()
    eye = await house.node(RoomIntent("x", WATCH | OBSERVE))
    other = await house.node("x")
    await eye.send(Join("x", WATCH))
    known: set[bytes] = set()
    version = 0
    while version < 2:
        message = await eye.receive()
        if isinstance(message, Presence):
            version = message.version
            known |= {m.key for m in message.joined}
        else:
            assert isinstance(message, Joined)
    assert known == {other.key, eye.key}


async def test_a_watcher_that_does_not_read_is_cut(open_house: Opener) -> None:
    limits = EgressLimits(high_water_bytes=2_000, class_bytes=20_000, total_bytes=60_000)
    house = await open_house(egress=limits)
    watcher = await house.node(RoomIntent("x", WATCH), capacity_bytes=2_000)
    for _ in range(40):
        await house.node("x", attributes={"text": "x" * 900})
        await trio.sleep(0.11)
    arrived: list[Message] = []
    while (message := await watcher.receive()) is not None:
        arrived.append(message)
    assert arrived[-1] == Close(ErrorCode.SLOW_RECEIVER, "changes of membership are not read")
    told = [m for m in arrived if isinstance(m, Presence)]
    assert [m.base for m in told[1:]] == [m.version for m in told[:-1]], "no change is left out before"
