"""Nodes and a relay in one process, over connections in memory and under a virtual clock."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from awesomeconnect.client import ClientSettings, Connected, Disconnected, connect
from awesomeconnect.config import RelaySettings
from awesomeconnect.identity import Identity, RelayAddress
from awesomeconnect.server import Relay
from awesomeconnect.wire.messages import Close, Hello, Publish
from tests.support.memory import MemoryTransport, memory_pair
from tests.support.scripted import ScriptedRelay

IDENTITY = Identity.from_seed(bytes(range(32)))
ADDRESS = RelayAddress(IDENTITY.public_key, "relay.invalid")


def _run(main: Callable[[], Awaitable[Any]], **options: Any) -> Any:
    return trio.run(main, **{**options, "clock": trio.testing.MockClock(autojump_threshold=0)})


in_virtual_time = pytest.mark.trio(run=_run)


class Network:
    """Leads every node to one relay, and can be cut."""

    def __init__(self) -> None:
        self.relay = Relay(IDENTITY, RelaySettings())
        self.ends: list[MemoryTransport] = []
        self.settings = ClientSettings(dial=self.dial, random=random.Random(1).random)

    async def dial(self, address: RelayAddress) -> MemoryTransport:
        await trio.lowlevel.checkpoint()
        ours, theirs = memory_pair()
        self.relay.connect(theirs)
        self.ends.append(theirs)
        return ours

    def cut(self) -> None:
        """End all connections without a word."""
        ends, self.ends = self.ends, []
        for end in ends:
            end.close()


@pytest.fixture
async def network(nursery: trio.Nursery) -> Network:
    network = Network()
    await nursery.start(network.relay.serve)
    return network


@in_virtual_time
async def test_idle_nodes_stay_connected(network: Network) -> None:
    async with (
        connect(ADDRESS, rooms=["room"], settings=network.settings) as one,
        connect(ADDRESS, rooms=["room"], settings=network.settings) as two,
    ):
        await trio.sleep(3_600)
        await one.publish("room", b"still here")
        assert (await anext(two)).payload == b"still here"
        for hour in range(60):  # one only talks, the other only listens
            await trio.sleep(59)
            await one.publish("room", b"%d" % hour)
            await anext(two)
        assert one.statistics().connections == two.statistics().connections == 1


@in_virtual_time
async def test_a_relay_that_falls_silent_is_left_in_time(network: Network) -> None:
    async with connect(ADDRESS, settings=network.settings) as node:
        started = trio.current_time()
        network.ends[-1]._outgoing.capacity_bytes = 0  # whatever the relay says is stuck
        async for event in node.events():
            if isinstance(event, Disconnected):
                break
        assert 60 <= trio.current_time() - started <= 65
        await node.ping()


@in_virtual_time
async def test_a_slow_connection_is_closed_when_all_has_left(script: ScriptedRelay) -> None:
    async with trio.open_nursery() as nursery:

        async def trickle() -> None:
            for _ in range(5):
                await trio.sleep(4)
                script.transport.change(room_bytes=70_000)

        async with connect(script.address, settings=ClientSettings(dial=script.dial)) as node:
            script.transport.change(room_bytes=0)
            for _ in range(3):
                await node.publish("room", bytes(100_000))
            nursery.start_soon(trickle)
    assert [type(message) for message in script.heard] == [Hello, Publish, Publish, Publish, Close]


@in_virtual_time
async def test_cuts_are_survived(network: Network) -> None:
    async with (
        connect(ADDRESS, rooms=["room"], settings=network.settings) as one,
        connect(ADDRESS, rooms=["room"], settings=network.settings) as two,
    ):
        events = [one.events(), two.events()]
        for cut in range(20):
            for reader in events:  # whoever is connected is in its room
                while not isinstance(await anext(reader), Connected):
                    pass
            await one.publish("room", b"%d" % cut)
            assert (await anext(two)).payload == b"%d" % cut
            network.cut()
