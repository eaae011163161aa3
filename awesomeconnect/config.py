"""Settings of a relay: every bound has a name, a unit and a reason.

A setting that is a limit is above zero: 0 never means unlimited.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

from attrs import Attribute, field, frozen
from attrs.validators import optional

from awesomeconnect.errors import AddressError
from awesomeconnect.identity import RelayAddress
from awesomeconnect.shaping.egress import EgressLimits
from awesomeconnect.wire.connection import DEFAULT_PAYLOAD_BYTES
from awesomeconnect.wire.framing import FRAME_OVERHEAD_BYTES
from awesomeconnect.wire.messages import ClassContract
from awesomeconnect.wire.rooms import room_name_problem

DEFAULT_PORT = 7420
#: What one read of 256 KiB can become: the shortest frame, of 11 bytes, leaves with its sender's key as 46.
TURN_BYTES = 2 << 20

#: What WELCOME and GOAWAY carry.
MOST_ALTERNATES = 16


def _positive(_settings: object, attribute: Attribute[Any], value: float) -> None:
    if value <= 0:
        raise ValueError(f"{attribute.name} must be above 0, not {value}")


def _within(least: float, most: float) -> Any:
    def check(_settings: object, attribute: Attribute[Any], value: float) -> None:
        if not least <= value <= most:
            raise ValueError(f"{attribute.name} must be from {least:,} to {most:,}, not {value:,}")

    return check


def _limit(default: float, least: float | None = None, most: float = inf) -> Any:
    return field(default=default, validator=_positive if least is None else _within(least, most))


def _contracts(_settings: object, _attribute: object, value: tuple[ClassContract, ...]) -> None:
    classes = [contract.traffic_class for contract in value]
    if len(set(classes)) < len(classes):
        raise ValueError("a traffic class has two contracts; give each class one")


def _alternates(_settings: object, _attribute: object, value: tuple[str, ...]) -> None:
    if len(value) > MOST_ALTERNATES:
        raise ValueError(f"{len(value)} alternates; name {MOST_ALTERNATES} at most")
    for text in value:
        try:
            RelayAddress.parse(text)
        except AddressError as error:
            raise ValueError(f"alternate {text!r}: {error}") from None


def _room_contracts(_settings: object, attribute: object, value: Mapping[str, tuple[ClassContract, ...]]) -> None:
    for room, contracts in value.items():
        if problem := room_name_problem(room):
            raise ValueError(f"room {room!r}: {problem}")
        try:
            _contracts(_settings, attribute, contracts)
        except ValueError as error:
            raise ValueError(f"room {room!r}: {error}") from None


@frozen
class RelaySettings:
    """What a relay allows and how long it waits. Times in seconds, sizes in bytes."""

    #: Payload of one message: the ancestor's block batches reach 900 kB.
    payload_bytes: int = _limit(DEFAULT_PAYLOAD_BYTES, least=4_096, most=1 << 30)
    #: Rooms a connection is in at once; HELLO can name as many.
    rooms_per_connection: int = _limit(256)
    #: Members of a room; a join beyond is refused with room_full. Ten times the largest room that is tested.
    room_members: int = _limit(10_000)
    #: A MEMBERS_PAGE frame: below the smallest frame limit, 44 members with full attributes.
    page_bytes: int = _limit(49_152, least=2_048, most=65_536)
    #: Connections at once, authenticated or not; also kept below the process's file descriptor limit.
    connections: int = _limit(100_000)
    #: Silence after which the relay asks whether a client is there: below the 30 s of impatient NAT boxes.
    keepalive_s: float = _limit(25)
    #: Silence after which a connection is dropped: two lost answers.
    drop_s: float = _limit(60)
    #: From accept to the first byte, and to HELLO. A handshake takes 1.5 round trips.
    first_byte_s: float = _limit(5)
    greeting_s: float = _limit(10)
    #: A connection is replaced after this, so that one handshake's keys are not used for ever.
    session_s: float = _limit(24 * 3600)
    #: Bytes of incomplete frames of all connections; beyond it those that hold the most are closed.
    incomplete_bytes: int = _limit(256 << 20)
    #: How long a closing connection may take for what is still queued for it.
    closing_s: float = _limit(5)
    #: From SIGTERM until connections are closed, whether or not the clients left by themselves.
    drain_s: float = _limit(5)
    #: Clients come back at a random time within this, so that a restarted relay is not overrun.
    spread_s: float = _limit(10)
    #: Relays that could take the clients of this one when it drains: addresses, ``ac://KEY@host:port``.
    alternates: tuple[str, ...] = field(default=(), validator=_alternates)
    #: Changes of membership are gathered for this long before watchers are told.
    presence_s: float = _limit(0.1)
    #: The leave of a member whose connection broke is told after this, unless there is more to tell: most come back
    #: at once, and then nobody sees the room without them.
    broken_leave_s: float = _limit(2)
    #: A PAUSE lapses after this unless it is renewed, so a lost RESUME stops nobody.
    pause_ms: int = _limit(1_000)
    #: Unsent control frames at which a connection is dropped: one that provokes answers and does not read them.
    control_bytes: int = _limit(1 << 20)
    #: What a connection may send in a class; a class that is not named is not limited.
    contracts: tuple[ClassContract, ...] = field(default=(), validator=_contracts)
    #: The same for messages to a room, by its name; they must keep within both.
    room_contracts: Mapping[str, tuple[ClassContract, ...]] = field(factory=dict, validator=_room_contracts)
    #: What the messages of one connection may be multiplied to by rooms: about what one core can send. The burst is
    #: one turn's worth, or one message of the greatest size, to the largest room.
    fan_out_bytes_per_s: int = _limit(1 << 30)
    #: What the link of every receiver carries at least, if that is known: published delay bounds rest on it, and on
    #: contracts for their class and all above, and on the number of connections.
    downlink_bytes_per_s: int | None = field(default=None, validator=optional(_positive))
    #: Nobody waits any more for a receiver that drains more slowly than this over this time: it gets gaps. The time
    #: outlasts the stalls of a mobile network.
    lagging_bytes_per_s: int = _limit(64 << 10)
    lagging_s: float = _limit(10)
    #: Whether classes below URGENT are held back where the path to a receiver would queue them.
    is_pacing: bool = True
    #: Queues of one connection.
    egress: EgressLimits = field(factory=EgressLimits)

    @property
    def fan_out_burst_bytes(self) -> int:
        """See ``fan_out_bytes_per_s``."""
        return max(self.payload_bytes + FRAME_OVERHEAD_BYTES, TURN_BYTES) * self.room_members

    def __attrs_post_init__(self) -> None:
        if self.drop_s < 2 * self.keepalive_s:
            raise ValueError(f"drop_s must be at least twice keepalive_s ({self.keepalive_s:g})")
        if self.payload_bytes + FRAME_OVERHEAD_BYTES > self.egress.class_bytes:
            raise ValueError(
                f"egress.class_bytes must hold the longest message: over payload_bytes ({self.payload_bytes:,})"
            )
