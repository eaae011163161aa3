"""Payloads of contents 1 and 2: bytes <-> plain values, strictly (protocol-spec/reliable.cddl).

Segments are read and written item by item, since there is one for each message; control payloads, of which there
is one for many, go through the general decoder. This module knows no streams.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeAlias

from awesomeconnect.errors import RemoteProtocolError
from awesomeconnect.wire import cbor
from awesomeconnect.wire.fields import MAX_UINT, is_text
from awesomeconnect.wire.parts import Content, Incarnation
from awesomeconnect.wire.rooms import MAX_ROOM_BYTES

INCARNATION_BYTES: Final = 16
MAX_EXPIRES_MS: Final = 86_400_000
MAX_RANGES: Final = 32
#: Acks, refusals, marks and requests travel in this class.
CONTROL_CLASS: Final = 6

_UINT, _BYTES = 0, 2
_SEGMENT_START: Final = bytes((0x86, 0x50))  # an array of 6, a byte string of 16
#: Segments of a stream that leave together differ in their sequence alone, mostly.
_head: Final = lru_cache(1_024)(cbor.head)
_INNER: Final = frozenset(map(int, (Content.APPLICATION, Content.SEALED, Content.REQUEST, Content.RESPONSE)))
_CLASSES: Final = 7

Range: TypeAlias = tuple[int, int]
"""First and last sequence."""


class BadPayload(Exception):
    """A payload that is not what its content says; it is to be ignored."""


class Segment(NamedTuple):
    """One message of a stream. See the table in reliable.md."""

    incarnation: bytes
    sequence: int
    base: int
    expires_ms: int
    content: int
    payload: bytes


class Ack(NamedTuple):
    """What a receiver has taken, and what it holds."""

    receiver: bytes
    sender: bytes
    traffic_class: int
    next: int
    taken: tuple[Range, ...]
    held: tuple[Range, ...]


class Refusal(NamedTuple):
    """A receiver does not take a stream."""

    sender: bytes
    traffic_class: int
    reason: int


class StreamMark(NamedTuple):
    """Where a stream is at its sender."""

    traffic_class: int
    base: int
    next: int


class Mark(NamedTuple):
    """Where the streams of a scope are; ``room`` None is unicast."""

    room: str | None
    incarnation: bytes
    marks: tuple[StreamMark, ...]


class Request(NamedTuple):
    """A receiver misses messages of a room."""

    room: str
    sender: bytes
    traffic_class: int
    ranges: tuple[Range, ...]


class Repair(NamedTuple):
    """A segment of a room, for one receiver."""

    room: str
    segment: Segment


Control: TypeAlias = Ack | Refusal | Mark | Request | Repair


def incarnation_bytes(incarnation: Incarnation) -> bytes:
    """The form in which incarnations are compared."""
    return incarnation.start_ms.to_bytes(8, "big") + incarnation.random


def encode_segment(segment: Segment) -> bytes:
    """The payload of content 1."""
    incarnation, sequence, base, expires_ms, content, payload = segment
    return b"".join(
        (
            _SEGMENT_START,
            incarnation,
            cbor.head(_UINT, sequence),
            _head(_UINT, base),
            _head(_UINT, expires_ms),
            _head(_UINT, content),
            _head(_BYTES, len(payload)),
            payload,
        )
    )


def decode_segment(data: bytes) -> Segment:
    """A payload of content 1.

    Raises:
        BadPayload: it does not match the CDDL.
    """
    # SPEC reliable.md: A receiver MUST ignore a payload of content 1 or 2 that does not match the CDDL or is not in
    #   the CBOR profile.
    if not data.startswith(_SEGMENT_START):
        raise BadPayload("not a segment")
    at = 2 + INCARNATION_BYTES
    incarnation = data[2:at]
    try:
        (sequence, base, expires_ms, content), at = cbor.read_uints(data, at, 4)
        size, at = cbor.read_head(data, at, _BYTES)
    except RemoteProtocolError as error:
        raise BadPayload(f"bad segment: {error}") from None
    if size != len(data) - at:
        raise BadPayload("the payload of a segment does not end with it")
    return _checked(Segment(incarnation, sequence, base, expires_ms, content, data[at:]))


def _checked(segment: Segment) -> Segment:
    _incarnation, sequence, base, expires_ms, content, _payload = segment
    # SPEC reliable.md: A receiver MUST ignore a segment whose base is greater than its sequence.
    if not 1 <= base <= sequence:
        raise BadPayload("sequence or base out of range")
    if not 1 <= expires_ms <= MAX_EXPIRES_MS or content not in _INNER:
        raise BadPayload("expiry or content out of range")
    return segment


def encode_control(control: Control) -> bytes:
    """The payload of content 2."""
    return cbor.encode(_array(control))


def _array(control: Control) -> list[Any]:
    match control:
        case Ack():
            return [0, *control]
        case Refusal():
            return [1, *control]
        case Mark():
            return [2, *control]
        case Request():
            return [3, *control]
        case Repair(room, segment):
            return [4, room, *segment]


def decode_control(data: bytes) -> Control | None:
    """A payload of content 2; None: of a kind that is not known.

    Raises:
        BadPayload: it does not match the CDDL.
    """
    try:
        value = cbor.decode(data)
    except RemoteProtocolError as error:
        raise BadPayload(f"bad control payload: {error}") from None
    if type(value) is not list or not value or not _is_uint(value[0]):
        raise BadPayload("a control payload is an array that begins with its kind")
    kind, *fields = value
    # SPEC reliable.md: A node MUST ignore a control payload of a kind that it does not know.
    if kind >= len(_DECODERS):
        return None
    arity, decoder = _DECODERS[kind]
    if len(fields) != arity:
        raise BadPayload(f"a control payload of kind {kind} has {arity} fields")
    control: Control = decoder(*fields)
    return control


def _ack(receiver: Any, sender: Any, traffic_class: Any, following: Any, taken: Any, held: Any) -> Ack:
    _check_incarnation(receiver)
    _check_incarnation(sender)
    _check_class(traffic_class)
    _check_sequence(following)
    return Ack(receiver, sender, traffic_class, following, _ranges(taken), _ranges(held))


def _refusal(sender: Any, traffic_class: Any, reason: Any) -> Refusal:
    _check_incarnation(sender)
    _check_class(traffic_class)
    if not _is_uint(reason):
        raise BadPayload("a reason is an unsigned integer")
    return Refusal(sender, traffic_class, reason)


def _mark(room: Any, incarnation: Any, marks: Any) -> Mark:
    if room is not None:
        _check_room(room)
    _check_incarnation(incarnation)
    if type(marks) is not list or not 1 <= len(marks) <= _CLASSES:
        raise BadPayload("a mark names 1 to 7 streams")
    return Mark(room, incarnation, tuple(map(_stream_mark, marks)))


def _stream_mark(value: Any) -> StreamMark:
    if type(value) is not list or len(value) != 3:
        raise BadPayload("a stream's mark has 3 items")
    traffic_class, base, following = value
    _check_class(traffic_class)
    _check_sequence(base)
    _check_sequence(following)
    if base > following:
        raise BadPayload("a base above the next sequence")
    return StreamMark(traffic_class, base, following)


def _request(room: Any, sender: Any, traffic_class: Any, ranges: Any) -> Request:
    _check_room(room)
    _check_incarnation(sender)
    _check_class(traffic_class)
    return Request(room, sender, traffic_class, _ranges(ranges))


def _repair(room: Any, incarnation: Any, *rest: Any) -> Repair:
    _check_room(room)
    _check_incarnation(incarnation)
    sequence, base, expires_ms, content, payload = rest
    if not all(map(_is_uint, rest[:-1])) or type(payload) is not bytes:
        raise BadPayload("a repair is a room and a segment")
    return Repair(room, _checked(Segment(incarnation, sequence, base, expires_ms, content, payload)))


_DECODERS: Final = ((6, _ack), (3, _refusal), (3, _mark), (4, _request), (7, _repair))


def _ranges(value: Any) -> tuple[Range, ...]:
    if type(value) is not list or len(value) > MAX_RANGES:
        raise BadPayload(f"at most {MAX_RANGES} ranges")
    last_of_all = -1
    ranges = []
    for item in value:
        if type(item) is not list or len(item) != 2:
            raise BadPayload("a range has 2 items")
        first, last = item
        _check_sequence(first)
        _check_sequence(last)
        if not last_of_all + 1 < first <= last:
            raise BadPayload("ranges are ascending and apart")
        last_of_all = last
        ranges.append((first, last))
    return tuple(ranges)


def ranges_of(sequences: Iterable[int]) -> tuple[Range, ...]:
    """Ascending sequences as ranges; the first 32 of them."""
    # SPEC reliable.md: A node MUST write the ranges of a list in ascending order, with at least one sequence
    #   between two ranges.
    ranges: list[Range] = []
    for sequence in sequences:
        if ranges and ranges[-1][1] + 1 == sequence:
            ranges[-1] = (ranges[-1][0], sequence)
        elif len(ranges) == MAX_RANGES:
            break
        else:
            ranges.append((sequence, sequence))
    return tuple(ranges)


def _is_uint(value: object) -> bool:
    return type(value) is int and value >= 0


def _check_incarnation(value: object) -> None:
    if type(value) is not bytes or len(value) != INCARNATION_BYTES:
        raise BadPayload(f"an incarnation has {INCARNATION_BYTES} bytes")


def _check_class(value: object) -> None:
    if type(value) is not int or not 0 <= value < _CLASSES:
        raise BadPayload("not a class")


def _check_sequence(value: object) -> None:
    if type(value) is not int or not 1 <= value <= MAX_UINT:
        raise BadPayload("not a sequence")


def _check_room(value: object) -> None:
    if not is_text(value, 1, MAX_ROOM_BYTES):
        raise BadPayload("not a room")
