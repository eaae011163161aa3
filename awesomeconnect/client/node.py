"""A node: one identity, connected to a relay as long as one of its relays can be reached.

    async with connect("ac://KEY@host:port", rooms=["weather"]) as node:
        await node.publish("weather", b"sunny")
        async for message in node:
            ...

What the application asked for (rooms, watches, messages not sent yet) belongs to the node and outlives
connections; a `Link` is one connection. One background task lives here: it runs a link, and dials the next.

Works under trio and asyncio. A node belongs to the event loop, and to the ``async with`` block, that made it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Literal, overload

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskGroup, TaskStatus
from attrs import frozen

from awesomeconnect.client.delivery import Delivery
from awesomeconnect.client.dialler import Dialler
from awesomeconnect.client.events import (
    Connected,
    Disconnected,
    Event,
    EventLog,
    EventReader,
    GapReport,
    GoingAway,
    Message,
    Moved,
    Paused,
    Refusal,
    Resumed,
    RoomLost,
)
from awesomeconnect.client.inbox import Inbox
from awesomeconnect.client.link import Limits, Link
from awesomeconnect.client.outbox import Outbox
from awesomeconnect.client.pauses import Pauses
from awesomeconnect.client.publishing import Payload, Publisher, check_room, octets
from awesomeconnect.client.receipts import TOKEN_BYTES, Flow, Receipt, Verdicts
from awesomeconnect.client.reconnect import move_delay_s
from awesomeconnect.client.reliable import Reliable
from awesomeconnect.client.requests import ANSWERED, FAILED, ID_BYTES, Requests, response
from awesomeconnect.client.rooms import Rooms
from awesomeconnect.client.sealed import Sealing
from awesomeconnect.client.settings import ClientSettings
from awesomeconnect.client.waiting import Answer, Signal
from awesomeconnect.client.watch import Watch
from awesomeconnect.errors import (
    AddressError,
    AwesomeConnectError,
    ConnectFailed,
    ConnectionBroken,
    ConnectionEnded,
    ErrorCode,
    RequestTimeout,
)
from awesomeconnect.identity import Identity, RelayAddress
from awesomeconnect.reliable.segments import incarnation_bytes
from awesomeconnect.reliable.stores import OutboxStore, TakenStore
from awesomeconnect.shaping.ats import NS_PER_S
from awesomeconnect.wire.messages import (
    REVISION,
    Attributes,
    Content,
    Contract,
    Deliver,
    Gap,
    Goaway,
    Hello,
    Incarnation,
    Joined,
    JoinFlags,
    Left,
    Member,
    MembersPage,
    Mode,
    Pause,
    Ping,
    Pong,
    Presence,
    Reject,
    Resume,
    TrafficClass,
)
from awesomeconnect.wire.messages import Message as WireMessage
from awesomeconnect.wire.sealing import OVERHEAD_BYTES, SealBroken

log = logging.getLogger("awesomeconnect.client")

_RELIABLE = frozenset({Content.RELIABLE, Content.REPAIR})
#: Codes of LEFT after which a node is not in the room.
_OUT = (ErrorCode.OK, ErrorCode.EVICTED, ErrorCode.CAPABILITY_REQUIRED, ErrorCode.CAPABILITY_INVALID)
#: How long a reliable message is tried: as long as a restart takes.
EXPIRES_S = 60.0
#: Somebody who reads without waiting lets others run after this many.
TURN_MESSAGES = 512


@frozen
class NodeStatistics:
    """Counters of a node, since it was made.

    Attributes:
        connections: how often it was connected.
        queued_messages, queued_bytes: not sent yet.
        undecided_bytes: sent or queued, without a verdict of the relay.
        reliable_bytes: reliable messages that no receiver has taken yet.
        received_messages: handed to the inbox.
        inbox_bytes: waiting for the application.
        lost_messages: lost in this node, because the application took too few.
        ignored_messages: of a content that this library does not know, and answers nobody waits for.
    """

    connections: int
    queued_messages: int
    queued_bytes: int
    undecided_bytes: int
    reliable_bytes: int
    received_messages: int
    inbox_bytes: int
    lost_messages: int
    ignored_messages: int


class Node:
    """See the module's docstring. Make it with `connect`.

    Methods that need a connection wait for one. Where there will be none any more, they raise the
    `ConnectionEnded` (or another error of the tree in ``errors.py``) that says why. They can be cancelled; a
    cancelled ``publish`` was not queued.
    """

    def __init__(
        self,
        addresses: Sequence[RelayAddress],
        identity: Identity,
        attributes: Attributes,
        settings: ClientSettings,
        is_manual: bool = False,
        outbox_store: OutboxStore | None = None,
        taken_store: TakenStore | None = None,
    ) -> None:
        self._identity = identity
        self._attributes = attributes
        self._settings = settings
        self._outbox = Outbox(
            settings.queue_bytes,
            settings.queue_messages,
            settings.flush_messages,
            settings.flush_bytes,
            settings.kept_problems,
            lambda: int(anyio.current_time() * NS_PER_S),
        )
        self._inbox = Inbox(
            settings.inbox_high_bytes,
            settings.inbox_bytes,
            lambda traffic_class: self._tell(Pause(None, traffic_class)),
            lambda traffic_class: self._tell(Resume(None, traffic_class)),
            self._report,
        )
        self._events = EventLog(settings.kept_events)
        self._rooms = Rooms(self._tell, self._connected, lambda room, code: self._report(RoomLost(room, code)))
        self._requests = Requests(settings.process.random_bytes)
        self._pauses = Pauses(lambda: self._outbox.flush().answer.wait())
        incarnation = incarnation_bytes(settings.process.new_run())
        self._sealing = Sealing(identity, incarnation)
        self._publisher = Publisher(self._outbox, self._pauses, settings.window_bytes, self._connected)
        self._reliable = Reliable(
            incarnation,
            settings.process.random_bytes(32),
            settings.reliable,
            settings.random,
            self._publisher,
            self._outbox,
            self._inbox,
            self._requests,
            self._sealing,
            is_manual,
            settings.kept_problems,
            self._check_open,
            settings.process.now_ms(),
            outbox_store,
            taken_store,
        )
        self._publisher.more_problems = self._reliable.take_problems
        self._dialler = Dialler(addresses, identity, settings, self._hello)
        self._pings: dict[bytes, Answer[float]] = {}
        self._tasks: TaskGroup  # of connections; there is one while the node lives
        self._link: Link | None = None  # while it is up
        self._successor: Link | None = None  # let in by another relay, while the node moves
        self._moving = anyio.CancelScope()  # of the wait before the node moves
        self._is_moving = False  # it is being let in
        self._former: dict[Link, Verdicts] = {}  # connections that were left and have not ended
        self._relay = addresses[0]
        self._limits = Limits()
        self._closing = False
        self._ended: Exception | None = None
        self._is_over = False
        self._changed = Signal()  # connected, disconnected, or over
        self._turn_messages = 0
        self._connections = 0
        self._received = 0
        self._ignored = 0

    # ---- facts ---------------------------------------------------------------------------------------

    @property
    def key(self) -> bytes:
        """This node's public key: what others send to (32 bytes)."""
        return self._identity.public_key

    @property
    def relay(self) -> RelayAddress:
        """The relay that the node is, or was last, connected to."""
        return self._relay

    @property
    def limits(self) -> Limits:
        """The relay's limits."""
        return self._limits

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection now."""
        return self._link is not None

    def statistics(self) -> NodeStatistics:
        """Counters and queue lengths now."""
        return NodeStatistics(
            self._connections,
            self._outbox.queued_messages,
            self._outbox.queued_bytes,
            self._outbox.undecided_bytes,
            self._reliable.held_bytes,
            self._received,
            self._inbox.queued_bytes,
            self._inbox.lost,
            self._ignored,
        )

    # ---- sending -------------------------------------------------------------------------------------

    async def publish(
        self,
        room: str,
        payload: Payload,
        *,
        traffic_class: int = TrafficClass.DATA,
        wait: bool = False,
        reliable: bool = False,
    ) -> Receipt:
        """Queue a message to all other members of a room; the node need not be one.

        Waits while there is no connection or the queue of the class is full, and lets others run every 64 KiB.
        What has a contract leaves when that lets it; a second's worth of it is queued.

        Args:
            room: 1..128 bytes of UTF-8.
            payload: at most ``limits.payload_bytes``.
            traffic_class: 0..6.
            wait: also wait while a receiver is behind, and keep at most 1 MiB without the relay's verdict: so
                that a stream arrives whole at slow readers.
            reliable: members that miss it, because of a broken connection, a restart of the relay or a full queue,
                ask this node for it and get it in its place, or one `GapReport` with ``sequences``. This node keeps
                what it published for that, 8 MiB for 5 minutes at most. Nobody acknowledges.

        Returns:
            The receipt. Refusals, for example when nobody is in the room, come with `flush`.

        Raises:
            PayloadTooLarge: also for what does not fit the burst of its contract; nothing was queued.
            RoomRefused: the room's name is not valid.
            LinkError: the node is closed, or there will be no connection any more.
        """
        if reliable:
            return await self._reliable.publish(room, traffic_class, octets(payload), wait)
        publisher = self._publisher
        flow = publisher.to_room(room, traffic_class)
        if type(payload) is not bytes:
            payload = octets(payload)
        if publisher.must_wait(flow, len(payload)) or wait:
            await publisher.admit(flow, len(payload), wait)
        return self._outbox.put(flow, payload)

    def publish_nowait(self, room: str, payload: Payload, *, traffic_class: int = TrafficClass.DATA) -> Receipt:
        """As `publish`, without waiting.

        Raises:
            anyio.WouldBlock: there is no connection, the queue of the class is full, or the contract does not
                let the message leave yet.
            PayloadTooLarge, RoomRefused, LinkError: as `publish`.
        """
        flow = self._publisher.to_room(room, traffic_class)
        self._check_open()
        return self._publisher.queue_nowait(flow, octets(payload))

    @overload
    async def send(
        self,
        peer: bytes,
        payload: Payload,
        *,
        traffic_class: int = ...,
        wait: bool = ...,
        sealed: bool = ...,
        reliable: Literal[False] = ...,
        expires_s: float = ...,
    ) -> Receipt: ...

    @overload
    async def send(
        self,
        peer: bytes,
        payload: Payload,
        *,
        traffic_class: int = ...,
        wait: bool = ...,
        sealed: bool = ...,
        reliable: Literal[True],
        expires_s: float = ...,
    ) -> Delivery: ...

    async def send(
        self,
        peer: bytes,
        payload: Payload,
        *,
        traffic_class: int = TrafficClass.DATA,
        wait: bool = False,
        sealed: bool = False,
        reliable: bool = False,
        expires_s: float = EXPIRES_S,
    ) -> Receipt | Delivery:
        """Send a message to one node, by its public key (32 bytes).

        Plain, it is queued; everything else as `publish`. With ``reliable=True`` it is sent again across broken
        connections and restarts of the relay, and `send` returns when the peer's application has taken it.

        In the task that iterates over this node, a reliable `send` returns as soon as the peer holds the message
        for its application: two nodes that send to each other while they handle messages would wait for each
        other for ever. It stays on its way; should it not be taken, `flush` says so.

        Args:
            sealed: so that the relay can neither read nor make it (protocol-spec/sealed.md); the peer sees
                ``message.is_sealed``.
            expires_s: how long a reliable message is tried, at most a day; what waits for room counts from then.

        Raises:
            ValueError: the key does not have 32 bytes.
            Expired, OutcomeUnknown, Declined, Refused: as `Delivery.wait`.
        """
        if reliable:
            return await self._reliable.send(
                peer, traffic_class, Content.APPLICATION, octets(payload), expires_s, sealed
            )
        if sealed:
            return await self._send_sealed(peer, traffic_class, Content.APPLICATION, octets(payload), wait)
        flow = self._publisher.to_peer(peer, traffic_class)
        return await self._publisher.queue(flow, octets(payload), wait)

    async def post(
        self,
        peer: bytes,
        payload: Payload,
        *,
        traffic_class: int = TrafficClass.DATA,
        sealed: bool = False,
        expires_s: float = EXPIRES_S,
    ) -> Delivery:
        """As `send` with ``reliable=True``, without waiting for the peer: for many messages at a time.

        Waits only while the outbox is full (``ClientSettings.reliable.outbox_bytes``), connected or not.

        Returns:
            What to `Delivery.wait` for. When nobody does, `flush` raises why a message was not delivered.
        """
        return await self._reliable.post(
            peer, traffic_class, Content.APPLICATION, octets(payload), expires_s, is_sealed=sealed
        )

    def ack(self, message: Message) -> None:
        """Stand for a reliable message that was taken, when the node was made with ``ack="manual"``."""
        self._reliable.ack(message)

    async def send_any(
        self,
        room: str,
        payload: Payload,
        *,
        traffic_class: int = TrafficClass.DATA,
        wait: bool = False,
    ) -> Receipt:
        """Queue a message to one other member of a room, which the relay chooses. Everything else as `publish`."""
        flow = self._publisher.to_any(room, traffic_class)
        return await self._publisher.queue(flow, octets(payload), wait)

    async def flush(self) -> None:
        """Wait until the relay has judged everything that was queued before.

        Raises:
            Refused: one refusal since the last flush.
            OutcomeUnknown: a connection broke first; or a reliable message was not acknowledged.
            Expired, Declined: a reliable message that nobody waited for was not delivered.
            ExceptionGroup: of these, when there are several.
            LinkError: there will be no connection any more, and something was not sent.
        """
        await self._publisher.flush()

    async def request(
        self,
        peer: bytes,
        payload: Payload,
        *,
        timeout_s: float = 10.0,
        traffic_class: int = TrafficClass.DATA,
        sealed: bool = False,
        reliable: bool = False,
    ) -> bytes:
        """Ask one node and return its answer.

        Args:
            sealed: as `send`; the answer is sealed, too.
            reliable: go on across broken connections and restarts of the relay, in both directions, and wait for a
                peer that is not there; what is raised below for a broken connection is not, then.

        Raises:
            RequestTimeout: no answer in ``timeout_s``.
            RequestFailed: the other node answered with an error; its text is the message.
            Refused: the relay refused the request, for example because the peer is not connected (NoSuchPeer).
            OutcomeUnknown: the connection broke before the answer.
            ValueError, PayloadTooLarge, LinkError: as `send`.
        """
        if reliable:
            return await self._reliable.request(peer, traffic_class, octets(payload), timeout_s, sealed)
        flow = self._publisher.to_peer(peer, traffic_class, Content.REQUEST)
        return await self._ask(flow, peer, payload, timeout_s, sealed)

    async def request_any(
        self,
        room: str,
        payload: Payload,
        *,
        timeout_s: float = 10.0,
        traffic_class: int = TrafficClass.DATA,
    ) -> bytes:
        """Ask any one other member of a room, which the relay chooses. Everything else as `request`."""
        flow = self._publisher.to_any(room, traffic_class, Content.REQUEST)
        return await self._ask(flow, None, payload, timeout_s)

    async def reply(self, message: Message, payload: Payload) -> Receipt | Delivery:
        """Answer a request, in its class, reliably if it came so. Waits for nobody's acknowledgement.

        Raises:
            ValueError: the message is not a request.
            PayloadTooLarge, LinkError: as `send`.
        """
        return await self._respond(message, ANSWERED, octets(payload))

    async def reply_error(self, message: Message, text: str) -> Receipt | Delivery:
        """Answer a request with an error: its `request` raises RequestFailed with this text."""
        return await self._respond(message, FAILED, text.encode())

    # ---- receiving -----------------------------------------------------------------------------------

    def __aiter__(self) -> Node:
        return self

    async def __anext__(self) -> Message:
        """The next message: of the most urgent class that has one, in order inside a class.

        Ends when the node was closed; raises the LinkError when there will be no connection any more.
        """
        self._turn_messages += 1
        if self._turn_messages >= TURN_MESSAGES:
            self._turn_messages = 0
            await anyio.lowlevel.checkpoint()
        elif self._turn_messages == 1:
            self._reliable.note_consumer()
        while True:
            message = self._inbox.take()
            if message is None:
                if self._is_over:
                    if self._ended is None:
                        raise StopAsyncIteration
                    raise self._ended.with_traceback(None)
                self._turn_messages = 0
                await self._inbox.arrived.wait()
            elif message.origin is None or self._reliable.hand_over(message):
                return message

    def events(self) -> EventReader:
        """What happens to the node's connection, from the oldest event that is kept. Ends with the node."""
        return self._events.read()

    # ---- rooms ---------------------------------------------------------------------------------------

    async def join(self, room: str, *, watch: bool = False, observe: bool = False) -> Joined:
        """Join a room, or change how the node is in it. It will be joined again after a reconnect.

        Args:
            watch: have the relay tell changes of membership (`watch` asks for it by itself).
            observe: only look: be no member, and get no messages.

        Returns:
            ``room, version, member_count, message_count, contracts``.

        Raises:
            RoomRefused: the relay does not let the node in, or the name is not valid.
            LinkError: as `publish`.
        """
        check_room(room)
        self._check_open()
        flags = (JoinFlags.WATCH if watch else JoinFlags.NONE) | (JoinFlags.OBSERVE if observe else JoinFlags.NONE)
        return await self._rooms.join(room, flags)

    async def leave(self, room: str) -> None:
        """Leave a room, after everything that was queued before. Returns when the relay has said so."""
        check_room(room)
        self._check_open()
        await self._rooms.leave(room)

    async def members(self, room: str) -> list[Member]:
        """The members of a room in join order, of which the node is a member or an observer.

        Raises:
            RoomRefused: it is neither.
            LinkError: as `publish`.
        """
        check_room(room)
        self._check_open()
        return (await self._rooms.members(room))[1]

    def watch(self, room: str) -> Watch:
        """Changes of a room's membership, to iterate over; the first item has all members.

        A node that is not in the room observes it meanwhile. After a reconnect the next item is the difference.
        Ends when the node is closed.

        Raises, while it is iterated over:
            RoomRefused: the relay does not let the node look, or not any more.
            LinkError: as `publish`.
        """
        check_room(room)
        self._check_open()
        return Watch(self._rooms, room)

    async def ping(self) -> float:
        """The time from here to the relay and back, in seconds.

        Raises:
            ConnectionBroken: the connection broke first.
        """
        link = await self._connected()
        started = anyio.current_time()
        token = link.ping()
        answer: Answer[float] = Answer()
        self._pings[token] = answer
        try:
            return await answer.wait() - started
        finally:
            self._pings.pop(token, None)

    async def aclose(self) -> None:
        """Send what is queued, say CLOSE, and wait for the relay's. Idempotent.

        Gives up when nothing has moved for ``closing_s``, and at once when there is no connection: `flush` first
        where that matters. Refusals that nobody flushed for are not raised.
        """
        if not self._closing:
            self._closing = True
            self._publisher.is_open = False
            self._changed.notify()
            if self._link is not None:
                self._reliable.flush()
                self._reliable.down()  # nothing may follow CLOSE
                self._link.close()
        departed = -1
        while self._link is not None and departed != (departed := sum(self._outbox.departed)):
            with anyio.move_on_after(self._settings.closing_s):
                while self._link is not None:
                    await self._changed.wait()
        if self._link is not None:
            self._link.end(ConnectionBroken("the relay did not answer CLOSE"))
        self._finish(None)

    # ---- requests ------------------------------------------------------------------------------------

    async def _ask(
        self, flow: Flow, peer: bytes | None, payload: Payload, timeout_s: float, sealed: bool = False
    ) -> bytes:
        with self._requests.open(peer) as request, anyio.move_on_after(timeout_s):
            body = request.request_id + octets(payload)
            if sealed and peer is not None:
                request.receipt = await self._send_sealed(peer, flow.traffic_class, Content.REQUEST, body)
            else:
                request.receipt = await self._publisher.queue(flow, body)
            return await request.answer.wait()
        raise RequestTimeout(f"{flow.about}: no answer in {timeout_s:g} s")

    async def _respond(self, message: Message, status: int, body: bytes) -> Receipt | Delivery:
        if not message.is_request:
            raise ValueError("only a request can be answered; send the node a message of its own")
        peer, traffic_class = message.sender, message.traffic_class
        payload = response(message.request_id, status, body)
        # SPEC sealed.md: A node MUST answer a sealed request by a sealed response.
        if message.is_reliable:
            return await self._reliable.post(
                peer, traffic_class, Content.RESPONSE, payload, EXPIRES_S, is_sealed=message.is_sealed
            )
        if message.is_sealed:
            return await self._send_sealed(peer, traffic_class, Content.RESPONSE, payload)
        return await self._publisher.queue(self._publisher.to_peer(peer, traffic_class, Content.RESPONSE), payload)

    async def _send_sealed(
        self, peer: bytes, traffic_class: int, content: int, payload: bytes, wait: bool = False
    ) -> Receipt:
        flow = self._publisher.to_peer(peer, traffic_class, Content.SEALED)
        size = len(payload) + OVERHEAD_BYTES
        if self._publisher.must_wait(flow, size) or wait:
            await self._publisher.admit(flow, size, wait)
        return self._outbox.put(flow, self._sealing.seal(peer, traffic_class, content, payload))

    # ---- the life of connections ---------------------------------------------------------------------

    def _check_open(self) -> None:
        """Raise what ended the node, if something has."""
        if self._ended is not None:
            raise self._ended.with_traceback(None)
        if self._closing:
            raise ConnectionEnded("the node is closed")

    async def _connected(self) -> Link:
        """The connection, once there is one; raises when there will be none."""
        while True:
            self._check_open()
            if self._link is not None:
                return self._link
            await self._changed.wait()

    def _tell(self, message: WireMessage) -> None:
        if self._link is not None:
            self._link.tell(message)

    def _report(self, event: Event) -> None:
        self._events.add(event)

    async def _live(self, link: Link, *, task_status: TaskStatus[None]) -> None:
        """Serve one connection after the other until the node ends. Never raises."""
        error: Exception = ConnectionEnded("the node is closed")
        try:
            async with anyio.create_task_group() as self._tasks:
                is_moved = False
                try:
                    while not self._closing:
                        self._up(link, is_moved)
                        self._tasks.start_soon(self._run, link)
                        task_status.started()
                        task_status = TASK_STATUS_IGNORED
                        while self._successor is None and (link.error is None or self._is_moving):
                            await self._changed.wait()
                        is_moved = self._successor is not None
                        if self._successor is not None:
                            link, self._successor = self._successor, None
                        else:
                            assert link.error is not None
                            error = link.error
                            link = await self._redial(link, error)
                except AwesomeConnectError as final:
                    error = final
                except Exception as bug:
                    log.exception("the node ends after an error in the library; please report it")
                    error = bug
                finally:
                    link.drop()
                    self._tasks.cancel_scope.cancel()
        finally:
            if self._successor is not None:
                self._successor.drop()
        if not self._closing:
            self._events.add(Disconnected(error, None))
        self._finish(None if self._closing else error)

    async def _guard(self, job: Callable[[], Awaitable[None]]) -> None:
        """A task of the library beside the connections: what goes wrong in it ends the node, and no more."""
        try:
            await job()
        except Exception as bug:
            log.exception("the node ends after an error in the library or in a store; please report it")
            if self._link is not None:
                self._link.end(bug)
            else:
                self._finish(bug)

    async def _run(self, link: Link) -> None:
        """Serve a connection until it ends, also when another one has taken its place."""
        try:
            await link.run()
        finally:
            if self._link is link:
                self._down()
            verdicts = self._former.pop(link, None)
            if verdicts is not None:
                error = link.error
                # SPEC sessions.md: A client that moves MUST treat messages to the first relay as accepted, unless
                #   refused, when that answers CLOSE with CLOSE 0, and their outcome as unknown when it ends in
                #   another way.
                in_order = isinstance(error, ConnectionEnded) and error.code == ErrorCode.OK
                self._outbox.left(verdicts, in_order)
            self._changed.notify()

    async def _redial(self, link: Link, error: Exception) -> Link:
        """The next connection; raises why there will be none."""
        self._dialler.broke(link, error)
        while not self._closing:
            wait_s = self._dialler.wait_s(error)
            self._events.add(Disconnected(error, wait_s))
            with anyio.move_on_after(wait_s):
                while not self._closing:
                    await self._changed.wait()
            if not self._closing:
                try:
                    return await self._dialler.dial()
                except AwesomeConnectError as failed:
                    error = failed
        raise error

    def _hello(self, incarnation: Incarnation, number: int) -> Hello:
        return Hello(REVISION, incarnation, number, self._reliable.offer(self._attributes), self._rooms.intents())

    def _up(self, link: Link, is_moved: bool) -> None:
        before = self._relay if is_moved else None
        self._connections += 1
        self._relay = link.address
        self._limits = link.limits
        self._publisher.payload_bytes = link.limits.payload_bytes
        self._publisher.is_open = not self._closing
        self._outbox.opened(link.number, link.limits.payload_bytes, link.welcome.contracts)
        link.attach(self._outbox, self._on_message)
        self._link = link
        self._rooms.up()
        self._reliable.up()
        for traffic_class in range(TrafficClass.CONTROL):
            if self._inbox.paused >> traffic_class & 1:
                self._tell(Pause(None, traffic_class))
        where = link.address, link.welcome.epoch, link.number
        self._events.add(Moved(*where, before) if before else Connected(*where))
        self._changed.notify()

    def _down(self) -> None:
        self._moving.cancel()
        self._forget_link()
        self._outbox.broke()
        self._requests.broke()

    def _forget_link(self) -> None:
        self._link = None
        self._publisher.is_open = False
        self._pauses.clear()
        self._reliable.down()
        self._rooms.down()
        for answer in self._pings.values():
            answer.fail(ConnectionBroken("the connection ended before the relay answered"))
        self._changed.notify()

    def _finish(self, error: Exception | None) -> None:
        """There will be no connection any more: wake all who wait."""
        if self._is_over:
            return
        self._is_over = True
        self._closing = True
        self._ended = error
        over = error or ConnectionEnded("the node is closed")
        self._rooms.end(error)
        self._requests.end(over)
        self._reliable.end()
        self._outbox.progress.notify()
        self._inbox.arrived.notify()
        self._events.close()
        self._changed.notify()

    # ---- messages of the relay: nothing here waits ----------------------------------------------------

    def _on_message(self, message: WireMessage) -> None:
        handler = _HANDLERS.get(type(message))
        if handler is not None:
            handler(self, message)

    def _on_deliver(self, message: Deliver) -> None:
        content, payload, request_id, is_sealed = message.content, message.payload, b"", False
        if content in _RELIABLE:
            self._reliable.on_deliver(message)
            return
        # SPEC sealed.md: A receiver MUST ignore content 3 that does not arrive in mode 1.
        if content == Content.SEALED and message.mode == Mode.UNICAST:
            try:
                content, payload = self._sealing.open(message.sender, message.traffic_class, payload)
            except SealBroken:
                self._ignored += 1
                return
            is_sealed = True
        # SPEC requests.md: A client MUST ignore a response that does not arrive in mode 1, whose payload is shorter
        #   than 9 bytes, or whose id is not that of a waiting request.
        if content == Content.RESPONSE:
            if message.mode != Mode.UNICAST or not self._requests.on_response(message.sender, payload):
                self._ignored += 1
            return
        # SPEC requests.md: A client MUST ignore a request or response that arrives in mode 0, also in a segment.
        if content == Content.REQUEST and len(payload) >= ID_BYTES and message.mode != Mode.BROADCAST:
            request_id, payload = payload[:ID_BYTES], payload[ID_BYTES:]
        elif content != Content.APPLICATION:
            self._ignored += 1
            return
        self._received += 1
        traffic_class = message.traffic_class
        self._inbox.put(
            Message(
                message.sender, message.room, message.mode, traffic_class, content, payload, request_id, is_sealed
            )
        )

    def _on_gap(self, message: Gap) -> None:
        self._inbox.put_gap(
            GapReport(
                message.room,
                message.sender,
                message.traffic_class,
                message.count,
                message.lost_bytes,
                message.code,
            )
        )

    def _on_reject(self, message: Reject) -> None:
        self._refused(self._outbox.verdicts, message)

    def _refused(self, verdicts: Verdicts, message: Reject) -> None:
        refused, _flow = verdicts.judge(message)
        if self._requests.refuse(refused, verdicts.connection) == message.count:
            return
        if self._reliable.on_reject(refused, verdicts):
            return
        self._outbox.problems.note(refused)
        self._events.add(Refusal(refused.ordinals, refused.code, verdicts.connection))

    def _on_pause(self, message: Pause) -> None:
        assert message.target is not None
        where = (message.target, message.traffic_class)
        if self._pauses.pause(where, message.for_ms / 1000):
            self._events.add(Paused(*where))

    def _on_resume(self, message: Resume) -> None:
        assert message.target is not None
        where = (message.target, message.traffic_class)
        if self._pauses.resume(where):
            self._events.add(Resumed(*where))

    def _on_ping(self, message: Ping) -> None:
        self._tell(Pong(message.token))

    def _on_pong(self, message: Pong) -> None:
        token = message.token
        if len(token) == TOKEN_BYTES:
            self._outbox.on_pong(token)
            return
        for asked, answer in self._pings.items():
            if asked <= token:
                answer.give(anyio.current_time())

    def _on_goaway(self, message: Goaway) -> None:
        self._events.add(GoingAway(message.code, message.window_ms, message.spread_ms, message.alternates))
        link = self._link
        assert link is not None
        link.goaway = message
        # SPEC sessions.md: A client MUST NOT connect to a relay that another relay names as alternate, unless its
        #   user or application allowed that.
        if self._settings.follows_alternates:
            self._dialler.add(message.alternates)
        # What the relay has queued still comes before its CLOSE. Where another connection can be had, it need not
        # be waited for.
        if message.code == ErrorCode.SESSION_TOO_OLD or (
            message.code in (ErrorCode.DRAINING, ErrorCode.OVERLOADED) and self._dialler.has_other(link.address)
        ):
            self._moving.cancel()  # a relay that asks again has changed its mind
            self._moving = anyio.CancelScope()
            self._tasks.start_soon(self._move, link, message)

    async def _move(self, link: Link, goaway: Goaway) -> None:
        """Leave a relay that asked this node to go: if there is another one, not before that has let it in."""
        with self._moving:  # until the connection ends by itself
            await anyio.sleep(move_delay_s(self.key, link.welcome.epoch, goaway.window_ms / 1000))
        if self._link is not link or self._closing or self._is_moving:
            return
        if goaway.code != ErrorCode.SESSION_TOO_OLD:
            self._is_moving = True
            try:
                self._successor = await self._dialler.dial(but=link.address)
            except AwesomeConnectError as error:
                log.info("no other relay takes this node, so it stays until the end: %s", error)
                return
            finally:
                self._is_moving = False
                self._changed.notify()
            if self._link is not link or self._closing:
                return
        # SPEC sessions.md: A client that moves MUST end a message of which fragments have left with FRAGMENT end 2
        #   before CLOSE, or send the rest of it.
        last_words, verdicts = self._outbox.leave()
        self._former[link] = verdicts
        self._forget_link()
        link.leave(last_words, self._settings.closing_s, partial(self._on_former_message, verdicts))

    def _on_former_message(self, verdicts: Verdicts, message: WireMessage) -> None:
        """What a relay still says that this node has left: messages for it, and verdicts."""
        # SPEC sessions.md: A client that moves MUST take DELIVER, GAP and REJECT of the first relay until that has
        #   said CLOSE 0.
        if isinstance(message, Deliver):
            self._on_deliver(message)
        elif isinstance(message, Gap):
            self._on_gap(message)
        elif isinstance(message, Reject):
            self._refused(verdicts, message)

    def _on_contract(self, message: Contract) -> None:
        # SPEC messages.md: A client MUST NOT change the contracts that it knew because of a CONTRACT with another
        #   code.
        if not message.code:
            self._outbox.set_contracts(message.contracts, message.room)

    def _on_joined(self, message: Joined) -> None:
        self._outbox.set_contracts(message.contracts, message.room)
        self._rooms.on_joined(message)
        self._reliable.endpoint.rooms.joined(message.room, message.member_count)

    def _on_left(self, message: Left) -> None:
        self._rooms.on_left(message)
        if message.code in _OUT:
            self._reliable.endpoint.rooms.left(message.room)

    def _on_page(self, message: MembersPage) -> None:
        self._rooms.on_page(message)

    def _on_presence(self, message: Presence) -> None:
        self._rooms.on_presence(message)


_HANDLERS: dict[type, Callable[[Any, Any], None]] = {
    Deliver: Node._on_deliver,
    Gap: Node._on_gap,
    Reject: Node._on_reject,
    Pause: Node._on_pause,
    Resume: Node._on_resume,
    Ping: Node._on_ping,
    Pong: Node._on_pong,
    Goaway: Node._on_goaway,
    Contract: Node._on_contract,
    Joined: Node._on_joined,
    Left: Node._on_left,
    MembersPage: Node._on_page,
    Presence: Node._on_presence,
}


@asynccontextmanager
async def connect(
    relay: str | RelayAddress | Sequence[str | RelayAddress],
    *,
    identity: Identity | str | os.PathLike[str] | None = None,
    attributes: Attributes | None = None,
    rooms: Iterable[str] = (),
    timeout_s: float = 10.0,
    ack: Literal["auto", "manual"] = "auto",
    outbox_store: OutboxStore | None = None,
    taken_store: TakenStore | None = None,
    settings: ClientSettings | None = None,
) -> AsyncIterator[Node]:
    """Connect to a relay, for as long as the ``async with`` block lasts.

    Args:
        relay: its address, ``ac://KEY@host:port``; of several, the first that can be reached is taken.
        identity: who the node is; the path of a key file; or None for a fresh identity.
        attributes: claims that others see in member lists; at most 16 text keys, 1 KiB encoded.
        rooms: to be joined at once.
        timeout_s: for the first connection.
        ack: when a reliable message counts as delivered: when the node has returned it, or when the application
            calls `Node.ack`.
        outbox_store: keeps reliable messages of this node across its restarts, for example a `SQLiteStore`. Give it
            with the identity that it was first used with.
        taken_store: keeps what this node has taken, so that it takes nothing twice after a restart. With
            ``ack="auto"`` a message is noted before the application gets it, so a crash may lose the one in hand;
            with "manual" it is noted by `Node.ack`, so a crash may repeat it.
        settings: bounds and patience.

    Yields:
        The node, connected and in its rooms.

    Raises:
        AddressError, KeyFileError: an argument is not usable.
        LocalProtocolError: the attributes are not what the protocol carries.
        ConnectFailed: no relay could be reached; lists each with its reason.
        HandshakeError: what answered is no AwesomeConnect relay.
        RelayKeyMismatch: ... or not the one that the address names.
        ConnectionEnded: the relay did not let this node in; the code says why.
        RoomRefused: ... or not into a room.
    """
    given = [relay] if isinstance(relay, str | RelayAddress) else relay
    addresses = [RelayAddress.parse(one) if isinstance(one, str) else one for one in given]
    if not addresses:
        raise AddressError("no relay address was given")
    if identity is None:
        identity = Identity.generate()
    elif not isinstance(identity, Identity):
        identity = Identity.load(identity)
    rooms = list(rooms)
    for room in rooms:
        check_room(room)
    Hello(REVISION, Incarnation(0, bytes(8)), 0, attributes or {})  # checks the attributes
    node = Node(
        addresses,
        identity,
        dict(attributes or {}),
        settings or ClientSettings(),
        ack == "manual",
        outbox_store,
        taken_store,
    )
    problem: BaseException | None = None
    try:
        async with anyio.create_task_group() as tasks:
            joins = node._rooms.announce(rooms)
            link = await node._dialler.dial(timeout_s)
            try:
                await tasks.start(node._live, link)
                tasks.start_soon(node._guard, node._reliable.run)
                tasks.start_soon(node._guard, node._reliable.run_on)
                await _all(joins, timeout_s)
                try:
                    yield node
                except Exception:
                    await node.aclose()
                    raise
                await node.aclose()
            finally:
                tasks.cancel_scope.cancel()
                node._reliable.end()  # also when the block was cancelled: nobody waits for ever
    except BaseExceptionGroup as group:
        # Background tasks never raise, so what is in the group came from the block: hand it on as it was.
        problem = group.exceptions[0] if len(group.exceptions) == 1 else group
    if problem is not None:
        raise problem


async def _all(joins: list[Answer[Joined]], timeout_s: float) -> None:
    with anyio.move_on_after(timeout_s):
        for join in joins:
            await join.wait()
        return
    raise ConnectFailed(f"the relay let the node in, but not into its rooms within {timeout_s:g} s")
