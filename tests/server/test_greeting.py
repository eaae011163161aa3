"""From accept to WELCOME: deadlines, who is let in, and which of two connections of one key stays."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from awesomeconnect.errors import ErrorCode
from awesomeconnect.identity import Identity
from awesomeconnect.wire.messages import (
    REVISION,
    Close,
    Deliver,
    Goaway,
    Hello,
    Incarnation,
    Join,
    Joined,
    JoinFlags,
    Left,
    Ping,
    PingKind,
    Pong,
    Publish,
    Reject,
    RoomIntent,
    Send,
    Welcome,
    encode_frame,
)
from tests.server.conftest import EPOCH, IDENTITY, Opener, in_virtual_time

pytestmark = in_virtual_time

INCARNATION = Incarnation(1, b"same run")
OTHER_RUN = Incarnation(2, b"next run")


# ---- let in ------------------------------------------------------------------------------------------


async def test_welcome(open_house: Opener) -> None:
    house = await open_house()
    node = house.visitor()
    welcome = await node.enter()
    assert (welcome.revision, welcome.epoch, welcome.contracts) == (REVISION, EPOCH, ())
    assert welcome.limits == {
        "payload_bytes": 1_048_576,
        "frame_bytes": 1_049_600,
        "rooms": 256,
        "room_members": 10_000,
        "page_bytes": 49_152,
        "keepalive_ms": 25_000,
        "drop_ms": 60_000,
    }
    assert node.connection.peer_key == IDENTITY.public_key


@pytest.mark.parametrize("chunk_bytes", [1, 7])
async def test_bytes_may_trickle(open_house: Opener, chunk_bytes: int) -> None:
    house = await open_house()
    node = house.visitor()
    node.transport.most_sent_bytes = node.transport.most_read_bytes = chunk_bytes  # type: ignore[attr-defined]
    await node.enter("x")
    await node.send(Ping(PingKind.KEEPALIVE, b"still there?"))
    await node.expect(Pong, token=b"still there?")


async def test_hello_and_more_may_come_with_act_3(open_house: Opener) -> None:
    house = await open_house()
    other = await house.node("x")
    node = house.visitor()
    await node.send_raw(node.connection.handshake_bytes())
    while not node.connection.is_established:
        await node._receive_some()
    hello = Hello(REVISION, INCARNATION, 1, {}, (RoomIntent("x"),))
    await node.send_raw(
        node.connection.handshake_bytes()
        + node.connection.send(hello, Publish("x", 1, 0, b"at once"), Publish("x", 1, 0, b"and again"))
    )
    await node.expect(Welcome)
    await node.expect(Joined, room="x", member_count=2)
    for payload in (b"at once", b"and again"):
        await other.expect(Deliver, sender=node.key, payload=payload)


async def test_rooms_of_hello_are_answered_in_order(open_house: Opener) -> None:
    house = await open_house(rooms_per_connection=3)
    node = house.visitor()
    await node.handshake()
    private, own = f"@{IDENTITY.public_key.hex()}/private", f"@{node.key.hex()}/own"
    rooms = ("a", "@bad", "b", private, own, "one too many", "a")
    await node.send(Hello(REVISION, INCARNATION, 1, {}, tuple(map(RoomIntent, rooms))))
    await node.expect(Welcome)
    await node.expect(Joined, room="a", version=1, member_count=1, message_count=0)
    await node.expect(Left, room="@bad", code=ErrorCode.BAD_ROOM)
    await node.expect(Joined, room="b")
    await node.expect(Left, room=private, code=ErrorCode.CAPABILITY_REQUIRED)
    await node.expect(Joined, room=own)
    await node.expect(Left, room="one too many", code=ErrorCode.TOO_MANY_ROOMS)
    await node.expect(Joined, room="a", version=1)


async def test_two_hundred_and_fifty_six_rooms(open_house: Opener) -> None:
    house = await open_house()
    rooms = [f"{number:03}" + "r" * 120 for number in range(256)]
    node = await house.node(*rooms)
    await node.send(Join("one more"))
    await node.expect(Left, room="one more", code=ErrorCode.TOO_MANY_ROOMS)
    [session] = house.relay.sessions
    assert [room.name for room in session.rooms] == rooms


async def test_the_connection_limit(open_house: Opener) -> None:
    house = await open_house(connections=2)
    first, second = await house.node(), house.visitor()
    third = house.visitor()
    await third.expect_end()
    assert house.relay.events == {"refused_connections": 1}
    second.close()
    await trio.testing.wait_all_tasks_blocked()
    await first.flush()
    await (await house.node()).flush()


# ---- deadlines ---------------------------------------------------------------------------------------


async def test_a_silent_connection_is_closed(open_house: Opener) -> None:
    house = await open_house()
    began = trio.current_time()
    await house.visitor().expect_end()
    assert trio.current_time() - began == pytest.approx(5)
    assert house.relay.events == {"greeting_timeouts": 1}
    assert not house.relay.sessions


async def test_an_unfinished_handshake_is_closed_without_a_word(open_house: Opener) -> None:
    house = await open_house()
    node = house.visitor()
    began = trio.current_time()
    act = node.connection.handshake_bytes()
    for byte in act[:-1]:
        await node.send_raw(bytes([byte]))
        await trio.sleep(0.2)  # 7 s in all: trickling gains nothing
    await node.expect_end()
    assert trio.current_time() - began == pytest.approx(10)


async def test_no_hello_in_time(open_house: Opener) -> None:
    house = await open_house()
    node = house.visitor()
    began = trio.current_time()
    await node.handshake()
    await node.expect(Close, code=ErrorCode.KEEPALIVE_TIMEOUT)
    assert trio.current_time() - began == pytest.approx(10)
    node.close()
    await trio.testing.wait_all_tasks_blocked()
    assert not house.relay.sessions


async def test_deadlines_longer_than_the_silence_that_is_allowed(open_house: Opener) -> None:
    house = await open_house(first_byte_s=100, greeting_s=100)
    node = house.visitor()
    began = trio.current_time()
    await node.expect_end()
    assert trio.current_time() - began == pytest.approx(100)


# ---- not let in --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        bytes.fromhex("160301020001"),
        b"CONNECT {}\r\n",
        b"A",
        b"AWC\x02" + bytes(32),
        b"AWC\x01" + bytes(32),
    ],
)
async def test_other_protocols_are_closed_without_a_word(open_house: Opener, first: bytes) -> None:
    house = await open_house()
    node = house.visitor()
    await node.send_raw(first)
    if first == b"A":
        node.transport.half_close()
    await node.expect_end()
    assert house.relay.events.get("handshake_failures", 0) == (first != b"A")
    assert not house.relay.sessions


async def test_a_forged_act_3_is_closed_without_a_word(open_house: Opener) -> None:
    house = await open_house()
    node = house.visitor()
    await node.send_raw(node.connection.handshake_bytes())
    while not node.connection.is_established:
        await node._receive_some()
    act = bytearray(node.connection.handshake_bytes())
    act[50] ^= 1
    await node.send_raw(bytes(act))
    await node.expect_end()
    assert house.relay.events == {"handshake_failures": 1}


async def test_a_bad_record_right_behind_act_3_is_answered(open_house: Opener) -> None:
    house = await open_house()
    node = house.visitor()
    await node.send_raw(node.connection.handshake_bytes())
    while not node.connection.is_established:
        await node._receive_some()
    await node.send_raw(node.connection.handshake_bytes() + b"\x00\x11" + bytes(17))
    await node.expect(Close, code=ErrorCode.PROTOCOL_ERROR)


async def test_another_revision(open_house: Opener) -> None:
    house = await open_house()
    node = house.visitor()
    await node.handshake()
    await node.send(Hello(REVISION + 1, INCARNATION, 1))
    await node.expect(Close, code=ErrorCode.UNSUPPORTED_REVISION)
    assert not any(session.key and session.rooms for session in house.relay.sessions)


async def test_something_else_than_hello(open_house: Opener) -> None:
    house = await open_house()
    node = house.visitor()
    await node.handshake()
    await node.send_raw(node.connection.seal(encode_frame(Join("x"))))
    await node.expect(Close, code=ErrorCode.UNEXPECTED_MESSAGE)


async def test_close_instead_of_hello(open_house: Opener) -> None:
    house = await open_house()
    node = house.visitor()
    await node.handshake()
    await node.send(Close())
    await node.expect_close(ErrorCode.OK)
    assert not house.relay.sessions


async def test_hanging_up_in_the_middle(open_house: Opener) -> None:
    house = await open_house()
    for acts in range(3):
        node = house.visitor()
        if acts:
            await node.send_raw(node.connection.handshake_bytes())
        if acts > 1:
            while not node.connection.is_established:
                await node._receive_some()
            await node.send_raw(node.connection.handshake_bytes())
        node.close()
    await trio.testing.wait_all_tasks_blocked()
    assert not house.relay.sessions
    assert not house.relay.events


async def test_no_room_for_act_2(open_house: Opener) -> None:
    """A transport that does not take 128 bytes at first is not a connection worth having."""
    house = await open_house()
    node = house.visitor(capacity_bytes=100)
    await node.send_raw(node.connection.handshake_bytes())
    await trio.testing.wait_all_tasks_blocked()
    assert not house.relay.sessions
    assert not house.relay.events


# ---- the same key twice ------------------------------------------------------------------------------


async def test_a_newer_connection_of_the_process_takes_over(open_house: Opener) -> None:
    house = await open_house()
    me, other = Identity.generate(), await house.node("x")
    old = await house.node("x", identity=me, incarnation=INCARNATION, number=1)
    new = await house.node("x", identity=me, incarnation=INCARNATION, number=2)
    await old.expect(Goaway, code=ErrorCode.SUPERSEDED)
    await old.expect(Close, code=ErrorCode.SUPERSEDED)
    await other.send(Send(me.public_key, 1, 0, b"to the new one"), Publish("x", 1, 0, b"as well"))
    await new.expect(Deliver, payload=b"to the new one")
    await new.expect(Deliver, payload=b"as well")
    await old.send(Close())
    await old.expect_end()
    assert [session.key for session in house.relay.sessions] == [other.key, me.public_key]
    assert not house.relay.events


async def test_another_process_replaces(open_house: Opener) -> None:
    house = await open_house()
    me = Identity.generate()
    old = await house.node(identity=me, incarnation=OTHER_RUN, number=9)
    new = await house.node(identity=me, incarnation=INCARNATION, number=1)
    await old.expect(Goaway, code=ErrorCode.REPLACED)
    await old.expect(Close, code=ErrorCode.REPLACED)
    await new.flush()
    assert house.relay.events == {"replaced_sessions": 1}


@pytest.mark.parametrize("number", [1, 2])
async def test_an_older_connection_of_the_process_is_sent_away(open_house: Opener, number: int) -> None:
    house = await open_house()
    me = Identity.generate()
    current = await house.node("x", identity=me, incarnation=INCARNATION, number=2)
    late = house.visitor(identity=me)
    await late.handshake()
    await late.send(Hello(REVISION, INCARNATION, number, {}, (RoomIntent("x"),)))
    await late.expect(Goaway, code=ErrorCode.SUPERSEDED)
    await late.expect(Close, code=ErrorCode.SUPERSEDED)
    late.close()
    await current.send(Send(me.public_key, 1, 0, b"still me"))
    await current.expect(Deliver, payload=b"still me")
    assert len(house.relay.sessions) == 1


async def test_what_is_queued_for_the_older_connection_comes_before_close(open_house: Opener) -> None:
    house = await open_house()
    me, other = Identity.generate(), await house.node()
    old = await house.node(identity=me, incarnation=INCARNATION, number=1, capacity_bytes=2_000)
    payloads = [bytes([number]) * 1_000 for number in range(20)]
    await other.send(*(Send(me.public_key, 1, 0, payload) for payload in payloads))
    assert await other.flush() == []
    await house.node(identity=me, incarnation=INCARNATION, number=2)
    arrived = []
    while not isinstance(message := await old.receive(), Close):
        arrived.append(message)
    assert [m.payload for m in arrived if isinstance(m, Deliver)] == payloads
    assert any(isinstance(m, Goaway) for m in arrived)
    assert await other.flush() == []


async def test_the_newer_connection_has_only_the_rooms_that_it_joins(open_house: Opener) -> None:
    house = await open_house()
    me = Identity.generate()
    watcher = await house.node()
    await watcher.join("x", JoinFlags.WATCH | JoinFlags.OBSERVE)
    await house.node("x", "y", identity=me, incarnation=INCARNATION, number=1)
    await house.node("y", identity=me, incarnation=INCARNATION, number=2)
    joined = await watcher.join("y", JoinFlags.OBSERVE)
    assert joined.member_count == 1
    await watcher.send(Publish("x", 1, 0, b"nobody hears this"))
    while not isinstance(message := await watcher.receive(), Reject):
        pass
    assert message.code == ErrorCode.NO_MEMBERS
