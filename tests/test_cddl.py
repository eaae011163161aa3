"""Messages and ``protocol-spec/messages.cddl`` agree: what one accepts, the other does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pycddl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from awesomeconnect.errors import RemoteProtocolError
from awesomeconnect.wire import cbor
from awesomeconnect.wire import messages as m
from awesomeconnect.wire.fields import MAX_ATTRIBUTES_BYTES, wire_name
from awesomeconnect.wire.messages import Role, decode_body, encode_body
from tests import cddl
from tests.strategies import MESSAGES, client_messages, keys, messages, relay_messages

SOURCE = (Path(__file__).parent.parent / "protocol-spec" / "messages.cddl").read_text()
SCHEMA = cddl.Schema(SOURCE)
SIDES = {Role.CLIENT: "client-message", Role.RELAY: "relay-message"}


def rule_of(message: type) -> str:
    return wire_name(message).lower().replace("_", "-")


def pycddl_schema(rule: str) -> pycddl.Schema:
    """The schema with ``rule`` as its root, put in the words that pycddl understands.

    It takes a member's name for the rule of that name, knows no ``.size`` in the key of a map, and no choice
    with null in an array. None of this changes what the schema accepts, but for the lengths of names in maps.
    """
    source = re.sub(r"\b[a-z-]+: ", "", SOURCE)
    source = source.replace("tstr .size (1..64) =>", "tstr =>")
    source = re.sub(r"\b(room|key|uint) / null", r"nullable-\1", source)
    nullable = "".join(f"nullable-{rule} = {rule} / null\n" for rule in ("room", "key", "uint"))
    return pycddl.Schema(f"root = {rule}\n{source}\n{nullable}")


PYCDDL = {message.KIND: pycddl_schema(rule_of(message)) for message in MESSAGES}


def pycddl_accepts(body: bytes, kind: int) -> bool:
    try:
        PYCDDL[kind].validate_cbor(body)
    except pycddl.ValidationError:
        return False
    return True


def test_the_schema_is_valid_cddl() -> None:
    pycddl.Schema(SOURCE)


@pytest.mark.parametrize("side", Role)
def test_sides_may_send_the_same_messages(side: Role) -> None:
    choices = re.search(rf"^{SIDES[side]} = ([a-z\s/-]+?)\n\n", SOURCE, re.MULTILINE)
    assert choices is not None
    union = m.ClientMessage if side is Role.CLIENT else m.RelayMessage
    assert set(re.split(r"[\s/]+", choices[1])) == {rule_of(message) for message in get_args(union)}


@given(messages)
def test_every_message_is_valid(message: m.Message) -> None:
    body = encode_body(message)
    assert SCHEMA.accepts(rule_of(type(message)), cbor.decode(body))
    assert SCHEMA.accepts("message", cbor.decode(body))
    assert pycddl_accepts(body, message.KIND)


@pytest.mark.parametrize("message", MESSAGES)
def test_every_class_is_drawn_and_valid(message: type) -> None:
    @given(MESSAGES[message])
    def check(drawn: m.Message) -> None:
        assert SCHEMA.accepts(rule_of(message), cbor.decode(encode_body(drawn)))

    check()


# Values at the edges of what some field may be.
EDGES: st.SearchStrategy[Any] = st.sampled_from(
    [
        *(None, True, -1, 0, 1, 2, 3, 4, 6, 7, 23, 24, (1 << 64) - 1, -(1 << 64)),
        *(b"", bytes(7), bytes(8), bytes(9), bytes(31), bytes(32), bytes(33), bytes(1_023), bytes(1_024)),
        *(bytes(4_096), bytes(4_097), bytes(65_536), bytes(65_537)),
        *("", "x", "x" * 64, "x" * 65, "é" * 32, "x" * 128, "é" * 64, "é" * 65, "x" * 256, "x" * 257),
        *([], [0], [0, bytes(8)], ["r", 0, None], [[0, 0, 0, 0]] * 7, [[0, 0, 0, 0]] * 8, ["x"] * 17),
        *([["r", 0, None]] * 256, [["r", 0, None]] * 257, [bytes(32), 0, {}], [bytes(32)]),
        *({}, {"x": 1}, {"": 1}, {"x" * 64: "x"}, {"x" * 65: 1}, {"x": [1, 2]}, {"x": [-1]}, {"x": {}}),
        *({str(number): 0 for number in range(count)} for count in (16, 17)),
    ]
) | keys  # fmt: skip


def damaged(value: Any, data: st.DataObject) -> Any:
    """The value with one change somewhere inside: an item replaced, removed or added."""
    if isinstance(value, list) and value and data.draw(st.integers(0, 4)):
        at = data.draw(st.integers(0, len(value) - 1))
        change = data.draw(st.integers(0, 7))
        inner = [] if change == 0 else [value[at], value[at]] if change == 1 else [damaged(value[at], data)]
        return [*value[:at], *inner, *value[at + 1 :]]
    if isinstance(value, dict) and data.draw(st.integers(0, 4)):
        names = st.sampled_from(["", "x", "x" * 64, "x" * 65, *value])
        return {**value, data.draw(names): data.draw(EDGES)}
    return data.draw(EDGES)


def beyond_cddl(values: Any, side: Role) -> bool:
    """Whether a rule of the text, not of the schema, refuses these values."""
    if values[0] in (m.Pause.KIND, m.Resume.KIND):
        return (values[1] is None) != (side is Role.CLIENT)
    attributes = {
        m.Hello.KIND: lambda: [values[4]],
        m.MembersPage.KIND: lambda: [member[2] for member in values[4]],
        m.Presence.KIND: lambda: [member[2] for member in values[5]],
    }.get(values[0], list)()
    return any(len(cbor.encode(found)) > MAX_ATTRIBUTES_BYTES for found in attributes)


def assert_same_verdict(values: Any, side: Role) -> None:
    body = cbor.encode(values)
    try:
        accepted = decode_body(body, side) is not None
    except RemoteProtocolError:
        accepted = False
    valid = SCHEMA.accepts(SIDES[side], values)
    assert accepted == (valid and not beyond_cddl(values, side))
    if accepted:
        assert pycddl_accepts(body, values[0])


@given(st.data(), client_messages)
def test_a_damaged_client_message_gets_the_same_verdict(data: st.DataObject, message: m.Message) -> None:
    values = damaged(cbor.decode(encode_body(message)), data)
    assert_same_verdict(values, Role.CLIENT)


@given(st.data(), relay_messages)
def test_a_damaged_relay_message_gets_the_same_verdict(data: st.DataObject, message: m.Message) -> None:
    values = damaged(cbor.decode(encode_body(message)), data)
    assert_same_verdict(values, Role.RELAY)


@given(messages)
def test_direction_gets_the_same_verdict(message: m.Message) -> None:
    for side in Role:
        assert_same_verdict(cbor.decode(encode_body(message)), side)
