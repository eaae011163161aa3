"""Two nodes and a network that loses, repeats and cuts, for the unicast streams: no clock, no tasks.

Frames of one direction and class stay in order, as the relay promises; across classes they do not. A node that
restarts forgets everything; its messages that were not settled end with it.
"""

from __future__ import annotations

from collections import deque

from attrs import define, field

from awesomeconnect.errors import ErrorCode
from awesomeconnect.reliable.outgoing import Outgoing
from awesomeconnect.reliable.receiver import Arrival
from awesomeconnect.reliable.segments import Ack, Mark, Refusal, decode_control, decode_segment
from awesomeconnect.reliable.sender import Entry, Outcome
from awesomeconnect.reliable.settings import ReliableSettings
from awesomeconnect.reliable.unicast import Unicast
from awesomeconnect.wire.parts import Content

KEYS = (b"a" * 32, b"b" * 32)
EXPIRES_MS = 60_000


@define(eq=False)
class Sent:
    """A message, and how it ended: a ticket, and its place on the connection."""

    name: bytes
    outcome: Outcome | None = None
    code: int = 0
    times_held: int = 0

    def held(self) -> None:
        self.times_held += 1

    def settled(self, outcome: Outcome, code: int) -> None:
        assert self.outcome is None, "settled twice"
        self.outcome, self.code = outcome, code


@define(eq=False)
class Flight:
    """A frame on its way; the transmission of what it carries."""

    outgoing: Outgoing
    ordinal: int | None = None


@define(eq=False)
class Party:
    """A node: its streams, its inbox by class, and what its application took in this run."""

    at: int
    run: int
    streams: Unicast
    is_connected: bool = False
    ordinals: int = 0
    inbox: list[deque[Arrival]] = field(factory=lambda: [deque() for _ in range(7)])
    taken: list[Arrival] = field(factory=list)

    @property
    def peer(self) -> int:
        return 1 - self.at


class World:
    """See the module's docstring; all times in ms."""

    def __init__(self, settings: ReliableSettings | None = None) -> None:
        self.now_ms = 0
        self.settings = settings or ReliableSettings()
        self.runs = 0
        self.parties = [self._new(0), self._new(1)]
        #: (from, class) -> frames under way
        self.wires: dict[tuple[int, int], deque[Flight]] = {}
        self.sent: list[tuple[int, int, int, Sent]] = []  # (from, run, class, message)
        #: all that any application ever took: (receiver's run, arrival)
        self.taken: list[tuple[int, Arrival]] = []
        for party in self.parties:
            self.connect(party.at)

    def _new(self, at: int) -> Party:
        self.runs += 1
        incarnation = self.runs.to_bytes(8, "big") + bytes(8)
        return Party(at, self.runs, Unicast(incarnation, self.settings, lambda: 0.5))

    # ---- what can happen -----------------------------------------------------------------------------

    def post(self, at: int, traffic_class: int = 1, size: int = 0, expires_ms: int = EXPIRES_MS) -> Sent | None:
        """Send a numbered message to the other node; None when the outbox is full."""
        party = self.parties[at]
        message = Sent(b"%d %d" % (at, len(self.sent)) + bytes(size))
        if not party.streams.has_room(len(message.name)):
            return None
        party.streams.post(
            KEYS[party.peer],
            traffic_class,
            Content.APPLICATION,
            message.name,
            self.now_ms,
            expires_ms,
            message,
        )
        self.sent.append((at, party.run, traffic_class, message))
        self.poll(at)
        return message

    def poll(self, at: int) -> None:
        """Put on the wire what is to be sent."""
        party = self.parties[at]
        for outgoing in party.streams.poll(self.now_ms):
            flight = Flight(outgoing)
            if outgoing.entry is not None:
                outgoing.entry.transmissions.append(flight)
            party.ordinals += 1
            flight.ordinal = party.ordinals
            self.wires.setdefault((at, outgoing.traffic_class), deque()).append(flight)

    def deliver(self, at: int, traffic_class: int, keep: bool = False) -> None:
        """The next frame of a node in a class arrives, or is refused when nobody is there.

        Args:
            keep: it will arrive once more.
        """
        wire = self.wires.get((at, traffic_class))
        if not wire:
            return
        flight = wire[0] if keep else wire.popleft()
        self._arrive(at, flight)

    def _arrive(self, at: int, flight: Flight) -> None:
        sender, receiver = self.parties[at], self.parties[1 - at]
        outgoing, key = flight.outgoing, KEYS[at]
        if not receiver.is_connected:
            if sender.is_connected and flight.ordinal is not None:
                ordinals = range(flight.ordinal, flight.ordinal + 1)
                sender.streams.on_reject(KEYS[1 - at], ordinals, ErrorCode.NO_SUCH_PEER, 0, self.now_ms)
                self.poll(at)
            return
        streams = receiver.streams
        arrivals: list[Arrival] = []
        if outgoing.content == Content.RELIABLE:
            segment = decode_segment(outgoing.payload)
            arrivals = streams.on_segment(key, outgoing.traffic_class, segment, self.now_ms)
        else:
            control = decode_control(outgoing.payload)
            if isinstance(control, Ack):
                streams.on_ack(key, control, self.now_ms)
            elif isinstance(control, Refusal):
                streams.on_refusal(key, control)
            elif isinstance(control, Mark):
                arrivals = streams.on_mark(key, control, self.now_ms)
        for arrival in arrivals:
            receiver.inbox[arrival.traffic_class].append(arrival)
        self.poll(receiver.at)

    def lose(self, at: int, traffic_class: int) -> None:
        """The next frame is lost without a word."""
        wire = self.wires.get((at, traffic_class))
        if wire:
            wire.popleft()

    def take(self, at: int, traffic_class: int) -> None:
        """The application takes a message."""
        party = self.parties[at]
        inbox = party.inbox[traffic_class]
        if inbox:
            arrival = inbox.popleft()
            assert arrival.origin is not None
            if arrival.origin.may_hand_over(arrival, self.now_ms):
                party.taken.append(arrival)
                self.taken.append((party.run, arrival))
                party.streams.taken(arrival, self.now_ms)
                self.poll(at)

    def cut(self, at: int) -> None:
        """The connection of a node breaks; what is under way from it and to it is lost."""
        party = self.parties[at]
        if party.is_connected:
            party.is_connected = False
            party.streams.disconnected()
            self.wires.clear()

    def connect(self, at: int) -> None:
        """A node connects (again)."""
        party = self.parties[at]
        if not party.is_connected:
            party.is_connected = True
            party.ordinals = 0
            party.streams.connected(self.now_ms)
            self.poll(at)

    def restart(self, at: int) -> None:
        """A node starts anew."""
        self.cut(at)
        self.parties[at] = self._new(at)
        self.connect(at)

    def wait(self, ms: int) -> None:
        """Time passes, and timers fire when they are due."""
        until = self.now_ms + ms
        while True:
            times = [at for at in (party.streams.next_ms for party in self.parties) if at is not None]
            due = min(times, default=until)
            if due > until:
                break
            stuck = due <= self.now_ms
            self.now_ms = max(due, self.now_ms)
            for party in self.parties:
                self.poll(party.at)
            if stuck and due == min(
                (at for at in (party.streams.next_ms for party in self.parties) if at is not None), default=-1
            ):
                raise AssertionError("a timer that fires without end")
            if due == until:
                break
        self.now_ms = until

    def settle(self, within_ms: int) -> None:
        """No more trouble: everything arrives and is taken at once, for a while."""
        for at in (0, 1):
            self.connect(at)
        until = self.now_ms + within_ms
        while self.now_ms < until:
            busy = True
            while busy:
                busy = False
                for at in (0, 1):
                    for traffic_class in range(7):
                        while self.wires.get((at, traffic_class)):
                            self.deliver(at, traffic_class)
                            busy = True
                        while self.parties[at].inbox[traffic_class]:
                            self.take(at, traffic_class)
                            busy = True
            self.wait(50)

    # ---- what must hold ------------------------------------------------------------------------------

    def check(self) -> None:
        """U1 and U2 as far as they can be seen now."""
        seen: dict[tuple[int, bytes, int], int] = {}
        handed_over = {arrival.payload for _run, arrival in self.taken}
        for run, arrival in self.taken:
            assert arrival.origin is not None
            stream = (run, arrival.origin.incarnation, arrival.traffic_class)
            assert arrival.sequence > seen.get(stream, 0), "twice, or out of order"
            seen[stream] = arrival.sequence
        for _at, _run, _class, message in self.sent:
            if message.outcome is Outcome.DELIVERED:
                assert message.name in handed_over, "told as delivered, and never handed over"
            elif message.outcome in (Outcome.EXPIRED, Outcome.REFUSED, Outcome.DECLINED):
                assert message.name not in handed_over, f"{message.outcome}, and handed over"

    def open_messages(self) -> list[Sent]:
        """Of senders that live, what has not ended."""
        return [
            message
            for at, run, _class, message in self.sent
            if run == self.parties[at].run and message.outcome is None
        ]


__all__ = ["KEYS", "Entry", "World"]
