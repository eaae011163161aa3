"""Reliable mode of one node: what arrives in contents 1 and 2, what is to be sent, and when to look again.

    endpoint.post(peer, ...)                   the application sends
    arrivals = endpoint.on_deliver(...)        the connection brings
    for outgoing in endpoint.poll(now_ms): ... the connection takes, also at `next_ms`
    endpoint.taken(arrival, now_ms)            the application has taken

It ties the streams together and holds no state of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from awesomeconnect.reliable.outgoing import Outgoing
from awesomeconnect.reliable.receiver import Arrival
from awesomeconnect.reliable.repair import Found
from awesomeconnect.reliable.rooms import Rooms
from awesomeconnect.reliable.segments import (
    Ack,
    BadPayload,
    Mark,
    Refusal,
    Repair,
    Request,
    decode_control,
    decode_segment,
)
from awesomeconnect.reliable.sender import Entry, Ticket
from awesomeconnect.reliable.settings import ReliableSettings
from awesomeconnect.reliable.stores import OutboxStore, TakenStore
from awesomeconnect.reliable.unicast import Unicast
from awesomeconnect.wire.parts import Content, Mode


class Endpoint:
    """See the module's docstring.

    Args:
        incarnation: of this node, 16 bytes.
        secret: 16 to 64 random bytes, for what only members of a room may know.
        random: uniform in [0, 1).
        outbox_store, taken_store, unix_ms: as `Unicast`.

    Attributes:
        ignored: payloads that were malformed or of no use.
    """

    def __init__(
        self,
        incarnation: bytes,
        secret: bytes,
        settings: ReliableSettings,
        random: Callable[[], float],
        outbox_store: OutboxStore | None = None,
        taken_store: TakenStore | None = None,
        unix_ms: int = 0,
    ) -> None:
        self.unicast = Unicast(incarnation, settings, random, outbox_store, taken_store, unix_ms)
        self.rooms = Rooms(incarnation, secret, settings, random)
        self._is_offered = settings.is_offered
        self.ignored = 0

    # ---- the application -----------------------------------------------------------------------------

    def has_room(self, size: int) -> bool:
        """Whether `post` may take a payload of this size now."""
        return self.unicast.has_room(size)

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
        """Take a message to a peer; the ticket is told what becomes of it. See `Unicast.post`."""
        return self.unicast.post(peer, traffic_class, content, payload, now_ms, expires_ms, ticket, seal)

    def may_hand_over(self, arrival: Arrival, now_ms: int) -> bool:
        """Whether the application may still have a message, when it takes it from the inbox."""
        return arrival.origin is None or arrival.origin.may_hand_over(arrival, now_ms)

    def taken(self, arrival: Arrival, now_ms: int) -> None:
        """The application has taken a message, and it may be acknowledged."""
        self.unicast.taken(arrival, now_ms)

    def publish(self, room: str, traffic_class: int, content: int, payload: bytes, now_ms: int) -> bytes:
        """Keep a message to a room; the payload of content 1 to publish now."""
        return self.rooms.publish(room, traffic_class, content, payload, now_ms)

    # ---- the connection ------------------------------------------------------------------------------

    def connected(self, now_ms: int) -> None:
        """A connection is up."""
        self.unicast.connected(now_ms)
        self.rooms.connected(now_ms)

    def disconnected(self) -> None:
        """It is gone; what had not left will not."""
        self.unicast.disconnected()
        self.rooms.disconnected()

    def end(self) -> None:
        """The node ends: settle what is open."""
        self.unicast.end()

    def on_reject(self, target: bytes | None, ordinals: range, code: int, retry_after_ms: int, now_ms: int) -> bool:
        """The relay refused messages; whether some of them were reliable. ``target`` None: to whom is not known."""
        return self.unicast.on_reject(target, ordinals, code, retry_after_ms, now_ms)

    def on_deliver(
        self,
        sender: bytes,
        mode: int,
        room: str | None,
        traffic_class: int,
        content: int,
        payload: bytes,
        now_ms: int,
    ) -> Sequence[Found]:
        """Take a payload of content 1 or 2 in; what the application gets now, in order."""
        # SPEC reliable.md: A receiver MUST ignore contents 1 and 2 that arrive in mode 2.
        if mode != Mode.ANYCAST:
            try:
                if content != Content.RELIABLE:
                    return self._on_control(sender, room, traffic_class, payload, now_ms)
                segment = decode_segment(payload)
                if room is None:
                    return self.unicast.on_segment(sender, traffic_class, segment, now_ms)
                if self._is_offered:
                    return self.rooms.on_segment(sender, room, traffic_class, segment, now_ms)
            except BadPayload:
                pass
        self.ignored += 1
        return ()

    def _on_control(
        self, sender: bytes, room: str | None, traffic_class: int, payload: bytes, now_ms: int
    ) -> Sequence[Found]:
        control = decode_control(payload)
        if isinstance(control, Mark) and self._is_offered:
            if control.room is None and room is None:
                return self.unicast.on_mark(sender, control, now_ms)
            # By PUBLISH for all, or by SEND for one that asked.
            if control.room is not None and room in (None, control.room):
                return self.rooms.on_mark(sender, control.room, control, now_ms, room is None)
        elif room is None:
            match control:
                case Ack():
                    self.unicast.on_ack(sender, control, now_ms)
                    return ()
                case Refusal():
                    self.unicast.on_refusal(sender, control)
                    return ()
                case Request():
                    self.rooms.on_request(sender, control, now_ms)
                    return ()
                case Repair():
                    return self.rooms.on_repair(sender, traffic_class, control, now_ms)
        self.ignored += 1
        return ()

    # ---- what to send, and when ----------------------------------------------------------------------

    @property
    def next_ms(self) -> int | None:
        """When to `poll` again, if nothing happens before."""
        unicast_ms, rooms_ms = self.unicast.next_ms, self.rooms.next_ms
        if unicast_ms is None or rooms_ms is None:
            return rooms_ms if unicast_ms is None else unicast_ms
        return min(unicast_ms, rooms_ms)

    @property
    def is_waiting(self) -> bool:
        """Whether there is something to send now."""
        return self.unicast.is_waiting or self.rooms.is_waiting

    @property
    def is_held_up(self) -> bool:
        """Whether messages wait for a class that took no more."""
        return self.unicast.is_held_up

    def take_found(self) -> list[Found]:
        """What the application gets because time has passed; asked after `poll`."""
        return self.rooms.take_found()

    def poll(self, now_ms: int, full_classes: int = 0) -> list[Outgoing]:
        """What is to be sent now; see `Unicast.poll`."""
        return self.unicast.poll(now_ms, full_classes) + self.rooms.poll(now_ms)
