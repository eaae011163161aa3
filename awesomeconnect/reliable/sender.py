"""One stream of unicast messages at its sender: what was sent and is not settled, and what to send next.

    queued ──> sent ──> held by the receiver ──> taken by its application: delivered
      ^          │ refused by the relay, lost, timeout, another receiver incarnation
      └──────────┘

Whatever happens, each message ends once, with one `Outcome`. Segments of a stream arrive in the
order in which they left, so one that is not there when a later one is was lost. Since a receiver may be absent, a
stream that was refused, got no answer, or finds itself on a new connection sends one segment and waits.

Knows no clock: times are arguments, in milliseconds. Knows no connection: what is sent is taken from it.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Protocol

from awesomeconnect.errors import ErrorCode
from awesomeconnect.reliable.segments import Ack, Segment
from awesomeconnect.reliable.settings import ReliableSettings

#: What a held message costs besides its payload.
OVERHEAD_BYTES = 128


class Outcome(Enum):
    """How a reliable message ended."""

    DELIVERED = "delivered"
    EXPIRED = "expired"
    """It certainly did not arrive."""
    REFUSED = "refused"
    """By the relay, with a code that may not be retried; it certainly did not arrive."""
    DECLINED = "declined"
    """By the receiver, which does not take the stream; it certainly was not taken."""
    UNKNOWN = "unknown"
    """It may have been taken; no acknowledgement came."""


class Ticket(Protocol):
    """Who waits for a message."""

    def held(self) -> None:
        """It has arrived at the receiver, and waits there."""

    def settled(self, outcome: Outcome, code: int) -> None:
        """It has ended; ``code`` says why it was refused (an ErrorCode) or declined (a reason)."""


class Nobody:
    """A ticket of nobody."""

    def held(self) -> None:
        """Nobody hears of it."""

    def settled(self, outcome: Outcome, code: int) -> None:
        """Nobody hears of it."""


_NOBODY = Nobody()


class Transmission(Protocol):
    """A segment that was given to the connection; ``ordinal`` is None until it has left."""

    @property
    def ordinal(self) -> int | None: ...


class Entry:
    """A message on its way.

    Attributes:
        sequence, content, payload: of its segment.
        expires_at_ms: when the sender gives it up.
        size: what it counts for in the outbox and in the window.
        transmissions: its segments on this connection that were not refused; the caller adds them.
        outcome: None until it has ended.
    """

    __slots__ = (
        "content",
        "expires_at_ms",
        "is_doubtful",
        "is_held",
        "is_queued",
        "is_resent",
        "order",
        "outcome",
        "payload",
        "sent_at_ms",
        "sequence",
        "size",
        "ticket",
        "transmissions",
    )

    def __init__(self, sequence: int, content: int, payload: bytes, expires_at_ms: int, ticket: Ticket) -> None:
        self.sequence = sequence
        self.content = content
        self.payload = payload
        self.expires_at_ms = expires_at_ms
        self.ticket = ticket
        self.size = len(payload) + OVERHEAD_BYTES
        self.transmissions: list[Transmission] = []
        self.outcome: Outcome | None = None
        self.order = 0  # of its last transmission among those of the stream; 0: never sent
        self.sent_at_ms = 0
        self.is_queued = True
        self.is_resent = False
        self.is_held = False
        self.is_doubtful = False  # sent on a connection that ended, and not refused there

    @property
    def may_have_arrived(self) -> bool:
        """Whether some segment of it may have reached the receiver, or still may."""
        return self.is_doubtful or bool(self.transmissions)


class OutgoingStream:
    """See the module's docstring.

    Args:
        incarnation: the sender's.
        first: the sequence of the first message.
        ended: called with each message that has ended.

    Attributes:
        base: the lowest sequence that may still be sent; the next one when nothing is open.
        owes_mark: whether the receiver must be told where the stream is.
        used_at_ms: when it was last used.
    """

    def __init__(
        self,
        peer: bytes,
        traffic_class: int,
        incarnation: bytes,
        first: int,
        settings: ReliableSettings,
        ended: Callable[[OutgoingStream, Entry], None],
    ) -> None:
        self.peer = peer
        self.traffic_class = traffic_class
        self.incarnation = incarnation
        self.owes_mark = False
        self.used_at_ms = 0
        self.woken_at_ms: int | None = None  # the caller's: when it will look at the timers
        self._settings = settings
        self._ended = ended
        self._entries: list[Entry] = []  # in the order of sequences, without holes, from _head on
        self._head = 0
        self._origin = first  # the sequence of _entries[0]
        self._ready: deque[Entry] = deque()  # to be sent, in the order of sequences
        self._expiries: list[tuple[int, int]] = []  # heap of (when, sequence)
        self._receiver: bytes | None = None
        self._held_to = 0  # all up to this sequence are marked as held, from the head on
        self._orders = 0
        self._sent_bytes = 0  # sent and not settled
        self._sent_messages = 0
        self._timeout_at_ms: int | None = None
        self._timeouts = 0  # in a row
        self._smooth_ms: float | None = None
        self._variance_ms = 0.0
        self._blocked_until_ms = 0
        self._refusals = 0  # by the relay, in a row
        self._is_suspect = False  # is the receiver there?
        self._is_probing = False  # ... the answer is on its way

    # ---- facts ---------------------------------------------------------------------------------------

    @property
    def next_sequence(self) -> int:
        """What the next message will have."""
        return self._origin + len(self._entries)

    @property
    def base(self) -> int:
        return self._origin + self._head

    @property
    def is_idle(self) -> bool:
        """Whether all messages have ended."""
        return self._head == len(self._entries)

    @property
    def next_ms(self) -> int | None:
        """When `on_timer` has something to do."""
        times = [at for at in (self._timeout_at_ms, self._unblocked_at_ms) if at is not None]
        if self._expiries:
            times.append(self._expiries[0][0])
        return min(times, default=None)

    @property
    def _unblocked_at_ms(self) -> int | None:
        return self._blocked_until_ms if self._blocked_until_ms and self._ready else None

    def _open(self) -> Iterator[Entry]:
        return (entry for entry in self._entries[self._head :] if entry.outcome is None)

    # ---- sending -------------------------------------------------------------------------------------

    def add(self, content: int, payload: bytes, now_ms: int, expires_ms: int, ticket: Ticket) -> Entry:
        """Take a message from the application."""
        # SPEC reliable.md: A sender MUST number the messages of a stream consecutively in the order in which it
        #   takes them from its application.
        entry = Entry(self.next_sequence, content, payload, now_ms + expires_ms, ticket)
        self._entries.append(entry)
        self._ready.append(entry)
        heapq.heappush(self._expiries, (entry.expires_at_ms, entry.sequence))
        self.used_at_ms = now_ms
        return entry

    def restore(self, entry: Entry, now_ms: int) -> None:
        """Take a message that an earlier process had; those of lower sequences were restored before."""
        while self.next_sequence < entry.sequence:
            self.skip()
        entry.is_doubtful = True
        self._entries.append(entry)
        self._ready.append(entry)
        heapq.heappush(self._expiries, (entry.expires_at_ms, entry.sequence))
        self.used_at_ms = now_ms

    def skip(self) -> None:
        """Leave out a sequence whose message has ended in an earlier process."""
        ended = Entry(self.next_sequence, 0, b"", 0, _NOBODY)
        ended.outcome = Outcome.UNKNOWN
        self._entries.append(ended)
        self._advance()

    def take(self, now_ms: int) -> Entry | None:
        """The next message to send now; None: none. The caller adds its transmission."""
        ready = self._ready
        if self._blocked_until_ms:
            if now_ms < self._blocked_until_ms:
                return None
            self._blocked_until_ms = 0
        while ready and not self._is_probing:
            entry = ready[0]
            if entry.outcome is None:
                if not entry.order:
                    # SPEC reliable.md: A sender MUST bound the bytes of a stream that are sent and not taken.
                    if not self._fits(entry):
                        return None
                    self._sent_bytes += entry.size
                    self._sent_messages += 1
                else:
                    entry.is_resent = True
                self._orders += 1
                entry.order = self._orders
                entry.sent_at_ms = now_ms
                if self._timeout_at_ms is None:
                    self._timeout_at_ms = now_ms + self._timeout_ms()
                # SPEC reliable.md: A sender SHOULD send only one segment of a stream until an ack has come, after a
                #   timeout, a refusal by the relay and on a new connection.
                self._is_probing = self._is_suspect
            ready.popleft()
            entry.is_queued = False
            if entry.outcome is None:
                return entry
        return None

    def segment(self, entry: Entry, now_ms: int) -> Segment:
        """What carries a message that leaves now."""
        # SPEC reliable.md: A sender MUST set base to the lowest sequence of the stream that it may still send, or
        #   to sequence when that is lower.
        remaining_ms = max(entry.expires_at_ms - now_ms, 1)
        return Segment(self.incarnation, entry.sequence, self.base, remaining_ms, entry.content, entry.payload)

    def _fits(self, entry: Entry) -> bool:
        return not self._sent_messages or (
            self._sent_messages < self._settings.window_messages
            and self._sent_bytes + entry.size <= self._settings.window_bytes
        )

    def _send_again(self, entries: list[Entry]) -> None:
        again = [entry for entry in entries if not entry.is_queued and entry.outcome is None]
        if again:
            for entry in again:
                entry.is_queued = True
            self._ready = deque(sorted((*again, *self._ready), key=lambda entry: entry.sequence))

    # ---- what the receiver says ----------------------------------------------------------------------

    def on_ack(self, ack: Ack, now_ms: int) -> None:
        """An ack of this stream; one that names what was never sent is ignored."""
        # SPEC reliable.md: A sender MUST ignore an ack whose next is above the sequence that it will use next, or
        #   whose taken or held names one that it has not used.
        ranges = (*ack.taken, *ack.held)
        if ack.next > self.next_sequence or any(last >= self.next_sequence for _first, last in ranges):
            return
        self._is_suspect = self._is_probing = False
        self._timeouts = self._refusals = 0
        self.used_at_ms = now_ms
        # SPEC reliable.md: A sender MUST treat a lower receiver incarnation than before like a greater one.
        is_new_receiver = self._receiver not in (None, ack.receiver)
        self._receiver = ack.receiver
        if is_new_receiver:
            # SPEC reliable.md: A sender that gets an ack of another receiver incarnation than before MUST forget
            #   what the earlier one held and send again what the new one does not hold.
            self._held_to = 0
            for entry in self._open():
                entry.is_held = False
        arrived = self._take_in(ack)
        if arrived is not None and not arrived.is_resent:
            self._measure(now_ms - arrived.sent_at_ms)
        if is_new_receiver:
            self._send_again([entry for entry in self._open() if entry.order and not entry.is_held])
        elif ranges:
            self._send_lost_again(max(last for _first, last in ranges))
        # SPEC reliable.md: A sender MUST send at once a mark to a receiver whose ack has a next that is lower than
        #   the base, while the receiver holds something.
        self.owes_mark = bool(ack.held) and ack.next < self.base
        self._timeout_at_ms = now_ms + self._timeout_ms() if self._sent_messages else None

    def on_refusal(self, code: int) -> None:
        """The receiver does not take this stream; ``code`` is its reason."""
        for entry in list(self._open()):
            has_doubt = entry.is_doubtful or (bool(entry.order) and self._receiver is not None)
            self._settle(entry, Outcome.UNKNOWN if has_doubt else Outcome.DECLINED, code)
        self._is_suspect, self._is_probing = True, False

    def _take_in(self, ack: Ack) -> Entry | None:
        """Settle and mark what an ack names; the last message that it is the first sign of."""
        arrived: Entry | None = None
        for entry in self._entries[self._head : max(ack.next - self._origin, self._head)]:
            if entry.outcome is None:
                arrived = entry
                self._close(entry, Outcome.DELIVERED, 0)
        self._advance()
        for first, last in ack.taken:
            for entry in self._between(first, last):
                arrived = entry
                self._settle(entry, Outcome.DELIVERED)
        for first, last in ack.held:
            for entry in self._between(max(first, self._held_to + 1), last):
                if not entry.is_held:
                    entry.is_held = True
                    entry.ticket.held()
                    arrived = entry
            if first <= max(ack.next, self._held_to + 1):
                self._held_to = max(self._held_to, last)
        return arrived

    def _between(self, first: int, last: int) -> list[Entry]:
        """The open messages from one sequence to another."""
        low = max(first - self._origin, self._head)
        return [entry for entry in self._entries[low : last + 1 - self._origin] if entry.outcome is None]

    def _send_lost_again(self, last: int) -> None:
        """Send again what is not there although something that left later is."""
        newest = 0
        missing = []
        for entry in self._between(self._held_to + 1 if self._held_to else self.base, last):
            if not entry.is_held:
                missing.append(entry)
            elif not entry.is_resent:
                newest = max(newest, entry.order)
        self._send_again([entry for entry in missing if 0 < entry.order < newest])

    # ---- what the relay and the connection say -------------------------------------------------------

    def on_reject(self, ordinals: range, code: int, retry_after_ms: int, now_ms: int, random: float) -> bool:
        """The relay refused messages; whether some of this stream were among them.

        Args:
            random: uniform in [0, 1).
        """
        refused = []
        for entry in self._open():
            kept = [sent for sent in entry.transmissions if sent.ordinal is None or sent.ordinal not in ordinals]
            if len(kept) < len(entry.transmissions):
                entry.transmissions = kept
                refused.append(entry)
        if not refused:
            return False
        if not _may_retry(code):
            for entry in refused:
                self._settle(entry, Outcome.UNKNOWN if entry.may_have_arrived else Outcome.REFUSED, code)
            return True
        self._send_again([entry for entry in refused if not entry.transmissions])
        self._is_suspect, self._is_probing = True, False
        if now_ms >= self._blocked_until_ms:
            self._refusals += 1
            limit_ms = min(self._settings.backoff_ms << min(self._refusals, 16), self._settings.most_backoff_ms)
            self._blocked_until_ms = now_ms + max(retry_after_ms, int(limit_ms * (1 + random) / 2), 1)
        return True

    def on_connected(self, now_ms: int) -> None:
        """A new connection: what the receiver does not hold is sent again, after it has shown that it is there."""
        self._is_suspect, self._is_probing = True, False
        self._timeouts = self._refusals = self._blocked_until_ms = 0
        self._timeout_at_ms = None
        sent = [entry for entry in self._open() if entry.order]
        self._send_again([entry for entry in sent if not entry.is_held])
        if sent and not self._ready:
            self.owes_mark = True
            self._timeout_at_ms = now_ms + self._timeout_ms()

    def on_disconnected(self) -> None:
        """The connection is gone, and with it what had not left."""
        for entry in self._open():
            entry.is_doubtful |= any(sent.ordinal is not None for sent in entry.transmissions)
            entry.transmissions = []
        self._timeout_at_ms = None
        self._blocked_until_ms = 0

    def end(self, is_kept: bool) -> None:
        """The sender ends, and what is open with it.

        Args:
            is_kept: the next process goes on.
        """
        for entry in list(self._open()):
            has_doubt = is_kept or entry.may_have_arrived
            self._settle(entry, Outcome.UNKNOWN if has_doubt else Outcome.EXPIRED)

    # ---- time ----------------------------------------------------------------------------------------

    def on_timer(self, now_ms: int) -> None:
        """Do what is due."""
        # SPEC reliable.md: A sender MUST NOT send a segment of a message after its expires_ms has passed.
        while self._expiries and self._expiries[0][0] <= now_ms:
            _at_ms, sequence = heapq.heappop(self._expiries)
            for entry in self._between(sequence, sequence):
                self._settle(entry, Outcome.UNKNOWN if entry.may_have_arrived else Outcome.EXPIRED)
                self.owes_mark |= bool(self._held_to)  # the receiver may wait for this one
        if self._blocked_until_ms <= now_ms:
            self._blocked_until_ms = 0
        if not self._sent_messages:
            self._timeout_at_ms = None
        elif self._timeout_at_ms is not None and self._timeout_at_ms <= now_ms:
            self._on_timeout(now_ms)

    def _on_timeout(self, now_ms: int) -> None:
        waiting = [entry for entry in self._open() if entry.order and not entry.is_held and not entry.is_queued]
        if waiting and waiting[0].transmissions and waiting[0].transmissions[-1].ordinal is None:
            pass  # the connection is slow; nothing is lost
        else:
            # SPEC reliable.md: A sender SHOULD double its timeout with every time that it passes, up to 5 s.
            self._timeouts += 1
            self._is_suspect, self._is_probing = True, False
            # SPEC reliable.md: A sender MUST send a mark when everything that it waits for is held and no ack came
            #   within its timeout.
            self.owes_mark = not waiting
            self._send_again(waiting)
        self._timeout_at_ms = now_ms + self._timeout_ms()

    def _timeout_ms(self) -> int:
        settings = self._settings
        if self._smooth_ms is None:
            timeout_ms = float(settings.first_timeout_ms)
        else:  # RFC 6298, 2
            timeout_ms = max(self._smooth_ms + 4 * self._variance_ms, settings.least_timeout_ms)
        return int(min(timeout_ms * 2.0 ** min(self._timeouts, 16), settings.most_timeout_ms))

    def _measure(self, round_trip_ms: int) -> None:
        if self._smooth_ms is None:
            self._smooth_ms, self._variance_ms = float(round_trip_ms), round_trip_ms / 2
        else:
            self._variance_ms += (abs(self._smooth_ms - round_trip_ms) - self._variance_ms) / 4
            self._smooth_ms += (round_trip_ms - self._smooth_ms) / 8

    # ---- ends ----------------------------------------------------------------------------------------

    def _settle(self, entry: Entry, outcome: Outcome, code: int = 0) -> None:
        self._close(entry, outcome, code)
        self._advance()

    def _close(self, entry: Entry, outcome: Outcome, code: int) -> None:
        entry.outcome = outcome
        entry.transmissions = []
        size = entry.size
        if entry.order:
            self._sent_bytes -= size
            self._sent_messages -= 1
        entry.payload = b""  # whoever keeps the entry keeps no more than that
        self._ended(self, entry)
        entry.ticket.settled(outcome, code)

    def _advance(self) -> None:
        """Move the base behind all that has ended."""
        entries, head = self._entries, self._head
        while head < len(entries) and entries[head].outcome is not None:
            head += 1
        self._head = head
        if head > 256 and 2 * head > len(entries):
            del entries[:head]
            self._origin += head
            self._head = 0
        if not self._sent_messages:
            self._timeout_at_ms = None
            self._is_probing = False
        while self._expiries and self._expiries[0][1] < self.base:
            heapq.heappop(self._expiries)


_RETRY = frozenset(int(code) for code in ErrorCode if code.may_retry)


def _may_retry(code: int) -> bool:
    return code in _RETRY
