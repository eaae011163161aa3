"""Every message of the protocol, and its encoding.

One frozen class per message of ``protocol-spec/messages.cddl``, its fields in the order of the wire. A
message is checked once, when it is made: one that exists can be encoded, and what a peer sends passes the
same checks. Codes and small integers of fields are plain ints (compare them with ``==``): later revisions may
send values that have no name here.

This module knows neither states nor limits that a connection negotiates: whether a message may come now is
the connection's business. Whether a text is the name of a room is the business of ``rooms``. What goes with
messages in ``parts`` and ``rooms`` can be imported from here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from operator import attrgetter
from typing import Any, ClassVar, Final, NamedTuple, TypeAlias, get_args

from attrs import Attribute, field, frozen
from attrs import fields as attrs_fields

from awesomeconnect.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from awesomeconnect.wire import cbor
from awesomeconnect.wire import fields as check
from awesomeconnect.wire.parts import (
    TUPLE,
    TUPLES,
    Attributes,
    AttributeValue,
    ClassContract,
    Content,
    FragmentEnd,
    Incarnation,
    JoinFlags,
    Member,
    Mode,
    Parse,
    PingKind,
    RoomIntent,
    TrafficClass,
    field_reader,
    many,
    one,
    parts,
    to_wire,
)
from awesomeconnect.wire.rooms import owner_of, room_name_problem

# fmt: off
__all__ = [
    "FIRST_EXTENSION_KIND", "REVISION", "Anycast", "AttributeValue", "Attributes", "ClassContract",
    "ClientMessage", "Close", "Content", "Contract", "Deliver", "Fragment", "FragmentEnd", "Gap",
    "Goaway", "Hello", "Incarnation", "Join", "JoinFlags", "Joined", "Leave", "Left", "Member", "Members",
    "MembersPage", "Message", "Mode", "Pause", "Ping", "PingKind", "Pong", "Presence", "Present",
    "Publish", "Reject", "RelayMessage", "Resume", "Role", "RoomIntent", "Send", "Stats", "StatsReport",
    "TrafficClass", "Welcome", "anycast_prefix", "class_of", "decode_body", "deliver_prefix",
    "encode_body", "encode_frame", "is_barrier", "owner_of", "payload_head", "publish_prefix",
    "room_name_problem", "send_prefix",
]
# fmt: on

REVISION: Final = 1
FIRST_EXTENSION_KIND: Final = 64


class Role(Enum):
    """Which side of a connection."""

    CLIENT = "client"
    RELAY = "relay"


# SPEC shaping.md: A client MUST accept contracts in WELCOME, JOINED and CONTRACT.
_contracts: Final = parts(ClassContract, "class contracts", 7)
_members: Final = parts(Member, "members")


# ---- session -----------------------------------------------------------------------------------------


def _incarnation(message: Any, attribute: Attribute[Any], value: Any) -> None:
    if type(value) is not Incarnation:
        check.refuse(message, attribute, "an Incarnation")


@frozen
class Hello:
    """The client's first frame: who it is in time, what it claims, and the rooms to join at once."""

    KIND: ClassVar[int] = 0
    revision: int = field(validator=check.uint)
    incarnation: Incarnation = field(validator=_incarnation, metadata=one(Incarnation))
    connection: int = field(validator=check.uint)
    attributes: Attributes = field(factory=dict, validator=check.attributes)
    rooms: tuple[RoomIntent, ...] = field(
        default=(), validator=parts(RoomIntent, "room intents", 256), metadata=many(RoomIntent)
    )


@frozen
class Welcome:
    """The relay's first frame: this run of the relay, its limits, contracts and alternates."""

    KIND: ClassVar[int] = 1
    revision: int = field(validator=check.uint)
    epoch: bytes = field(validator=check.eight_bytes)
    limits: Mapping[str, int] = field(factory=dict, validator=check.limits)
    contracts: tuple[ClassContract, ...] = field(default=(), validator=_contracts, metadata=many(ClassContract))
    alternates: tuple[str, ...] = field(default=(), validator=check.alternates, metadata=TUPLE)


@frozen
class Close:
    """The authenticated end: this side sends nothing more."""

    KIND: ClassVar[int] = 26
    # SPEC errors.md: A receiver MUST accept codes that it does not know.
    code: int = field(default=ErrorCode.OK, validator=check.uint)
    detail: str = field(default="", validator=check.text(0, 256))


@frozen
class Goaway:
    """The relay asks the client to leave within a window, and says whether and where to come back."""

    KIND: ClassVar[int] = 22
    code: int = field(validator=check.uint)
    window_ms: int = field(default=0, validator=check.uint)
    spread_ms: int = field(default=0, validator=check.uint)
    alternates: tuple[str, ...] = field(default=(), validator=check.alternates, metadata=TUPLE)


@frozen
class Ping:
    """Asks for a PONG with the same token: at once, or after every earlier verdict (``PingKind``)."""

    KIND: ClassVar[int] = 20
    kind: int = field(validator=check.between(0, 1))
    token: bytes = field(default=b"", validator=check.token)


@frozen
class Pong:
    """Answers the PING with this token and all earlier ones."""

    KIND: ClassVar[int] = 21
    token: bytes = field(default=b"", validator=check.token)


# ---- rooms -------------------------------------------------------------------------------------------


@frozen
class Join:
    """Join a room, or change the flags of one."""

    KIND: ClassVar[int] = 2
    room: str = field(validator=check.room)
    flags: int = field(default=JoinFlags.NONE, validator=check.between(0, 3))
    capability: bytes | None = field(default=None, validator=check.optional(check.capability))


@frozen
class Joined:
    """The answer to JOIN: the room as it is now."""

    KIND: ClassVar[int] = 3
    room: str = field(validator=check.room)
    version: int = field(validator=check.uint)
    member_count: int = field(validator=check.uint)
    message_count: int = field(validator=check.uint)
    contracts: tuple[ClassContract, ...] = field(default=(), validator=_contracts, metadata=many(ClassContract))


@frozen
class Leave:
    """Leave a room."""

    KIND: ClassVar[int] = 4
    room: str = field(validator=check.room)


@frozen
class Left:
    """One is not in this room (any more): as asked (code 0), or why."""

    KIND: ClassVar[int] = 5
    room: str = field(validator=check.room)
    code: int = field(default=ErrorCode.OK, validator=check.uint)


@frozen
class Members:
    """Asks for the members that joined after the one with this number."""

    KIND: ClassVar[int] = 10
    room: str = field(validator=check.room)
    after: int = field(default=0, validator=check.uint)


@frozen
class MembersPage:
    """Members in join order; ``next`` is the ``after`` of the next page, None at the end."""

    KIND: ClassVar[int] = 11
    room: str = field(validator=check.room)
    code: int = field(validator=check.uint)
    version: int = field(validator=check.uint)
    page: tuple[Member, ...] = field(default=(), validator=_members, metadata=many(Member))
    next: int | None = field(default=None, validator=check.optional(check.uint))


@frozen
class Presence:
    """Changes of a room from version ``base`` to ``version``: ``left`` is applied before ``joined``."""

    KIND: ClassVar[int] = 13
    room: str = field(validator=check.room)
    base: int = field(validator=check.uint)
    version: int = field(validator=check.uint)
    left: tuple[bytes, ...] = field(default=(), validator=check.keys, metadata=TUPLE)
    joined: tuple[Member, ...] = field(default=(), validator=_members, metadata=many(Member))


@frozen
class Present:
    """A capability for a room that one does not join."""

    KIND: ClassVar[int] = 14
    room: str = field(validator=check.room)
    capability: bytes = field(validator=check.capability)


@frozen
class Contract:
    """What one may send to a room, or on the whole connection (None)."""

    KIND: ClassVar[int] = 15
    room: str | None = field(validator=check.optional(check.room))
    code: int = field(default=ErrorCode.OK, validator=check.uint)
    contracts: tuple[ClassContract, ...] = field(default=(), validator=_contracts, metadata=many(ClassContract))


# ---- application messages ----------------------------------------------------------------------------


@frozen
class Publish:
    """A message to every member of a room but the sending connection."""

    KIND: ClassVar[int] = 6
    room: str = field(validator=check.room)
    traffic_class: int = field(validator=check.traffic_class)
    content: int = field(validator=check.content)
    payload: bytes = field(validator=check.payload)


@frozen
class Send:
    """A message to one peer."""

    KIND: ClassVar[int] = 7
    peer: bytes = field(validator=check.key)
    traffic_class: int = field(validator=check.traffic_class)
    content: int = field(validator=check.content)
    payload: bytes = field(validator=check.payload)


@frozen
class Anycast:
    """A message to one member of a room, chosen by the relay."""

    KIND: ClassVar[int] = 8
    room: str = field(validator=check.room)
    traffic_class: int = field(validator=check.traffic_class)
    content: int = field(validator=check.content)
    payload: bytes = field(validator=check.payload)


def _deliver_room(message: Deliver, attribute: Attribute[Any], value: Any) -> None:
    if message.mode != Mode.UNICAST:
        check.room(message, attribute, value)
    elif value is not None:
        check.refuse(message, attribute, "null in a unicast")


@frozen
class Deliver:
    """A message from another client; the relay vouches for ``sender``."""

    KIND: ClassVar[int] = 9
    mode: int = field(validator=check.between(0, 2))
    sender: bytes = field(validator=check.key)
    room: str | None = field(validator=_deliver_room)
    traffic_class: int = field(validator=check.traffic_class)
    content: int = field(validator=check.content)
    payload: bytes = field(validator=check.payload)

    def with_payload(self, payload: bytes) -> Deliver:
        """The same message with another payload; nothing is checked again (the client's fast path)."""
        other = _new_deliver(Deliver)
        for copy, value in zip(_COPY_DELIVER, _READ_DELIVER(self), strict=False):
            copy(other, value)
        _SET_PAYLOAD(other, payload)
        return other


# Frozen classes set their fields through the slots themselves.
_new_deliver: Final = object.__new__
_READ_DELIVER: Final = attrgetter("mode", "sender", "room", "traffic_class", "content")
_COPY_DELIVER: Final = tuple(
    getattr(Deliver, name).__set__ for name in ("mode", "sender", "room", "traffic_class", "content")
)
_SET_PAYLOAD: Final = Deliver.payload.__set__  # type: ignore[attr-defined]


# ---- outcomes and flow control -----------------------------------------------------------------------


@frozen
class Reject:
    """The relay refuses the client's messages ``first`` to ``first + count - 1``."""

    KIND: ClassVar[int] = 16
    first: int = field(validator=check.positive)
    count: int = field(validator=check.positive)
    code: int = field(validator=check.uint)
    retry_after_ms: int = field(default=0, validator=check.uint)


@frozen
class Gap:
    """This receiver lost ``count`` messages of this class here."""

    KIND: ClassVar[int] = 17
    room: str | None = field(validator=check.optional(check.room))
    sender: bytes | None = field(validator=check.optional(check.key))
    traffic_class: int = field(validator=check.traffic_class)
    count: int = field(validator=check.positive)
    lost_bytes: int = field(validator=check.uint)
    code: int = field(validator=check.uint)


@frozen
class Pause:
    """Stop sending this class to ``target`` (None, from a client: to this connection) for a while."""

    KIND: ClassVar[int] = 18
    target: str | bytes | None = field(validator=check.target)
    traffic_class: int = field(validator=check.traffic_class)
    for_ms: int = field(default=0, validator=check.uint)


@frozen
class Resume:
    """Ends a PAUSE."""

    KIND: ClassVar[int] = 19
    target: str | bytes | None = field(validator=check.target)
    traffic_class: int = field(validator=check.traffic_class)


# ---- observation and fragments -----------------------------------------------------------------------


@frozen
class Stats:
    """Asks for the counters of this session."""

    KIND: ClassVar[int] = 24


@frozen
class StatsReport:
    """The counters of this session by name."""

    KIND: ClassVar[int] = 25
    counters: Mapping[str, int | tuple[int, ...]] = field(validator=check.counters, metadata=TUPLES)


_CHUNK: Final = {
    FragmentEnd.MORE: check.octets(1_024, 65_536),
    FragmentEnd.LAST: check.octets(1, 65_536),
    FragmentEnd.ABORT: check.octets(0, 0),
}


def _chunk(message: Fragment, attribute: Attribute[Any], value: Any) -> None:
    _CHUNK[FragmentEnd(message.end)](message, attribute, value)


@frozen
class Fragment:
    """A piece of a long PUBLISH, SEND, ANYCAST or DELIVER of this class."""

    KIND: ClassVar[int] = 23
    traffic_class: int = field(validator=check.traffic_class)
    end: int = field(validator=check.between(0, 2))
    chunk: bytes = field(validator=_chunk)


ClientMessage: TypeAlias = (
    Hello | Join | Leave | Publish | Send | Anycast | Members | Present
    | Pause | Resume | Ping | Pong | Stats | Fragment | Close
)  # fmt: skip
RelayMessage: TypeAlias = (
    Welcome | Joined | Left | Deliver | MembersPage | Presence | Contract | Reject | Gap
    | Pause | Resume | Ping | Pong | Goaway | StatsReport | Fragment | Close
)  # fmt: skip
Message: TypeAlias = ClientMessage | RelayMessage


# ---- what follows from a message ---------------------------------------------------------------------

# SPEC frames.md: "own" means the class that the message names.
_OWN_CLASS: Final = frozenset({Publish, Send, Anycast, Deliver, Gap, Fragment})
# SPEC frames.md: MEMBERS_PAGE, PRESENCE and STATS_REPORT can be large and are not urgent, so they do not travel in
#   class 7.
_LISTING: Final = frozenset({MembersPage, Presence, StatsReport})
_LISTING_CLASS: Final = 2
# SPEC frames.md: The barriers are: PING of kind flush, LEAVE, LEFT and CLOSE, in both directions.
_BARRIERS: Final = frozenset({Leave, Left, Close})


def class_of(message: Message) -> int:
    """The traffic class that a message travels in."""
    if type(message) in _OWN_CLASS:
        return message.traffic_class  # type: ignore[union-attr]
    return _LISTING_CLASS if type(message) in _LISTING else TrafficClass.CONTROL


def is_barrier(message: Message) -> bool:
    """Whether a message must wait until everything queued before it, in all classes, has left."""
    return type(message) in _BARRIERS or (isinstance(message, Ping) and message.kind == PingKind.FLUSH)


# ---- encoding ----------------------------------------------------------------------------------------


class _Form(NamedTuple):
    """How messages of one kind, from one side, are read and written."""

    message: type
    arity: int
    read: Callable[[Any], Sequence[Any]]
    parses: tuple[tuple[int, Parse], ...]  # positions of the fields that the wire shows in another shape


def _form(message: type) -> _Form:
    fields = attrs_fields(message)
    parses = ((at, field.metadata["parse"]) for at, field in enumerate(fields) if field.metadata)
    return _Form(message, len(fields), field_reader(message), tuple(parses))


# SPEC messages.md: A sender MUST NOT send a message of kind 64 or above unless both sides agreed on it outside this
#   protocol.
_FORMS: Final[dict[type, _Form]] = {message: _form(message) for message in get_args(Message)}


def encode_body(message: Message) -> bytes:
    """A message as its CBOR array, without the frame's length."""
    _, _, read, parses = _FORMS[type(message)]
    values = [message.KIND, *read(message)]
    for at, _ in parses:
        values[at + 1] = to_wire(values[at + 1])
    return cbor.encode(values)


def encode_frame(message: Message) -> bytes:
    """A message as a whole frame: length, then the array."""
    # SPEC frames.md: A sender MUST write the length of the CBOR array, without the 4 bytes of the length itself, in
    #   front of it.
    # SPEC frames.md: A sender MUST NOT send a frame of length 0.
    body = encode_body(message)
    return len(body).to_bytes(4, "big") + body


def publish_prefix(room: str, traffic_class: int, content: int) -> bytes:
    """The bytes of a PUBLISH before its payload's head: equal for all messages of a flow, so keep them."""
    return _before_payload(Publish(room, traffic_class, content, b""))


def send_prefix(peer: bytes, traffic_class: int, content: int) -> bytes:
    """The bytes of a SEND before its payload's head."""
    return _before_payload(Send(peer, traffic_class, content, b""))


def anycast_prefix(room: str, traffic_class: int, content: int) -> bytes:
    """The bytes of an ANYCAST before its payload's head."""
    return _before_payload(Anycast(room, traffic_class, content, b""))


def deliver_prefix(mode: int, sender: bytes, room: str | None, traffic_class: int, content: int) -> bytes:
    """The bytes of a DELIVER before its payload's head."""
    return _before_payload(Deliver(mode, sender, room, traffic_class, content, b""))


def _before_payload(message: Message) -> bytes:
    return encode_body(message)[:-1]  # the head of an empty payload is one byte


def payload_head(size_bytes: int) -> bytes:
    """The head of a payload of this size; it stands between a prefix and the payload."""
    return cbor.head(2, size_bytes)


# ---- decoding ----------------------------------------------------------------------------------------


# SPEC messages.md: A receiver MUST answer a PAUSE or RESUME with a target that the sender's role may not use with
#   CLOSE protocol_error.
def _from_client(target: Any) -> None:
    if target is not None:
        raise LocalProtocolError("target must be null from a client")


def _from_relay(target: Any) -> Any:
    if target is None:
        raise LocalProtocolError("target must be a room or a key from a relay")
    return target


def _forms_from(messages: TypeAlias, parse_target: Parse) -> dict[int, _Form]:
    forms = {message.KIND: _FORMS[message] for message in get_args(messages)}
    for message in (Pause, Resume):
        forms[message.KIND] = _FORMS[message]._replace(parses=((0, parse_target),))
    return forms


_FORMS_FROM: Final = {
    Role.CLIENT: _forms_from(ClientMessage, _from_client),
    Role.RELAY: _forms_from(RelayMessage, _from_relay),
}

# SPEC cbor.md: A relay MUST answer more than 4,096 items in a frame with CLOSE protocol_error.
_MAX_ITEMS_FROM: Final = {
    Role.CLIENT: 4_096,  # a HELLO with everything it may have holds 1,064
    Role.RELAY: cbor.MAX_ITEMS,
}


def decode_body(body: bytes, sender: Role) -> Message | None:
    """The message in a frame's array that ``sender`` sent; None for an extension (kind 64 and above).

    Raises:
        RemoteProtocolError: the bytes are not a message (``protocol_error``), or one that this side may not
            send or that is not known (``unexpected_message``).
    """
    values = cbor.decode(body, _MAX_ITEMS_FROM[sender])
    # SPEC messages.md: A receiver MUST answer an array whose first element is not an unsigned integer with CLOSE
    #   protocol_error.
    if type(values) is not list or not values or type(values[0]) is not int or values[0] < 0:
        raise RemoteProtocolError("a frame must hold an array that begins with a message kind")
    kind = values.pop(0)
    form = _FORMS_FROM[sender].get(kind)
    # SPEC messages.md: A receiver MUST answer a message of an unassigned kind below 64 with CLOSE
    #   unexpected_message.
    if form is None:
        if kind >= FIRST_EXTENSION_KIND:
            return None
        raise RemoteProtocolError(f"no message of kind {kind} from a {sender.value}", ErrorCode.UNEXPECTED_MESSAGE)
    # SPEC messages.md: A receiver MUST answer a message that does not match the CDDL with CLOSE protocol_error.
    message, arity, _, parses = form
    if len(values) != arity:
        raise RemoteProtocolError(f"{check.wire_name(message)} has {arity} fields, not {len(values)}")
    try:
        for at, parse in parses:
            values[at] = parse(values[at])
        return message(*values)  # type: ignore[no-any-return]
    except LocalProtocolError as error:
        raise RemoteProtocolError(f"bad {check.wire_name(message)}: {error}") from None
