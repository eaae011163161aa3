"""Contracts at work: what is held, until when, for whom, and what is refused. In virtual time.

CONTRACT lets 2,200 bytes pass at once (its burst, and the rate for the 2 s that a relay forgives), then 100 bytes
every 100 ms, and holds 500 of them.
"""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest
import trio
from attrs import evolve

from awesomeconnect.errors import ErrorCode
from awesomeconnect.shaping.egress import EgressLimits
from awesomeconnect.wire.messages import (
    Anycast,
    ClassContract,
    Close,
    Contract,
    Deliver,
    Gap,
    Join,
    JoinFlags,
    Message,
    Pause,
    Ping,
    PingKind,
    Pong,
    Publish,
    Reject,
    Resume,
    RoomIntent,
    Send,
    Stats,
    StatsReport,
    encode_frame,
)
from tests.server.conftest import Opener, in_virtual_time
from tests.support.node import Node

pytestmark = in_virtual_time

CONTRACT = ClassContract(1, 1_000, 200, 500)
AT_ONCE = 22
URGENT = evolve(CONTRACT, traffic_class=5)
#: How late a held message may be, s.
LATE_S = 0.002


def sized(kind: type, target: str | bytes, number: int, traffic_class: int = 1, size: int = 100) -> Any:
    """A message that begins with its number and whose frame has so many bytes."""
    payload_bytes = size
    while True:
        message = kind(target, traffic_class, 0, number.to_bytes(2, "big") + bytes(payload_bytes - 2))
        excess = len(encode_frame(message)) - size
        if not excess:
            return message
        payload_bytes -= excess


def publishes(numbers: range, room: str = "x", traffic_class: int = 1) -> list[Publish]:
    return [sized(Publish, room, number, traffic_class) for number in numbers]


class Log:
    """Reads a node in the background: what came, and when, from the beginning of the test."""

    def __init__(self, nursery: trio.Nursery, node: Node) -> None:
        self.node = node
        self.heard: list[tuple[float, Message]] = []
        self._began = trio.current_time()
        nursery.start_soon(self._read)

    async def _read(self) -> None:
        with suppress(trio.ClosedResourceError, OSError):
            while (message := await self.node.receive()) is not None:
                self.heard.append((trio.current_time() - self._began, message))

    def of(self, kind: type) -> list[Any]:
        return [message for _, message in self.heard if type(message) is kind]

    @property
    def numbers(self) -> list[int]:
        return [int.from_bytes(message.payload[:2], "big") for message in self.of(Deliver)]

    @property
    def times(self) -> list[float]:
        return [at for at, message in self.heard if type(message) is Deliver]


def on_time(times: list[float], expected: list[float]) -> bool:
    assert len(times) == len(expected)
    return all(0 <= at - due < LATE_S for at, due in zip(times, expected, strict=True))


#: When the messages after the first AT_ONCE leave, if all came at 0.
HELD_S = [0.1, 0.2, 0.3, 0.4, 0.5]


async def test_hold_then_refuse(open_house: Opener, nursery: trio.Nursery) -> None:
    house = await open_house(contracts=(CONTRACT,))
    a, b = await house.node(), Log(nursery, await house.node("x"))
    out = Log(nursery, a)
    await a.send(*publishes(range(1, 32)))
    await trio.sleep(2)
    assert b.numbers == list(range(1, AT_ONCE + 6))
    assert on_time(b.times, [0.0] * AT_ONCE + HELD_S)
    assert out.of(Reject) == [Reject(28, 4, ErrorCode.RATE_EXCEEDED, 100)]
    await a.send(Stats())
    await trio.sleep(0.1)
    assert out.of(StatsReport)[0].counters["held_messages"] == 5


async def test_welcome_announces(open_house: Opener) -> None:
    house = await open_house(contracts=(CONTRACT, URGENT))
    assert (await house.visitor().enter()).contracts == (CONTRACT, URGENT)


async def test_gathered_and_large_messages_are_held_alike(open_house: Opener, nursery: trio.Nursery) -> None:
    house = await open_house(contracts=(ClassContract(1, 50_000, 40_000, 1_500),))
    a, b = await house.node(), Log(nursery, await house.node("x"))
    await a.send(*(sized(Publish, "x", number, size=40_000 if number % 2 else 10_000) for number in range(8)))
    await trio.sleep(2)
    assert b.numbers == list(range(8))
    assert on_time(b.times, [0.0] * 5 + [0.2, 0.4, 1.2])


async def test_longer_than_the_burst(open_house: Opener) -> None:
    house = await open_house(contracts=(CONTRACT,))
    a, b = await house.node(), await house.node("x")
    await a.send(sized(Publish, "x", 1), sized(Publish, "x", 2, size=201), sized(Publish, "x", 3, size=200))
    assert await a.flush() == [Reject(2, 1, ErrorCode.PAYLOAD_TOO_LARGE, 0)]
    for number in (1, 3):
        assert (await b.expect(Deliver)).payload[1] == number


async def test_a_retry_at_the_named_time_is_accepted_and_nothing_passes_before(
    open_house: Opener, nursery: trio.Nursery
) -> None:
    house = await open_house(contracts=(CONTRACT,))
    a, b = await house.node(), Log(nursery, await house.node("x"))
    out = Log(nursery, a)
    await a.send(*publishes(range(1, 28)), sized(Publish, "x", 28, size=150))
    await trio.sleep(0.06)
    await a.send(sized(Publish, "x", 29, size=40))  # would pass if it were not behind a refused one
    await trio.sleep(0.09)
    await a.send(sized(Publish, "x", 28, size=150), sized(Publish, "x", 30, size=40))
    await trio.sleep(1)
    [first, second, third] = out.of(Reject)
    assert first == Reject(28, 1, ErrorCode.RATE_EXCEEDED, 150)
    assert (second.first, second.retry_after_ms) == (29, 90)
    assert third.first == 31
    assert b.numbers == list(range(1, 29))


async def test_another_destination_is_not_closed(open_house: Opener) -> None:
    house = await open_house(contracts=(evolve(CONTRACT, max_residence_ms=0),))
    a = await house.node()
    b, c = await house.node("x"), await house.node("y")
    await a.send(*publishes(range(21)), sized(Publish, "x", 21, size=150), sized(Publish, "y", 22))
    assert await a.flush() == [Reject(22, 1, ErrorCode.RATE_EXCEEDED, 50)]
    assert (await c.expect(Deliver)).payload[1] == 22
    await a.send(sized(Anycast, "x", 23, size=50))
    assert await a.flush() == [Reject(24, 1, ErrorCode.RATE_EXCEEDED, 50)], "a room is one destination"
    del b


async def test_receivers_are_those_at_the_eligibility_time(open_house: Opener, nursery: trio.Nursery) -> None:
    house = await open_house(contracts=(CONTRACT,))
    a, early, late = await house.node(), await house.node("x"), await house.node()
    early_log, late_log = Log(nursery, early), Log(nursery, late)
    await a.send(*publishes(range(25)))
    await trio.sleep(0.15)
    await late.send(Join("x"))
    await trio.sleep(0.1)
    early.close()
    await trio.sleep(1)
    assert early_log.numbers == list(range(24))
    assert late_log.numbers == [23, 24]


async def test_all_receivers_see_one_eligibility_time(open_house: Opener, nursery: trio.Nursery) -> None:
    """Property 8; and 13: one that does not read changes nothing."""
    house = await open_house(contracts=(CONTRACT,))
    a = await house.node()
    logs = [Log(nursery, await house.node("x")) for _ in range(12)]
    stalled = await house.node("x", capacity_bytes=512)
    await a.send(*publishes(range(27)))
    await trio.sleep(1)
    for log in logs:
        assert on_time(log.times, [0.0] * AT_ONCE + HELD_S)
        assert log.times[AT_ONCE:] == logs[0].times[AT_ONCE:]
    received = [await stalled.expect(Deliver) for _ in range(27)]
    assert [message.payload[1] for message in received] == list(range(27))


async def test_a_flush_waits_for_what_is_held(open_house: Opener, nursery: trio.Nursery) -> None:
    house = await open_house(contracts=(CONTRACT,))
    a = await house.node()
    log = Log(nursery, a)
    await a.send(*publishes(range(25)), Ping(PingKind.KEEPALIVE, b"alive"), Ping(PingKind.FLUSH, b"first"))
    await a.send(*publishes(range(25, 27)), Ping(PingKind.FLUSH, b"second"))
    await trio.sleep(1)
    told = {message.token: at for at, message in log.heard if isinstance(message, Pong)}
    assert on_time([told[b"alive"], told[b"first"], told[b"second"]], [0.0, 0.3, 0.5])
    refused = [at for at, message in log.heard if isinstance(message, Reject)]
    assert on_time(refused[-5:], HELD_S), "nobody is in the room"
    assert [type(message) for _, message in log.heard[-2:]] == [Reject, Pong]


async def test_many_flushes_do_not_pile_up(open_house: Opener) -> None:
    house = await open_house(contracts=(CONTRACT,))
    a = await house.node()
    await house.node("x")
    await a.send(*publishes(range(25)), *(Ping(PingKind.FLUSH, bytes([n])) for n in range(200)))
    await trio.sleep(1)
    pongs = []
    while len(pongs) < 64:
        pongs.append((await a.expect(Pong)).token)
    assert pongs[-1] == bytes([199]), "the last one answers those before it"


@pytest.mark.parametrize("how", ["close", "hang up"])
async def test_held_messages_leave_after_their_sender(open_house: Opener, nursery: trio.Nursery, how: str) -> None:
    house = await open_house(contracts=(CONTRACT,))
    a, b = await house.node("x"), Log(nursery, await house.node("x"))
    await a.send(*publishes(range(30)), Ping(PingKind.FLUSH, b"nobody waits for this"))
    if how == "close":
        await a.send(Close())
    await trio.sleep(0.01)
    a.close()
    await trio.sleep(2)
    assert b.numbers == list(range(27))
    assert on_time(b.times, [0.0] * AT_ONCE + HELD_S)
    assert len(house.relay.sessions) == 1


async def test_an_urgent_message_is_not_held_by_bulk_nor_for_its_sake(
    open_house: Opener, nursery: trio.Nursery
) -> None:
    """The task that waits for a bulk message is woken earlier for an urgent one."""
    slow = ClassContract(0, 100, 200, 5_000)
    house = await open_house(contracts=(slow, evolve(URGENT, cir_bytes_per_s=10_000)))
    a, b = await house.node(), Log(nursery, await house.node("x"))
    await a.send(*publishes(range(5), traffic_class=0))
    await trio.sleep(0.1)
    await a.send(*publishes(range(5, 210), traffic_class=5))
    await trio.sleep(2)
    assert b.numbers == [*range(4), *range(5, 210), 4]
    assert on_time(b.times[-4:], [0.11, 0.12, 0.13, 1.0])


async def test_who_sends_to_itself_too(open_house: Opener, nursery: trio.Nursery) -> None:
    house = await open_house(contracts=(CONTRACT,))
    a = await house.node()
    log = Log(nursery, a)
    await a.send(*(sized(Send, a.key, number) for number in range(24)))
    await trio.sleep(1)
    assert on_time(log.times, [0.0] * AT_ONCE + HELD_S[:2])


async def test_a_held_anycast_goes_to_one(open_house: Opener, nursery: trio.Nursery) -> None:
    house = await open_house(contracts=(CONTRACT,))
    a, logs = await house.node(), [Log(nursery, await house.node("x")) for _ in range(2)]
    await a.send(*(sized(Anycast, "x", number) for number in range(24)))
    await trio.sleep(1)
    assert sorted(logs[0].numbers + logs[1].numbers) == list(range(24))
    assert on_time(sorted(logs[0].times + logs[1].times), [0.0] * AT_ONCE + HELD_S[:2])


# ---- contracts that change ---------------------------------------------------------------------------


async def test_a_change_is_told_and_holds_from_then_on(open_house: Opener, nursery: trio.Nursery) -> None:
    house = await open_house(contracts=(CONTRACT,))
    a, b = await house.node(), Log(nursery, await house.node("x"))
    await a.send(*publishes(range(25)))
    await trio.sleep(0.05)
    faster = evolve(CONTRACT, cir_bytes_per_s=10_000)
    house.relay.set_contracts([faster])
    await a.expect(Contract, room=None, code=ErrorCode.OK, contracts=(faster,))
    await a.send(*publishes(range(25, 27)))
    await trio.sleep(1)
    assert b.numbers == list(range(27))
    assert on_time(b.times, [0.0] * AT_ONCE + [0.1, 0.2, 0.3, 0.31, 0.32])
    assert (await house.visitor().enter()).contracts == (faster,)


async def test_without_a_contract_nothing_overtakes_what_is_held(open_house: Opener, nursery: trio.Nursery) -> None:
    house = await open_house(contracts=(CONTRACT,))
    a, b = await house.node(), Log(nursery, await house.node("x"))
    await a.send(*publishes(range(25)))
    await trio.sleep(0.05)
    house.relay.set_contracts([])
    await a.expect(Contract, room=None, contracts=())
    await a.send(*publishes(range(25, 28)), *publishes(range(28, 30), traffic_class=5))
    await trio.sleep(1)
    assert b.numbers == [*range(22), 28, 29, *range(22, 28)]
    assert on_time(b.times, [0.0] * AT_ONCE + [0.05] * 2 + [0.1, 0.2] + [0.3] * 4)
    before = trio.current_time()
    await a.send(*publishes(range(30, 32)))
    await a.flush()
    assert trio.current_time() == before
    assert b.numbers[-2:] == [30, 31]


async def test_contracts_come_to_connections_that_had_none(open_house: Opener, nursery: trio.Nursery) -> None:
    house = await open_house()
    a, b = await house.node(), Log(nursery, await house.node("x"))
    await a.send(*publishes(range(60)))
    await a.flush()
    house.relay.set_contracts([CONTRACT])
    await a.expect(Contract, contracts=(CONTRACT,))
    await a.send(*publishes(range(60, 90)))
    [reject] = await a.flush()
    assert reject == Reject(88, 3, ErrorCode.RATE_EXCEEDED, 100)
    assert b.numbers == list(range(87))


async def test_bad_contracts_change_nothing(open_house: Opener) -> None:
    house = await open_house(contracts=(CONTRACT,))
    with pytest.raises(ValueError, match="two contracts"):
        house.relay.set_contracts([CONTRACT, CONTRACT])
    with pytest.raises(ValueError, match="room"):
        house.relay.set_room_contracts("@nobody", [CONTRACT])
    assert house.relay.settings.contracts == (CONTRACT,)


# ---- contracts of rooms ------------------------------------------------------------------------------

WIDE = evolve(CONTRACT, cir_bytes_per_s=1_000_000, cbs_bytes=100_000)


async def test_a_room_with_a_tiny_contract_delays_only_its_own(open_house: Opener, nursery: trio.Nursery) -> None:
    house = await open_house(contracts=(WIDE,), room_contracts={"tiny": (CONTRACT,)})
    a, b = await house.node(), Log(nursery, await house.node("x", "y"))
    c = await house.node()
    assert (await c.join("tiny")).contracts == (CONTRACT,)
    log = Log(nursery, c)
    for at in range(24):
        await a.send(*publishes(range(at, at + 1), "tiny"), *publishes(range(at, at + 1)))
    await trio.sleep(1)
    assert on_time(b.times, [0.0] * 24)
    assert on_time(log.times, [0.0] * AT_ONCE + HELD_S[:2])
    await a.expect(Contract, room="tiny", code=ErrorCode.OK, contracts=(CONTRACT,))
    assert await a.flush() == []


async def test_members_are_told_once(open_house: Opener) -> None:
    house = await open_house(room_contracts={"tiny": (CONTRACT,)})
    a, b = await house.node("tiny"), await house.node("tiny")
    await a.send(*publishes(range(27), "tiny"))
    assert await a.flush() == []
    assert [(await b.expect(Deliver)).payload[1] for _ in range(27)] == list(range(27))
    assert trio.current_time() > 0.5


async def test_both_contracts_hold(open_house: Opener, nursery: trio.Nursery) -> None:
    """The connection's first; a discard by the room's charges neither."""
    tight = evolve(CONTRACT, cir_bytes_per_s=500, cbs_bytes=1_000, max_residence_ms=0)
    house = await open_house(contracts=(evolve(CONTRACT, max_residence_ms=0),), room_contracts={"x": (tight,)})
    a, _b, c = await house.node(), await house.node("x"), await house.node("y")
    await a.send(*publishes(range(21)), *publishes(range(21, 24), "y"))
    told = await a.flush()
    assert told == [
        Contract("x", ErrorCode.OK, (tight,)),
        Reject(21, 1, ErrorCode.RATE_EXCEEDED, 200),
        Reject(24, 1, ErrorCode.RATE_EXCEEDED, 100),
    ]
    assert [(await c.expect(Deliver)).payload[1] for _ in range(2)] == [21, 22]


async def test_a_rooms_contract_changes(open_house: Opener, nursery: trio.Nursery) -> None:
    house = await open_house(contracts=(WIDE,))
    a, b = await house.node(), Log(nursery, await house.node("x"))
    await a.send(*publishes(range(30)))
    await a.flush()
    house.relay.set_room_contracts("x", [CONTRACT])
    await a.send(*publishes(range(30, 60)))
    told = await a.flush()
    assert told == [
        Contract("x", ErrorCode.OK, (CONTRACT,)),
        Reject(58, 3, ErrorCode.RATE_EXCEEDED, 100),
    ]
    house.relay.set_room_contracts("x", [])
    await a.expect(Contract, room="x", contracts=())
    await a.send(*publishes(range(60, 90)))
    assert await a.flush() == []
    await trio.sleep(0.1)
    assert b.numbers == [*range(57), *range(60, 90)]
    assert Contract("x", ErrorCode.OK, (CONTRACT,)) in b.of(Contract)


async def test_a_rooms_contract_takes_over_what_the_connection_holds(
    open_house: Opener, nursery: trio.Nursery
) -> None:
    house = await open_house(contracts=(CONTRACT,))
    a, b = await house.node("x"), Log(nursery, await house.node("x", "y"))
    await a.send(*publishes(range(24)), *publishes(range(24, 25), "y"))
    await trio.sleep(0.05)
    house.relay.set_room_contracts("x", [WIDE])
    house.relay.set_contracts([])
    await a.send(*publishes(range(25, 27)), *publishes(range(27, 28), "y"))
    await trio.sleep(1)
    assert b.numbers == [*range(23), 23, 25, 26, 24, 27]


# ---- all at once -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
async def test_order_and_conservation(open_house: Opener, nursery: trio.Nursery, seed: int) -> None:
    """Properties 7 and 11: first in, first out per sender, destination and class; nothing is lost in silence."""
    choose = random.Random(seed)
    contracts = tuple(
        ClassContract(
            number, choose.choice([500, 3_000, 20_000]), choose.choice([300, 1_000]), choose.choice([0, 400])
        )
        for number in (0, 1, 5)
    )
    house = await open_house(
        contracts=contracts,
        room_contracts={"y": (evolve(CONTRACT, traffic_class=5), evolve(CONTRACT, cir_bytes_per_s=2_000))},
        egress=EgressLimits(2_000, 5_200, 9_000),
    )
    senders = [await house.node("x") for _ in range(3)]
    slow = await house.node("x", "y", capacity_bytes=1_000)
    fast, gone = Log(nursery, await house.node("x", "y")), await house.node("x", "y")
    outs = [Log(nursery, node) for node in senders]
    targets: list[Any] = [(Publish, "x"), (Publish, "y"), (Send, fast.node.key), (Send, slow.key), (Send, gone.key)]
    sent: list[list[tuple[Any, int]]] = [[] for _ in senders]
    for turn in range(60):
        for node, mine in zip(senders, sent, strict=True):
            batch = []
            for _ in range(choose.choice([0, 0, 1, 3, 12])):
                where, traffic_class = choose.choice(targets), choose.choice([0, 1, 5])
                mine.append((where, traffic_class))
                batch.append(sized(*where, len(mine), traffic_class, choose.choice([100, 120, 250])))
            await node.send(*batch)
        await trio.sleep(choose.choice([0, 0.001, 0.05, 0.3]))
        if turn == 40:
            gone.close()
        if turn == 50:
            house.relay.set_contracts(contracts[:2])
    slow_log = Log(nursery, slow)
    for node in senders:
        await node.send(Ping(PingKind.FLUSH, b"end"))
    await trio.sleep(10)
    assert house.relay.events.get("internal_errors", 0) == 0

    refused = [Counter[int]() for _ in senders]
    for out, verdicts, node in zip(outs, refused, senders, strict=True):
        for reject in out.of(Reject):
            verdicts.update(range(reject.first, reject.first + reject.count))
        assert Pong(b"end") in out.of(Pong)
        assert not verdicts or max(verdicts.values()) == 1, "refused once"
        del node
    for log in (fast, slow_log):
        for node, mine, verdicts in zip(senders, sent, refused, strict=True):
            got = [m for m in log.of(Deliver) if m.sender == node.key]
            numbers = [int.from_bytes(m.payload[:2], "big") for m in got]
            assert len(set(numbers)) == len(numbers)
            assert not set(numbers) & set(verdicts), "a refused message reaches nobody"
            for where in targets:
                for traffic_class in (0, 1, 5):
                    order = [n for n in numbers if mine[n - 1] == (where, traffic_class)]
                    assert order == sorted(order)
    accepted = {
        room: sum(
            where == (Publish, room) and number not in verdicts
            for mine, verdicts in zip(sent, refused, strict=True)
            for number, (where, _) in enumerate(mine, 1)
        )
        for room in ("x", "y")
    }
    for log in (fast, slow_log):
        for room in ("x", "y"):
            delivered = sum(m.room == room for m in log.of(Deliver))
            lost = sum(gap.count for gap in log.of(Gap) if gap.room == room)
            assert delivered + lost == accepted[room]
        unicasts = sum(
            where == (Send, log.node.key) and number not in verdicts
            for mine, verdicts in zip(sent, refused, strict=True)
            for number, (where, _) in enumerate(mine, 1)
        )
        assert sum(m.room is None for m in log.of(Deliver)) == unicasts
    traffic = house.relay.traffic
    late = sum(reject.count for out in outs for reject in out.of(Reject) if reject.code == ErrorCode.RECEIVER_GONE)
    assert traffic.received_messages + traffic.rejected_messages == sum(map(len, sent))
    assert traffic.rejected_messages + late == sum(map(len, refused))


async def test_an_idle_connection_forgets_its_ingress(open_house: Opener) -> None:
    house = await open_house(contracts=(CONTRACT,))
    a = await house.node()
    await house.node("x")
    await a.send(*publishes(range(25)))
    await trio.sleep(26)
    [session, *_] = house.relay.sessions
    assert session._router is None
    await a.expect(Ping)
    await a.send(Pong(), Stats())
    assert (await a.expect(StatsReport)).counters["held_messages"] == 3


async def test_members_that_only_observe_are_told(open_house: Opener) -> None:
    house = await open_house(room_contracts={"x": (CONTRACT,)})
    observer = await house.node(RoomIntent("x", JoinFlags.OBSERVE))
    house.relay.set_room_contracts("x", [WIDE])
    await observer.expect(Contract, room="x", contracts=(WIDE,))


# ---- what is reported --------------------------------------------------------------------------------


async def test_the_longest_wait_is_reported_per_class(open_house: Opener) -> None:
    house = await open_house()
    a, slow = await house.node(), await house.node("x", capacity_bytes=4_096)
    await a.send(*publishes(range(1_000)))
    await trio.sleep(0.2)
    await a.send(*publishes(range(1_000, 1_001), traffic_class=5))
    await trio.sleep(0.1)
    for _ in range(1_001):
        await slow.expect(Deliver)
    await slow.send(Stats())
    report = await slow.expect(StatsReport)
    waits = report.counters["queueing_max_us"]
    assert isinstance(waits, tuple)
    assert 300_000 <= waits[1] < 302_000
    assert 100_000 <= waits[5] < 102_000
    assert waits[0] == waits[7] == 0
    assert report.counters["queueing_bound_us"] == (0,) * 8
    await a.send(Stats())
    assert (await a.expect(StatsReport)).counters["queueing_max_us"] == (0,) * 8


async def test_a_paused_class_does_not_wait_for_the_relay(open_house: Opener) -> None:
    house = await open_house()
    a, slow = await house.node(), await house.node("x", capacity_bytes=4_096)
    await a.send(*publishes(range(1_000)))
    await slow.send(Pause(None, 1))
    await trio.sleep(5)
    await slow.send(Resume(None, 1), Stats())
    while not isinstance(report := await slow.receive(), StatsReport):
        pass
    waits = report.counters["queueing_max_us"]
    assert isinstance(waits, tuple)
    assert waits[1] < 1_000


async def test_bounds_are_published_where_link_and_senders_are_known(open_house: Opener) -> None:
    every = [ClassContract(number, 2_000, 1_000, 0) for number in range(7)]
    known: dict[str, Any] = {"downlink_bytes_per_s": 1_250_000, "connections": 10}

    async def bounds(contracts: list[ClassContract], **settings: Any) -> tuple[int, ...]:
        house = await open_house(contracts=tuple(contracts), **settings)
        node = await house.node()
        await node.send(Stats())
        found = (await node.expect(StatsReport)).counters["queueing_bound_us"]
        assert isinstance(found, tuple)
        return found

    all_of_them = await bounds(every, **known)
    assert all_of_them[7] == 0, "what travels there has no contract"
    assert all(all_of_them[number] > all_of_them[number + 1] > 0 for number in range(6))
    assert await bounds(every) == await bounds(every, downlink_bytes_per_s=1_250_000) == (0,) * 8
    assert await bounds(every[:4] + every[5:], **known) == (*[0] * 5, *all_of_them[5:])
    assert (await bounds(every, **known, room_contracts={"x": (every[5],)}))[5] > all_of_them[5]
