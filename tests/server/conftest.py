"""A relay under a virtual clock, and nodes that reach it through memory."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from awesomeconnect.config import RelaySettings
from awesomeconnect.identity import Identity
from awesomeconnect.server import Relay
from awesomeconnect.wire.framing import FRAME_OVERHEAD_BYTES
from awesomeconnect.wire.messages import Incarnation, RoomIntent
from tests.support.memory import MemoryTransport, memory_pair
from tests.support.node import Node

IDENTITY = Identity.from_seed(bytes(range(32)))
EPOCH = b"epoch 01"


def _run(main: Callable[[], Awaitable[Any]], **options: Any) -> Any:
    core: Any = trio._core._run
    core._ALLOW_DETERMINISTIC_SCHEDULING, core._r = True, random.Random(0)
    try:
        return trio.run(main, **{**options, "clock": trio.testing.MockClock(autojump_threshold=0)})
    finally:
        core._ALLOW_DETERMINISTIC_SCHEDULING, core._r = False, random.Random()


#: Runs a test in virtual time, which jumps when everybody waits, and in the same order each time.
in_virtual_time = pytest.mark.trio(run=_run)


class House:
    """A relay that serves, and what tests do with it.

    Attributes:
        relay: the relay.
    """

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self._visitors = 0

    def dial(self, capacity_bytes: int = 1 << 16) -> MemoryTransport:
        """A new connection: the client's end."""
        ours, theirs = memory_pair(capacity_bytes, peer=f"memory:{len(self.relay.sessions)}")
        self.relay.connect(theirs)
        return ours

    def visitor(self, capacity_bytes: int = 1 << 16, identity: Identity | None = None) -> Node:
        """A node that has said nothing yet. The first has key seed 1, the second 2, …"""
        self._visitors += 1
        identity = identity or Identity.from_seed(self._visitors.to_bytes(32, "big"))
        return Node(self.dial(capacity_bytes), IDENTITY.public_key, identity)

    async def node(
        self,
        *rooms: str | RoomIntent,
        capacity_bytes: int = 1 << 16,
        identity: Identity | None = None,
        attributes: dict[str, Any] | None = None,
        incarnation: Incarnation | None = None,
        number: int = 1,
    ) -> Node:
        """A node that was let in and has joined these rooms."""
        node = self.visitor(capacity_bytes, identity)
        await node.enter(*rooms, attributes=attributes, incarnation=incarnation, number=number)
        return node


Opener = Callable[..., Awaitable[House]]


@pytest.fixture
def open_house(nursery: trio.Nursery) -> Opener:
    """Starts a relay; settings are those of `RelaySettings`."""

    async def start(**settings: Any) -> House:
        if "egress" in settings:  # small queues hold small messages only
            settings.setdefault(
                "payload_bytes", min(1 << 20, settings["egress"].class_bytes - FRAME_OVERHEAD_BYTES)
            )
        relay = Relay(IDENTITY, RelaySettings(**settings), random_bytes=lambda _size: EPOCH)
        await nursery.start(relay.serve)
        return House(relay)

    return start
