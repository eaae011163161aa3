"""What messages are made of: the small integers with names, and the structures inside fields.

This module knows nothing of messages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum, IntFlag
from operator import attrgetter
from typing import Any, Final, TypeAlias

from attrs import field, frozen
from attrs import fields as attrs_fields

from awesomeconnect.errors import LocalProtocolError
from awesomeconnect.wire import fields as check
from awesomeconnect.wire.cbor import MAX_ARRAY_ITEMS

Parse: TypeAlias = Callable[[Any], Any]
AttributeValue: TypeAlias = str | bytes | int | bool | None
Attributes: TypeAlias = Mapping[str, AttributeValue]


class TrafficClass(IntEnum):
    """How urgent (IEEE 802.1Q); 2, 3 and 6 have no name and are usable by number."""

    BULK = 0
    DATA = 1
    INTERACTIVE = 4
    URGENT = 5
    CONTROL = 7


class Mode(IntEnum):
    """How a DELIVER was addressed."""

    BROADCAST = 0
    UNICAST = 1
    ANYCAST = 2


class Content(IntEnum):
    """What a payload is; only endpoints read it."""

    APPLICATION = 0
    RELIABLE = 1
    REPAIR = 2
    SEALED = 3
    REQUEST = 4
    RESPONSE = 5


class JoinFlags(IntFlag):
    """How to be in a room."""

    NONE = 0
    WATCH = 1
    OBSERVE = 2


class PingKind(IntEnum):
    """What a PONG means: the connection lives, or everything sent before has its verdict."""

    KEEPALIVE = 0
    FLUSH = 1


class FragmentEnd(IntEnum):
    """Whether a chunk is the last one."""

    MORE = 0
    LAST = 1
    ABORT = 2


@frozen
class Incarnation:
    """One run of a client's process: when it started (Unix time, ms), and 8 random bytes."""

    start_ms: int = field(validator=check.uint)
    random: bytes = field(validator=check.eight_bytes)


@frozen
class RoomIntent:
    """A room that HELLO asks to join at once."""

    room: str = field(validator=check.room)
    flags: int = field(default=JoinFlags.NONE, validator=check.between(0, 3))
    capability: bytes | None = field(default=None, validator=check.optional(check.capability))


@frozen
class ClassContract:
    """How much of a traffic class a connection may send; a class without one is not limited."""

    traffic_class: int = field(validator=check.traffic_class)
    cir_bytes_per_s: int = field(validator=check.positive)
    cbs_bytes: int = field(validator=check.positive)
    max_residence_ms: int = field(validator=check.uint)


@frozen
class Member:
    """A member of a room: its key, its place in the join order, and what it claims of itself."""

    key: bytes = field(validator=check.key)
    joined: int = field(validator=check.uint)
    attributes: Attributes = field(factory=dict, validator=check.attributes)


def field_reader(cls: type) -> Callable[[Any], Sequence[Any]]:
    """What reads the fields of a ``cls`` in the order of the wire."""
    names = [attribute.name for attribute in attrs_fields(cls)]
    return attrgetter(*names) if len(names) > 1 else lambda value: [getattr(value, name) for name in names]


_READ: Final = {part: field_reader(part) for part in (Incarnation, RoomIntent, ClassContract, Member)}


def parts(part: type, what: str, most: int = MAX_ARRAY_ITEMS) -> check.Check:
    """A field that is a tuple of at most ``most`` parts of one kind."""
    return check.many(lambda item: type(item) is part, what, most)


def one(part: type) -> dict[str, Parse]:
    """Field metadata: the array on the wire becomes a ``part``."""
    arity = len(attrs_fields(part))

    def parse(value: Any) -> Any:
        if type(value) is not list or len(value) != arity:
            raise LocalProtocolError(f"{check.wire_name(part)} must be an array of {arity} items")
        return part(*value)

    return {"parse": parse}


def many(part: type) -> dict[str, Parse]:
    """Field metadata: the array of arrays on the wire becomes a tuple of ``part``."""
    parse_one = one(part)["parse"]
    return {"parse": lambda value: tuple(map(parse_one, value)) if type(value) is list else value}


def _tuple(value: Any) -> Any:
    return tuple(value) if type(value) is list else value


TUPLE: Final[dict[str, Parse]] = {"parse": _tuple}
TUPLES: Final[dict[str, Parse]] = {
    "parse": lambda value: {k: _tuple(v) for k, v in value.items()} if type(value) is dict else value
}


def to_wire(value: Any) -> Any:
    """The value of a field as CBOR takes it: every part as the array of its fields."""
    if isinstance(value, tuple):
        return [to_wire(item) for item in value]
    read = _READ.get(type(value))
    return value if read is None else read(value)
