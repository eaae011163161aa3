"""An open session: routing from client to client, keepalive, flush, every way to end, and faults kept apart."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio
import trio.testing

from awesomeconnect.errors import ErrorCode
from awesomeconnect.relay.flows import Router
from awesomeconnect.server.session import Session
from awesomeconnect.server.shaper import Outlet
from awesomeconnect.wire.messages import (
    Anycast,
    Close,
    Contract,
    Deliver,
    Fragment,
    FragmentEnd,
    Goaway,
    Hello,
    Incarnation,
    Join,
    Leave,
    Left,
    Members,
    Message,
    Mode,
    Pause,
    Ping,
    PingKind,
    Pong,
    Present,
    Publish,
    Reject,
    Send,
    Stats,
    StatsReport,
    Welcome,
    encode_body,
    encode_frame,
)
from tests.server.conftest import House, Opener, in_virtual_time
from tests.support.node import Node

pytestmark = in_virtual_time

settled = trio.testing.wait_all_tasks_blocked


# ---- messages ----------------------------------------------------------------------------------------


async def test_publish_send_and_anycast(open_house: Opener) -> None:
    house = await open_house()
    a, b = await house.node("x"), await house.node("x")
    for number in range(3):
        payload = bytes([number])
        await a.send(Publish("x", 1, 0, payload), Send(b.key, 1, 4, payload), Anycast("x", 1, 0, payload))
        await b.expect(Deliver, mode=Mode.BROADCAST, sender=a.key, room="x", payload=payload)
        await b.expect(Deliver, mode=Mode.UNICAST, sender=a.key, room=None, content=4, payload=payload)
        await b.expect(Deliver, mode=Mode.ANYCAST, sender=a.key, room="x", payload=payload)
    assert await a.flush() == await b.flush() == []


@pytest.mark.parametrize("read_bytes", [1_000, 100_000])
async def test_large_messages_through_a_narrow_transport(open_house: Opener, read_bytes: int) -> None:
    house = await open_house()
    a, b = await house.node("x"), await house.node("x", capacity_bytes=5_000)
    b.transport.most_read_bytes = read_bytes  # type: ignore[attr-defined]
    large = bytes(range(256)) * 2_000
    await a.send(Publish("x", 0, 0, large), Publish("x", 1, 0, large), Publish("x", 5, 0, b"urgent"))
    arrived = [(await b.expect(Deliver)) for _ in range(3)]
    assert [m.payload for m in sorted(arrived, key=lambda m: m.traffic_class)] == [large, large, b"urgent"]
    assert arrived[-1].traffic_class == 0, "bulk comes last"


async def test_an_urgent_message_passes_what_is_queued(open_house: Opener) -> None:
    house = await open_house()
    a, b = await house.node("x"), await house.node("x", capacity_bytes=5_000)
    await a.send(Publish("x", 0, 0, bytes(900_000)))
    await a.send(Publish("x", 5, 0, b"vote"))
    await b.expect(Deliver, payload=b"vote")
    await b.expect(Deliver, payload=bytes(900_000))


async def test_many_senders_and_receivers(open_house: Opener) -> None:
    house = await open_house()
    nodes = [await house.node("x") for _ in range(12)]
    for node in nodes:
        await node.send(*(Publish("x", 1, 0, bytes([n])) for n in range(20)))
    for node in nodes:
        heard: dict[bytes, list[int]] = {}
        for _ in range(11 * 20):
            message = await node.expect(Deliver)
            heard.setdefault(message.sender, []).append(message.payload[0])
        assert set(heard) == {other.key for other in nodes if other is not node}
        assert all(numbers == list(range(20)) for numbers in heard.values())
    assert house.relay.traffic.delivered_messages == 12 * 11 * 20


async def test_a_heavy_sender_does_not_keep_others_waiting(open_house: Opener, nursery: trio.Nursery) -> None:
    house = await open_house()
    heavy = [await house.node() for _ in range(2)]
    sinks = [await house.node("x"), await house.node("x")]
    for node in heavy:
        node.transport.most_sent_bytes = 1 << 20  # type: ignore[attr-defined]

    async def flood(node: Node) -> None:
        for _ in range(20):
            await node.send(*(Publish("x", 0, 0, bytes(900)) for _ in range(400)))

    async def drink(node: Node) -> None:
        for _ in range(2 * 20 * 400):
            await node.expect(Deliver)

    async with trio.open_nursery() as crowd:
        for node in heavy:
            crowd.start_soon(flood, node)
        for node in sinks:
            crowd.start_soon(drink, node)
        for _ in range(10):
            await (await house.node()).flush()
    assert house.relay.traffic.delivered_messages == 2 * 20 * 400 * 2
    assert not house.relay.traffic.gap_messages


async def test_work_of_one_chunk_is_bounded(open_house: Opener) -> None:
    """A chunk with much to do lets others run in between, and nothing is lost or done twice."""
    house = await open_house()
    a = await house.node(capacity_bytes=1 << 20)
    b = await house.node("x", capacity_bytes=1 << 20)
    await a.send(*(Anycast("x", 1, 0, number.to_bytes(2, "big")) for number in range(1_500)))
    for number in range(1_500):
        await b.expect(Deliver, payload=number.to_bytes(2, "big"))


# ---- requests and their answers ----------------------------------------------------------------------


async def test_small_requests(open_house: Opener) -> None:
    house = await open_house()
    node = await house.node("x")
    await node.send(Present("x", b"capability"), Present("@bad", b"c"), Present(f"@{bytes(32).hex()}/x", b"c"))
    await node.expect(Contract, room="x", code=ErrorCode.OK)
    await node.expect(Contract, room="@bad", code=ErrorCode.BAD_ROOM)
    await node.expect(Contract, code=ErrorCode.CAPABILITY_REQUIRED)
    await node.send(Publish("x", 1, 0, b""), Stats())
    await node.expect(Reject, first=1, count=1, code=ErrorCode.NO_MEMBERS)
    report = await node.expect(StatsReport)
    assert report.counters["received_messages"] == 1
    assert report.counters["rooms"] == 1


async def test_flush_follows_every_verdict(open_house: Opener) -> None:
    house = await open_house()
    a = await house.node("alone")
    b = await house.node()
    await a.send(Send(b.key, 1, 0, b"1"), Send(bytes(32), 1, 0, b"2"), Publish("alone", 5, 0, b"3"))
    arrived = await a.flush()
    assert [(m.first, m.code) for m in arrived if isinstance(m, Reject)] == [
        (2, ErrorCode.NO_SUCH_PEER),
        (3, ErrorCode.NO_MEMBERS),
    ]
    assert len(arrived) == 2
    assert await a.flush() == []
    await b.expect(Deliver, payload=b"1")


async def test_refusals_of_interleaved_streams(open_house: Opener) -> None:
    house = await open_house()
    a, b, c = await house.node(), await house.node(), await house.node()
    await a.send(Send(b.key, 1, 0, b"1"), Send(c.key, 1, 0, b"2"))
    await b.expect(Deliver)
    b.close()
    await settled()
    await a.send(*(Send(key, 1, 0, b"") for key in (b.key, c.key, b.key, b.key, c.key)))
    refused = [m for m in await a.flush() if isinstance(m, Reject)]
    assert sorted(n for m in refused for n in range(m.first, m.first + m.count)) == [3, 5, 6]
    assert all(m.code == ErrorCode.NO_SUCH_PEER for m in refused)


async def test_leave_is_answered_behind_the_room_s_last_message(open_house: Opener) -> None:
    house = await open_house()
    a, b = await house.node(), await house.node("x", capacity_bytes=4_000)
    await a.send(*(Publish("x", 0, 0, bytes(1_000)) for _ in range(20)))
    await a.flush()
    await b.send(Leave("x"), Join("x"), Leave("never there"))
    await settled()
    await a.send(Publish("x", 5, 0, b"for the new membership"))
    arrived: list[Message] = []
    while len([m for m in arrived if isinstance(m, Left)]) < 2:
        message = await b.receive()
        assert message is not None
        arrived.append(message)
    kinds = [type(m).__name__ for m in arrived if not isinstance(m, Deliver) or m.traffic_class == 0]
    assert kinds == ["Deliver"] * 20 + ["Left", "Joined", "Left"]
    assert [m.code for m in arrived if isinstance(m, Left)] == [0, 0]


async def test_extensions_are_ignored(open_house: Opener) -> None:
    house = await open_house()
    node = await house.node()
    await node.send_raw(node.connection.seal(b"\x00\x00\x00\x04\x82\x18\x40\x00"))
    assert await node.flush() == []


# ---- keepalive ---------------------------------------------------------------------------------------


async def test_keepalive(open_house: Opener) -> None:
    house = await open_house()
    node = await house.node()
    began = trio.current_time()
    pings = []
    while (message := await node.receive()) != Close(ErrorCode.KEEPALIVE_TIMEOUT, "nothing was heard for 60 s"):
        assert message == Ping(PingKind.KEEPALIVE)
        pings.append(round(trio.current_time() - began))
    assert pings == [25, 50]
    assert trio.current_time() - began == pytest.approx(60, abs=1.5)
    assert house.relay.events == {"keepalive_timeouts": 1}
    await node.expect_end()
    assert trio.current_time() - began == pytest.approx(65, abs=2.5)
    await trio.testing.wait_all_tasks_blocked()
    assert not house.relay.sessions


async def test_any_byte_is_a_sign_of_life(open_house: Opener) -> None:
    house = await open_house()
    node = await house.node()
    for _ in range(10):
        await trio.sleep(24)
        await node.send(Pong(b""))
    record = node.connection.seal(encode_frame(Pong(b"")))
    for byte in record:
        await node.send_raw(bytes([byte]))
        await trio.sleep(20)
    assert await node.flush() == []


async def test_a_client_may_ask_as_well(open_house: Opener) -> None:
    house = await open_house()
    node = await house.node()
    await node.send(Ping(PingKind.KEEPALIVE, b"a"), Ping(PingKind.KEEPALIVE, b"b"))
    await node.expect(Pong, token=b"a")
    await node.expect(Pong, token=b"b")


async def test_a_session_ends_after_a_day(open_house: Opener) -> None:
    house = await open_house(session_s=20, drain_s=3)
    node = await house.node()
    began = trio.current_time()
    await node.expect(Goaway, code=ErrorCode.SESSION_TOO_OLD, window_ms=3_000, spread_ms=10_000)
    assert trio.current_time() - began == pytest.approx(20, abs=1.5)
    await node.expect(Close, code=ErrorCode.SESSION_TOO_OLD)
    assert trio.current_time() - began == pytest.approx(23, abs=2.5)


# ---- endings -----------------------------------------------------------------------------------------


async def test_close_is_answered_after_what_is_queued(open_house: Opener) -> None:
    house = await open_house()
    a, b = await house.node(), await house.node("x", capacity_bytes=3_000)
    await a.send(*(Publish("x", 1, 0, bytes([n]) * 1_000) for n in range(20)), Publish("x", 0, 0, bytes(50_000)))
    await a.flush()
    await b.send(Close())
    await settled()
    for n in range(20):
        await b.expect(Deliver, payload=bytes([n]) * 1_000)
    await b.expect(Deliver, payload=bytes(50_000))
    await b.expect_close(ErrorCode.OK)
    await a.send(Publish("x", 1, 0, b""))
    await a.expect(Reject, code=ErrorCode.NO_MEMBERS)


async def test_messages_in_the_same_chunk_as_close_arrive(open_house: Opener) -> None:
    house = await open_house()
    a, b = await house.node(), await house.node("x")
    began = trio.current_time()
    await a.send(Publish("x", 1, 0, b"1"), Publish("x", 1, 0, b"2"), Close())
    await a.expect_close(ErrorCode.OK)
    await b.expect(Deliver, payload=b"1")
    await b.expect(Deliver, payload=b"2")
    assert trio.current_time() - began < 1


async def test_messages_in_the_same_chunk_as_nonsense_arrive(open_house: Opener) -> None:
    house = await open_house()
    a, b = await house.node(), await house.node("x")
    began = trio.current_time()
    frames = b"".join(encode_frame(Publish("x", 1, 0, bytes([n]))) for n in range(3))
    await a.send_raw(a.connection.seal(frames + bytes(4)))
    for n in range(3):
        await b.expect(Deliver, payload=bytes([n]))
    assert trio.current_time() - began < 1
    await a.expect(Close, code=ErrorCode.PROTOCOL_ERROR)


async def test_a_client_that_closes_and_stays_holds_nobody_up(open_house: Opener) -> None:
    """Even when its last turn was a long one, after which sessions take turns in line."""
    house = await open_house()
    reader = await house.node("x", capacity_bytes=1 << 22)
    leaver = await house.node(capacity_bytes=1 << 20)
    busy = await house.node("x", capacity_bytes=1 << 20)
    large = [Publish("x", 1, 0, bytes(16_000)) for _ in range(40)]
    for node in (leaver, busy):
        await node.send(*large)
    await settled()
    await reader.send(*(Send(leaver.key, 1, 0, bytes(16_000)) for _ in range(100)))
    await settled()
    began = trio.current_time()
    await leaver.send(*large, Close())
    await busy.send(*large)
    for _ in range(4 * 40):
        await reader.expect(Deliver)
    assert trio.current_time() - began < 1


async def test_a_client_that_says_nothing_more_is_cut_after_close(open_house: Opener) -> None:
    house = await open_house()
    a, b = await house.node(), await house.node("x", capacity_bytes=1_000)
    await a.send(Publish("x", 1, 0, bytes(200_000)))
    await a.flush()
    began = trio.current_time()
    await b.send(Close())
    await settled()
    assert len(house.relay.sessions) == 2
    await trio.sleep(6)
    assert len(house.relay.sessions) == 1
    assert trio.current_time() - began == pytest.approx(6)
    assert house.relay.traffic.receiver_gone_messages == 1


async def test_hanging_up_without_close_leaves_all_rooms(open_house: Opener) -> None:
    house = await open_house()
    a, b = await house.node("x"), await house.node("x", "y")
    b.close()
    await settled()
    await a.send(Publish("x", 1, 0, b""))
    await a.expect(Reject, code=ErrorCode.NO_MEMBERS)
    assert [room.name for room in house.relay.registry.rooms()] == ["x"]
    assert len(house.relay.sessions) == 1
    assert not house.relay.events


async def test_a_receiver_that_goes_first_is_told_to_the_sender(open_house: Opener) -> None:
    house = await open_house()
    a, b = await house.node(), await house.node("x", capacity_bytes=1_000)
    await a.send(Send(b.key, 1, 0, b"first"))
    await b.expect(Deliver, payload=b"first")
    await a.send(*(Send(b.key, 1, 0, bytes(40_000)) for _ in range(3)), Publish("x", 1, 0, bytes(10_000)))
    await a.send(*(Send(b.key, 1, 0, bytes(400)) for _ in range(3)))
    assert await a.flush() == []
    b.close()
    refused: list[int] = []
    while sorted(refused)[-1:] != [8]:
        message = await a.expect(Reject, code=ErrorCode.RECEIVER_GONE)
        refused += range(message.first, message.first + message.count)
    assert set(refused) <= {2, 3, 4, 6, 7, 8}
    assert {3, 4, 6, 7, 8} <= set(refused), "of the first some pieces were on their way"
    assert len(refused) == len(set(refused))
    assert await a.flush() == []


NONSENSE: dict[str, tuple[bytes, ErrorCode]] = {
    "an empty frame": (bytes(4), ErrorCode.PROTOCOL_ERROR),
    "a frame too long": (b"\x00\x10\x04\x01", ErrorCode.FRAME_TOO_LARGE),
    "not CBOR": (b"\x00\x00\x00\x01\xff", ErrorCode.PROTOCOL_ERROR),
    "not an array": (b"\x00\x00\x00\x01\x00", ErrorCode.PROTOCOL_ERROR),
    "a relay's message": (encode_frame(Welcome(1, bytes(8))), ErrorCode.UNEXPECTED_MESSAGE),
    "hello again": (encode_frame(Hello(1, Incarnation(1, bytes(8)), 1)), ErrorCode.UNEXPECTED_MESSAGE),
    "an unknown kind": (b"\x00\x00\x00\x03\x81\x18\x3f", ErrorCode.UNEXPECTED_MESSAGE),
    "a pause of a room": (encode_frame(Pause("x", 1)), ErrorCode.PROTOCOL_ERROR),
    "an abort of nothing": (encode_frame(Fragment(1, FragmentEnd.ABORT, b"")), ErrorCode.PROTOCOL_ERROR),
    "join in fragments": (
        encode_frame(Fragment(1, FragmentEnd.LAST, encode_body(Join("x")))),
        ErrorCode.PROTOCOL_ERROR,
    ),
}


@pytest.mark.parametrize("name", NONSENSE)
async def test_nonsense_ends_its_own_connection_only(open_house: Opener, name: str) -> None:
    frame, code = NONSENSE[name]
    house = await open_house()
    a, b, c = await house.node("x"), await house.node("x"), await house.node("x")
    await a.send(Publish("x", 1, 0, b"before"))
    await a.send_raw(a.connection.seal(frame))
    await a.expect(Close, code=code)
    for node in (b, c):
        await node.expect(Deliver, payload=b"before")
    await b.send(Publish("x", 1, 0, b"life goes on"))
    await c.expect(Deliver, payload=b"life goes on")
    a.close()
    await settled()
    assert len(house.relay.sessions) == 2
    assert house.relay.events == {"protocol_errors": 1}


async def test_a_forged_record(open_house: Opener) -> None:
    house = await open_house()
    node = await house.node()
    record = bytearray(node.connection.seal(encode_frame(Stats())))
    record[-1] ^= 1
    await node.send_raw(bytes(record))
    await node.expect(Close, code=ErrorCode.PROTOCOL_ERROR)


async def test_the_last_words_reach_a_client_that_goes_on_sending(open_house: Opener) -> None:
    house = await open_house()
    node = await house.node()
    await node.send_raw(node.connection.seal(bytes(4)) + node.connection.seal(bytes(60_000)))
    await node.send_raw(node.connection.seal(bytes(60_000)))
    await node.expect(Close, code=ErrorCode.PROTOCOL_ERROR)


# ---- faults of the relay itself ----------------------------------------------------------------------


async def assert_others_live(house: House, *nodes: Node) -> None:
    for one, other in zip(nodes, (*nodes[1:], nodes[0]), strict=True):
        await one.send(Publish("x", 1, 0, b"still here"))
        for node in nodes:
            if node is not one:
                await node.expect(Deliver, sender=one.key, payload=b"still here")
        assert await other.flush() == []


@pytest.mark.parametrize("where", ["handler", "router", "tell", "end"])
async def test_a_fault_ends_one_session(
    open_house: Opener, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    house = await open_house()
    a, b, c = await house.node("x"), await house.node("x"), await house.node("x")
    [session] = [one for one in house.relay.sessions if one.key == a.key]
    healthy = {name: getattr(Session, name) for name in ("tell", "end")}

    def fail(one: Any, *arguments: Any, **more: Any) -> Any:
        if one is session or isinstance(one, Router):
            raise ZeroDivisionError("a fault in the relay")
        return healthy[where](one, *arguments, **more)

    with monkeypatch.context() as patched, caplog.at_level(logging.CRITICAL):
        if where == "router":
            patched.setattr(Router, "publish", fail)
        elif where == "handler":
            patched.setattr(house.relay.registry, "find_room", lambda _name: fail(session))
        else:
            patched.setattr(Session, where, fail)
            patched.setattr(Router, "publish", fail)
        await a.send(Members("x") if where == "handler" else Publish("x", 1, 0, b""))
        if where in ("tell", "end"):
            await a.expect_end()
        else:
            await a.expect(Close, code=ErrorCode.INTERNAL_ERROR)
            await a.expect_end()
        await settled()
    assert house.relay.events["internal_errors"] >= 1
    assert len(house.relay.sessions) == 2
    await assert_others_live(house, b, c)


async def test_a_fault_while_sending_ends_the_receiver(
    open_house: Opener, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    house = await open_house()
    a, b, c = await house.node("x"), await house.node("x"), await house.node("x")
    [faulty] = [session.outlet for session in house.relay.sessions if session.key == a.key]
    take = Outlet.take

    def fail(outlet: Outlet) -> bytes:
        if outlet is faulty:
            raise ZeroDivisionError("a fault in the relay")
        return take(outlet)

    with monkeypatch.context() as patched, caplog.at_level(logging.CRITICAL):
        patched.setattr(Outlet, "take", fail)
        await b.send(Publish("x", 1, 0, b"1"))
        await c.expect(Deliver, payload=b"1")
        await a.expect_end()
    await assert_others_live(house, b, c)


async def test_a_broken_socket_is_nobody_else_s_business(open_house: Opener) -> None:
    house = await open_house()
    a, b, c = await house.node("x"), await house.node("x"), await house.node("x")
    [session] = [one for one in house.relay.sessions if one.key == a.key]

    def broken(_data: object) -> int:
        raise ConnectionResetError("gone")

    session._transport.send = broken  # type: ignore[misc]
    await b.send(Publish("x", 1, 0, b"1"))
    await c.expect(Deliver, payload=b"1")
    await a.expect_end()
    await assert_others_live(house, b, c)


# ---- shutdown ----------------------------------------------------------------------------------------


async def test_drain(open_house: Opener, nursery: trio.Nursery) -> None:
    house = await open_house(drain_s=5, spread_s=10)
    stays, leaves, silent = await house.node("x"), await house.node("x"), house.visitor()
    began = trio.current_time()
    nursery.start_soon(house.relay.drain)
    for node in (stays, leaves):
        await node.expect(Goaway, code=ErrorCode.DRAINING, window_ms=5_000, spread_ms=10_000)
    await stays.send(Publish("x", 1, 0, b"not yet"))
    await leaves.expect(Deliver, payload=b"not yet")
    await leaves.send(Close())
    await leaves.expect_close(ErrorCode.OK)
    await stays.expect(Close, code=ErrorCode.DRAINING)
    assert trio.current_time() - began == pytest.approx(5, abs=0.2)
    await house.relay.drain()  # a second time changes nothing
    await stays.send(Close())
    await stays.expect_end()
    await silent.expect_end()
    await settled()
    assert not house.relay.sessions


async def test_drain_is_over_when_everybody_has_left(open_house: Opener) -> None:
    house = await open_house(drain_s=60)
    node = await house.node()
    began = trio.current_time()
    async with trio.open_nursery() as crowd:
        crowd.start_soon(house.relay.drain)
        await node.expect(Goaway)
        node.close()
    assert trio.current_time() - began < 1


async def test_drain_cuts_who_does_not_answer(open_house: Opener) -> None:
    house = await open_house(drain_s=5, closing_s=3)
    await house.node()
    began = trio.current_time()
    await house.relay.drain()
    await settled()
    assert trio.current_time() - began == pytest.approx(8, abs=1.5)
    assert not house.relay.sessions
