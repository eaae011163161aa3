"""A node keeps to its contracts: against a relay that polices them, in virtual time, and piece by piece."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
import trio

from awesomeconnect.client import ClientSettings, Node, connect
from awesomeconnect.client.outbox import Outbox
from awesomeconnect.client.receipts import Flow, Receipt
from awesomeconnect.errors import PayloadTooLarge
from awesomeconnect.identity import RelayAddress
from awesomeconnect.shaping.ats import Scheduler, SchedulerGroup
from awesomeconnect.wire.messages import (
    ClassContract,
    Ping,
    PingKind,
    Publish,
    Role,
    TrafficClass,
    decode_body,
)
from tests.server.conftest import IDENTITY, House, Opener, in_virtual_time, open_house
from tests.support.memory import MemoryTransport, memory_pair

__all__ = ["open_house"]

BULK = ClassContract(0, 1_000_000, 100_000, 100)
VOTES = ClassContract(5, 10_000, 2_000, 100)
#: The margin that a node leaves, and what timers may be late.
LATE = 1.001


class Path:
    """A network path: a buffer that takes what the node sends, and what carries it on.

    Attributes:
        rate_bytes_per_s: how fast.
        stalled_until: nothing is carried before.
    """

    def __init__(self, house: House, nursery: trio.Nursery, kernel_bytes: int = 4 << 20) -> None:
        self.rate_bytes_per_s = 100_000_000
        self.stalled_until = 0.0
        self._house = house
        self._nursery = nursery
        self._kernel_bytes = kernel_bytes

    async def dial(self, _address: RelayAddress) -> MemoryTransport:
        ours, theirs = memory_pair(self._kernel_bytes)
        relay = self._house.dial(1 << 22)
        self._nursery.start_soon(self._carry, theirs, relay)
        self._nursery.start_soon(self._carry, relay, theirs)
        return ours

    async def _carry(self, source: MemoryTransport, target: MemoryTransport) -> None:
        buffer = bytearray(4_096)
        try:
            while True:
                await source.wait_readable()
                await trio.sleep_until(self.stalled_until)
                size = source.recv_into(buffer)
                if not size:
                    break
                rest = memoryview(buffer)[:size]
                while rest:
                    await target.wait_writable()
                    rest = rest[target.send(rest) :]
                await trio.sleep(size / self.rate_bytes_per_s)
        except (OSError, trio.ClosedResourceError):
            pass
        target.close()


@asynccontextmanager
async def node_on(path: Path, *rooms: str, **settings: Any) -> AsyncIterator[Node]:
    address = RelayAddress(IDENTITY.public_key, "relay.invalid")
    async with connect(address, rooms=rooms, settings=ClientSettings(dial=path.dial, **settings)) as node:
        yield node


@in_virtual_time
@pytest.mark.parametrize("stall_s", [0, 1])
async def test_a_conformant_node_is_never_refused(
    open_house: Opener, nursery: trio.Nursery, stall_s: float
) -> None:
    house = await open_house(contracts=(BULK, VOTES))
    path = Path(house, nursery)
    async with node_on(path) as sender, node_on(Path(house, nursery), "x") as receiver:
        began = trio.current_time()

        async def upload() -> None:
            for number in range(500):
                await sender.publish("x", number.to_bytes(2, "big") + bytes(9_985), traffic_class=0)
            await sender.flush()

        async def vote() -> None:
            for number in range(200):
                await sender.publish("x", number.to_bytes(2, "big") + bytes(150), traffic_class=5)
                await trio.sleep(0.02)

        async with trio.open_nursery() as publishing:
            publishing.start_soon(upload)
            publishing.start_soon(vote)
            await trio.sleep(1)
            path.stalled_until = trio.current_time() + stall_s
        took_s = trio.current_time() - began
        assert (5_000_000 - 100_000) / 1_000_000 <= took_s < 4.92 * LATE + stall_s
        assert house.relay.traffic.rejected_messages == 0
        got = {0: 0, 5: 0}
        with trio.move_on_after(1):
            async for message in receiver:
                assert int.from_bytes(message.payload[:2], "big") == got[message.traffic_class]
                got[message.traffic_class] += 1
        assert got == {0: 500, 5: 200}


@in_virtual_time
async def test_votes_pass_uploads(open_house: Opener, nursery: trio.Nursery) -> None:
    """On a path that is slower than the contract."""
    house = await open_house(contracts=(BULK, VOTES))
    path = Path(house, nursery, kernel_bytes=20_000)
    path.rate_bytes_per_s = 200_000
    async with node_on(path) as sender, node_on(Path(house, nursery), "x") as receiver:
        waits: list[float] = []
        with trio.CancelScope() as publishing:
            async with trio.open_nursery() as tasks:
                tasks.start_soon(_upload_for_ever, sender)
                await trio.sleep(3)
                for _ in range(20):
                    began = trio.current_time()
                    await sender.publish("x", b"vote", traffic_class=TrafficClass.URGENT)
                    async for message in receiver:
                        if message.traffic_class == TrafficClass.URGENT:
                            break
                    waits.append(trio.current_time() - began)
                    await trio.sleep(0.05)
                publishing.cancel()
        # What the kernel has, the record before, its own, and a chunk on the path.
        assert max(waits) < (20_000 + 2 * 17_500 + 4_096) / 200_000
        path.rate_bytes_per_s = 100_000_000
        sender._outbox.clear()


async def _upload_for_ever(sender: Node) -> None:
    while True:
        await sender.publish("x", bytes(90_000), traffic_class=TrafficClass.BULK)


@in_virtual_time
async def test_publish_waits_and_publish_nowait_says_so(open_house: Opener, nursery: trio.Nursery) -> None:
    house = await open_house(contracts=(VOTES,))
    async with node_on(Path(house, nursery)) as sender, node_on(Path(house, nursery), "x"):
        for _ in range(20):
            sender.publish_nowait("x", bytes(88), traffic_class=5)
        with pytest.raises(anyio.WouldBlock):
            sender.publish_nowait("x", bytes(88), traffic_class=5)
        sender.publish_nowait("x", bytes(88))
        await trio.sleep(0.01 * LATE)
        sender.publish_nowait("x", bytes(88), traffic_class=5)
        with pytest.raises(anyio.WouldBlock):
            sender.publish_nowait("x", bytes(88), traffic_class=5)
        began = trio.current_time()
        for _ in range(200):
            await sender.publish("x", bytes(88), traffic_class=5)
        assert 0.9 < trio.current_time() - began < 1.1, "a second's worth waits"
        await sender.flush()
        assert 1.98 < trio.current_time() - began < 2.1
        with pytest.raises(PayloadTooLarge, match="contract of class 5"):
            await sender.publish("x", bytes(2_000), traffic_class=5)
        with pytest.raises(PayloadTooLarge, match="contract of class 5"):
            sender.publish_nowait("x", bytes(2_000), traffic_class=5)


@in_virtual_time
async def test_a_change_applies_to_what_waits(open_house: Opener, nursery: trio.Nursery) -> None:
    house = await open_house()
    path = Path(house, nursery, kernel_bytes=4_096)
    async with node_on(path) as sender, node_on(Path(house, nursery), "x") as receiver:
        path.stalled_until = trio.current_time() + 0.5
        for _ in range(300):
            await sender.publish("x", bytes(1_000), traffic_class=5)
        house.relay.set_contracts([ClassContract(5, 50_000, 5_000, 100)])
        path.stalled_until = trio.current_time() + 0.1
        await trio.sleep(1)
        came = await _count(receiver)
        assert 70 < came < 140, "a record had left before CONTRACT came, then 50 leave in a second"
        house.relay.set_contracts([])
        await sender.flush()
        assert came + await _count(receiver) == 300
        assert house.relay.traffic.rejected_messages == 0


async def _count(node: Node) -> int:
    count = 0
    with trio.move_on_after(0.1):
        async for _ in node:
            count += 1
    return count


@in_virtual_time
async def test_a_room_with_a_tiny_contract_holds_up_nothing_else(open_house: Opener, nursery: trio.Nursery) -> None:
    house = await open_house(contracts=(BULK,), room_contracts={"tiny": (ClassContract(0, 1_000, 200, 50),)})
    async with (
        node_on(Path(house, nursery), "tiny") as sender,
        node_on(Path(house, nursery), "x", "tiny") as receiver,
    ):
        for number in range(10):
            await sender.publish("tiny", bytes([number]) + bytes(80), traffic_class=0)
            await sender.publish("x", bytes([number]) + bytes(80), traffic_class=0)
        began = trio.current_time()
        got: dict[str | None, list[int]] = {"x": [], "tiny": []}
        with trio.move_on_after(5):
            async for message in receiver:
                got[message.room].append(message.payload[0])
                if got["x"] == list(range(10)) and len(got["tiny"]) < 4:
                    assert trio.current_time() - began < 0.1
        assert got == {"x": list(range(10)), "tiny": list(range(10))}
        assert house.relay.traffic.rejected_messages == 0


@in_virtual_time
async def test_leaving_and_closing_wait_for_what_waits(open_house: Opener, nursery: trio.Nursery) -> None:
    house = await open_house(contracts=(VOTES,))
    async with node_on(Path(house, nursery), "x") as receiver:
        async with node_on(Path(house, nursery), "x") as sender:
            for _ in range(60):
                await sender.publish("x", bytes(88), traffic_class=5)
            began = trio.current_time()
            await sender.leave("x")
            assert trio.current_time() - began > 0.39
            for _ in range(60):
                await sender.publish("x", bytes(88), traffic_class=5)
        assert await _count(receiver) == 120


# ---- the outbox by itself ----------------------------------------------------------------------------


class Sent:
    """An outbox under a clock of its own, and what leaves it.

    Attributes:
        left: (time, class, room, number) of messages, and the tokens of flush PINGs.
    """

    def __init__(self) -> None:
        self.now_ns = 0
        self.left: list[Any] = []
        self.outbox = Outbox(1 << 30, 1 << 20, 1 << 30, 1 << 40, 256, lambda: self.now_ns)
        self.outbox.opened(1, 1 << 20)
        self.flows: dict[Any, Flow] = {}
        self.numbers = 0

    def put(self, room: str, traffic_class: int, size: int = 200) -> Receipt:
        key = room, traffic_class
        flow = self.flows.setdefault(key, Flow.publish(room, traffic_class, 0))
        self.numbers += 1
        return self.outbox.put(flow, self.numbers.to_bytes(4, "big") + bytes(size))

    def wait(self, for_ns: int) -> None:
        """Let time pass, and take what leaves when it is due."""
        until_ns = self.now_ns + for_ns
        self.take()
        while (due_s := self.outbox.due_s) is not None and self.now_ns + due_s * 1e9 <= until_ns:
            self.now_ns += round(due_s * 1e9)
            self.take()
        self.now_ns = until_ns
        self.take()

    def take(self) -> None:
        while record := self.outbox.take():
            while record:
                end = 4 + int.from_bytes(record[:4], "big")
                message = decode_body(record[4:end], Role.CLIENT)
                record = record[end:]
                if isinstance(message, Publish):
                    number = int.from_bytes(message.payload[:4], "big")
                    self.left.append((self.now_ns, message.traffic_class, message.room, number, end))
                elif isinstance(message, Ping) and message.kind == PingKind.FLUSH:
                    self.left.append(message.token)


def contract(choose: random.Random, traffic_class: int) -> ClassContract:
    return ClassContract(traffic_class, choose.choice([2_000, 50_000]), choose.choice([250, 1_000]), 100)


@pytest.mark.parametrize("seed", range(40))
def test_order_barriers_and_conformance(seed: int) -> None:
    choose = random.Random(seed)
    sent = Sent()
    changes = choose.random() < 0.5
    of_connection = [contract(choose, 0), contract(choose, 5)]
    of_room = [contract(choose, 0), contract(choose, 1)]
    sent.outbox.set_contracts(of_connection)
    sent.outbox.set_contracts(of_room, "tiny")
    before: list[tuple[bytes, int]] = []
    for _ in range(150):
        action = choose.random()
        if action < 0.6:
            sent.put(choose.choice(["x", "y", "tiny"]), choose.choice([0, 1, 5]), choose.choice([10, 200]))
        elif action < 0.7:
            before.append((sent.outbox.flush().token, sent.numbers))
        elif action < 0.72 and changes:
            sent.outbox.set_contracts(choose.choice([[], [contract(choose, 0)]]))
        elif action < 0.74 and changes:
            sent.outbox.set_contracts(choose.choice([[], [contract(choose, 0)]]), choose.choice(["tiny", "y"]))
        else:
            sent.wait(choose.choice([0, 1_000, 1_000_000, 200_000_000]))
    while sent.outbox.queued_messages:
        sent.wait(1_000_000_000)
    sent.take()
    assert sent.outbox.queued_messages == sent.outbox.queued_bytes == 0
    messages = [one for one in sent.left if isinstance(one, tuple)]
    assert sorted(one[3] for one in messages) == list(range(1, sent.numbers + 1))
    for room in ("x", "y", "tiny"):
        for traffic_class in (0, 1, 5):
            order = [one[3] for one in messages if one[1:3] == (traffic_class, room)]
            assert order == sorted(order)
    for token, numbers in before:
        earlier = {one[3] for one in sent.left[: sent.left.index(token)] if isinstance(one, tuple)}
        assert earlier >= set(range(1, numbers + 1)) or changes
    if not changes:
        for contracts, rooms in ((of_connection, {"x", "y", "tiny"}), (of_room, {"tiny"})):
            for one in contracts:
                # The connection's bucket is charged for the head of a room's lane before that leaves.
                burst = one.cbs_bytes + (250 if contracts is of_connection else 0)
                police = Scheduler(one.cir_bytes_per_s, burst, SchedulerGroup(0), now_ns=0)
                for at, traffic_class, room, _number, size in messages:
                    if traffic_class == one.traffic_class and room in rooms:
                        assert police.process(at, size) == at


def test_what_waits_survives_the_connection() -> None:
    sent = Sent()
    sent.outbox.set_contracts([VOTES])
    for _ in range(30):
        sent.put("x", 5)
    sent.take()
    assert 5 < len(sent.left) < 12
    sent.outbox.broke()
    sent.outbox.opened(2, 1 << 20, [VOTES])
    sent.wait(2_000_000_000)
    assert [one[3] for one in sent.left] == list(range(1, 31))


def test_what_no_longer_fits_a_burst_is_a_problem_for_the_next_flush() -> None:
    sent = Sent()
    sent.outbox.set_contracts([VOTES])
    for size in (1_500, 1_500, 1_500, 100):
        sent.put("x", 5, size)
    sent.take()
    sent.outbox.set_contracts([ClassContract(5, 10_000, 200, 0)])
    sent.wait(10_000_000_000)
    assert [one[3] for one in sent.left] == [1, 2, 4], "the second had its time"
    [problem] = sent.outbox.problems.take()
    assert isinstance(problem, PayloadTooLarge)


def test_an_earlier_flush_is_not_answered_by_a_later_one_that_left_before_it() -> None:
    sent = Sent()
    outbox = sent.outbox
    outbox.set_contracts([VOTES])
    for _ in range(30):
        sent.put("x", 5)
    waits = outbox.flush()
    sent.take()
    sent.put("x", 1)
    at_once = outbox._new_flush(0, [])
    outbox.on_pong(at_once.token)
    assert outbox.is_asking
    sent.wait(2_000_000_000)
    outbox.on_pong(waits.token)
    assert not outbox.is_asking
