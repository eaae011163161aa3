"""Receivers that do not keep up: PAUSE and RESUME both ways, GAP, refusals, stalls, and whom none of it touches."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio
import trio.testing

from awesomeconnect.errors import ErrorCode
from awesomeconnect.shaping.egress import EgressLimits
from awesomeconnect.wire.messages import (
    Close,
    Deliver,
    Fragment,
    FragmentEnd,
    Gap,
    Join,
    JoinFlags,
    Leave,
    Left,
    Members,
    Message,
    Pause,
    Ping,
    PingKind,
    Pong,
    Present,
    Publish,
    Reject,
    Resume,
    RoomIntent,
    Send,
    Stats,
    encode_body,
)
from tests.server.conftest import House, Opener, in_virtual_time
from tests.support.node import Node

pytestmark = in_virtual_time

settled = trio.testing.wait_all_tasks_blocked

SMALL = EgressLimits(high_water_bytes=20_000, class_bytes=100_000, total_bytes=300_000)
NARROW = 2_000


async def read_until_quiet(node: Node) -> list[Message]:
    """Everything that is on its way to a node."""
    arrived: list[Message] = []
    while True:
        await settled()
        while (message := node.connection.next_message()) is not None:
            arrived.append(message)
        if not node.transport.waiting_bytes:  # type: ignore[attr-defined]
            return arrived
        await node._receive_some()


async def clog(sender: Node, receiver: Node) -> None:
    """Leave the one record that the relay seals ahead half sent, so that everything after it waits in the queue."""
    await sender.send(Send(receiver.key, 6, 0, bytes(15_000)))
    assert await sender.flush() == []


def numbered(number: int, size: int = 1_000, traffic_class: int = 1) -> Publish:
    return Publish("x", traffic_class, 0, number.to_bytes(4, "big") + bytes(size))


def numbers(messages: list[Message]) -> list[int]:
    return [int.from_bytes(m.payload[:4], "big") for m in messages if isinstance(m, Deliver)]


# ---- relay to client: PAUSE of a target --------------------------------------------------------------


async def test_a_sender_is_asked_to_pause_and_told_to_resume(open_house: Opener) -> None:
    house = await open_house(egress=SMALL)
    a, slow = await house.node(), await house.node("x", capacity_bytes=NARROW)
    await a.send(*(numbered(n) for n in range(30)))
    assert Pause("x", 1, 1_000) in await a.flush()
    assert len(numbers(await read_until_quiet(slow))) == 30
    await a.expect(Resume, target="x", traffic_class=1)
    assert await a.flush() == []


async def test_a_pause_is_renewed_at_most_every_100_ms(open_house: Opener) -> None:
    house = await open_house(egress=SMALL, pause_ms=700)
    a, slow = await house.node(), await house.node("x", capacity_bytes=NARROW)
    await clog(a, slow)
    await a.send(*(numbered(n) for n in range(30)))
    told = [m for m in await a.flush() if isinstance(m, Pause)]
    for n in range(30, 36):
        await a.send(numbered(n))
        told += [m for m in await a.flush() if isinstance(m, Pause)]
    assert told == [Pause("x", 1, 700)]
    await trio.sleep(0.11)
    await a.send(numbered(36), Send(slow.key, 1, 0, b"another target"))
    assert await a.flush() == [Pause("x", 1, 700), Pause(slow.key, 1, 700)]
    assert len(await read_until_quiet(slow)) == 1 + 38
    assert sorted(await read_until_quiet(a), key=repr) == sorted([Resume("x", 1), Resume(slow.key, 1)], key=repr)


async def test_only_the_sender_and_class_that_met_the_full_queue_are_asked(open_house: Opener) -> None:
    house = await open_house(egress=SMALL)
    a, b, slow = await house.node(), await house.node(), await house.node("x", capacity_bytes=NARROW)
    await clog(a, slow)
    await a.send(*(numbered(n, traffic_class=0) for n in range(30)))
    assert any(isinstance(m, Pause) for m in await a.flush())
    await b.send(numbered(1, traffic_class=5))
    assert await b.flush() == []
    for traffic_class in (6, 5, 0):
        await slow.expect(Deliver, traffic_class=traffic_class)


async def test_many_targets_are_asked_for(open_house: Opener) -> None:
    """What is remembered of PAUSEs is bounded; forgetting costs a PAUSE too many at worst."""
    house = await open_house(egress=EgressLimits(high_water_bytes=50, class_bytes=100_000, total_bytes=300_000))
    rooms = [f"room {n}" for n in range(256)]
    a = await house.node()
    for _ in range(3):
        await house.node(*rooms, capacity_bytes=1 << 15)
    for room in rooms:
        for traffic_class in (0, 1, 2):
            await a.send(Publish(room, traffic_class, 0, bytes(300)))
    told = [m for m in await a.flush() if isinstance(m, Pause)]
    assert {(m.target, m.traffic_class) for m in told} > {(room, 0) for room in rooms[-200:]}


async def hold_up(sender: Node, seconds: float, start: int) -> list[Message]:
    """Publish something every half second; what the sender is told meanwhile."""
    told: list[Message] = []
    for number in range(int(2 * seconds)):
        await sender.send(numbered(start + number, size=10))
        told += await sender.flush()
        await trio.sleep(0.5)
    return told


async def test_nobody_waits_for_a_receiver_that_drains_too_slowly(open_house: Opener) -> None:
    house = await open_house(egress=SMALL, lagging_s=5)
    a, slow = await house.node(), await house.node("x", capacity_bytes=NARROW)
    await clog(a, slow)
    await a.send(*(numbered(n) for n in range(30)))
    told = await hold_up(a, 4, start=30)
    assert told.count(Pause("x", 1, 1_000)) == 8
    told = await hold_up(a, 4, start=40)
    assert told[-1] == Resume("x", 1)
    assert await hold_up(a, 2, start=50) == []
    await read_until_quiet(slow)  # it catches up
    await a.send(*(numbered(n) for n in range(30)))
    assert Pause("x", 1, 1_000) in await a.flush()


async def test_nobody_waits_for_it_after_it_has_come_back(open_house: Opener) -> None:
    house = await open_house(egress=SMALL, lagging_s=1)
    a, slow = await house.node(), await house.node("x", capacity_bytes=NARROW)
    await clog(a, slow)
    await a.send(*(numbered(n) for n in range(30)))
    assert (await hold_up(a, 3, start=30))[-1] == Resume("x", 1)
    slow = await house.node("x", capacity_bytes=NARROW, identity=slow.identity, number=2)
    await a.send(*(numbered(n) for n in range(30)))
    assert [m for m in await a.flush() if isinstance(m, Pause)] == []
    await read_until_quiet(slow)
    await trio.sleep(0.1)
    await a.send(*(numbered(n) for n in range(30)))
    assert Pause("x", 1, 1_000) in await a.flush()


async def test_a_receiver_that_drains_fast_enough_is_waited_for(open_house: Opener) -> None:
    house = await open_house(egress=SMALL, lagging_s=1, lagging_bytes_per_s=1)
    a, slow = await house.node(), await house.node("x", capacity_bytes=NARROW)
    await clog(a, slow)
    await a.send(*(numbered(n) for n in range(30)))
    for number in range(6):
        await slow._receive_some()
        await settled()
        assert Resume not in {type(message) for message in await hold_up(a, 1, start=40 + number)}


async def test_a_class_that_the_receiver_has_paused_does_not_count(open_house: Opener) -> None:
    house = await open_house(egress=SMALL, lagging_s=1)
    a, slow = await house.node(), await house.node("x", capacity_bytes=NARROW)
    await slow.send(Pause(None, 1))
    assert await slow.flush() == []
    await a.send(*(numbered(n) for n in range(30)))
    assert (await hold_up(a, 4, start=40)).count(Pause("x", 1, 1_000)) >= 8


# ---- client to relay: PAUSE of a class ---------------------------------------------------------------


async def test_a_client_stops_a_class(open_house: Opener) -> None:
    house = await open_house()
    a, b = await house.node("x"), await house.node("x")
    await b.send(Pause(None, 1))
    assert await b.flush() == []
    await a.send(numbered(1), numbered(2), numbered(3, traffic_class=0), numbered(4, traffic_class=5))
    assert sorted(numbers(await read_until_quiet(b))) == [3, 4]
    for _ in range(5):
        await trio.sleep(20)
        await b.send(Pong(b""))
    await b.send(Resume(None, 1))  # it waited by its own wish: that was no stall
    assert numbers(await read_until_quiet(b)) == [1, 2]


async def test_a_pause_may_end_by_itself(open_house: Opener) -> None:
    house = await open_house()
    a, b = await house.node("x"), await house.node("x")
    await b.send(Pause(None, 1, 3_000), Pause(None, 0, 60_000))
    await b.flush()
    await a.send(numbered(1), numbered(2, traffic_class=0))
    began = trio.current_time()
    await b.expect(Deliver, traffic_class=1)
    assert trio.current_time() - began == pytest.approx(3, abs=1.5)
    await b.send(Resume(None, 0), Resume(None, 4))
    await b.expect(Deliver, traffic_class=0)


async def test_a_paused_class_is_still_bounded(open_house: Opener) -> None:
    house = await open_house(egress=SMALL)
    a, b = await house.node(), await house.node("x")
    await b.send(Pause(None, 1))
    await b.flush()
    await a.send(*(numbered(n) for n in range(200)))
    await a.flush()
    await b.send(Resume(None, 1))
    arrived = await read_until_quiet(b)
    lost = sum(m.count for m in arrived if isinstance(m, Gap))
    assert lost > 90
    assert len(numbers(arrived)) + lost == 200


async def test_leaving_does_not_wait_for_a_paused_class(open_house: Opener) -> None:
    house = await open_house()
    a, b = await house.node(), await house.node("x")
    await b.send(Pause(None, 1))
    await b.flush()
    await a.send(numbered(1))
    await a.flush()
    await b.send(Leave("x"))
    await b.expect(Left, room="x", code=0)
    await b.send(Close())
    await b.expect(Deliver)
    await b.expect_close(ErrorCode.OK)


async def test_close_of_the_relay_ends_a_pause(open_house: Opener, nursery: trio.Nursery) -> None:
    house = await open_house(drain_s=1)
    a, b = await house.node(), await house.node("x")
    await b.send(Pause(None, 1))
    await b.flush()
    await a.send(numbered(1))
    await a.flush()
    nursery.start_soon(house.relay.drain)
    kinds = [type(await b.receive()).__name__ for _ in range(3)]
    assert kinds == ["Goaway", "Deliver", "Close"]


# ---- losses ------------------------------------------------------------------------------------------


async def test_a_slow_member_gets_gaps_and_nobody_else_notices(open_house: Opener) -> None:
    house = await open_house(egress=SMALL)
    a, fast, slow = await house.node("x"), await house.node("x"), await house.node("x", capacity_bytes=NARROW)
    total = 400
    for n in range(0, total, 10):
        await a.send(*(numbered(k) for k in range(n, n + 10)))
        for k in range(n, n + 10):
            assert numbers([await fast.expect(Deliver)]) == [k]
        await a.send(Ping(PingKind.KEEPALIVE, b"am I served?"))
        while isinstance(message := await a.receive(), Pause):
            pass
        assert message == Pong(b"am I served?")
    arrived = await read_until_quiet(slow)
    expected = 0
    lost = 0
    for message in arrived:
        if isinstance(message, Gap):
            assert (message.room, message.sender, message.code) == ("x", None, ErrorCode.RECEIVER_CONGESTED)
            expected += message.count
            lost += message.count
        else:
            assert numbers([message]) == [expected], "a GAP stands where the loss was"
            expected += 1
    assert expected == total
    assert lost == house.relay.traffic.gap_messages > 100
    assert not any(isinstance(m, Reject) for m in await a.flush())


async def test_a_full_queue_refuses_unicasts(open_house: Opener) -> None:
    house = await open_house(egress=SMALL)
    a, slow = await house.node(), await house.node(capacity_bytes=NARROW)
    await a.send(Send(slow.key, 1, 0, bytes(1_000)))
    await a.flush()
    for n in range(200):
        await a.send(Send(slow.key, 1, 0, n.to_bytes(4, "big") + bytes(1_000)))
    told = await a.flush()
    refused = sorted(n for m in told if isinstance(m, Reject) for n in range(m.first, m.first + m.count))
    assert {m.code for m in told if isinstance(m, Reject)} == {ErrorCode.RECEIVER_CONGESTED}
    assert Pause(slow.key, 1, 1_000) in told
    arrived = [n + 2 for n in numbers((await read_until_quiet(slow))[1:])]
    assert sorted(arrived + refused) == list(range(2, 202)), "each ordinal is delivered or refused, once"


# ---- stalls ------------------------------------------------------------------------------------------


async def test_a_receiver_that_takes_nothing_is_cut(open_house: Opener) -> None:
    house = await open_house()
    a, stalled = await house.node("x"), await house.node("x", capacity_bytes=NARROW)
    began = trio.current_time()
    await a.send(*(numbered(n) for n in range(100)))
    while len(house.relay.sessions) == 2:
        await stalled.send(Pong(b""))  # it lives, and sends, but reads nothing
        await a.send(Pong(b""))
        await trio.sleep(5)
        assert trio.current_time() - began < 80
    assert trio.current_time() - began == pytest.approx(65, abs=6)
    assert house.relay.events == {"slow_receivers": 1}
    await a.send(numbered(0))
    assert any(isinstance(m, Reject) and m.code == ErrorCode.NO_MEMBERS for m in await a.flush())


async def test_a_receiver_that_takes_little_is_left_alone(open_house: Opener) -> None:
    house = await open_house()
    a, slow = await house.node("x"), await house.node("x", capacity_bytes=NARROW)
    slow.transport.most_read_bytes = 500  # type: ignore[attr-defined]
    await a.send(*(numbered(n) for n in range(30)))
    for _ in range(10):
        await trio.sleep(20)
        await slow._receive_some()
        await slow.send(Pong(b""))
        await a.send(Pong(b""))
    assert len(house.relay.sessions) == 2
    slow.transport.most_read_bytes = 1 << 20  # type: ignore[attr-defined]
    assert len(numbers(await read_until_quiet(slow))) == 30


QUESTIONS: dict[str, Message] = {
    "ping": Ping(PingKind.KEEPALIVE, bytes(32)),
    "flush": Ping(PingKind.FLUSH, bytes(32)),
    "join": Join("x"),
    "leave": Leave("y" * 100),
    "present": Present("x", b"c"),
    "members": Members("x"),
    "stats": Stats(),
    "publish": Publish("empty", 5, 0, b""),
}


@pytest.mark.parametrize("question", QUESTIONS)
async def test_a_client_that_provokes_answers_and_reads_none_is_cut(open_house: Opener, question: str) -> None:
    house = await open_house(egress=SMALL, control_bytes=50_000)
    other = await house.node("x")
    rude = await house.node("x", capacity_bytes=NARROW)
    outlet = list(house.relay.sessions)[1].outlet
    with suppress(OSError):
        for _ in range(1_000):
            await rude.send(*[QUESTIONS[question]] * 20)
            assert outlet.total + outlet.barrier_bytes < 250_000
    await trio.sleep(10)
    assert len(house.relay.sessions) == 1
    assert trio.current_time() < 20
    await other.send(numbered(1))
    assert any(isinstance(m, Reject) for m in await other.flush())


# ---- what is incomplete ------------------------------------------------------------------------------


async def test_incomplete_messages_of_all_are_bounded(open_house: Opener) -> None:
    house = await open_house(incomplete_bytes=100_000)
    chunk = encode_body(Publish("x", 0, 0, bytes(100_000)))
    sizes = (10_000, 60_000, 40_000)
    nodes: list[Node] = []
    for size in sizes:
        nodes.append(await house.node())
        await nodes[-1].send(Fragment(0, FragmentEnd.MORE, chunk[:size]))
    await nodes[1].expect(Close, code=ErrorCode.OVERLOADED)
    await nodes[1].send(Close())
    await nodes[1].expect_end()
    assert house.relay.events == {"shed_connections": 1}
    for node in (nodes[0], nodes[2]):
        await node.flush()


async def test_a_cut_off_receiver_with_messages_waiting_is_counted(open_house: Opener) -> None:
    house = await open_house()
    a, b = await house.node(), await house.node(RoomIntent("x", JoinFlags.WATCH), capacity_bytes=NARROW)
    await clog(a, b)
    await a.send(*(numbered(n) for n in range(7)), numbered(7, 70_000), numbered(8))
    await a.flush()
    await house.node("x")
    await trio.sleep(0.2)  # PRESENCE waits as well, and so does a PONG
    await b.send(Ping(PingKind.KEEPALIVE))
    await settled()
    b.close()
    await settled()
    assert house.relay.traffic.receiver_gone_messages == 9
    await check_alive(house, a)


async def check_alive(house: House, node: Node) -> None:
    other = await house.node("z")
    await node.send(Publish("z", 1, 0, b"alive"))
    await other.expect(Deliver, payload=b"alive")
