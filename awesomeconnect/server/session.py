"""One connection of the relay: one task that reads, routes and flushes, in bounded turns.

    recv_into -> records -> frames -> streams and messages -> route -> flush what was touched -> wait

Between reading a chunk and routing what is in it nothing waits, except for fairness: a session that moved much
takes its next turn in line, and a long turn lets others run. Whatever goes wrong with a connection ends here.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from awesomeconnect.errors import ErrorCode, HandshakeError, RemoteProtocolError
from awesomeconnect.identity import short_key
from awesomeconnect.relay.admission import judge_room
from awesomeconnect.relay.flows import Router
from awesomeconnect.relay.ingress import Ingress
from awesomeconnect.relay.rooms import Peer, Place, Room
from awesomeconnect.server.shaper import Outlet
from awesomeconnect.server.transport import Transport
from awesomeconnect.shaping.ats import NS_PER_S, Scheduler, SchedulerGroup
from awesomeconnect.shaping.egress import CLASSES, CONTROL
from awesomeconnect.wire.connection import RelayConnection
from awesomeconnect.wire.messages import (
    REVISION,
    Anycast,
    Attributes,
    ClassContract,
    Close,
    Contract,
    Goaway,
    Hello,
    Incarnation,
    Join,
    Joined,
    JoinFlags,
    Leave,
    Left,
    Members,
    MembersPage,
    Message,
    Pause,
    Ping,
    PingKind,
    Pong,
    Present,
    Publish,
    Reject,
    Resume,
    Send,
    Stats,
    StatsReport,
    class_of,
    encode_frame,
    is_barrier,
)
from awesomeconnect.wire.rooms import room_name_problem
from awesomeconnect.wire.states import State

if TYPE_CHECKING:
    from awesomeconnect.server.supervisor import Relay

log = logging.getLogger("awesomeconnect.server")

FIRST_READ_BYTES = 8 << 10
MOST_READ_BYTES = 256 << 10
#: A session whose turn moved more than this takes its next turn in line: about 300 µs of work.
HEAVY_TURN_BYTES = 256 << 10
#: Routing lets others run after this many deliveries; decoding a message costs about as much as 50.
TURN_DELIVERIES = 10_000
MESSAGE_COST = 50
#: Extension frames decoded before their cost is counted: under 1 ms. A frame of the least size has 3 bytes.
MOST_IGNORED_BYTES = 1_024
IGNORED_BYTE_COST = 8
#: So does telling of one member in a page; one that is passed over costs about as much as a delivery.
MEMBER_COST = 20

_PING = Ping(PingKind.KEEPALIVE)
_ARE_YOU_THERE = (_PING, encode_frame(_PING))


class _Buffers(threading.local):
    """Nothing waits between receiving and opening: one buffer serves all sessions of a thread."""

    def __init__(self) -> None:
        self.received = memoryview(bytearray(MOST_READ_BYTES))


_buffers = _Buffers()


class _Farewell(Exception):
    """The client said CLOSE. It ends the turn, and with it the place in line, before the rest is sent."""


class Session:
    """A client's connection, from accept to close.

    Attributes:
        key: the client's proven public key; empty before the handshake is over.
        attributes: what the client claims of itself.
        rooms: where it is, and as what.
        outlet: its egress queue.
        heard: the sweeper's tick at which something last arrived.
        look_at: the tick at which the sweeper next looks at this session; `Relay.watch` sets it.
        close_by: when the connection is cut, whatever is still queued; None while it is not ending.
    """

    __slots__ = (
        "_alarm",
        "_connection",
        "_entered",
        "_held_before",
        "_house",
        "_leave_by",
        "_paused",
        "_pauses",
        "_peer",
        "_pongs",
        "_router",
        "_stalled",
        "_transport",
        "attributes",
        "close_by",
        "connection_number",
        "heard",
        "incarnation",
        "key",
        "look_at",
        "outlet",
        "rooms",
    )

    def __init__(self, house: Relay, transport: Transport) -> None:
        self._house = house
        self._transport = transport
        self._connection = RelayConnection(house.identity, house.settings.payload_bytes)
        self._connection.most_ignored_bytes = MOST_IGNORED_BYTES
        self.outlet = Outlet(house.settings.egress, transport, self._start_shaper, transport.close)
        self.key = b""
        self.attributes: Attributes = {}
        self.rooms: dict[Room, Place] = {}
        self.incarnation: Incarnation | None = None
        self.connection_number = 0
        self.heard = self._entered = house.tick
        self._leave_by: float | None = None
        self.close_by: float | None = None
        self._peer: Peer | None = None  # holding the slot keeps it alive
        self._router: Router | None = None
        self._alarm: trio.CancelScope | None = None  # a task waits for what the router holds
        self._held_before = 0  # by routers that are forgotten
        # Answers to flush PINGs that wait for the verdict on a held message: (ordinal before the PING, token).
        self._pongs: deque[tuple[int, bytes]] | None = None
        self._paused: dict[tuple[Any, int], float] | None = None  # (target, class) -> when PAUSE may be repeated
        self._pauses: dict[int, float] | None = None  # classes that the client has paused for a time -> until when
        # (bytes sent, tick) when the sweeper last saw progress, or first saw something queued
        self._stalled: tuple[int, int] | None = None
        self.look_at = 0

    async def run(self) -> None:
        """Serve the connection until it ends. Never raises but for cancellation."""
        try:
            try:
                if await self._greet():
                    await self._serve()
            except HandshakeError as error:
                self._house.count("handshake_failures")
                log.info("%s: %s", self, error)
            except RemoteProtocolError as error:
                self._house.count("protocol_errors")
                log.info("%s: closed, %s: %s", self, error.code.label, error)
                await self._refuse_connection(error)
            except _Farewell:
                await self._finish()
        except (OSError, trio.ClosedResourceError, EOFError) as error:
            log.debug("%s: ended, %r", self, error)
        except Exception:
            self._house.count("internal_errors")
            log.exception("%s: closed after an error in the relay; please report it", self)
            with suppress(Exception):
                self.end(ErrorCode.INTERNAL_ERROR)
        finally:
            self._depart(has_broken=True)
            self._house.traffic.receiver_gone_messages += self.outlet.disconnect()
            self._transport.close()
            self._house.forget(self)

    def __str__(self) -> str:
        return f"{short_key(self.key)}@{self._transport.peer}" if self.key else self._transport.peer

    # ---- what other tasks do to a session: nothing here waits ---------------------------------------

    def tell(self, message: Message, frame: bytes = b"") -> None:
        """Queue a message of the relay for this client. It is not sent until the queue is flushed.

        Args:
            message: what is told.
            frame: the message encoded, by those who tell many clients the same.
        """
        connection = self._connection
        if connection.local_state is State.CLOSED:
            return
        connection.note_sent(message)
        frame = frame or encode_frame(message)
        traffic_class = class_of(message)
        if is_barrier(message):
            if type(message) is Close:
                self.outlet.held = 0  # CLOSE ends every PAUSE
            self.outlet.push_barrier(frame)
        elif type(message) is Joined:
            self.outlet.push_in_order(frame)
        elif traffic_class == CONTROL:
            self.outlet.push_control(frame)
        elif not self.outlet.push(traffic_class, frame):
            self.end(ErrorCode.SLOW_RECEIVER, "answers are not read")
        self._house.touched[self.outlet] = None

    def end(self, code: ErrorCode, detail: str = "", goaway: Goaway | None = None) -> None:
        """Send the client away: what is queued still leaves, then CLOSE; later the sweeper cuts the rest."""
        if self.close_by is not None or self._connection.local_state is State.HANDSHAKE:
            return
        self.close_by = trio.current_time() + self._house.settings.closing_s
        self._house.watch(self, 1)
        self._depart()
        if goaway is not None:
            self.tell(goaway)
        self.tell(Close(code, detail))
        self.outlet.flush()

    def sweep(self, now: float) -> int:
        """The sweeper's look at this session: ask, cut, or leave alone. The flusher sends what is queued here.

        Returns:
            After how many ticks it shall look again.
        """
        settings, tick = self._house.settings, self._house.tick
        idle_s = (tick - self.heard) * self._house.tick_s
        if self.close_by is not None:
            if now >= self.close_by:
                self._transport.close()
            return 1
        if self._pauses:
            for traffic_class in [paused for paused, until in self._pauses.items() if now >= until]:
                self._resume(traffic_class)
        if self.outlet.is_empty or self._is_held_back():
            self._stalled = None
        elif self._stalled is None or self.outlet.sent_bytes != self._stalled[0]:
            self._stalled = (self.outlet.sent_bytes, tick)
        elif (tick - self._stalled[1]) * self._house.tick_s >= settings.drop_s:
            self._house.count("slow_receivers")
            log.info("%s: closed, slow_receiver: it took nothing for %g s", self, settings.drop_s)
            self.end(ErrorCode.SLOW_RECEIVER)
            return 1
        if self._leave_by is not None and now >= self._leave_by:
            self.end(ErrorCode.SESSION_TOO_OLD)
        elif self._leave_by is None and (tick - self._entered) * self._house.tick_s >= settings.session_s:
            self._leave_by = now + settings.drain_s
            self.tell(self._house.goaway(ErrorCode.SESSION_TOO_OLD, settings.drain_s))
        if idle_s >= settings.drop_s:
            self._house.count("keepalive_timeouts")
            self.end(ErrorCode.KEEPALIVE_TIMEOUT, f"nothing was heard for {settings.drop_s:g} s")
        elif idle_s and not (tick - self.heard) % self._house.keepalive_ticks and self._is_open():
            if self._router is not None:
                self._router.forget()  # an idle connection stays small
                if self._router.ingress.is_idle(self._house.now_ns()):
                    self._held_before += self._router.ingress.held_messages
                    self._router = None
            self.tell(*_ARE_YOU_THERE)
        if self._stalled or self._pauses or self._leave_by is not None or self.close_by is not None:
            return 1
        house = self._house
        due = min(self.heard + house.keepalive_ticks, self._entered + house.session_ticks)
        return max(due - tick, 1)

    @property
    def incomplete_bytes(self) -> int:
        """Bytes held of frames that have not arrived whole."""
        connection = self._connection
        return connection.reader.buffered_bytes + connection.fragments.held_bytes

    def _is_open(self) -> bool:
        return self._connection.local_state is State.OPEN

    def _is_held_back(self) -> bool:
        """Whether the client itself has paused everything that is queued."""
        return not self.outlet.blocked and self.outlet.is_drained

    def _start_shaper(self, shape: Callable[[], Any]) -> None:
        self._house.start_shaper(shape)
        self._house.watch(self, 1)  # whether it makes progress

    # ---- the task -----------------------------------------------------------------------------------

    async def _greet(self) -> bool:
        """The handshake and HELLO, within their deadlines; whether the client was let in."""
        settings = self._house.settings
        connection, transport = self._connection, self._transport
        started = trio.current_time()
        with trio.CancelScope(deadline=started + settings.first_byte_s) as scope:
            while True:
                try:  # act 1 is often there already
                    size = transport.recv_into(_buffers.received[:FIRST_READ_BYTES])
                except BlockingIOError:
                    await transport.wait_readable()
                    continue
                if not size:
                    return False
                scope.deadline = started + settings.greeting_s
                try:
                    connection.receive(_buffers.received[:size])
                finally:  # a failure right behind act 3 is told
                    if connection.is_established and not self.key:
                        self.key = connection.peer_key
                        self.outlet.open(connection.sealer, settings.is_pacing)
                act = connection.handshake_bytes()
                if act and transport.send(act) < len(act):
                    raise OSError("the empty buffer of a new connection did not take 128 bytes")
                if connection.is_established:
                    hello = connection.next_message()
                    if hello is not None:
                        return self._enter(hello)
                    self._house.holding[self] = None
        self._house.count("greeting_timeouts")
        if connection.is_established:
            raise RemoteProtocolError("no HELLO in time", ErrorCode.KEEPALIVE_TIMEOUT)
        log.info("%s: closed, no handshake in time", self)
        return False

    def _enter(self, hello: Message) -> bool:
        if type(hello) is Close:
            self.tell(Close())
            self.outlet.flush()
            return False
        assert type(hello) is Hello  # the state machine lets nothing else through
        if hello.revision != REVISION:
            raise RemoteProtocolError(
                f"revision {hello.revision} is not spoken here, {REVISION} is",
                ErrorCode.UNSUPPORTED_REVISION,
            )
        self.attributes = hello.attributes
        if self._house.is_draining:
            self.tell(self._house.goaway(ErrorCode.DRAINING, 0))
            self.tell(Close(ErrorCode.DRAINING, "the relay is shutting down"))
            return True
        self.incarnation = hello.incarnation
        self.connection_number = hello.connection
        house = self._house
        peer = house.registry.peer(self.key)
        older: Session | None = peer.node
        if older is not None:
            same_process = older.incarnation == self.incarnation
            if same_process and hello.connection <= older.connection_number:
                self.tell(Goaway(ErrorCode.SUPERSEDED))
                self.tell(Close(ErrorCode.SUPERSEDED, "a newer connection of this process is already here"))
                return True
            code = ErrorCode.SUPERSEDED if same_process else ErrorCode.REPLACED
            if code is ErrorCode.REPLACED:
                house.count("replaced_sessions")
                log.info("%s: takes over from %s", self, older)
            older.end(code, goaway=Goaway(code))
        peer.node = self
        peer.egress = self.outlet
        self.outlet.is_lagging = house.lagging.pop(self.key, older is not None and older.outlet.is_lagging)
        self._peer = peer
        self.tell(*house.welcome)
        for intent in hello.rooms:
            self._on_join(Join(intent.room, intent.flags, intent.capability))
        log.debug("%s: connected", self)
        return True

    async def _serve(self) -> None:
        transport, house = self._transport, self._house
        recv_into = transport.recv_into
        size = FIRST_READ_BYTES
        if self._connection.local_state is State.CLOSED:
            await self._linger()
            return
        moved = await self._work()  # frames may have come with HELLO
        while True:
            if moved > HEAVY_TURN_BYTES:
                async with house.turns:
                    received, moved = await self._turn(recv_into, size)
            else:
                received, moved = await self._turn(recv_into, size)
            if received < size:
                size = max(received, FIRST_READ_BYTES)
                await transport.wait_readable()
            else:
                size = min(2 * size, MOST_READ_BYTES)
                if moved <= HEAVY_TURN_BYTES:
                    await trio.lowlevel.checkpoint()

    async def _turn(self, recv_into: Callable[[Any], int], size: int) -> tuple[int, int]:
        """Read once and do all that follows from it; bytes received, and bytes moved in all."""
        try:
            received = recv_into(_buffers.received[:size])
        except BlockingIOError:
            return 0, 0
        if not received:
            raise EOFError("the client closed the connection")
        self.heard = self._house.tick
        connection = self._connection
        connection.receive(_buffers.received[:received])
        moved = received + await self._work()
        if connection.reader.buffered_bytes or connection.fragments.held_bytes:
            self._house.holding[self] = None
        return received, moved

    async def _work(self) -> int:
        """Handle everything received so far; bytes put into queues."""
        connection, house = self._connection, self._house
        house.note_turn()
        routed_before = house.traffic.delivered_bytes
        work = 0
        try:
            while True:
                try:
                    message = connection.next_message()
                finally:  # what came before a malformed frame is routed
                    if connection.reader.touched:
                        assert self._router is not None  # flows are bound by it
                        work += self._router.route_gathered(house.now_ns())
                if message is None and not connection.ignored_bytes:
                    break
                if connection.ignored_bytes:
                    work += IGNORED_BYTE_COST * connection.ignored_bytes
                    connection.ignored_bytes = 0
                handler = _HANDLERS.get(type(message))
                if handler is not None and self.close_by is None:
                    work += MESSAGE_COST + (handler(self, message) or 0)
                    if self.outlet.queued[CONTROL] + self.outlet.barrier_bytes > house.settings.control_bytes:
                        raise RemoteProtocolError("answers are not read", ErrorCode.SLOW_RECEIVER)
                if type(message) is Close:
                    raise _Farewell
                if work >= TURN_DELIVERIES:
                    work = 0
                    house.settle()
                    with trio.CancelScope(shield=True):
                        await trio.lowlevel.checkpoint()
        finally:
            if house.touched:
                house.settle()
            if self._router is not None and self._router.ingress.waiting:
                self._set_alarm(self._router)
        return house.traffic.delivered_bytes - routed_before

    async def _finish(self) -> None:
        """The client said CLOSE: what is queued for it still leaves, then our own CLOSE."""
        self._depart()
        self.tell(Close(ErrorCode.OK))
        with trio.move_on_after(self._house.settings.closing_s):
            self.outlet.flush()
            await self.outlet.wait_drained()

    async def _refuse_connection(self, error: RemoteProtocolError) -> None:
        """Tell the client why it is cut off, where it can still be told."""
        self._depart()
        if self._connection.local_state in (State.HANDSHAKE, State.CLOSED):
            return
        self._house.traffic.receiver_gone_messages += self.outlet.drop()
        self.tell(Close(error.code, str(error)[:200]))
        await self._linger()

    async def _linger(self) -> None:
        """Send what is queued, within a deadline, then wait for the client to hang up.

        Closing a socket with unread input resets the connection, and the client would lose our last words.
        """
        try:
            with trio.move_on_after(self._house.settings.closing_s):
                self.outlet.flush()
                await self.outlet.wait_drained()
                self._transport.half_close()
                while True:
                    await self._transport.wait_readable()
                    if not self._transport.recv_into(_buffers.received):
                        break
        except (OSError, trio.ClosedResourceError):
            log.debug("%s: gone before it had read everything", self)

    def _depart(self, has_broken: bool = False) -> None:
        """Leave all rooms and give up the key's slot."""
        house = self._house
        if self._peer is not None:
            for room in house.registry.leave_all(self, self.outlet):
                house.note_change(room, has_broken)
            if self._peer.node is self:
                self._peer.node = self._peer.egress = None
                if self.outlet.is_lagging:
                    house.note_lagging(self.key)
            self._peer = None
            self._connection.reader.forget()  # what still arrives is decoded, and ignored

    # ---- messages -----------------------------------------------------------------------------------

    def _router_now(self) -> Router:
        if self._router is None:
            house = self._house
            now_ns = house.now_ns()
            self._router = Router(
                house.registry,
                self.key,
                self.outlet,
                self._connection.reader,
                house.traffic,
                house.touched,
                house.unicasts,
                self._on_receiver_gone,
                Ingress(house.settings.contracts, now_ns),
                Scheduler(
                    house.settings.fan_out_bytes_per_s,
                    house.settings.fan_out_burst_bytes,
                    SchedulerGroup(0),
                    now_ns=now_ns,
                ),
                self._on_first_to,
                self._on_refused,
                self._on_congested,
            )
        return self._router

    def _on_publish(self, message: Publish) -> int:
        return self._router_now().publish(message, self._connection.reader.ordinal, self._house.now_ns())

    def _on_send(self, message: Send) -> int:
        return self._router_now().send(message, self._connection.reader.ordinal, self._house.now_ns())

    def _on_anycast(self, message: Anycast) -> int:
        return self._router_now().anycast(message, self._connection.reader.ordinal, self._house.now_ns())

    def _on_refused(self, first: int, count: int, code: ErrorCode, retry_after_ms: int) -> None:
        if self._peer is not None:  # else the client left while its message was held
            self.tell(Reject(first, count, code, retry_after_ms))

    def _on_first_to(self, room: Room) -> Sequence[ClassContract]:
        """The contracts of a room that this connection has sent nothing to, or not since they changed."""
        contracts = self._house.contracts_of(room.name)
        if contracts and room not in self.rooms:
            # SPEC shaping.md: A relay SHOULD send CONTRACT for a room that has contracts when it receives the
            #   first message for it from a connection that has not joined it.
            self.tell(Contract(room.name, ErrorCode.OK, contracts))
        return contracts

    # ---- contracts that change, and what they hold ---------------------------------------------------

    def change_contracts(self) -> None:
        """Apply the relay's contracts, which have changed, and tell the client."""
        if not self._is_open() or self._peer is None:
            return
        # SPEC shaping.md: A relay MUST NOT apply a contract to a connection to which it has not announced it.
        self.tell(Contract(None, ErrorCode.OK, self._house.settings.contracts))
        if self._router is not None:
            self._router.ingress.set_contracts(self._house.settings.contracts, self._house.now_ns())

    def change_room_contracts(self, room: Room) -> None:
        """The same for the contracts of a room."""
        if not self._is_open() or self._peer is None:
            return
        contracts = self._house.contracts_of(room.name)
        is_known = self._router is not None and self._router.ingress.knows(room)
        if is_known or room in self.rooms:
            self.tell(Contract(room.name, ErrorCode.OK, contracts))
        if self._router is not None:
            if is_known:
                self._router.ingress.set_contracts(contracts, self._house.now_ns(), room)
            self._router.forget()  # so that the next message is a first one

    def _set_alarm(self, router: Router) -> None:
        """See that what is held leaves in time: by a task that waits for the earliest of it."""
        deadline = router.ingress.next_ns / NS_PER_S + ALARM_SLACK_S
        if self._alarm is None:
            self._alarm = trio.CancelScope(deadline=deadline)
            self._house.start_shaper(partial(self._release, router))
        else:
            self._alarm.deadline = min(self._alarm.deadline, deadline)

    async def _release(self, router: Router) -> None:
        """Forward what is held when it is eligible, also after the client has left."""
        ingress = router.ingress
        try:
            while self._alarm is not None:
                with self._alarm:
                    await trio.sleep_forever()
                self._alarm = None
                ingress.release(self._house.now_ns(), TURN_DELIVERIES)
                self._answer_flushes(router)
                self._house.settle()
                if ingress.waiting:
                    self._alarm = trio.CancelScope(deadline=ingress.next_ns / NS_PER_S + ALARM_SLACK_S)
        except Exception:
            self._house.count("internal_errors")
            log.exception("%s: closed after an error in the relay; please report it", self)
            self._transport.close()
        finally:
            self._alarm = None
            self._house.traffic.receiver_gone_messages += ingress.waiting  # the relay is shutting down

    def _answer_flushes(self, router: Router) -> None:
        # SPEC shaping.md: A relay MUST queue the PONG to a flush PING only when it has processed every message that
        #   it received before that PING and holds.
        held = router.ingress.oldest_held
        while self._pongs and (held is None or held > self._pongs[0][0]):
            token = self._pongs.popleft()[1]
            if self._peer is not None:
                self.tell(Pong(token))

    def _on_receiver_gone(self, first: int, count: int) -> None:
        """Messages that were accepted for a receiver are lost, because it disconnected first."""
        if self.close_by is None and self._peer is not None:
            self.tell(Reject(first, count, ErrorCode.RECEIVER_GONE))
            self.outlet.flush_soon()

    def _on_congested(self, target: Room | Peer, traffic_class: int, egress: Any) -> None:
        """A receiver's queue is above its high-water mark: ask this sender to pause, at most every 100 ms."""
        if self._peer is None:
            return
        now = trio.current_time()
        if self._paused is None or len(self._paused) > MAX_PAUSED:
            self._paused = {}
        if now < self._paused.get((target, traffic_class), 0):
            return
        self._paused[target, traffic_class] = now + PAUSE_INTERVAL_S
        name: str | bytes = target.name if isinstance(target, Room) else target.key
        if egress.holds_up(traffic_class, self, name, self._house.settings):
            self.tell(Pause(name, traffic_class, self._house.settings.pause_ms))

    def resume_sending(self, target: str | bytes, traffic_class: int) -> None:
        """The queue that this client was asked to wait for has room again."""
        self.tell(Resume(target, traffic_class))
        # Not `flush`: two queues that pause each other would call each other without end.
        self.outlet.flush_soon()

    def _on_join(self, message: Join) -> None:
        house, settings = self._house, self._house.settings
        code = judge_room(self.key, message.room)
        if not code:
            room = house.registry.find_room(message.room)
            place = None if room is None else self.rooms.get(room)
            if place is None and len(self.rooms) >= settings.rooms_per_connection:
                code = ErrorCode.TOO_MANY_ROOMS
            elif room is not None and len(room.members) >= settings.room_members:
                is_member = place is not None and place.joined
                if not is_member and not message.flags & JoinFlags.OBSERVE:
                    code = ErrorCode.ROOM_FULL
        if code:
            self.tell(Left(message.room, code))
            return
        room = house.registry.join(self, self.outlet, message.room, message.flags)
        house.note_change(room)
        contracts = house.contracts_of(room.name)
        self.tell(Joined(room.name, room.version, len(room.members), room.messages, contracts))

    def _on_leave(self, message: Leave) -> None:
        room = self._house.registry.find_room(message.room)
        if room is not None and self._house.registry.leave(self, self.outlet, message.room):
            self._house.note_change(room)
        self.tell(Left(message.room, ErrorCode.OK))

    def _on_members(self, message: Members) -> int:
        room = self._house.registry.find_room(message.room)
        code = ErrorCode.OK
        if room is None or room not in self.rooms:
            code = ErrorCode.NOT_A_MEMBER if room_name_problem(message.room) is None else ErrorCode.BAD_ROOM
        if code or room is None:
            self.tell(MembersPage(message.room, code, 0))
            return 0
        page = room.page(message.after, self._house.settings.page_bytes)
        self.tell(page)
        return len(room.members) + MEMBER_COST * len(page.page)

    def _on_present(self, message: Present) -> None:
        code = judge_room(self.key, message.room)
        self.tell(Contract(message.room, code, () if code else self._house.contracts_of(message.room)))

    def _on_pause(self, message: Pause) -> None:
        self.outlet.pause(message.traffic_class)
        if self._pauses is None:
            self._pauses = {}
        self._pauses.pop(message.traffic_class, None)
        if message.for_ms:
            self._pauses[message.traffic_class] = trio.current_time() + message.for_ms / 1000
            self._house.watch(self, 1)

    def _on_resume(self, message: Resume) -> None:
        self._resume(message.traffic_class)

    def _resume(self, traffic_class: int) -> None:
        if self._pauses:
            self._pauses.pop(traffic_class, None)
        self.outlet.resume(traffic_class)
        self._house.touched[self.outlet] = None

    def _on_ping(self, message: Ping) -> None:
        if message.kind == PingKind.FLUSH and self._router is not None and self._router.ingress.waiting:
            if self._pongs is None:
                self._pongs = deque()
            if len(self._pongs) >= MAX_PONGS:
                self._pongs.pop()  # the answer to a later PING answers this one as well
            self._pongs.append((self._connection.reader.ordinal, message.token))
        else:
            # Everything before it has had its verdict: refusals are in the queue that this joins.
            self.tell(Pong(message.token))

    def _on_stats(self, _message: Stats) -> None:
        outlet, router = self.outlet, self._router
        waits = outlet.waits.longest_s if outlet.waits is not None else [0.0] * CLASSES
        self.tell(
            StatsReport(
                {
                    "received_messages": self._connection.reader.ordinal,
                    "sent_bytes": outlet.sent_bytes,
                    "queued_bytes": tuple(outlet.queued),
                    "rooms": len(self.rooms),
                    "held_messages": self._held_before + (router.ingress.held_messages if router else 0),
                    # SPEC shaping.md: A relay that publishes a bound SHOULD publish the longest delay that it
                    #   observed beside it.
                    "queueing_max_us": tuple(math.ceil(wait_s * 1e6) for wait_s in waits),
                    "queueing_bound_us": self._house.queueing_bounds_us,
                }
            )
        )


#: A deadline in seconds is not quite the nanosecond that it stands for.
ALARM_SLACK_S = 1e-6
#: Flush PINGs that wait for held messages.
MAX_PONGS = 64
#: A PAUSE for one target and class is repeated after this at the earliest.
PAUSE_INTERVAL_S = 0.1
#: Destinations whose last PAUSE is remembered.
MAX_PAUSED = 512

_HANDLERS: dict[type, Callable[[Any, Any], int | None]] = {
    Publish: Session._on_publish,
    Send: Session._on_send,
    Anycast: Session._on_anycast,
    Join: Session._on_join,
    Leave: Session._on_leave,
    Members: Session._on_members,
    Present: Session._on_present,
    Pause: Session._on_pause,
    Resume: Session._on_resume,
    Ping: Session._on_ping,
    Stats: Session._on_stats,
}
