"""Every state and every message of both roles, received and sent; the CDDL says who may send what."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from awesomeconnect.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from awesomeconnect.wire import messages as m
from awesomeconnect.wire.messages import Message, Role, encode_frame
from awesomeconnect.wire.states import TRANSITIONS, State
from tests.wire.playbook import HELLO, established

KEY = bytes(range(32))
CDDL = Path(__file__).resolve().parents[2] / "protocol-spec" / "messages.cddl"

MESSAGES: dict[str, Message] = {
    "hello": HELLO,
    "welcome": m.Welcome(1, b"8 bytes."),
    "join": m.Join("r"),
    "joined": m.Joined("r", 1, 1, 0),
    "leave": m.Leave("r"),
    "left": m.Left("r"),
    "publish": m.Publish("r", 1, 0, b"x"),
    "send": m.Send(KEY, 1, 0, b"x"),
    "anycast": m.Anycast("r", 1, 0, b"x"),
    "deliver": m.Deliver(0, KEY, "r", 1, 0, b"x"),
    "members": m.Members("r"),
    "members-page": m.MembersPage("r", 0, 1),
    "presence": m.Presence("r", 0, 1, (KEY,)),
    "present": m.Present("r", b"c"),
    "contract": m.Contract("r"),
    "reject": m.Reject(1, 1, 32),
    "gap": m.Gap("r", None, 1, 1, 1, 36),
    "pause": m.Pause("r", 1),
    "resume": m.Resume("r", 1),
    "ping": m.Ping(0),
    "pong": m.Pong(),
    "goaway": m.Goaway(7),
    "stats": m.Stats(),
    "stats-report": m.StatsReport({}),
    "fragment": m.Fragment(1, 0, bytes(1_024)),
    "close": m.Close(),
}


def may_send(role: Role) -> set[str]:
    """The messages of a role in the specification."""
    rule = re.search(rf"^{role.value}-message = (.*?)\n\n", CDDL.read_text(), re.MULTILINE | re.DOTALL)
    assert rule is not None
    return set(re.split(r"[\s/]+", rule[1].strip()))


def next_state(role: Role, state: State, name: str) -> State | None:
    """What the table of states in sessions.md says: the state after a message, None where it is not allowed."""
    greeting = "hello" if role is Role.CLIENT else "welcome"
    if name not in may_send(role) or state in (State.HANDSHAKE, State.CLOSED):
        return None
    if name == "close":
        return State.CLOSED
    if state is State.GREETING:
        return {greeting: State.OPEN, "goaway": State.GREETING}.get(name)
    return None if name == greeting else State.OPEN


def message_of(role: Role, name: str) -> Message:
    if role is Role.CLIENT and name in ("pause", "resume"):
        return type(MESSAGES[name])(None, 1)  # a client pauses its connection
    return MESSAGES[name]


every_case = [
    pytest.mark.parametrize("name", MESSAGES),
    pytest.mark.parametrize("state", State),
    pytest.mark.parametrize("role", Role),
]


def each_case(test: object) -> object:
    for mark in every_case:
        test = mark(test)
    return test


@each_case
def test_receiving(role: Role, state: State, name: str) -> None:
    client, relay = established()
    receiver = relay if role is Role.CLIENT else client
    receiver.remote_state = state
    local_state = receiver.local_state
    receiver.reader.feed([encode_frame(message_of(role, name))])
    following = next_state(role, state, name)
    if following is None:
        with pytest.raises(RemoteProtocolError) as caught:
            receiver.next_message()
        assert caught.value.code is ErrorCode.UNEXPECTED_MESSAGE
        assert receiver.remote_state is state
    else:
        expected = None if name == "fragment" else message_of(role, name)
        assert receiver.next_message() == expected
        assert receiver.remote_state is following
    assert receiver.local_state is local_state


@each_case
def test_sending(role: Role, state: State, name: str) -> None:
    for by_note in (True, False):
        client, relay = established()
        sender = client if role is Role.CLIENT else relay
        sender.local_state = state
        remote_state = sender.remote_state
        send = sender.note_sent if by_note else sender.send
        following = next_state(role, state, name)
        if following is None:
            with pytest.raises(LocalProtocolError) as caught:
                send(message_of(role, name))
            assert caught.value.code is ErrorCode.UNEXPECTED_MESSAGE
            assert sender.local_state is state
        else:
            send(message_of(role, name))
            assert sender.local_state is following
        assert sender.remote_state is remote_state


def test_the_tables_are_complete() -> None:
    assert {type(message) for message in MESSAGES.values()} == set(get_args(Message))
    for role in Role:
        assert set(TRANSITIONS[role]) == set(State)
        named = {type(MESSAGES[name]) for name in may_send(role)}
        assert {message for state in State for message in TRANSITIONS[role][state]} == named
