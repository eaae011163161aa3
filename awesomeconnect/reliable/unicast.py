"""All unicast streams of a node, in both directions.

What arrives is given to it, and what is to be sent is taken from it. A stream is looked at when something happened
to it or its time has come, never because another one sends.
"""

from __future__ import annotations

from collections.abc import Callable

from awesomeconnect.reliable.agenda import Agenda
from awesomeconnect.reliable.outgoing import Outgoing
from awesomeconnect.reliable.receiver import Arrival, IncomingStream
from awesomeconnect.reliable.segments import (
    CONTROL_CLASS,
    Ack,
    Mark,
    Refusal,
    Segment,
    StreamMark,
    encode_control,
    encode_segment,
)
from awesomeconnect.reliable.sender import OVERHEAD_BYTES, Entry, OutgoingStream, Ticket
from awesomeconnect.reliable.settings import ReliableSettings
from awesomeconnect.reliable.stores import OutboxStore, StoredMessage, TakenStore
from awesomeconnect.wire.parts import Content

#: Reasons of refusals.
NOT_OFFERED, STALE, BUSY = 0, 1, 2
#: Between two searches for streams that can be forgotten, while all places are taken.
_SWEEP_MS = 1_000


class _Sender:
    """A node that has sent to this one.

    Attributes:
        keep_until_ms: until when segments of its earlier incarnations may still come.
    """

    __slots__ = ("incarnation", "keep_until_ms", "streams")

    def __init__(self, incarnation: bytes, keep_until_ms: int = 0) -> None:
        self.incarnation = incarnation
        self.keep_until_ms = keep_until_ms
        self.streams: dict[int, IncomingStream] = {}


class Unicast:
    """See the module's docstring.

    Args:
        incarnation: this node's.
        unix_ms: what to add to a time to get Unix time, for the stores.
        random: uniform in [0, 1).
    """

    def __init__(
        self,
        incarnation: bytes,
        settings: ReliableSettings,
        random: Callable[[], float],
        outbox_store: OutboxStore | None = None,
        taken_store: TakenStore | None = None,
        unix_ms: int = 0,
    ) -> None:
        self.incarnation = incarnation  # of what is sent
        self._run = incarnation  # of what is received: another one in each process, since what it holds is lost
        self._outbox_store = outbox_store
        self._taken_store = taken_store
        self._unix_ms = unix_ms
        self._is_ending = False
        self._settings = settings
        self._random = random
        self._outgoing: dict[tuple[bytes, int], OutgoingStream] = {}
        self._active: dict[OutgoingStream, None] = {}  # may have something to send
        self._waiting: dict[OutgoingStream, None] = {}  # ... as soon as its class takes it
        self._floor = 1  # above all sequences of streams that were forgotten
        self._senders: dict[bytes, _Sender] = {}
        self._incoming = 0  # streams
        self._swept_at_ms = -_SWEEP_MS
        self._acks: dict[IncomingStream, None] = {}  # owe one now
        self._refused_at_ms: dict[tuple[bytes, int], int] = {}
        self._refusals: list[Outgoing] = []
        self._timers: Agenda[OutgoingStream] = Agenda()
        self._ack_timers: Agenda[IncomingStream] = Agenda()
        self._is_connected = False
        self.held_bytes = 0
        self._buffered_bytes = 0

    # ---- the application -----------------------------------------------------------------------------

    def has_room(self, size: int) -> bool:
        """Whether a message of this size can be taken now. One always can when nothing is held."""
        # SPEC reliable.md: A sender MUST bound the bytes that it holds, and MUST make its application wait rather
        #   than drop a message.
        return not self.held_bytes or self.held_bytes + size + OVERHEAD_BYTES <= self._settings.outbox_bytes

    def post(
        self,
        peer: bytes,
        traffic_class: int,
        content: int,
        payload: bytes,
        now_ms: int,
        expires_ms: int,
        ticket: Ticket,
        seal: Callable[[int, bytes], bytes] | None = None,
    ) -> Entry:
        """Take a message to a peer; `has_room` was asked before.

        Args:
            seal: makes what is sent from the sequence and the payload.
        """
        stream = self._stream_to(peer, traffic_class)
        sequence = stream.next_sequence
        if seal is not None:
            payload = seal(sequence, payload)
        if self._outbox_store is not None:
            expires_unix_ms = now_ms + expires_ms + self._unix_ms
            self._outbox_store.add(StoredMessage(peer, traffic_class, sequence, content, payload, expires_unix_ms))
        entry = stream.add(content, payload, now_ms, expires_ms, ticket)
        self.held_bytes += entry.size
        if self._is_connected:
            self._active[stream] = None
        else:
            self._timers.note(stream, stream.next_ms)
        return entry

    def taken(self, arrival: Arrival, now_ms: int) -> None:
        """The application has taken a message, and stands for it."""
        stream = arrival.origin
        if stream is not None:
            stream.taken(arrival.sequence, now_ms)
            if self._taken_store is not None:
                self._taken_store.taken(stream.stored(now_ms + self._unix_ms))
            self._acks[stream] = None

    def restore(self, ticket: Callable[[bytes], Ticket], now_ms: int) -> None:
        """Go on where an earlier process ended, as far as the stores know.

        Args:
            ticket: makes one for a message to a peer.
        """
        if self._outbox_store is not None:
            self._restore_outbox(self._outbox_store, ticket, now_ms)
        if self._taken_store is not None:
            self._restore_taken(self._taken_store, now_ms)

    def _restore_outbox(self, store: OutboxStore, ticket: Callable[[bytes], Ticket], now_ms: int) -> None:
        incarnation, messages, next_sequences, self._floor = store.load_outbox()
        if incarnation is None:
            store.begin(self.incarnation)
        else:
            self.incarnation = incarnation
        for peer, traffic_class, sequence, content, payload, expires_unix_ms in messages:
            entry = Entry(sequence, content, payload, expires_unix_ms - self._unix_ms, ticket(peer))
            stream = self._outgoing.get((peer, traffic_class))
            if stream is None:
                stream = self._outgoing[peer, traffic_class] = OutgoingStream(
                    peer, traffic_class, self.incarnation, sequence, self._settings, self._ended
                )
            stream.restore(entry, now_ms)
            self.held_bytes += entry.size
            self._timers.note(stream, stream.next_ms)
        for where, following in next_sequences.items():
            while self._outgoing[where].next_sequence < following:
                self._outgoing[where].skip()

    def _restore_taken(self, store: TakenStore, now_ms: int) -> None:
        newest: dict[bytes, bytes] = {}
        streams = store.load_taken()
        for stored in streams:
            newest[stored.sender] = max(stored.incarnation, newest.get(stored.sender, b""))
        for stored in streams:
            age_ms = now_ms + self._unix_ms - stored.heard_unix_ms
            if stored.incarnation != newest[stored.sender] or age_ms > 2 * stored.longest_ms:
                store.forget(stored.sender, stored.traffic_class)
            elif self._incoming < self._settings.streams:
                sender = self._senders.setdefault(stored.sender, _Sender(stored.incarnation))
                sender.streams[stored.traffic_class] = IncomingStream.restored(stored, now_ms, self._settings)
                self._incoming += 1

    def _stream_to(self, peer: bytes, traffic_class: int) -> OutgoingStream:
        stream = self._outgoing.get((peer, traffic_class))
        if stream is None:
            if len(self._outgoing) >= self._settings.streams:
                self._forget_outgoing()
            stream = self._outgoing[peer, traffic_class] = OutgoingStream(
                peer, traffic_class, self.incarnation, self._floor, self._settings, self._ended
            )
        return stream

    def _forget_outgoing(self) -> None:
        """Forget half of the idle streams, those that were used longest ago."""
        # SPEC reliable.md: A sender MUST NOT use a sequence of a stream for two different messages.
        idle = sorted((stream for stream in self._outgoing.values() if stream.is_idle), key=lambda s: s.used_at_ms)
        for stream in idle[: (len(idle) + 1) // 2]:
            self._floor = max(self._floor, stream.next_sequence)
            del self._outgoing[stream.peer, stream.traffic_class]

    def _ended(self, stream: OutgoingStream, entry: Entry) -> None:
        self.held_bytes -= entry.size
        if self._outbox_store is not None and not self._is_ending:
            self._outbox_store.remove(stream.peer, stream.traffic_class, entry.sequence)

    # ---- the connection ------------------------------------------------------------------------------

    def connected(self, now_ms: int) -> None:
        """A connection is up."""
        self._is_connected = True
        for stream in self._outgoing.values():
            if not stream.is_idle:
                stream.on_connected(now_ms)
                self._active[stream] = None

    def disconnected(self) -> None:
        """It is gone."""
        self._is_connected = False
        self._refusals.clear()
        for stream in self._outgoing.values():
            if not stream.is_idle:
                stream.on_disconnected()

    def end(self) -> None:
        """The node ends: what is open ends with it, but for a store, where it waits for the next process."""
        self._is_ending = True
        for stream in self._outgoing.values():
            stream.end(self._outbox_store is not None)

    def on_reject(self, target: bytes | None, ordinals: range, code: int, retry_after_ms: int, now_ms: int) -> bool:
        """The relay refused messages; whether some are known here. ``target`` None: to whom is not known."""
        found = False
        for stream in self._outgoing.values():
            if (
                (target is None or stream.peer == target)
                and not stream.is_idle
                and stream.on_reject(ordinals, code, retry_after_ms, now_ms, self._random())
            ):
                self._active[stream] = None
                found = True
        return found

    # ---- other nodes ---------------------------------------------------------------------------------

    def on_segment(self, sender: bytes, traffic_class: int, segment: Segment, now_ms: int) -> list[Arrival]:
        """Take a segment in; the messages that are next in their stream now."""
        if not self._settings.is_offered:
            # SPEC reliable.md: A client that does not take reliable messages MUST answer a segment by SEND with a
            #   refusal not_offered.
            self._refuse(sender, traffic_class, segment.incarnation, NOT_OFFERED, now_ms)
            return []
        stream = self._stream_from(sender, traffic_class, segment.incarnation, segment.base, now_ms)
        if stream is None:
            return []
        before = stream.buffered_bytes
        arrivals = stream.on_segment(segment, now_ms, self._settings.buffer_bytes - self._buffered_bytes)
        self._buffered_bytes += stream.buffered_bytes - before
        if stream.ack_at_ms != stream.woken_at_ms:
            self._note_ack(stream, now_ms)
        return arrivals

    def on_mark(self, sender: bytes, mark: Mark, now_ms: int) -> list[Arrival]:
        """Take a mark in; the messages that are next in their stream now."""
        arrivals: list[Arrival] = []
        for traffic_class, base, _following in mark.marks if self._settings.is_offered else ():
            stream = self._stream_from(sender, traffic_class, mark.incarnation, base, now_ms)
            if stream is not None:
                before = stream.buffered_bytes
                arrivals += stream.on_mark(base, now_ms)
                self._buffered_bytes += stream.buffered_bytes - before
                self._note_ack(stream, now_ms)
        return arrivals

    def on_ack(self, sender: bytes, ack: Ack, now_ms: int) -> None:
        """A receiver has taken messages."""
        # SPEC reliable.md: A sender MUST ignore an ack whose sender incarnation or class is not that of a stream to
        #   that node.
        stream = self._outgoing.get((sender, ack.traffic_class))
        if stream is not None and ack.sender == stream.incarnation:
            stream.on_ack(ack, now_ms)
            self._active[stream] = None

    def on_refusal(self, sender: bytes, refusal: Refusal) -> None:
        """A receiver does not take a stream."""
        stream = self._outgoing.get((sender, refusal.traffic_class))
        if stream is not None and refusal.sender == stream.incarnation:
            stream.on_refusal(refusal.reason)

    def _stream_from(
        self, key: bytes, traffic_class: int, incarnation: bytes, base: int, now_ms: int
    ) -> IncomingStream | None:
        """The stream that a segment belongs to; None: it is refused."""
        sender = self._senders.get(key)
        keep_until_ms = 0
        if sender is not None and sender.incarnation != incarnation:
            # SPEC reliable.md: A receiver MUST remember for each sender and scope the greatest incarnation from
            #   which it has taken a segment or mark.
            # SPEC reliable.md: A receiver MUST answer a segment by SEND of a lower incarnation than the greatest
            #   with a refusal stale.
            if incarnation < sender.incarnation and not self._is_forgotten(sender, now_ms):
                self._refuse(key, traffic_class, incarnation, STALE, now_ms)
                return None
            # SPEC reliable.md: A receiver that learns of a greater incarnation MUST forget what it knows of the
            #   streams of the lower one in that scope.
            # SPEC reliable.md: A receiver MUST remember a greater incarnation for at least as long as it would have
            #   remembered the streams of the lower one.
            keep_until_ms = max(sender.keep_until_ms, *(one.forget_at_ms for one in sender.streams.values()))
            self._forget_sender(key)
            sender = None
        stream = None if sender is None else sender.streams.get(traffic_class)
        if stream is None:
            if self._incoming >= self._settings.streams:
                self._sweep(now_ms)
                if self._incoming >= self._settings.streams:
                    self._refuse(key, traffic_class, incarnation, BUSY, now_ms)
                    return None
            # SPEC reliable.md: A receiver that knows nothing of a stream MUST begin it at the base of the first
            #   segment or mark.
            stream = IncomingStream(key, traffic_class, incarnation, base, self._settings)
            self._senders.setdefault(key, _Sender(incarnation, keep_until_ms)).streams[traffic_class] = stream
            self._incoming += 1
        return stream

    def _is_forgotten(self, sender: _Sender, now_ms: int) -> bool:
        return sender.keep_until_ms <= now_ms and all(
            stream.forget_at_ms <= now_ms for stream in sender.streams.values()
        )

    def _forget_sender(self, key: bytes) -> None:
        for stream in self._senders.pop(key).streams.values():
            self._incoming -= 1
            self._buffered_bytes -= stream.buffered_bytes
            self._acks.pop(stream, None)
            if self._taken_store is not None:
                self._taken_store.forget(key, stream.traffic_class)

    def _sweep(self, now_ms: int) -> None:
        # SPEC reliable.md: A receiver MUST NOT forget a stream early to make room for a new one.
        if now_ms - self._swept_at_ms >= _SWEEP_MS:
            self._swept_at_ms = now_ms
            for key in [key for key, sender in self._senders.items() if self._is_forgotten(sender, now_ms)]:
                self._forget_sender(key)

    def _refuse(self, sender: bytes, traffic_class: int, incarnation: bytes, reason: int, now_ms: int) -> None:
        # SPEC reliable.md: A node MAY answer several segments of one sender within a second with one refusal.
        recent = self._refused_at_ms
        if now_ms < recent.get((sender, traffic_class), -1):
            return
        if len(recent) >= self._settings.streams:
            recent.clear()
        recent[sender, traffic_class] = now_ms + self._settings.refusal_ms
        payload = encode_control(Refusal(incarnation, traffic_class, reason))
        self._refusals.append(Outgoing(sender, CONTROL_CLASS, Content.REPAIR, payload))

    def _note_ack(self, stream: IncomingStream, now_ms: int) -> None:
        at_ms = stream.ack_at_ms
        if at_ms is not None:
            if at_ms <= now_ms:
                self._acks[stream] = None
            else:
                self._ack_timers.note(stream, at_ms)

    # ---- what to send, and when ----------------------------------------------------------------------

    @property
    def next_ms(self) -> int | None:
        """When to `poll` again, if nothing happens before."""
        timer_ms, ack_ms = self._timers.next_ms, self._ack_timers.next_ms
        if ack_ms is None or not self._is_connected:
            return timer_ms
        return ack_ms if timer_ms is None or ack_ms < timer_ms else timer_ms

    @property
    def is_waiting(self) -> bool:
        """Whether there is something to `poll` for now."""
        return self._is_connected and bool(self._acks or self._active or self._refusals)

    @property
    def is_held_up(self) -> bool:
        """Whether messages wait for a class that took no more."""
        return bool(self._waiting)

    def poll(self, now_ms: int, full_classes: int = 0) -> list[Outgoing]:
        """What is to be sent now.

        Args:
            full_classes: bit ``c`` is set where class ``c`` takes no more for the moment; messages in it wait for
                the next call.
        """
        for stream in self._timers.due(now_ms):
            stream.on_timer(now_ms)
            self._active[stream] = None
        if not self._is_connected:
            for stream in self._active:
                self._timers.note(stream, stream.next_ms)
            self._active.clear()
            return []
        for incoming in self._ack_timers.due(now_ms):
            if incoming.ack_at_ms is not None:
                self._note_ack(incoming, now_ms)
        outgoing, self._refusals = self._refusals, []
        for incoming in self._acks:
            # SPEC reliable.md: A receiver MUST send an ack after it has handed over messages, and MAY let one ack
            #   stand for all of one turn.
            payload = encode_control(incoming.ack(self._run))
            outgoing.append(Outgoing(incoming.sender, CONTROL_CLASS, Content.REPAIR, payload))
        self._acks.clear()
        active, self._active, self._waiting = {**self._waiting, **self._active}, {}, {}
        for stream in active:
            if stream.owes_mark:
                stream.owes_mark = False
                outgoing.append(self._mark(stream))
            if full_classes >> stream.traffic_class & 1:
                self._waiting[stream] = None
            else:
                while (entry := stream.take(now_ms)) is not None:
                    payload = encode_segment(stream.segment(entry, now_ms))
                    outgoing.append(Outgoing(stream.peer, stream.traffic_class, Content.RELIABLE, payload, entry))
            self._timers.note(stream, stream.next_ms)
        return outgoing

    def _mark(self, stream: OutgoingStream) -> Outgoing:
        where = StreamMark(stream.traffic_class, stream.base, stream.next_sequence)
        payload = encode_control(Mark(None, stream.incarnation, (where,)))
        return Outgoing(stream.peer, CONTROL_CLASS, Content.REPAIR, payload)
