"""The programs in the simulation: relays, and nodes that talk, listen, crash and are started again.

A program has a name and a key; every run of it is a process of its own, on a host of its own.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import trio
from attrs import define

from awesomeconnect.client import Message, Node, connect
from awesomeconnect.client.delivery import Delivery
from awesomeconnect.client.reconnect import Process
from awesomeconnect.errors import AwesomeConnectError, Declined, Expired, LinkError, OutcomeUnknown
from awesomeconnect.errors import Refused as Refusals
from awesomeconnect.identity import Identity, RelayAddress
from awesomeconnect.server import Relay
from tests.simulation.history import Asked, Entered, Leaving, Sent
from tests.simulation.network import End, Host
from tests.simulation.recorder import event_record, message_record

if TYPE_CHECKING:
    from tests.simulation.world import World

#: A relay's name in addresses; the network knows who listens there.
DOMAIN = "relay.invalid"
#: Sizes of messages: mostly small, some that travel in fragments.
SIZES = (6, 20, 20, 60, 60, 200, 200, 700, 3_000, 9_000, 20_000, 30_000)
SMALL = 8  # so many of the sizes are drawn most of the time
#: An answer to a request that did not come after this is a timeout.
REQUEST_S = 8.0
#: Mean time between changes of rooms.
WANDERS_S = 1.5
#: How long a reliable message is tried: too short for an outage, or long enough for most.
EXPIRES_S = (1.0, 10.0, 60.0, 150.0)
OUTCOMES: dict[type, str] = {Expired: "expired", OutcomeUnknown: "unknown", Declined: "declined"}
#: Messages from the handler of another message have a class of their own, and numbers from here on.
HANDLER_CLASS, HANDLER_NUMBERS = 4, 10_000
#: A service manager starts a process that ended by itself again after up to this.
RESTART_S = 3.0


class Daemon:
    """A relay: a key, a place, and the processes that serve there, one after the other.

    Attributes:
        relay: that of the process which serves now; None while none does.
        host: where it runs.
        place: where it listens, or will.
    """

    def __init__(self, world: World, name: str, place: str) -> None:
        self.name = name
        self.place = place
        self.identity = Identity.from_seed(world.source(name).randbytes(32))
        self.relay: Relay | None = None
        self.host: Host | None = None
        self.runs = 0
        self._world = world
        self._ended = trio.Event()

    def address(self, place: str) -> RelayAddress:
        """What nodes dial when this relay is at a place."""
        return RelayAddress(self.identity.public_key, f"{place}.{DOMAIN}")

    @property
    def is_up(self) -> bool:
        """Whether a process serves."""
        return self.relay is not None and self.host is not None and self.host.is_on

    async def start(self) -> None:
        """Start a process; returns when it serves."""
        world = self._world
        self.runs += 1
        name = f"{self.name}/{self.runs}"
        self.host = Host(name, world.network)
        self.relay = Relay(self.identity, world.relay_settings, random_bytes=world.source(name).randbytes)
        self._ended = trio.Event()
        world.trace("starts", name, place=self.place)
        await world.nursery.start(self._serve, self.host, self.relay, self._ended)

    async def drain(self) -> None:
        """SIGTERM; returns when the process has ended."""
        self.begin_drain()
        await self.wait_ended()

    def begin_drain(self) -> None:
        """SIGTERM; another process may be started meanwhile."""
        if self.host is not None and self.relay is not None and self.host.is_on:
            self._world.trace("drains", self.host.name)
            self._world.network.forsake(self.place, self.host)
            self._world.nursery.start_soon(self.relay.drain)

    async def wait_ended(self) -> None:
        """Return when the process has ended."""
        await self._ended.wait()

    async def _serve(
        self, host: Host, relay: Relay, ended: trio.Event, *, task_status: trio.TaskStatus[None]
    ) -> None:
        def accept(end: End) -> None:
            if host.is_on:
                relay.connect(end)

        with trio.CancelScope() as scope:
            host.died = scope.cancel
            async with trio.open_nursery() as nursery:
                await nursery.start(relay.serve)
                self._world.network.listen(self.place, host, accept)
                task_status.started()
        self._world.network.forsake(self.place, host)
        host.kill()
        self._world.note_relay(host.name, relay)
        if self.host is host:
            self.relay = None
        ended.set()


@define
class Habits:
    """How a program behaves.

    Attributes:
        pause_s: what the application takes for a message.
        wanders: joins and leaves a room now and then.
        watches: keeps a list of a room's members.
        waits: publishes wait for slow receivers.
        between_s: mean time between bursts.
    """

    pause_s: float = 0.0
    wanders: bool = False
    watches: bool = False
    waits: bool = False
    between_s: float = 3.0


class Program:
    """A node's program, run after run.

    Attributes:
        rooms: where the application wants to be.
        to_send: messages that it still has to send, over all runs.
        node: while there is one.
        members: what its watch knows; None: it has none, or not yet.
        is_retired: it is not started again.
        is_done: this run has sent everything, and has the verdicts.
    """

    def __init__(
        self, world: World, name: str, key_name: str, rooms: list[str], habits: Habits, to_send: int
    ) -> None:
        self.name = name
        self.key_name = key_name
        self.identity = world.identity(key_name)
        self.home = list(rooms)
        self.rooms = dict.fromkeys(rooms)
        self.habits = habits
        self.to_send = to_send
        self.node: Node | None = None
        self.host: Host | None = None
        self.members: dict[bytes, None] | None = None
        self.is_retired = False
        self.is_done = False
        self.runs = 0
        self._world = world
        self._random = world.source(name)
        self._answers = 0
        self._sequences: dict[tuple[str, str, int], int] = {}
        self._process = ""
        self._open: list[Sent] = []  # without a verdict
        self._confirmed: dict[str, None] = {}  # rooms that every HELLO from now on names
        self._changing: dict[str, None] = {}  # rooms whose answer is awaited

    @property
    def process(self) -> str:
        """The run that goes on, or was last."""
        return self._process

    async def run(self) -> None:
        """Run after run, until retired."""
        while not self.is_retired:
            await self._one_run()
            if not self.is_retired:
                await trio.sleep(self._random.random() * RESTART_S)

    def retire(self) -> None:
        """Crash, and stay away."""
        self.is_retired = True
        if self.host is not None:
            self.host.kill()

    # ---- one process ---------------------------------------------------------------------------------

    async def _one_run(self) -> None:
        world = self._world
        self.runs += 1
        process = self._process = f"{self.name}/{self.runs}"
        self.host = host = Host(process, world.network)
        self.rooms = dict.fromkeys(self.home)
        self._confirmed = dict.fromkeys(self.home)
        self._changing = {}
        self.is_done = False
        self.members = None
        self._open = []
        world.history.begin(process, self.key_name)
        world.history.homes[process] = tuple(self.home)
        world.trace("starts", process)
        with trio.CancelScope() as scope:
            host.died = scope.cancel
            try:
                await self._connect(process, host)
            except* AwesomeConnectError as errors:
                if host.is_on:
                    world.trace("ends", process, why=type(errors.exceptions[0]).__name__)
        self.node = None
        host.kill()
        world.history.ended[process] = trio.current_time()

    async def _connect(self, process: str, host: Host) -> None:
        world = self._world
        chance = world.source(process)
        settings = world.client_settings(
            dial=lambda address: world.network.dial(host, address.host.partition(".")[0]),
            random=chance.random,
            process=Process(world.now_ms, chance.randbytes),
        )
        addresses = world.addresses(chance)
        async with connect(addresses, identity=self.identity, rooms=self.home, settings=settings) as node:
            self.node = node
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._follow, process, node)
                nursery.start_soon(self._listen, process, node)
                nursery.start_soon(self._talk, process, node)
                if self.habits.wanders:
                    nursery.start_soon(self._wander, process, node)
                if self.habits.watches:
                    nursery.start_soon(self._watch, node)
                await world.closing.wait()
                nursery.cancel_scope.cancel()

    async def _follow(self, process: str, node: Node) -> None:
        """Record what happens to the connection."""
        async for event in node.events():
            now = trio.current_time()
            record = event_record(event, now, process, self._confirmed, self._world.key_names)
            if record is not None:
                self._note(record)

    async def _listen(self, process: str, node: Node) -> None:
        """Take messages, at leisure or at once; answer requests."""
        async with trio.open_nursery() as nursery:
            await self._take_all(process, node, nursery)

    async def _take_all(self, process: str, node: Node, nursery: trio.Nursery) -> None:
        async for message in node:
            now = trio.current_time()
            self._note(message_record(message, now, process, self._world.history, self._world.key_names))
            if message.is_request:
                await node.reply(message, message.payload)
            elif self._world.is_reliable and self._world.history.name_in(message.payload)[1] % 16 == 3:
                await self._answer(process, node, message, nursery)
            if self.habits.pause_s and not self._world.is_healing:
                await trio.sleep(self.habits.pause_s)
                self._world.history.slow_until[process] = trio.current_time()

    async def _answer(self, process: str, node: Node, message: Message, nursery: trio.Nursery) -> None:
        """Send reliably while a message is handled: two nodes that do so to each other must not wait for ever."""
        history = self._world.history
        self._answers += 1
        number = HANDLER_NUMBERS + 16 * self._answers
        target = self._world.key_names[message.sender]
        sent = Sent(trio.current_time(), process, number, target, "peer", HANDLER_CLASS, is_reliable=True)
        history.sent[sent.name] = sent
        sent.expires_at = sent.at + EXPIRES_S[1]
        try:
            delivery = await node.send(
                message.sender,
                history.payload(sent.name, 20),
                traffic_class=HANDLER_CLASS,
                reliable=True,
                expires_s=EXPIRES_S[1],
            )
        except (Expired, OutcomeUnknown, Declined) as error:
            sent.outcome, sent.outcome_at = OUTCOMES[type(error)], trio.current_time()
        else:
            nursery.start_soon(self._await_outcome, sent, delivery)

    async def _watch(self, node: Node) -> None:
        """Keep a list of the members of the first room."""
        members: dict[bytes, None] = {}
        async for change in node.watch(self.home[0]):
            for key in change.left:
                members.pop(key, None)
            members.update((member.key, None) for member in change.joined)
            self.members = members
            names = self._world.key_names
            self._world.trace(
                "watches",
                self._process,
                version=change.version,
                joined=[names[member.key] for member in change.joined],
                left=[names[key] for key in change.left],
            )

    async def _talk(self, process: str, node: Node) -> None:
        """Send in bursts, flush now and then."""
        chance, habits, world = self._random, self.habits, self._world
        number = 0
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(chance.expovariate(1 / habits.between_s))
                if self.to_send <= 0 and world.is_healing:
                    break
                if self.to_send <= world.reserve and not world.is_healing:
                    continue
                for _ in range(chance.choice((1, 1, 2, 4, 8, 16))):
                    number += 1
                    self.to_send -= 1
                    await self._send_one(process, node, number, nursery)
                if chance.random() < 0.3:
                    await self._flush(process, node)
        await self._flush(process, node)
        self.is_done = True

    async def _send_one(self, process: str, node: Node, number: int, nursery: trio.Nursery) -> None:
        chance, world = self._random, self._world
        history = world.history
        is_small = chance.random() < (0.3 if world.is_heavy else 0.95)
        size = SIZES[chance.randrange(SMALL if is_small else len(SIZES))]
        traffic_class = chance.choice((0, 1, 2, 3, 3, 3, 5, 6))
        payload = history.payload((process, number), size)
        mode = chance.choices(("room", "peer", "any", "request"), (12, 10, 2, 2))[0]
        is_reliable = mode != "any" and world.is_reliable and chance.random() < 0.5
        target = chance.choice(world.rooms if mode in ("room", "any") else world.peers(self.key_name))
        peer = world.identity(target).public_key if mode in ("peer", "request") else b""
        sent = Sent(trio.current_time(), process, number, target, mode, traffic_class, is_reliable=is_reliable)
        history.sent[sent.name] = sent
        options: dict[str, Any] = {"traffic_class": traffic_class, "wait": self.habits.waits}
        if mode == "request":
            nursery.start_soon(self._ask, process, node, peer, payload, traffic_class, is_reliable)
            return
        if is_reliable and mode == "peer":
            expires_s = chance.choice(EXPIRES_S)
            delivery = await node.post(peer, payload, traffic_class=traffic_class, expires_s=expires_s)
            sent.at, sent.expires_at = trio.current_time(), trio.current_time() + expires_s
            nursery.start_soon(self._await_outcome, sent, delivery)
            return
        if mode == "room":
            if is_reliable:
                stream = process, target, traffic_class
                sent.sequence = self._sequences[stream] = self._sequences.get(stream, 0) + 1
            receipt = await node.publish(target, payload, reliable=is_reliable, **options)
        elif mode == "peer":
            receipt = await node.send(peer, payload, **options)
        else:
            receipt = await node.send_any(target, payload, **options)
        world.receipts.append((sent, receipt))
        self._open.append(sent)

    async def _await_outcome(self, sent: Sent, delivery: Delivery) -> None:
        """Record what becomes of a reliable message."""
        outcome = "delivered"
        try:
            await delivery.wait()
        except AwesomeConnectError as error:
            outcome = OUTCOMES.get(type(error), "refused")
        if self.host is not None and self.host.is_on and self.host.name == sent.process:
            sent.outcome, sent.outcome_at = outcome, trio.current_time()
            self._world.trace(outcome, sent.process, message=sent.name)

    async def _ask(
        self, process: str, node: Node, peer: bytes, payload: bytes, traffic_class: int, is_reliable: bool
    ) -> None:
        until = trio.current_time() + REQUEST_S
        outcome = "answered"
        try:
            answer = await node.request(
                peer, payload, timeout_s=REQUEST_S, traffic_class=traffic_class, reliable=is_reliable
            )
            assert answer == payload
        except AwesomeConnectError as error:
            outcome = type(error).__name__
        self._note(Asked(trio.current_time(), process, until, outcome))

    async def _flush(self, process: str, node: Node) -> None:
        """Have the relay's verdict on everything sent so far."""
        asked, self._open = self._open, []
        is_known = True
        try:
            await node.flush()
        except* (OutcomeUnknown, LinkError):
            is_known = False
        except* Refusals:
            pass
        if is_known and self.host is not None and self.host.is_on:
            for sent in asked:
                sent.settled_at = trio.current_time()

    async def _wander(self, process: str, node: Node) -> None:
        """Join rooms, and leave them, without a look at the connection."""
        chance = self._world.source(f"{process} wanders")
        rooms = [room for room in self._world.rooms if room not in self.home]
        async with trio.open_nursery() as nursery:
            while rooms and not self._world.is_healing:
                await trio.sleep(chance.expovariate(1 / WANDERS_S))
                room = chance.choice(rooms)
                if room not in self._changing:  # an answer says not which of two JOINs it is for
                    self._changing[room] = None
                    nursery.start_soon(self._change_room, process, node, room)

    async def _change_room(self, process: str, node: Node, room: str) -> None:
        """Join a room, or leave it."""
        if room in self.rooms:
            del self.rooms[room]
            self._confirmed.pop(room, None)
            self._note(Leaving(trio.current_time(), process, room))
            await node.leave(room)
        else:
            self.rooms[room] = None
            await node.join(room)
            self._confirmed[room] = None
            self._note(Entered(trio.current_time(), process, room))
        del self._changing[room]

    def _note(self, event: Any) -> None:
        if self.host is not None and self.host.is_on and self.host.name == event.process:
            self._world.note(event)


def habits(chance: random.Random) -> Habits:
    """How one program behaves."""
    return Habits(
        pause_s=chance.choice((0.0, 0.0, 0.0, 0.02, 0.3)),
        wanders=chance.random() < 0.3,
        watches=chance.random() < 0.2,
        waits=chance.random() < 0.3,
        between_s=chance.choice((0.5, 2.0, 4.0)),
    )
