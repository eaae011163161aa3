"""From what the client library tells a program to what a `History` records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from awesomeconnect.client import Connected, Disconnected, GapReport, GoingAway, Message, Moved, Refusal
from awesomeconnect.client.events import Event as NodeEvent
from tests.simulation.history import AskedToLeave, Down, Event, Gap, History, Refused, RoomGap, Taken, Up


def event_record(
    event: NodeEvent, now: float, process: str, rooms: Iterable[str], key_names: Mapping[bytes, str]
) -> Event | None:
    """What to record of an event of a node; None: nothing.

    Args:
        rooms: those that the program has joined, and that its node joins with every connection.
        key_names: the name of each public key.
    """
    match event:
        case Connected() | Moved():
            return Up(now, process, event.epoch, event.connection, tuple(rooms))
        case Disconnected():
            return Down(now, process)
        case GoingAway():
            return AskedToLeave(now, process)
        case Refusal():
            return Refused(now, process, event.connection, event.ordinals.start, event.ordinals.stop, event.code)
        case GapReport(sequences=range() as lost):
            assert event.room is not None and event.sender is not None  # noqa: PT018
            sender = key_names[event.sender]
            return RoomGap(now, process, event.room, sender, event.traffic_class, lost.start, lost.stop - 1)
        case GapReport():
            sender = key_names.get(event.sender or b"")
            return Gap(now, process, event.room, sender, event.traffic_class, event.count)
    return None


def message_record(
    message: Message, now: float, process: str, history: History, key_names: Mapping[bytes, str]
) -> Taken:
    """What to record of a message that a program took. The relay vouches for the sender, so its key must match."""
    name = history.name_in(message.payload)
    assert key_names[message.sender] == history.keys[name[0]]
    return Taken(now, process, name, message.room, message.traffic_class)
