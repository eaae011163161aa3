"""The relay as a whole: listeners, sessions, the sweeper, presence, and shutdown.

Relay.serve
├── shapers   outlive sessions, since any session's turn may start one
├── flusher   sends what several sessions, or one with many receivers, have queued
├── sweeper   keepalive, stalls, deadlines of closing connections: one task for all
├── presence  tells watchers what changed, a little later and together
└── sessions  listeners > one task per connection
"""

from __future__ import annotations

import errno
import logging
import math
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

import trio
from attrs import evolve

from awesomeconnect.config import RelaySettings
from awesomeconnect.errors import ErrorCode
from awesomeconnect.identity import Identity
from awesomeconnect.relay.flows import Traffic, Unicast
from awesomeconnect.relay.rooms import Registry, Room
from awesomeconnect.server.listeners import close_listener
from awesomeconnect.server.session import Session
from awesomeconnect.server.shaper import Outlet
from awesomeconnect.server.transport import SocketTransport, Transport
from awesomeconnect.shaping.ats import NS_PER_S
from awesomeconnect.shaping.bounds import Flow, LinkContract, OverCommitted, delay_bounds
from awesomeconnect.shaping.egress import CLASSES, CONTROL
from awesomeconnect.wire.framing import FRAGMENT_ABOVE_BYTES, FRAME_OVERHEAD_BYTES
from awesomeconnect.wire.messages import REVISION, ClassContract, Goaway, Presence, Welcome, class_of, encode_frame

log = logging.getLogger("awesomeconnect.server")

#: The flusher lets others run after this much, about 1 ms; a flush counts for at least 16 KiB.
FLUSH_BYTES = 512 << 10
FLUSH_COST_BYTES = 16 << 10
#: Meanwhile it looks for something urgent in as many queues that were touched since, at most: 0.1 ms.
MOST_SEARCHED = 1_000
#: The sweeper lets others run after looking at this many sessions, about 1 ms.
SWEEP_SESSIONS = 256
#: Queues that a session flushes itself at the end of its turn.
FLUSH_AT_ONCE = 8

#: PUBLISH without payload to a room of one letter.
SHORTEST_FRAME_BYTES = 11
#: Connections taken from a listener before others run.
ACCEPT_BATCH = 64
#: Nodes that left while they were lagging; beyond it the one that left first is forgotten.
MOST_LAGGING = 1_024
#: Pause when the system is out of file descriptors or memory.
ACCEPT_PAUSE_S = 0.1
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Passes(trio.abc.Instrument):
    """Counts the passes of Trio's scheduler, so that turns in the same pass know of each other."""

    def __init__(self) -> None:
        self.count = 0

    def before_io_wait(self, timeout: float) -> None:
        """Trio calls this once a pass."""
        self.count += 1


class Relay:
    """A relay.

    Args:
        identity: its key; nodes pin the public half.
        settings: what it allows.
        random_bytes: source of the epoch; a simulation gives its own.

    Attributes:
        epoch: 8 random bytes that tell this run from every other.
        registry: rooms and peers.
        traffic: plain counters of what was relayed.
        events: counters of everything else, by name.
        turns: taken in line by sessions whose last turn moved much.
        touched: queues that something was put into since the last flush.
        unicasts: what went to a single receiver since then.
        is_draining: who comes now is sent away.
        lagging: keys of nodes that left while nobody waited for them any more; nobody does when they are back.
        tick: a coarse clock, advanced by the sweeper.
        holding: sessions of which a part of a frame is held, or was at the last tick.
        welcome: what every client is told first, and the same as a frame.
        queueing_bounds_us: how long a frame waits here at most, by class; 0 where there is no bound.
        keepalive_ticks: silence of this many ticks, and of each multiple of it, is answered with a PING.
        session_ticks: a connection that is older is asked to leave.
    """

    def __init__(
        self,
        identity: Identity,
        settings: RelaySettings | None = None,
        *,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.identity = identity
        self.settings = settings or RelaySettings()
        self.epoch = random_bytes(8)
        self.registry = Registry()
        self.traffic = Traffic()
        self.events: dict[str, int] = {}
        self.turns = trio.Lock()
        self.touched: dict[Outlet, None] = {}
        self.unicasts: list[Unicast] = []
        self.lagging: dict[bytes, bool] = {}
        self.tick = 0
        self.tick_s = min(1.0, self.settings.keepalive_s / 5, self.settings.closing_s)
        self.keepalive_ticks = math.ceil(self.settings.keepalive_s / self.tick_s)
        self.session_ticks = math.ceil(self.settings.session_s / self.tick_s)
        self.welcome = self._welcome()
        self.queueing_bounds_us = _bounds_us(self.settings)
        self.sessions: dict[Session, None] = {}
        self.holding: dict[Session, None] = {}
        self._due: dict[int, dict[Session, None]] = {}  # tick -> whom the sweeper looks at then
        self._shapers: trio.Nursery | None = None
        self._session_nursery: trio.Nursery | None = None
        self._accepting = trio.CancelScope()
        self._passes = Passes()
        self._turn_pass = self._turns = self._turns_before = 0
        self._flusher = trio.lowlevel.ParkingLot()
        self._news: dict[Room, float] = {}  # when the audience is told
        self._news_came = trio.Event()
        self._emptied = trio.Event()
        self._drained = trio.Event()
        self.is_draining = False

    async def serve(
        self,
        listeners: Sequence[socket.socket] = (),
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled, or until `drain` has finished.

        Args:
            listeners: non-blocking listening sockets; closed when the relay stops accepting.
            task_status: started once connections are accepted.
        """
        trio.lowlevel.add_instrument(self._passes)
        async with trio.open_nursery() as shapers:
            self._shapers = shapers
            shapers.start_soon(self._flush)
            shapers.start_soon(self._sweep)
            shapers.start_soon(self._tell_news)
            async with trio.open_nursery() as sessions:
                self._session_nursery = sessions
                try:
                    with self._accepting:
                        async with trio.open_nursery() as accepting:
                            for listener in listeners:
                                accepting.start_soon(self._accept, listener)
                            task_status.started()
                            await trio.sleep_forever()
                finally:
                    for listener in listeners:
                        close_listener(listener)  # late clients are refused, and try their next relay
                await self._drained.wait()
                sessions.cancel_scope.cancel()
            shapers.cancel_scope.cancel()
        trio.lowlevel.remove_instrument(self._passes)

    async def drain(self, window_s: float | None = None) -> None:
        """Accept nothing more, ask the clients to leave, and close what is left after the window.

        Args:
            window_s: by default the setting ``drain_s``; 0 closes all connections now, in good order.
        """
        if self.is_draining:
            return
        window_s = self.settings.drain_s if window_s is None else window_s
        self.is_draining = True
        self._accepting.cancel()
        goaway = self.goaway(ErrorCode.DRAINING, window_s)
        for session in list(self.sessions):
            if session.key:
                session.tell(goaway)
                session.outlet.flush()
        await self._wait_until_empty(window_s)
        for session in list(self.sessions):
            if session.key:
                session.end(ErrorCode.DRAINING, "the relay is shutting down")
        await self._wait_until_empty(self.settings.closing_s)
        self._drained.set()

    async def _wait_until_empty(self, most_s: float) -> None:
        self._emptied = trio.Event()
        if self.sessions:
            with trio.move_on_after(most_s):
                await self._emptied.wait()

    def goaway(self, code: ErrorCode, window_s: float) -> Goaway:
        """Asks a client to leave within a window."""
        alternates = self.settings.alternates if code is ErrorCode.DRAINING else ()
        return Goaway(code, round(window_s * 1000), round(self.settings.spread_s * 1000), alternates)

    def now_ns(self) -> int:
        """The clock of all shaping, in integer nanoseconds."""
        return int(trio.current_time() * NS_PER_S)

    def contracts_of(self, room: str) -> tuple[ClassContract, ...]:
        """What a connection may send to a room, beside what it may send in all; empty for most rooms."""
        return self.settings.room_contracts.get(room, ())

    def set_contracts(self, contracts: Sequence[ClassContract]) -> None:
        """Replace what each connection may send, and tell the clients. What is held keeps its time.

        Raises:
            ValueError: two contracts for a class; nothing has changed.
        """
        self.settings = evolve(self.settings, contracts=tuple(contracts))
        self.welcome = self._welcome()
        self.queueing_bounds_us = _bounds_us(self.settings)
        for session in list(self.sessions):
            session.change_contracts()
        self.settle()

    def set_room_contracts(self, room: str, contracts: Sequence[ClassContract]) -> None:
        """The same for what each connection may send to a room: a setting of the relay, or of the room's owner.

        Raises:
            ValueError: two contracts for a class, or not the name of a room; nothing has changed.
        """
        rooms = {**self.settings.room_contracts, room: tuple(contracts)}
        self.settings = evolve(self.settings, room_contracts={name: of for name, of in rooms.items() if of})
        self.queueing_bounds_us = _bounds_us(self.settings)
        slot = self.registry.find_room(room)
        if slot is not None:
            for session in list(self.sessions):
                session.change_room_contracts(slot)
            self.settle()

    def _welcome(self) -> tuple[Welcome, bytes]:
        settings = self.settings
        limits = {
            "payload_bytes": settings.payload_bytes,
            "frame_bytes": settings.payload_bytes + FRAME_OVERHEAD_BYTES,
            "rooms": settings.rooms_per_connection,
            "room_members": settings.room_members,
            "page_bytes": settings.page_bytes,
            "keepalive_ms": round(settings.keepalive_s * 1000),
            "drop_ms": round(settings.drop_s * 1000),
        }
        welcome = Welcome(REVISION, self.epoch, limits, settings.contracts, settings.alternates)
        return welcome, encode_frame(welcome)

    def connect(self, transport: Transport) -> None:
        """Take a new connection: from a listener, or from a simulated network."""
        assert self._session_nursery is not None, "serve the relay first"
        if len(self.sessions) >= self.settings.connections:
            self.count("refused_connections")
            transport.close()
            return
        session = Session(self, transport)
        self.sessions[session] = None
        self.watch(session, min(self.keepalive_ticks, self.session_ticks))
        self._session_nursery.start_soon(session.run)

    def forget(self, session: Session) -> None:
        """A session has ended."""
        self.sessions.pop(session, None)
        self.holding.pop(session, None)
        self._due.get(session.look_at, {}).pop(session, None)
        if not self.sessions:
            self._emptied.set()

    def watch(self, session: Session, ticks: int) -> None:
        """Let the sweeper look at a session after so many ticks, unless it does so before."""
        tick = self.tick + ticks
        if not self.tick < session.look_at <= tick:
            self._due.get(session.look_at, {}).pop(session, None)
            session.look_at = tick
            self._due.setdefault(tick, {})[session] = None

    def note_lagging(self, key: bytes) -> None:
        """A node has left whose queue drained too slowly."""
        if len(self.lagging) >= MOST_LAGGING:
            del self.lagging[next(iter(self.lagging))]
        self.lagging[key] = True

    def count(self, event: str, by: int = 1) -> None:
        """Count something that is worth a metric. Not for the fast path."""
        self.events[event] = self.events.get(event, 0) + by

    def note_turn(self) -> None:
        """A session begins a turn."""
        if self._turn_pass != self._passes.count:
            self._turn_pass = self._passes.count
            self._turns_before, self._turns = self._turns, 0
        self._turns += 1

    def settle(self) -> None:
        """End of a session's turn: send what is queued, now or together with what others queue in this pass.

        A flush costs about 10 µs however little it carries. So where several sessions have turns in one pass
        of the scheduler, as in a busy room, the flusher sends what all of them queued, a pass later. A session
        that is alone sends at once.
        """
        if self._turns > 1 or self._turns_before > 1 or len(self.touched) > FLUSH_AT_ONCE:
            self._flusher.unpark()
        else:
            touched = list(self.touched)
            self.touched.clear()
            for outlet in touched:
                outlet.flush()
            self._remember_unicasts()

    def start_shaper(self, shape: Callable[[], Any]) -> None:
        """Run a queue's shaper task beside the sessions."""
        assert self._shapers is not None
        self._shapers.start_soon(shape)

    def note_change(self, room: Room, has_broken: bool = False) -> None:
        """Somebody joined or left a room: those who watch it will be told.

        Args:
            has_broken: a connection broke, and its node may be back soon.
        """
        if room.has_news:
            settings = self.settings
            # SPEC messages.md: A relay MAY hold the leave of a connection that broke back for up to 2 s, until the
            #   next change of the room that is none.
            due = trio.current_time() + (settings.broken_leave_s if has_broken else settings.presence_s)
            if due < self._news.get(room, math.inf):
                self._news[room] = due
                self._news_came.set()

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            await trio.lowlevel.wait_readable(listener)
            for _ in range(ACCEPT_BATCH):
                try:
                    connected, address = listener.accept()
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno in _EXHAUSTED:
                        if not self.events.get("accept_pauses"):
                            log.error("cannot accept connections: %s; raise the limit (ulimit -n)", error.strerror)
                        self.count("accept_pauses")
                        await trio.sleep(ACCEPT_PAUSE_S)
                        break
                    continue  # the connection ended before it was accepted
                peer = _peer_text(connected.family, address)
                try:
                    transport = SocketTransport(connected, peer)
                except OSError:
                    connected.close()
                    continue
                self.connect(transport)

    async def _flush(self) -> None:
        while True:
            work = 0
            for outlet in [*self._take_urgent(), *self._take_touched()]:
                work += outlet.flush() + FLUSH_COST_BYTES
                if work >= FLUSH_BYTES:
                    self._remember_unicasts()
                    await trio.lowlevel.checkpoint()
                    work = 0
                    if len(self.touched) <= MOST_SEARCHED:
                        for overtaking in self._take_urgent():
                            work += overtaking.flush() + FLUSH_COST_BYTES
            self._remember_unicasts()
            if not self.touched:
                await self._flusher.park()

    def _take_urgent(self) -> list[Outlet]:
        urgent = [outlet for outlet in self.touched if outlet.has_urgent]
        for outlet in urgent:
            del self.touched[outlet]
        return urgent

    def _take_touched(self) -> list[Outlet]:
        touched = list(self.touched)
        self.touched.clear()
        return touched

    def _remember_unicasts(self) -> None:
        """After a flush: those that still wait are refused to their sender if the receiver disconnects first."""
        for outlet, traffic_class, gone, first, count in self.unicasts:
            if outlet.queued[traffic_class]:
                outlet.owe(traffic_class, gone, first, count)
        self.unicasts.clear()

    async def _sweep(self) -> None:
        while True:
            await trio.sleep(self.tick_s)
            self.tick += 1
            now = trio.current_time()
            for number, session in enumerate(self._due.pop(self.tick, {}), 1):
                if session in self.sessions:
                    self.watch(session, session.sweep(now))
                if not number % SWEEP_SESSIONS:
                    self._flusher.unpark()
                    await trio.lowlevel.checkpoint()
            self._flusher.unpark()
            self.holding = {session: None for session in self.holding if session.incomplete_bytes}
            incomplete = sum(session.incomplete_bytes for session in self.holding)
            if incomplete > self.settings.incomplete_bytes:
                self._shed(incomplete - self.settings.incomplete_bytes)

    def _shed(self, excess_bytes: int) -> None:
        """Close the connections that hold the most of incomplete frames."""
        for session in sorted(self.holding, key=lambda session: session.incomplete_bytes, reverse=True):
            if excess_bytes <= 0:
                break
            excess_bytes -= session.incomplete_bytes
            self.count("shed_connections")
            session.end(ErrorCode.OVERLOADED, "too much of incomplete messages is held")

    async def _tell_news(self) -> None:
        while True:
            self._news_came = trio.Event()
            with trio.move_on_at(min(self._news.values(), default=math.inf)):
                await self._news_came.wait()
            now = trio.current_time()
            for room in [room for room, due in self._news.items() if due <= now]:
                del self._news[room]
                self._tell_audience(room, room.take_changes(self.settings.page_bytes))
                await trio.lowlevel.checkpoint()

    def _tell_audience(self, room: Room, told: list[Presence]) -> None:
        audience: list[Any] = list(room.audience)
        for presence in told:
            frame = encode_frame(presence)
            traffic_class = class_of(presence)
            for session in audience:
                if not session.outlet.push(traffic_class, frame):
                    session.end(ErrorCode.SLOW_RECEIVER, "changes of membership are not read")
        for session in audience:
            session.outlet.flush()


def _bounds_us(settings: RelaySettings) -> tuple[int, ...]:
    """Every connection may send to every receiver, within the contracts of all rooms, too.

    Not counted is what a client asks the relay itself for: lists of members, and changes of rooms that it watches.
    """
    # SPEC shaping.md: A relay MUST NOT publish a bound for a receiver whose link has no configured capacity, or
    #   whose number of senders or their contracts are not bounded.
    found = [0] * CLASSES
    bounded = {contract.traffic_class: [contract] for contract in settings.contracts}
    for contracts in settings.room_contracts.values():
        for contract in contracts:
            bounded.get(contract.traffic_class, []).append(contract)
    flows: list[Flow] = []
    for traffic_class in range(CONTROL - 1, -1, -1):
        if settings.downlink_bytes_per_s is None or traffic_class not in bounded:
            break
        for contract in bounded[traffic_class]:
            longest = min(contract.cbs_bytes, settings.payload_bytes + FRAME_OVERHEAD_BYTES)
            shortest = min(SHORTEST_FRAME_BYTES, longest)
            rate, burst = contract.cir_bytes_per_s, contract.cbs_bytes
            flows.append(Flow(traffic_class, rate, burst, shortest, longest, settings.connections))
        # What is below comes as a fragment, whatever its contract is.
        unit = Flow(0, 1, FRAGMENT_ABOVE_BYTES, 1, FRAGMENT_ABOVE_BYTES) if traffic_class else None
        link = LinkContract(settings.downlink_bytes_per_s, (*flows, *([unit] if unit else [])))
        bound = delay_bounds(link)[traffic_class]
        if isinstance(bound, OverCommitted):
            log.warning("no delay bound: %s", bound)
            break
        found[traffic_class] = -(-bound.total_ns // 1_000)
    return tuple(found)


def _peer_text(family: int, address: Any) -> str:
    if family == socket.AF_UNIX:
        return "unix"
    host, port = address[:2]
    return f"[{host}]:{port}" if family == socket.AF_INET6 else f"{host}:{port}"
