"""What a node gives to its application: messages, and events about its connection.

Plain values, and the log that hands events out. Nothing here knows a connection.
"""

from __future__ import annotations

from collections import deque
from typing import TypeAlias

from attrs import evolve, field, frozen

from awesomeconnect.client.waiting import Signal
from awesomeconnect.errors import code_label
from awesomeconnect.identity import RelayAddress
from awesomeconnect.reliable.receiver import Arrival
from awesomeconnect.wire.messages import Content, Member


@frozen
class Message:
    """A message from another node. The relay vouches for the sender's key.

    Attributes:
        sender: public key of the node that sent it (32 bytes).
        room: the room it was sent to; None when it was sent to this node alone.
        mode: how it was addressed (``Mode``).
        traffic_class: how urgent it was (``TrafficClass``).
        content: ``Content.APPLICATION`` or ``Content.REQUEST``.
        payload: what the application sent.
        request_id: names the request in the answer; empty for everything else.
        is_sealed: only the sender and this node could make and read it, not the relay.
        origin: its place in a reliable stream, for the library; None for a plain message.
    """

    sender: bytes
    room: str | None
    mode: int
    traffic_class: int
    content: int
    payload: bytes
    request_id: bytes = b""
    is_sealed: bool = False
    origin: Arrival | None = field(default=None, eq=False, repr=False)

    @property
    def is_reliable(self) -> bool:
        """Whether it was sent with ``reliable=True``."""
        return self.origin is not None

    @property
    def is_request(self) -> bool:
        """Whether the sender waits for ``node.reply(message, ...)``."""
        return self.content == Content.REQUEST


@frozen
class PresenceChange:
    """Who joined and who left a room. The first one of a watch has all members in ``joined``.

    Attributes:
        version: how often the room's membership had changed.
        joined: in join order; a member that was known with other attributes replaces it.
        left: keys; applied before ``joined``.
    """

    room: str
    version: int
    joined: tuple[Member, ...]
    left: tuple[bytes, ...]


@frozen
class Connected:
    """The node is connected. A new ``epoch`` means that the relay has started anew.

    Attributes:
        connection: its number, as in receipts.
    """

    relay: RelayAddress
    epoch: bytes
    connection: int


@frozen
class Moved:
    """The node is connected to another relay, which it joined before it left the one that asked it to go."""

    relay: RelayAddress
    epoch: bytes
    connection: int
    left: RelayAddress


@frozen
class Disconnected:
    """The node is not connected; the next attempt follows in ``retry_in_s``, or never (None)."""

    error: Exception
    retry_in_s: float | None


@frozen
class GapReport:
    """Messages that this node did not get, told when everything before them was taken from the node.

    Attributes:
        room: theirs; None when they were not of one room.
        sender: theirs; None when they were not of one sender.
        lost_bytes: size of their DELIVER frames, or of their payloads when they were lost here.
        code: why; 0 for reliable messages.
        local: the application took messages too slowly and this node's own inbox was full.
        sequences: of reliable messages of one sender to a room that could not be repaired; None for others. The
            relay's reports have none, and may count reliable messages: those are repaired, or reported once more.
    """

    room: str | None
    sender: bytes | None
    traffic_class: int
    count: int
    lost_bytes: int
    code: int
    local: bool = False
    sequences: range | None = None


@frozen
class Paused:
    """A receiver at ``target`` (room or key) is behind; publishers that chose to wait do."""

    target: str | bytes
    traffic_class: int


@frozen
class Resumed:
    """Ends `Paused`."""

    target: str | bytes
    traffic_class: int


@frozen
class Refusal:
    """The relay refused messages; `Node.flush` will raise it.

    Attributes:
        ordinals, connection: as in their receipts.
    """

    ordinals: range
    code: int
    connection: int

    def __str__(self) -> str:
        return f"messages {self.ordinals.start} to {self.ordinals.stop - 1} refused: {code_label(self.code)}"


@frozen
class GoingAway:
    """The relay asks its nodes to leave. The library moves or reconnects by itself, unless ``code`` forbids it."""

    code: int
    window_ms: int
    spread_ms: int
    alternates: tuple[str, ...]


@frozen
class RoomLost:
    """The relay took this node out of a room, or did not let it in again after a reconnect."""

    room: str
    code: int


Event: TypeAlias = (
    Connected | Moved | Disconnected | GapReport | Paused | Resumed | Refusal | GoingAway | RoomLost
)  # fmt: skip


def joined_event(last: Event, event: Event) -> Event | None:
    """One event that says what two in a row say, where there is one."""
    if isinstance(last, Refusal) and isinstance(event, Refusal):
        ordinals = range(last.ordinals.start, event.ordinals.stop)
        if last.ordinals.stop == event.ordinals.start and evolve(last, ordinals=event.ordinals) == event:
            return evolve(last, ordinals=ordinals)
    elif isinstance(last, GapReport) and isinstance(event, GapReport):
        return joined_gap(last, event)
    return None


def joined_gap(last: GapReport, gap: GapReport) -> GapReport | None:
    """One report of two gaps of the same origin that touch; None when they differ."""
    count, lost_bytes = last.count + gap.count, last.lost_bytes + gap.lost_bytes
    if evolve(last, count=gap.count, lost_bytes=gap.lost_bytes) != gap:
        return None
    return evolve(last, count=count, lost_bytes=lost_bytes)


class EventLog:
    """Keeps the newest events; every reader has its own place, and begins at the oldest that is kept."""

    def __init__(self, kept: int) -> None:
        self._kept: deque[Event] = deque(maxlen=kept)
        self._end = 0  # events so far
        self._read = 0  # ... that some reader has had
        self._changed = Signal()
        self._closed = False

    def add(self, event: Event) -> None:
        """Tell an event. The oldest goes when the log is full."""
        joined = joined_event(self._kept[-1], event) if self._end > self._read else None
        if joined is not None:
            self._kept[-1] = joined
        else:
            self._kept.append(event)
            self._end += 1
        self._changed.notify()

    def close(self) -> None:
        """No more events; readers end when they have had all."""
        self._closed = True
        self._changed.notify()

    def read(self) -> EventReader:
        """Events from the oldest kept one on, until the log is closed."""
        return EventReader(self)

    async def after(self, place: int) -> tuple[int, Event] | None:
        """The first event after the first ``place`` ones that is still kept, and its place; None at the end."""
        while self._end <= place:
            if self._closed:
                return None
            await self._changed.wait()
        place = max(place, self._end - len(self._kept))
        self._read = max(self._read, place + 1)
        return place + 1, self._kept[place - self._end]


class EventReader:
    """One reader's place in an `EventLog`: an async iterator of events."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._place = 0

    def __aiter__(self) -> EventReader:
        return self

    async def __anext__(self) -> Event:
        found = await self._log.after(self._place)
        if found is None:
            raise StopAsyncIteration
        self._place, event = found
        return event
