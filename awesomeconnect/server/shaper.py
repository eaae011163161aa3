"""What sends: an egress queue with its socket, its key and its pacer.

`Outlet.flush` runs in the task of whoever queued something, so it never waits and never raises: faults do not
cross sessions. When the socket takes no more, a shaper task, which lives only until the queue has drained,
goes on in its own time. There is one writer at any moment: while a shaper waits for the socket, `flush` leaves it
alone.

Where the path is known to be slow, or not known yet, the pacer says how much of the classes below URGENT may be in
flight. What it holds back leaves when enough was acknowledged, for which the shaper looks from time to time: no
system tells a program. Meanwhile `flush` still sends what is urgent. A fast path is looked at once in 256 KiB, and
where nothing is known of it never.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import trio

from awesomeconnect.config import RelaySettings
from awesomeconnect.server.transport import Transport
from awesomeconnect.shaping.egress import CONTROL, Egress, EgressLimits
from awesomeconnect.shaping.pacer import LEAST_PIECE_BYTES, START_WINDOW_BYTES, Pacer
from awesomeconnect.shaping.waits import Waits
from awesomeconnect.wire.framing import LENGTH_BYTES
from awesomeconnect.wire.messages import Deliver
from awesomeconnect.wire.records import MAX_PLAINTEXT, OVERHEAD_BYTES, Sealer

log = logging.getLogger("awesomeconnect.server")

#: What one flush or one wake-up of a shaper sends at most, so that nobody holds the loop.
TURN_BYTES = 1 << 20

#: What is never written before the path is looked at, where nothing is known of it.
NEVER_BYTES = 1 << 62


class _Buffers(threading.local):
    """Where records are sealed. One for all connections of a thread: nothing waits between sealing and sending."""

    def __init__(self) -> None:
        self.record = memoryview(bytearray(MAX_PLAINTEXT + OVERHEAD_BYTES))


_buffers = _Buffers()


class Outlet(Egress):
    """The egress queue of a connection, its sealer and its transport.

    Attributes:
        blocked: a shaper task is waiting, for the socket or for acknowledgements.
        sent_bytes: what the socket has taken; the sweeper sees stalls by it.
        resumes: class -> (session, target) of senders that were asked to pause because of this queue.
        is_lagging: it has drained too slowly for too long, so nobody waits for it until it has caught up.
    """

    __slots__ = (
        "_acked_before",
        "_drained",
        "_failed",
        "_held_up",
        "_is_paced",
        "_look_at",
        "_owed",
        "_pacer",
        "_sealer",
        "_start",
        "_transport",
        "_unsent",
        "_wait_ns",
        "blocked",
        "is_lagging",
        "resumes",
        "sent_bytes",
        "waits",
    )

    def __init__(
        self,
        limits: EgressLimits,
        transport: Transport,
        start: Callable[..., Any],
        failed: Callable[[], None],
    ) -> None:
        super().__init__(limits)
        self._transport = transport
        self._start = start
        self._failed = failed
        self._sealer: Sealer | None = None
        self._unsent = b""  # what the socket did not take of the last sealed record
        self.blocked = False
        self.sent_bytes = 0
        self._pacer: Pacer | None = None  # made at the first look
        self._is_paced = False
        self._look_at = NEVER_BYTES  # what may be sent before the next look
        self._wait_ns = 0  # how long a shaper waits for acknowledgements; 0: it waits for the socket
        self._acked_before = 0  # what was acknowledged before the first record
        # class -> (what must have departed for it to be gone, whom to tell, first ordinal, count)
        self._owed: dict[int, deque[tuple[int, Callable[[int, int], None], int, int]]] | None = None
        self._drained: trio.Event | None = None
        self.resumes: dict[int, dict[tuple[Any, str | bytes], None]] | None = None
        self.is_lagging = False
        self._held_up: tuple[float, int] | None = None  # since when senders wait, and what was sent until then
        self.waits: Waits | None = None

    def open(self, sealer: Sealer, is_pacing: bool = True) -> None:
        """The handshake is over: frames may leave.

        Args:
            is_pacing: hold classes below URGENT back where the path is slow.

        Raises:
            OSError: the connection is gone.
        """
        self._sealer = sealer
        if is_pacing and self._transport.path is not None:
            _rtt_us, self._acked_before, _notsent, _min_rtt_us = self._transport.path()
            self._look_at = START_WINDOW_BYTES
            self._is_paced = True

    @property
    def is_empty(self) -> bool:
        """Whether everything was handed to the socket, or never will be."""
        return not self._unsent and not self.ready

    def flush(self) -> int:
        """Send what may leave now, as long as the socket takes it. Never raises.

        Returns:
            Bytes sent.
        """
        if self._sealer is None:
            return 0
        if self.blocked and not (self._wait_ns and self.has_urgent):
            self._note_waits()
            return 0
        before = self.sent_bytes
        is_done = self._send()
        if self.blocked and self.waits is not None:
            self.waits.end(self, trio.current_time())
        if not is_done:
            self._note_waits()
            self.flush_soon()
        return self.sent_bytes - before

    def pause(self, traffic_class: int) -> None:
        """As `Egress.pause`."""
        super().pause(traffic_class)
        self._held_up = None
        if self.waits is not None:
            self.waits.forget(traffic_class)

    def holds_up(self, traffic_class: int, sender: Any, target: str | bytes, settings: RelaySettings) -> bool:
        """Whether a sender whose message met this queue above its high-water mark should pause.

        It is told when the queue has room again. Not so when this receiver is lagging.
        """
        if self.resumes is None:
            self.resumes = {}
        senders = self.resumes.setdefault(traffic_class, {})
        # SPEC flow-control.md: A relay MAY stop to send PAUSE because of a receiver that drains too slowly for some
        #   seconds, until it has caught up.
        now = trio.current_time()
        if self._held_up is None or self.held >> traffic_class & 1:
            self._held_up = now, self.sent_bytes
        since, sent_before = self._held_up
        if not self.is_lagging and now - since >= settings.lagging_s:
            self.is_lagging = self.sent_bytes - sent_before < settings.lagging_bytes_per_s * (now - since)
            self._held_up = now, self.sent_bytes
            if self.is_lagging:
                for paused, waiting in self.resumes.items():
                    self.resumes[paused] = {}
                    _resume(waiting, paused)
        if not self.is_lagging:
            senders[sender, target] = None
        return not self.is_lagging

    def _note_waits(self) -> None:
        if self.waits is None:
            self.waits = Waits()
        self.waits.begin(self, trio.current_time())

    def flush_soon(self) -> None:
        """Let a shaper task send, as soon as the socket is writable."""
        if not self.blocked and self._sealer is not None:
            self.blocked = True
            self._start(self._shape)

    async def wait_drained(self) -> None:
        """Return once everything that may leave was handed to the socket, or the connection is dead."""
        while self.blocked:
            if self._drained is None:
                self._drained = trio.Event()
            await self._drained.wait()

    def owe(self, traffic_class: int, gone: Callable[[int, int], None], first: int, count: int) -> None:
        """Remember who sent what still waits for this receiver alone; it is told if the receiver disconnects first.

        Args:
            gone: called with the first ordinal and the count.
        """
        if self._owed is None:
            self._owed = {}
        owed = self._owed.setdefault(traffic_class, deque())
        while owed and owed[0][0] <= self.departed[traffic_class]:
            owed.popleft()
        mark = self.departed[traffic_class] + self.queued[traffic_class]
        if owed and owed[-1][1] == gone and owed[-1][2] + owed[-1][3] == first:
            first, count = owed[-1][2], owed[-1][3] + count
            owed.pop()
        owed.append((mark, gone, first, count))

    def drop(self) -> int:
        """Drop what is queued, and tell those who sent it to this receiver alone.

        Returns:
            Application messages dropped.
        """
        owed, self._owed = self._owed, None
        if owed:
            for traffic_class, messages in owed.items():
                for mark, gone, first, count in messages:
                    if mark > self.departed[traffic_class]:
                        gone(first, count)
        dropped = sum(map(_messages_in, self.entries())) if self.ready & ~(1 << CONTROL) else 0
        self.clear()
        return dropped

    def disconnect(self) -> int:
        """The connection is over: `drop` what is queued, and let go of the session.

        Returns:
            Application messages dropped.
        """
        self._sealer = None
        self._unsent = b""
        self.resumes = None
        self._failed = self._start = _nothing
        return self.drop()

    def _send(self) -> bool:
        """Seal and send record by record; False when there is more: see `_wait_ns` for what to wait for."""
        sealer = self._sealer
        assert sealer is not None
        send = self._transport.send
        record = _buffers.record
        end = self.sent_bytes + TURN_BYTES
        self._wait_ns = 0
        try:
            if self._unsent:
                sent = send(self._unsent)
                self.sent_bytes += sent
                self._unsent = self._unsent[sent:]
                if self._unsent:
                    return False
            while True:
                room = self._look_at - self.sent_bytes
                if room < LEAST_PIECE_BYTES:
                    room = self._look()
                plaintext = self.take_paced(room) if self._is_paced else self.take()
                if not plaintext:
                    break
                size = sealer.seal_into(plaintext, record)
                try:
                    sent = send(record[:size])
                except BlockingIOError:
                    sent = 0
                self.sent_bytes += sent
                if self.resumes:
                    self._tell_resumed()
                if sent < size:
                    self._unsent = bytes(record[sent:size])
                    self._wait_ns = 0
                    return False
                if self.sent_bytes >= end:
                    return False
        except BlockingIOError:
            return False
        except OSError:
            self._fail()
            return True
        except Exception:
            log.exception("a connection was closed after an error in the relay; please report it")
            self._fail()
            return True
        if self._wait_ns and self.is_drained:
            self._wait_ns = 0
        return not self._wait_ns

    def _look(self) -> int:
        """Ask what became of what was sent, and the pacer how much of the lower classes may follow."""
        path = self._transport.path
        assert path is not None
        pacer = self._pacer
        if pacer is None:
            pacer = self._pacer = Pacer()
        rtt_us, acked, notsent, min_rtt_us = path()
        acked -= self._acked_before
        may_send = pacer.look(round(trio.current_time() * 1e9), self.sent_bytes, acked, rtt_us, min_rtt_us, notsent)
        self._look_at = self.sent_bytes + may_send
        self._is_paced = not pacer.is_fast
        self._wait_ns = 0 if may_send else pacer.wait_ns()
        return may_send

    def _fail(self) -> None:
        self._sealer = None
        self._failed()

    async def _shape(self) -> None:
        """The shaper task: from the first short send until the queue has drained."""
        try:
            while True:
                if self._wait_ns:
                    await trio.sleep(self._wait_ns / 1e9)
                else:
                    await self._transport.wait_writable()
                is_done = self._sealer is None or self._send()
                if self.waits is not None:
                    self.waits.end(self, trio.current_time())
                if is_done:
                    break
        except (trio.ClosedResourceError, OSError):
            self._sealer = None
        finally:
            self.blocked = False
            if self._drained is not None:
                self._drained.set()
                self._drained = None

    def _tell_resumed(self) -> None:
        """Tell paused senders of classes that are below the low mark again."""
        assert self.resumes is not None
        low = self.limits.low_water_bytes
        for traffic_class in [paused for paused in self.resumes if self.queued[paused] <= low]:
            _resume(self.resumes.pop(traffic_class), traffic_class)
        if not self.resumes:
            self._held_up = None
            self.is_lagging = False


def _resume(senders: dict[tuple[Any, str | bytes], None], traffic_class: int) -> None:
    for session, target in senders:
        session.resume_sending(target, traffic_class)


def _messages_in(blob: bytes) -> int:
    """The DELIVER frames in a queue entry: GAPs, listings and control frames are not counted."""
    count = at = 0
    while at < len(blob):
        count += blob[at + LENGTH_BYTES + 1] == Deliver.KIND
        at += LENGTH_BYTES + int.from_bytes(blob[at : at + LENGTH_BYTES], "big")
    return count


def _nothing(*_arguments: object) -> None:
    """What a disconnected queue calls instead of its session."""
