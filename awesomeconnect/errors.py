"""Every error of the project: the codes that travel on the wire, and the exceptions that people catch.

The codes mirror the table in ``protocol-spec/errors.md``; a test compares the two. The tree:

    AwesomeConnectError
    ├── ProtocolError             the connection is dead
    │   ├── LocalProtocolError    this side asked for something that the protocol forbids
    │   └── RemoteProtocolError   the other side broke the protocol
    │       └── HandshakeError    ... before it had proved who it is
    │           └── RelayKeyMismatch   the relay is not the one that the address names
    ├── LinkError                 no working connection
    │   ├── ConnectFailed         none of the addresses could be reached
    │   ├── ConnectionBroken      it ended without an authenticated CLOSE
    │   └── ConnectionEnded       it ended with a CLOSE or GOAWAY, whose code says why
    ├── Refused                   the relay refused one request; the connection lives on
    │   ├── NoMembers, NoSuchPeer, PayloadTooLarge, RateExceeded, ReceiverCongested, ReceiverGone
    │   └── RoomRefused           JOIN, MEMBERS or a publish was refused because of the room
    ├── OutcomeUnknown            the connection broke before the relay's verdict arrived; or a reliable message was
    │                             not acknowledged
    ├── Expired                   a reliable message was not delivered in time, and will not be
    ├── Declined                  the other node does not take reliable messages from this one
    ├── RequestFailed             the other node answered a request with an error
    ├── RequestTimeout            no answer to a request in time
    ├── AddressError              text that is not an address or a public key (also a ValueError)
    ├── KeyFileError              a key file that cannot be used, and what to do about it
    └── ContractError             a contract for traffic shaping that makes no sense (also a ValueError)

This module imports nothing of the project.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class ErrorCode(IntEnum):
    """Codes of CLOSE, GOAWAY, REJECT, LEFT, MEMBERS_PAGE, CONTRACT and GAP (protocol-spec/errors.md)."""

    OK = 0

    # The connection ends (CLOSE, GOAWAY).
    PROTOCOL_ERROR = 1
    FRAME_TOO_LARGE = 2
    UNEXPECTED_MESSAGE = 3
    UNSUPPORTED_REVISION = 4
    KEEPALIVE_TIMEOUT = 5
    INTERNAL_ERROR = 6
    DRAINING = 7
    REPLACED = 8
    SUPERSEDED = 9
    SLOW_RECEIVER = 10
    OVERLOADED = 11
    NOT_ALLOWED = 12
    SESSION_TOO_OLD = 13

    # One request is refused (REJECT, LEFT, MEMBERS_PAGE, CONTRACT), or a message was lost (GAP).
    NO_MEMBERS = 32
    NO_SUCH_PEER = 33
    PAYLOAD_TOO_LARGE = 34
    RATE_EXCEEDED = 35
    RECEIVER_CONGESTED = 36
    RECEIVER_GONE = 37
    BAD_ROOM = 38
    NOT_A_MEMBER = 39
    CAPABILITY_REQUIRED = 40
    CAPABILITY_INVALID = 41
    TOO_MANY_ROOMS = 42
    ROOM_FULL = 43
    EVICTED = 44

    @property
    def may_retry(self) -> bool:
        """Whether the same request, or a new connection, can succeed later without a human's help."""
        return self in _MAY_RETRY

    @property
    def label(self) -> str:
        """The name as the specification writes it, for example ``no_such_peer``."""
        return self.name.lower()


_MAY_RETRY = frozenset(
    {
        ErrorCode.KEEPALIVE_TIMEOUT,
        ErrorCode.INTERNAL_ERROR,
        ErrorCode.DRAINING,
        ErrorCode.SLOW_RECEIVER,
        ErrorCode.OVERLOADED,
        ErrorCode.SESSION_TOO_OLD,
        ErrorCode.NO_MEMBERS,
        ErrorCode.NO_SUCH_PEER,
        ErrorCode.RATE_EXCEEDED,
        ErrorCode.RECEIVER_CONGESTED,
        ErrorCode.RECEIVER_GONE,
        ErrorCode.TOO_MANY_ROOMS,
        ErrorCode.ROOM_FULL,
    }
)


def code_label(code: int) -> str:
    """Name of a code from the wire; a code of a later revision reads as ``code_N``."""
    try:
        return ErrorCode(code).label
    except ValueError:
        return f"code_{code}"


class AwesomeConnectError(Exception):
    """Base of every exception that the project raises on purpose."""


class ProtocolError(AwesomeConnectError):
    """The protocol was broken; the connection is dead. ``code`` is what CLOSE carries."""

    def __init__(self, message: str, code: ErrorCode = ErrorCode.PROTOCOL_ERROR) -> None:
        super().__init__(message)
        self.code = code


class LocalProtocolError(ProtocolError):
    """This side tried to do what the protocol forbids in this state."""


class RemoteProtocolError(ProtocolError):
    """The other side sent what the protocol forbids."""


class HandshakeError(RemoteProtocolError):
    """The other side failed to prove its identity, or does not speak this protocol."""


class RelayKeyMismatch(HandshakeError):
    """The relay proved an identity other than the one pinned in its address."""


class LinkError(AwesomeConnectError):
    """There is no working connection to a relay."""


class ConnectFailed(LinkError):
    """None of the given addresses could be reached; the text lists each with its reason."""


class ConnectionBroken(LinkError):
    """The connection ended without an authenticated CLOSE."""


class ConnectionEnded(LinkError):
    """The relay ended the connection on purpose; ``code`` says why and whether to come back."""

    def __init__(self, message: str, code: int = ErrorCode.OK) -> None:
        super().__init__(message)
        self.code = code


class Refused(AwesomeConnectError):
    """The relay refused a request. The connection and other requests are unaffected.

    Attributes:
        code: why (``ErrorCode``, or a bare int from a later revision).
        retry_after_ms: how long to wait before trying again; 0 when the relay named no time.
        ordinals: the refused publishes, as returned in their receipts; empty for room requests.
    """

    for_code: ClassVar[dict[int, type[Refused]]] = {}

    def __init__(self, message: str, code: int, *, retry_after_ms: int = 0, ordinals: range = range(0)) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_ms = retry_after_ms
        self.ordinals = ordinals

    @classmethod
    def from_code(cls, code: int, about: str, *, retry_after_ms: int = 0, ordinals: range = range(0)) -> Refused:
        """The exception class of ``code``, with a text that says what happened and what to do."""
        text = f"{about}: {_ADVICE.get(code, code_label(code))}"
        kind = cls.for_code.get(code, Refused)
        return kind(text, code, retry_after_ms=retry_after_ms, ordinals=ordinals)


class NoMembers(Refused):
    """Nobody else is in the room."""


class NoSuchPeer(Refused):
    """No node with this public key is connected to the relay."""


class PayloadTooLarge(Refused):
    """The payload is over the relay's limit (WELCOME, ``payload_bytes``), or the burst of its contract."""


class RateExceeded(Refused):
    """More was sent than the contract allows; see ``retry_after_ms``."""


class ReceiverCongested(Refused):
    """The receiver's queue at the relay is full."""


class ReceiverGone(Refused):
    """The receiver disconnected before the message was handed to its connection."""


class RoomRefused(Refused):
    """The room's name or policy does not allow this."""


Refused.for_code.update(
    {
        ErrorCode.NO_MEMBERS: NoMembers,
        ErrorCode.NO_SUCH_PEER: NoSuchPeer,
        ErrorCode.PAYLOAD_TOO_LARGE: PayloadTooLarge,
        ErrorCode.RATE_EXCEEDED: RateExceeded,
        ErrorCode.RECEIVER_CONGESTED: ReceiverCongested,
        ErrorCode.RECEIVER_GONE: ReceiverGone,
        ErrorCode.BAD_ROOM: RoomRefused,
        ErrorCode.NOT_A_MEMBER: RoomRefused,
        ErrorCode.CAPABILITY_REQUIRED: RoomRefused,
        ErrorCode.CAPABILITY_INVALID: RoomRefused,
        ErrorCode.TOO_MANY_ROOMS: RoomRefused,
        ErrorCode.ROOM_FULL: RoomRefused,
        ErrorCode.EVICTED: RoomRefused,
    }
)

_ADVICE: dict[int, str] = {
    ErrorCode.NO_MEMBERS: "nobody else is in the room; try again when somebody has joined",
    ErrorCode.NO_SUCH_PEER: "no node with this key is connected to the relay; check the key, or try later",
    ErrorCode.PAYLOAD_TOO_LARGE: "the payload is over a limit of the relay or of a contract; send smaller messages",
    ErrorCode.RATE_EXCEEDED: "the sending contract is used up; wait for retry_after_ms",
    ErrorCode.RECEIVER_CONGESTED: "the receiver reads too slowly and its queue is full; send more slowly",
    ErrorCode.RECEIVER_GONE: "the receiver disconnected first; try again when it is back",
    ErrorCode.BAD_ROOM: "not a valid room name; use 1 to 128 bytes of UTF-8 without control characters",
    ErrorCode.NOT_A_MEMBER: "only members and observers may do this; join the room first",
    ErrorCode.CAPABILITY_REQUIRED: "this room is owned; ask its owner for a capability",
    ErrorCode.CAPABILITY_INVALID: "the capability is expired, revoked or not for this key; ask for a new one",
    ErrorCode.TOO_MANY_ROOMS: "this connection is in as many rooms as the relay allows; leave one first",
    ErrorCode.ROOM_FULL: "the room has as many members as the relay allows; try later",
    ErrorCode.EVICTED: "the relay removed this node from the room",
}


class OutcomeUnknown(AwesomeConnectError):
    """The connection broke before the relay's verdict on these publishes arrived.

    Also: a reliable message was sent and never acknowledged; it may have been taken. ``ordinals`` is empty then.
    """

    def __init__(self, message: str, ordinals: range) -> None:
        super().__init__(message)
        self.ordinals = ordinals


class Expired(AwesomeConnectError):
    """A reliable message was not delivered before it expired. It has not arrived, and will not."""


class Declined(AwesomeConnectError):
    """The other node does not take reliable messages, or not from this one. The message was not taken.

    Attributes:
        reason: 0 not offered, 1 stale, 2 busy (protocol-spec/reliable.md, Refusals).
    """

    def __init__(self, about: str, reason: int) -> None:
        super().__init__(f"{about}: {_REASONS.get(reason, f'declined for reason {reason}')}")
        self.reason = reason


_REASONS = {
    0: "the peer does not take reliable messages; send without reliable=True",
    1: "a process with this key that started later has sent to this peer; give each process a key of its own",
    2: "the peer remembers as many senders as it can; try later",
}


class RequestFailed(AwesomeConnectError):
    """The node that took the request answered with an error; its text is the message."""


class RequestTimeout(AwesomeConnectError):
    """No answer to a request arrived in time."""


class AddressError(AwesomeConnectError, ValueError):
    """Text that is not a relay address or a public key."""


class KeyFileError(AwesomeConnectError):
    """A key file that cannot be used; the text says what to do."""


class ContractError(AwesomeConnectError, ValueError):
    """A contract for traffic shaping that makes no sense; the text says which part, and why."""
