"""Who may send what, when: one table for both roles.

A connection has two halves, one for each side's sending. Each half goes

    HANDSHAKE -> GREETING -> OPEN -> CLOSED

on its own: a client may publish right after its HELLO, before WELCOME has arrived. What a side may send depends
on its role and on the state of its own half only, so the same table judges what arrives and what is sent.
"""

from __future__ import annotations

from enum import Enum, auto

from awesomeconnect.wire.messages import (
    Anycast,
    Close,
    Contract,
    Deliver,
    Fragment,
    Gap,
    Goaway,
    Hello,
    Join,
    Joined,
    Leave,
    Left,
    Members,
    MembersPage,
    Message,
    Pause,
    Ping,
    Pong,
    Presence,
    Present,
    Publish,
    Reject,
    Resume,
    Role,
    Send,
    Stats,
    StatsReport,
    Welcome,
)


class State(Enum):
    """State of one half of a connection."""

    HANDSHAKE = auto()  #: identities are being proved; no frames yet
    GREETING = auto()  #: HELLO or WELCOME must come first
    OPEN = auto()
    CLOSED = auto()  #: CLOSE was sent; nothing may follow


_BOTH = (Pause, Resume, Ping, Pong, Fragment)
_CLIENT = (Join, Leave, Publish, Send, Anycast, Members, Present, Stats)
_RELAY = (
    Joined,
    Left,
    Deliver,
    MembersPage,
    Presence,
    Contract,
    Reject,
    Gap,
    Goaway,
    StatsReport,
)

# SPEC sessions.md: A side MUST NOT send a message that the state of its direction does not allow.
# SPEC messages.md: A sender MUST NOT send a message of a kind that this specification does not assign to its role.
# SPEC messages.md: A side MUST NOT send anything after CLOSE.
#: role of the sender -> state of its half -> message class -> next state; what is not here is not allowed.
TRANSITIONS: dict[Role, dict[State, dict[type[Message], State]]] = {
    Role.CLIENT: {
        State.HANDSHAKE: {},
        # SPEC messages.md: A client MUST send HELLO as its first frame and MUST send it only once in a connection.
        # SPEC messages.md: A relay MUST answer a first frame other than HELLO or CLOSE with CLOSE
        #   unexpected_message.
        # SPEC messages.md: A relay MUST answer a second HELLO with CLOSE unexpected_message.
        State.GREETING: {Hello: State.OPEN, Close: State.CLOSED},
        State.OPEN: {Close: State.CLOSED, **dict.fromkeys((*_BOTH, *_CLIENT), State.OPEN)},
        State.CLOSED: {},
    },
    Role.RELAY: {
        State.HANDSHAKE: {},
        # SPEC messages.md: A relay MUST send WELCOME as its first frame, except that it MAY send GOAWAY and CLOSE,
        #   or CLOSE alone, instead.
        # SPEC messages.md: A client MUST answer a first frame other than WELCOME, GOAWAY or CLOSE with CLOSE
        #   unexpected_message.
        # SPEC messages.md: A client MUST NOT hand any message of the relay to the application before it has
        #   received WELCOME.
        # A key that logs in with an older counter is sent away without a WELCOME.
        State.GREETING: {Welcome: State.OPEN, Goaway: State.GREETING, Close: State.CLOSED},
        State.OPEN: {Close: State.CLOSED, **dict.fromkeys((*_BOTH, *_RELAY), State.OPEN)},
        State.CLOSED: {},
    },
}
