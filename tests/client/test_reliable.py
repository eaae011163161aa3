"""Reliable messages between nodes and a relay in one process, over connections in memory, under a virtual clock."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
import pytest
import trio
import trio.testing
from attrs import evolve

from awesomeconnect.client import ClientSettings, GapReport, Node, Process, connect
from awesomeconnect.config import RelaySettings
from awesomeconnect.errors import (
    AddressError,
    ConnectionEnded,
    Declined,
    Expired,
    NoMembers,
    NoSuchPeer,
    OutcomeUnknown,
    PayloadTooLarge,
    RequestFailed,
    RequestTimeout,
)
from awesomeconnect.identity import Identity, RelayAddress
from awesomeconnect.reliable.settings import ReliableSettings
from awesomeconnect.server import Relay
from awesomeconnect.wire.messages import Content, Deliver
from tests.support.memory import MemoryTransport, memory_pair

IDENTITY = Identity.from_seed(bytes(range(32)))
ADDRESS = RelayAddress(IDENTITY.public_key, "relay.invalid")
STRANGER = Identity.from_seed(bytes(32)).public_key
#: Longer than anything here takes.
PATIENCE_S = 1_000.0


def _run(main: Callable[[], Awaitable[Any]], **options: Any) -> Any:
    return trio.run(main, **{**options, "clock": trio.testing.MockClock(autojump_threshold=0)})


pytestmark = pytest.mark.trio(run=_run)


class Network:
    """Leads every node to one relay, which can be killed and started anew."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._ends: list[tuple[MemoryTransport, MemoryTransport]] = []
        self._scope = trio.CancelScope()
        self.relay: Relay | None = None
        self.settings = ClientSettings(
            dial=self.dial,
            random=random.Random(1).random,
            process=Process(lambda: int(trio.current_time() * 1000), random.Random(2).randbytes),
        )

    async def start(self) -> None:
        """A relay that knows nothing."""
        self._scope = trio.CancelScope()
        self.relay = Relay(IDENTITY, RelaySettings())
        await self._nursery.start(self._serve, self.relay)

    async def _serve(self, relay: Relay, *, task_status: trio.TaskStatus[Any]) -> None:
        with self._scope:
            await relay.serve(task_status=task_status)

    def kill(self) -> None:
        """End the relay, and everything that was under way."""
        self.relay = None
        self.cut()
        self._scope.cancel()

    async def restart(self) -> None:
        self.kill()
        await self.start()

    async def dial(self, address: RelayAddress) -> MemoryTransport:
        await trio.lowlevel.checkpoint()
        if self.relay is None:
            raise ConnectionRefusedError(111, "Connection refused")
        ours, theirs = memory_pair()
        self.relay.connect(theirs)
        self._ends.append((ours, theirs))
        return ours

    def cut(self) -> None:
        """Break all connections; what was under way is lost."""
        ends, self._ends = self._ends, []
        for ours, theirs in ends:
            ours._incoming.data.clear()
            theirs._incoming.data.clear()
            theirs.close()

    def enter(
        self, *rooms: str, identity: Identity | None = None, settings: ClientSettings | None = None, **reliable: Any
    ) -> AbstractAsyncContextManager[Node]:
        manual = reliable.pop("ack", "auto")
        every = evolve(settings or self.settings, reliable=ReliableSettings(**reliable))
        return connect(ADDRESS, rooms=rooms, identity=identity, ack=manual, settings=every)


@pytest.fixture
async def network(nursery: trio.Nursery) -> AsyncIterator[Network]:
    network = Network(nursery)
    await network.start()
    with trio.fail_after(PATIENCE_S):
        yield network


async def take(node: Node, count: int) -> list[bytes]:
    return [(await anext(node)).payload for _ in range(count)]


async def test_send_returns_when_the_peer_has_taken_it(network: Network) -> None:
    async with network.enter() as one, network.enter() as two, trio.open_nursery() as nursery:
        returned = trio.Event()

        async def send() -> None:
            delivery = await one.send(two.key, b"hello", reliable=True)
            assert repr(delivery) == "Delivery(delivered)"
            returned.set()

        nursery.start_soon(send)
        await trio.sleep(5)
        assert not returned.is_set()
        message = await anext(two)
        assert (message.payload, message.sender, message.is_reliable, message.room) == (
            b"hello",
            one.key,
            True,
            None,
        )
        await returned.wait()
        assert one.statistics().reliable_bytes == 0


async def test_messages_survive_cuts_and_restarts_of_the_relay(network: Network) -> None:
    count = 1_000
    async with network.enter() as one, network.enter() as two, trio.open_nursery() as nursery:

        async def send(sender: Node, receiver: Node) -> None:
            for number in range(count):
                await sender.post(receiver.key, b"%d" % number, traffic_class=number % 2)
                if number % 10 == 0:
                    await trio.sleep(0.5)
            await sender.flush()

        async def receive(receiver: Node) -> None:
            taken: list[list[int]] = [[], []]
            for _ in range(count):
                message = await anext(receiver)
                taken[message.traffic_class].append(int(message.payload))
            assert taken == [list(range(0, count, 2)), list(range(1, count, 2))]

        async def trouble(*, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
            with trio.CancelScope() as scope:
                task_status.started(scope)
                chance = random.Random(7)
                while True:
                    await trio.sleep(chance.random() * 4)
                    if chance.random() < 0.5:
                        network.cut()
                    else:
                        network.kill()
                        await trio.sleep(chance.random() * 3)
                        await network.start()

        scope = await nursery.start(trouble)
        async with trio.open_nursery() as work:
            for pair in ((one, two), (two, one)):
                work.start_soon(send, *pair)
                work.start_soon(receive, pair[1])
        scope.cancel()
        await trio.sleep(10)
        assert one.statistics().reliable_bytes == two.statistics().reliable_bytes == 0


async def test_a_peer_that_comes_later_is_waited_for(network: Network) -> None:
    identity = Identity.from_seed(bytes(31) + b"\1")
    async with network.enter() as one, trio.open_nursery() as nursery:

        async def come_later() -> None:
            await trio.sleep(30)
            async with network.enter(identity=identity) as two:
                assert await take(two, 1) == [b"are you there?"]

        nursery.start_soon(come_later)
        await one.send(identity.public_key, b"are you there?", reliable=True)
        assert 30 <= trio.current_time() < 34


async def test_a_message_to_nobody_expires(network: Network) -> None:
    async with network.enter() as one:
        with pytest.raises(Expired, match="will not be; is the peer there"):
            await one.send(STRANGER, b"?", reliable=True, expires_s=10)
        assert trio.current_time() == pytest.approx(10, abs=0.1)
        await one.post(STRANGER, b"?", expires_s=1)
        await trio.sleep(2)
        with pytest.raises(Expired):
            await one.flush()
        await one.flush()


async def test_what_may_have_been_taken_is_unknown(network: Network) -> None:
    async with network.enter() as one, network.enter() as two:
        with pytest.raises(OutcomeUnknown, match="no acknowledgement came"):
            await one.send(two.key, b"nobody looks", reliable=True, expires_s=5)
        assert await _nothing_arrives(two)


async def _nothing_arrives(node: Node) -> bool:
    with trio.move_on_after(100):
        await anext(node)
        return False
    return True


async def test_a_peer_without_the_mode_declines(network: Network) -> None:
    async with network.enter() as one, network.enter(is_offered=False) as two:
        with pytest.raises(Declined, match="does not take reliable messages") as declined:
            await one.send(two.key, b"?", reliable=True)
        assert declined.value.reason == 0
        await one.send(two.key, b"plain")
        assert await take(two, 1) == [b"plain"]


async def test_nodes_that_send_while_they_handle_messages_go_on(network: Network) -> None:
    count = 20

    async def handle(node: Node, other: Node) -> None:
        handled = 0
        async for message in node:
            if int(message.payload):
                await node.send(other.key, b"%d" % (int(message.payload) - 1), reliable=True)
            handled += 1
            if handled == 3 * count:
                return

    async with network.enter() as one, network.enter() as two:
        for node, other in ((one, two), (two, one)):
            for _ in range(3):
                await node.post(other.key, b"%d" % (count - 1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handle, one, two)
            nursery.start_soon(handle, two, one)
    assert trio.current_time() < 30


async def test_a_full_outbox_makes_send_wait(network: Network) -> None:
    async with network.enter(outbox_bytes=10_000) as one, network.enter() as two:
        for _ in range(4):
            await one.post(two.key, bytes(2_000))
        with trio.move_on_after(1) as scope:
            await one.post(two.key, bytes(2_000))
        assert scope.cancelled_caught
        await take(two, 1)
        await one.post(two.key, bytes(2_000))
        assert one.statistics().reliable_bytes < 10_000
        assert len(await take(two, 4)) == 4
        with pytest.raises(PayloadTooLarge):
            await one.post(two.key, bytes(one.limits.payload_bytes))


async def test_manual_acknowledgement(network: Network) -> None:
    async with network.enter() as one, network.enter(ack="manual") as two:
        deliveries = [await one.post(two.key, b"%d" % number) for number in range(3)]
        messages = [await anext(two) for _ in range(3)]
        await trio.sleep(5)
        assert [delivery.outcome for delivery in deliveries] == [None, None, None]
        assert all(delivery.is_held for delivery in deliveries)
        two.ack(messages[2])
        await deliveries[2].wait()
        two.ack(messages[0])
        await deliveries[0].wait()
        assert deliveries[1].outcome is None
        two.ack(messages[1])
        await deliveries[1].wait()
        await one.send(two.key, b"plain")
        two.ack(await anext(two))


async def test_a_receiver_that_starts_anew_gets_the_rest(network: Network) -> None:
    identity = Identity.from_seed(bytes(31) + b"\2")
    async with network.enter() as one:
        deliveries = []
        for run in range(3):
            async with network.enter(identity=identity) as two:
                deliveries += [await one.post(two.key, b"%d" % (2 * run + number)) for number in range(2)]
                assert await take(two, 1) == [b"%d" % run]
                await trio.sleep(1)
        async with network.enter(identity=identity) as two:
            assert await take(two, 3) == [b"3", b"4", b"5"]
            for delivery in deliveries:
                await delivery.wait()


async def test_a_sender_that_starts_anew_begins_a_new_stream(network: Network) -> None:
    identity = Identity.from_seed(bytes(31) + b"\3")
    async with network.enter() as two:
        for run in range(3):
            await trio.sleep(1)
            async with network.enter(identity=identity) as one, trio.open_nursery() as nursery:
                nursery.start_soon(lambda one=one: one.send(two.key, b"again", reliable=True))
                assert await take(two, 1) == [b"again"], run


async def test_what_was_taken_is_acknowledged_before_a_node_closes(network: Network) -> None:
    async with network.enter() as one:
        async with network.enter() as two:
            delivery = await one.post(two.key, b"last words")
            await take(two, 1)
        await delivery.wait()


async def test_what_is_open_ends_with_the_node(network: Network) -> None:
    async with network.enter() as one:
        delivery = await one.post(STRANGER, b"?")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.aclose)
            with pytest.raises((Expired, OutcomeUnknown)):
                await delivery.wait()
        with pytest.raises(ConnectionEnded):
            await one.post(STRANGER, b"?")
        with pytest.raises(ValueError, match="expires_s"):
            await one.post(STRANGER, b"?", expires_s=1e9)


async def _serve(node: Node, count: int) -> None:
    for _ in range(count):
        message = await anext(node)
        if message.payload == b"fail":
            await node.reply_error(message, "cannot")
        else:
            await node.reply(message, message.payload * 2)


async def test_requests_survive_what_messages_survive(network: Network) -> None:
    async with network.enter() as one, network.enter() as two, trio.open_nursery() as nursery:
        nursery.start_soon(_serve, two, 21)
        for number in range(20):
            asked = trio.Event()
            answers = []

            async def ask(number: int = number) -> None:
                answers.append(await one.request(two.key, b"%d" % number, timeout_s=60, reliable=True))  # noqa: B023
                asked.set()  # noqa: B023

            nursery.start_soon(ask)
            await trio.sleep(0.001 * number)
            await network.restart()
            await asked.wait()
            assert answers == [b"%d" % number * 2]
        with pytest.raises(RequestFailed, match="cannot"):
            await one.request(two.key, b"fail", reliable=True)


async def test_a_request_to_nobody_times_out(network: Network) -> None:
    async with network.enter() as one, network.enter(is_offered=False) as two:
        with pytest.raises(RequestTimeout, match="no answer in 10 s"):
            await one.request(STRANGER, b"?", reliable=True)
        with pytest.raises(Declined):
            await one.request(two.key, b"?", reliable=True)
        await one.flush()


async def test_reliable_and_plain_messages_share_a_flush(network: Network) -> None:
    async with network.enter() as one, network.enter() as two:
        await one.post(two.key, b"reliable")
        await one.send(two.key, b"plain")
        await trio.sleep(0.1)
        assert sorted(await take(two, 2)) == [b"plain", b"reliable"]
        await one.flush()
        await one.post(two.key, b"reliable")
        await trio.sleep(0.01)
        network.cut()
        await trio.sleep(0.1)
        await one.flush()  # nothing is unknown but what the endpoints repair


async def test_messages_to_oneself(network: Network) -> None:
    async with network.enter() as one, anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: one.send(one.key, b"note", reliable=True))
        assert await take(one, 1) == [b"note"]


async def test_a_relay_that_is_gone_for_long(network: Network) -> None:
    async with network.enter() as one, network.enter() as two, trio.open_nursery() as nursery:
        network.kill()
        await trio.sleep(0.01)
        deliveries = [await one.post(two.key, b"%d" % number, expires_s=300) for number in range(100)]
        short = await one.post(two.key, b"short", expires_s=20)
        with pytest.raises(Expired):
            await short.wait()
        await trio.sleep(60)
        nursery.start_soon(network.start)
        assert await take(two, 100) == [b"%d" % number for number in range(100)]
        for delivery in deliveries:
            await delivery.wait()


# ---- rooms -------------------------------------------------------------------------------------------


async def reliable_gaps(node: Node) -> list[GapReport]:
    """The gaps of reliable messages that were reported so far."""
    told = []
    events = node.events()
    with trio.move_on_after(0.01):
        while True:
            told.append(await anext(events))
    return [event for event in told if isinstance(event, GapReport) and event.sequences is not None]


async def test_what_is_published_survives_cuts_and_restarts_of_the_relay(network: Network) -> None:
    count = 200
    async with (
        network.enter("room") as one,
        network.enter("room") as two,
        network.enter("room") as three,
        trio.open_nursery() as nursery,
    ):
        nodes = (one, two, three)
        taken: dict[bytes, dict[bytes, list[int]]] = {node.key: {} for node in nodes}

        async def publish(node: Node) -> None:
            for number in range(count):
                await node.publish("room", b"%d" % number, reliable=True)
                await trio.sleep(0.2)

        async def receive(node: Node) -> None:
            async for message in node:
                taken[node.key].setdefault(message.sender, []).append(int(message.payload))

        for node in nodes:
            await node.publish("room", b"-1", reliable=True)
        for node in nodes:
            nursery.start_soon(receive, node)
        await trio.sleep(1)
        async with trio.open_nursery() as work:
            for node in nodes:
                work.start_soon(publish, node)
            chance = random.Random(11)
            for _ in range(8):
                await trio.sleep(chance.random() * 6)
                network.cut() if chance.random() < 0.4 else await network.restart()
        await trio.sleep(20)
        for node in nodes:
            everything = {other.key: list(range(-1, count)) for other in nodes if other is not node}
            assert taken[node.key] == everything
            assert await reliable_gaps(node) == []
        nursery.cancel_scope.cancel()


async def test_what_cannot_be_repaired_is_one_gap(network: Network) -> None:
    async with network.enter("room", ring_bytes=1_000) as one, network.enter("room") as two:
        await one.publish("room", b"0", reliable=True)
        assert await take(two, 1) == [b"0"]
        two._link._transport._incoming.data.clear()  # type: ignore[union-attr]
        network.cut()
        await trio.sleep(0.01)
        async with network.enter("room"):  # somebody is there to publish to
            while not one.is_connected or two.is_connected:
                await trio.sleep(0.01)
                if two.is_connected:
                    network._ends[-1][1].close()
            for number in range(1, 30):
                await one.publish("room", b"%d" % number + bytes(100), reliable=True)
            await one.flush()
        payloads = [int(payload.rstrip(b"\0")) for payload in await take(two, 4)]
        gaps = await reliable_gaps(two)
        assert payloads == [26, 27, 28, 29]
        assert [(gap.room, gap.sender, gap.sequences, gap.count) for gap in gaps] == [
            ("room", one.key, range(2, 27), 25)
        ]


async def test_the_last_message_is_not_lost(network: Network) -> None:
    async with network.enter("room") as one, network.enter("room") as two, network.enter("room"):
        await one.publish("room", b"first", reliable=True)
        assert await take(two, 1) == [b"first"]
        await one.publish("room", b"last", reliable=True)
        await trio.lowlevel.checkpoint()
        network.kill()
        await trio.sleep(3)
        await network.start()
        started = trio.current_time()
        assert await take(two, 1) == [b"last"]
        assert trio.current_time() - started < 10


async def test_reliable_and_plain_messages_to_a_room(network: Network) -> None:
    async with network.enter("room") as one, network.enter("room") as two, network.enter() as guest:
        await guest.publish("room", b"from outside", reliable=True)
        messages = [await anext(node) for node in (one, two)]
        assert [(m.room, m.is_reliable, m.payload) for m in messages] == [("room", True, b"from outside")] * 2
        await one.publish("room", b"plain", wait=True)
        await one.publish("room", b"reliable", wait=True, reliable=True)
        assert await take(two, 2) == [b"plain", b"reliable"]
        await two.leave("room")
        await one.leave("room")
        await trio.sleep(300)  # marks to an empty room bother nobody
        await one.flush()
        await one.publish("room", b"?", reliable=True)
        with pytest.raises(NoMembers):
            await one.flush()


# ---- sealed ------------------------------------------------------------------------------------------


async def test_sealed_messages(network: Network) -> None:
    async with network.enter() as one, network.enter() as two, trio.open_nursery() as nursery:
        await one.send(two.key, b"secret", sealed=True)
        message = await anext(two)
        assert (message.payload, message.is_sealed, message.is_reliable) == (b"secret", True, False)
        nursery.start_soon(lambda: one.send(two.key, b"certain", sealed=True, reliable=True))
        message = await anext(two)
        assert (message.payload, message.is_sealed, message.is_reliable) == (b"certain", True, True)
        await one.send(two.key, b"open")
        assert not (await anext(two)).is_sealed
        with pytest.raises(AddressError, match="cannot seal"):
            await one.send(bytes(32), b"?", sealed=True)
        with pytest.raises(AddressError, match="cannot seal"):
            await one.post(bytes(32), b"?", sealed=True)


async def test_sealed_requests(network: Network) -> None:
    async with network.enter() as one, network.enter() as two, trio.open_nursery() as nursery:
        nursery.start_soon(_serve, two, 2)
        assert await one.request(two.key, b"a", sealed=True) == b"aa"
        assert await one.request(two.key, b"b", sealed=True, reliable=True) == b"bb"
        with pytest.raises(NoSuchPeer):
            await one.request(STRANGER, b"?", sealed=True)


async def test_what_a_relay_makes_of_sealed_messages_is_ignored(network: Network) -> None:
    async with network.enter() as one, network.enter() as two:
        delivered: list[Deliver] = []
        on_deliver = two._on_deliver

        def tamper(message: Deliver) -> None:
            if message.content not in (Content.SEALED, Content.RELIABLE):
                return on_deliver(message)
            delivered.append(message)
            on_deliver(evolve(message, sender=STRANGER))
            on_deliver(evolve(message, payload=message.payload[:-1] + bytes((message.payload[-1] ^ 1,))))
            on_deliver(evolve(message, traffic_class=2))
            on_deliver(message)
            return on_deliver(message)

        two._link._handle = lambda message: (tamper if isinstance(message, Deliver) else two._on_message)(message)  # type: ignore[union-attr]
        await one.send(two.key, b"secret", sealed=True)
        await one.flush()
        assert await take(two, 1) == [b"secret"]
        assert two.statistics().ignored_messages == 4
        delivery = await one.post(two.key, b"certain", sealed=True, expires_s=5)
        with pytest.raises(OutcomeUnknown):  # the relay has put something else in its place
            await delivery.wait()
        assert len(delivered) >= 2
        assert await _nothing_arrives(two)
