"""A relay asks its nodes to go, and they move: another one lets them in before they leave the first."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from awesomeconnect.client import ClientSettings, Connected, Event, GoingAway, Moved, Node, connect
from awesomeconnect.client.reconnect import move_delay_s
from awesomeconnect.client.transport import Transport
from awesomeconnect.errors import ErrorCode, NoMembers, OutcomeUnknown
from awesomeconnect.identity import Identity, RelayAddress
from awesomeconnect.wire.messages import (
    Close,
    Deliver,
    Goaway,
    Hello,
    Join,
    Joined,
    Mode,
    Publish,
    Reject,
    Send,
)
from tests.client.conftest import AT_ONCE, patiently
from tests.support.relay import ThreadedRelay
from tests.support.scripted import ScriptedRelay

pytestmark = pytest.mark.anyio

PEER = bytes(32)
GO = Goaway(ErrorCode.DRAINING, 0, 0)


class Two:
    """Two scripted relays: the node is at the first."""

    def __init__(self) -> None:
        self.first, self.second = ScriptedRelay(), ScriptedRelay()
        self.second.address = RelayAddress(self.second.identity.public_key, "second.invalid")

    async def dial(self, address: RelayAddress) -> Transport:
        return await (self.first if address == self.first.address else self.second).dial(address)

    @asynccontextmanager
    async def enter(self, *rooms: str, one: bool = False, **settings: Any) -> AsyncIterator[Node]:
        addresses = [self.first.address] if one else [self.first.address, self.second.address]
        every = ClientSettings(dial=self.dial, **{**AT_ONCE, **settings})
        async with patiently(connect(addresses, rooms=rooms, settings=every)) as node:
            yield node


@pytest.fixture
def two() -> Two:
    return Two()


async def seen(node: Node, kind: type[Event]) -> list[Event]:
    """The events up to the first of a kind."""
    events: list[Event] = []
    async for event in node.events():
        events.append(event)
        if isinstance(event, kind):
            break
    return events


async def test_the_next_relay_lets_it_in_before_it_leaves(two: Two) -> None:
    async with two.enter("a") as node:
        two.second.welcomes = False
        two.first.say(GO)
        hello = await two.second.expect(Hello)
        assert [intent.room for intent in hello.rooms] == ["a"]
        await node.publish("a", b"meanwhile")
        assert (await two.first.expect(Publish)).payload == b"meanwhile"
        assert Close not in map(type, two.first.heard)
        two.second.welcome(hello)
        await two.first.expect(Close)
        assert [type(event) for event in await seen(node, Moved)] == [Connected, GoingAway, Moved]
        assert node.relay == two.second.address
        await node.publish("a", b"afterwards")
        assert (await two.second.expect(Publish)).payload == b"afterwards"
        await node.flush()


async def test_what_the_first_relay_still_has_arrives(two: Two) -> None:
    two.first.answers_close = False
    async with two.enter("a") as node:
        two.first.say(GO)
        await two.first.expect(Close)
        two.first.say(Deliver(Mode.BROADCAST, PEER, "a", 1, 0, b"late"), Close())
        assert (await anext(node)).payload == b"late"


async def test_what_has_left_in_part_is_taken_back_and_goes_to_the_next(two: Two) -> None:
    async with two.enter("a") as node:
        await node.publish("a", bytes(100), traffic_class=5)
        await two.first.expect(Publish)
        two.first.transport.change(room_bytes=100_000)
        await node.publish("a", bytes(400_000), traffic_class=0)
        await node.publish("a", b"behind it", traffic_class=0)
        await anyio.wait_all_tasks_blocked()
        assert two.first.connection.fragments.held_bytes > 0
        two.first.say(GO)
        await two.second.expect(Hello)
        await anyio.wait_all_tasks_blocked()
        two.first.transport.change(room_bytes=None)
        await two.first.expect(Close)
        assert two.first.connection.fragments.held_bytes == 0
        assert [type(message) for message in two.first.heard] == [Hello, Publish, Close]
        assert (await two.second.expect(Publish)).payload == bytes(400_000)
        assert (await two.second.expect(Publish)).payload == b"behind it"
        await node.flush()
        assert node.statistics().queued_messages == 0


async def test_verdicts_of_the_first_relay_still_count(two: Two) -> None:
    two.first.answers_close = False
    async with two.enter() as node:
        await node.publish("nobody there", b"1")
        await two.first.expect(Publish)
        two.first.say(GO)
        await two.first.expect(Close)
        receipt = await node.publish("b", b"2")
        two.first.say(Reject(1, 1, ErrorCode.NO_MEMBERS), Close())
        with pytest.raises(NoMembers) as refused:
            await node.flush()
        assert refused.value.ordinals == range(1, 2)
        assert (receipt.ordinal, receipt.connection) == (1, 2)


async def test_a_first_relay_that_never_answers_is_given_up(two: Two) -> None:
    two.first.answers_close = False
    async with two.enter(closing_s=0.01) as node:
        await node.send(PEER, b"1")
        await two.first.expect(Send)
        two.first.say(GO)
        await two.first.expect(Close)
        with pytest.raises(OutcomeUnknown):
            await node.flush()
        await two.first.closed()
        assert node.relay == two.second.address


async def test_a_request_is_answered_across_the_move(two: Two) -> None:
    two.first.answers_close = False
    async with two.enter() as node, anyio.create_task_group() as tasks:
        answers: list[bytes] = []

        async def ask() -> None:
            answers.append(await node.request(PEER, b"question"))

        tasks.start_soon(ask)
        request = await two.first.expect(Send)
        two.first.say(GO)
        await two.first.expect(Close)
        answer = request.payload[:8] + b"\0answer"
        two.first.say(Deliver(Mode.UNICAST, PEER, None, 1, 5, answer), Close())
        with anyio.fail_after(5):
            while not answers:
                await anyio.lowlevel.checkpoint()
        assert answers == [b"answer"]


async def test_rooms_joined_meanwhile_are_joined_there(two: Two) -> None:
    async with two.enter("a") as node:
        two.second.welcomes = False
        two.first.say(GO)
        hello = await two.second.expect(Hello)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(node.join, "b")
            await two.first.expect(Join, room="b")
            two.second.welcome(hello)
            await two.second.expect(Join, room="b")
            two.second.say(Joined("b", 1, 1, 0))


async def test_it_stays_where_nobody_else_takes_it(two: Two) -> None:
    async with two.enter("a") as node:
        two.second.refuses = ConnectionRefusedError(111, "Connection refused")
        two.first.say(GO)
        await seen(node, GoingAway)
        await anyio.wait_all_tasks_blocked()
        await node.publish("a", b"still here")
        await two.first.expect(Publish)


@pytest.mark.parametrize("follows", [False, True])
async def test_a_relay_that_the_first_one_names(two: Two, follows: bool) -> None:
    async with two.enter(one=True, follows_alternates=follows) as node:
        two.first.say(Goaway(ErrorCode.DRAINING, 0, 0, ("no address", str(two.second.address))))
        await seen(node, Moved if follows else GoingAway)
        assert node.relay == (two.second if follows else two.first).address


async def test_a_session_that_is_too_old_is_left_in_order_and_made_anew(two: Two) -> None:
    async with two.enter("a", one=True) as node:
        await node.publish("a", b"1")
        two.first.say(Goaway(ErrorCode.SESSION_TOO_OLD, 0, 0))
        events = node.events()
        while not isinstance(await anext(events), GoingAway):
            pass
        while not isinstance(await anext(events), Connected):
            pass
        await node.flush()
        assert len(two.first.hellos) == 2


async def test_a_relay_that_asks_again_does_not_make_it_move_twice(two: Two) -> None:
    async with two.enter("a") as node:
        two.second.welcomes = False
        two.first.say(GO)
        hello = await two.second.expect(Hello)
        two.first.say(GO)
        await anyio.wait_all_tasks_blocked()
        two.second.welcome(hello)
        await two.first.expect(Close)
        await seen(node, Moved)
        await node.flush()
        assert len(two.second.hellos) == 1


async def test_closing_while_it_moves(two: Two) -> None:
    async with two.enter("a"):
        two.second.welcomes = False
        two.first.say(GO)
        await two.second.expect(Hello)
    assert two.first.transport.is_closed


def test_the_time_to_leave_lies_in_the_window() -> None:
    delays = [move_delay_s(bytes([n]) * 32, b"epoch..!", 8) for n in range(100)]
    assert 0 <= min(delays) < 1
    assert 5 < max(delays) < 6
    assert move_delay_s(PEER, b"epoch..!", 1e9) <= 450
    assert move_delay_s(PEER, b"epoch..!", 8) == move_delay_s(PEER, b"epoch..!", 8)


async def test_a_drain_loses_nothing() -> None:
    """Real relays: whatever one of them delivered has arrived, and none had to drop anything."""
    first, second = ThreadedRelay(drain_s=2), ThreadedRelay()
    first.start()
    second.start()
    received = 0
    try:
        async with anyio.create_task_group() as tasks:
            nodes = [
                await _enter(tasks, [first.address, second.address], Identity.from_seed(bytes([n]) * 32))
                for n in range(6)
            ]

            async def read(node: Node) -> None:
                nonlocal received
                async for _message in node:
                    received += 1

            async def publish(node: Node) -> None:
                while True:
                    for _ in range(20):
                        await node.publish("room", bytes(1_000))
                    await anyio.sleep(0.001)

            for node in nodes:
                tasks.start_soon(read, node)
            async with anyio.create_task_group() as publishing:
                for node in nodes[:2]:
                    publishing.start_soon(publish, node)
                await anyio.to_thread.run_sync(first.drain)
                for node in nodes:
                    await seen(node, Moved)
                publishing.cancel_scope.cancel()
            for node in nodes[:2]:
                try:
                    await node.flush()
                except* NoMembers:
                    pass  # it moved before all others
            traffic = [first._relay.traffic, second._relay.traffic]
            delivered = sum(one.delivered_messages for one in traffic)
            assert traffic[0].delivered_messages > 0
            assert sum(one.receiver_gone_messages + one.gap_messages for one in traffic) == 0
            with anyio.move_on_after(10):
                while received < delivered:  # noqa: ASYNC110 - nothing tells of it
                    await anyio.sleep(0.01)
            assert received == delivered
            tasks.cancel_scope.cancel()
    finally:
        first.kill()
        second.kill()


async def _enter(tasks: Any, addresses: list[str], identity: Identity) -> Node:
    async def live(*, task_status: Any) -> None:
        async with connect(
            addresses, identity=identity, rooms=["room"], settings=ClientSettings(**AT_ONCE)
        ) as node:
            task_status.started(node)
            await anyio.sleep_forever()

    node: Node = await tasks.start(live)
    return node
