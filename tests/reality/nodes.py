"""Nodes on real sockets that exchange numbered messages, and record what happens to them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import trio

from awesomeconnect.client import ClientSettings, Node, connect
from awesomeconnect.client.delivery import Delivery
from awesomeconnect.client.reconnect import Process
from awesomeconnect.client.waiting import Signal
from awesomeconnect.errors import AwesomeConnectError, LinkError, OutcomeUnknown, Refused
from awesomeconnect.identity import Identity, RelayAddress
from tests.simulation.history import Event, History, Sent, Up
from tests.simulation.programs import OUTCOMES
from tests.simulation.recorder import event_record, message_record

#: How long a reliable message is tried: longer than any outage of a test.
EXPIRES_S = 60.0


class Crowd:
    """All nodes of a test, in one process and event loop.

    Attributes:
        history: what they recorded.
        talkers: the nodes.
        is_talking: whether they send; ends for good.
        changed: a node is connected, or done.
    """

    def __init__(self, addresses: Sequence[RelayAddress], nodes: int, rooms: int, between_s: float) -> None:
        self.addresses = list(addresses)
        self.history = History()
        self.rooms = [f"room-{number}" for number in range(rooms)]
        self.is_talking = True
        self.between_s = between_s
        self.closing = trio.Event()
        self.changed = Signal()
        self.receipts: list[tuple[Sent, Any]] = []
        self.talkers = [Talker(self, f"node-{number}", self.rooms[number % rooms]) for number in range(nodes)]
        self.key_names = {talker.identity.public_key: talker.name for talker in self.talkers}

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Connect all, then let them talk until they are to leave."""
        async with trio.open_nursery() as nursery:
            for talker in self.talkers:
                await nursery.start(talker.run)
            task_status.started()

    def finish_record(self) -> None:
        """Fill in where messages left."""
        for sent, receipt in self.receipts:
            sent.connection, sent.ordinal = receipt.connection or 0, receipt.ordinal or 0


class Talker:
    """A node.

    Attributes:
        connected_at: when it was connected last.
        is_done: it has sent its last message, and has the verdicts.
    """

    def __init__(self, crowd: Crowd, name: str, room: str) -> None:
        self.name = name
        self.room = room
        self.identity = Identity.generate()
        self.node: Node | None = None
        self.connected_at = 0.0
        self.is_done = False
        self._sequences: dict[int, int] = {}  # of reliable messages to the room, by class
        self._crowd = crowd

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Be connected until the crowd is to leave."""
        crowd = self._crowd
        crowd.history.begin(self.name, self.name)
        crowd.history.homes[self.name] = (self.room,)
        settings = ClientSettings(kept_events=1 << 16, kept_problems=1 << 16, process=Process())
        async with connect(crowd.addresses, identity=self.identity, rooms=[self.room], settings=settings) as node:
            self.node = node
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._follow, node)
                nursery.start_soon(self._listen, node)
                task_status.started()
                if crowd.between_s:
                    nursery.start_soon(self._talk, node)
                await crowd.closing.wait()
                nursery.cancel_scope.cancel()

    async def _follow(self, node: Node) -> None:
        async for event in node.events():
            now = trio.current_time()
            record = event_record(event, now, self.name, [self.room], self._crowd.key_names)
            if record is not None:
                self._note(record)
            if isinstance(record, Up):
                self.connected_at = now
                self._crowd.changed.notify()

    async def _listen(self, node: Node) -> None:
        crowd = self._crowd
        async for message in node:
            now = trio.current_time()
            self._note(message_record(message, now, self.name, crowd.history, crowd.key_names))

    async def _talk(self, node: Node) -> None:
        async with trio.open_nursery() as outcomes:
            await self._send_all(node, outcomes)
        self.is_done = True
        self._crowd.changed.notify()

    async def _send_all(self, node: Node, outcomes: trio.Nursery) -> None:
        crowd, number = self._crowd, 0
        waiting: list[Sent] = []
        while crowd.is_talking:
            await trio.sleep(random.expovariate(1 / crowd.between_s))
            for _ in range(random.choice((1, 1, 2, 8))):
                number += 1
                waiting.append(await self._send_one(node, number, outcomes))
            if random.random() < 0.3:
                await self._flush(node, waiting)
                waiting = []
        number += 1
        waiting.append(await self._send_one(node, number, outcomes))
        await self._flush(node, waiting)

    async def _send_one(self, node: Node, number: int, outcomes: trio.Nursery) -> Sent:
        crowd = self._crowd
        traffic_class = random.choice((0, 1, 3))
        payload = crowd.history.payload((self.name, number), random.choice((20, 100, 1_000, 20_000)))
        mode = random.choice(("room", "peer"))
        target = self.room if mode == "room" else random.choice(crowd.talkers).name
        is_reliable = random.random() < 0.5
        sent = Sent(trio.current_time(), self.name, number, target, mode, traffic_class, is_reliable=is_reliable)
        crowd.history.sent[sent.name] = sent
        if mode == "room":
            if is_reliable:
                sent.sequence = self._sequences[traffic_class] = self._sequences.get(traffic_class, 0) + 1
            receipt = await node.publish(self.room, payload, traffic_class=traffic_class, reliable=is_reliable)
        else:
            key = next(key for key, name in crowd.key_names.items() if name == target)
            if is_reliable:
                delivery = await node.post(key, payload, traffic_class=traffic_class, expires_s=EXPIRES_S)
                sent.expires_at = trio.current_time() + EXPIRES_S
                outcomes.start_soon(self._await_outcome, sent, delivery)
                return sent
            receipt = await node.send(key, payload, traffic_class=traffic_class)
        crowd.receipts.append((sent, receipt))
        return sent

    async def _await_outcome(self, sent: Sent, delivery: Delivery) -> None:
        outcome = "delivered"
        try:
            await delivery.wait()
        except AwesomeConnectError as error:
            outcome = OUTCOMES.get(type(error), "refused")
        sent.outcome, sent.outcome_at = outcome, trio.current_time()

    async def _flush(self, node: Node, waiting: list[Sent]) -> None:
        is_known = True
        try:
            await node.flush()
        except* (OutcomeUnknown, LinkError):
            is_known = False
        except* Refused:
            pass
        for sent in waiting if is_known else ():
            sent.settled_at = trio.current_time()

    def _note(self, event: Event) -> None:
        self._crowd.history.events.append(event)
