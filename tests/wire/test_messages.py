from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import attrs
import pytest
from hypothesis import given

from awesomeconnect.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from awesomeconnect.wire import cbor
from awesomeconnect.wire import messages as m
from awesomeconnect.wire.messages import Role, decode_body, encode_body, encode_frame
from tests.strategies import (
    MESSAGES,
    client_messages,
    contents,
    keys,
    messages,
    payloads,
    relay_messages,
    room_modes,
    room_texts,
    traffic_classes,
)

KEY = bytes(range(32))
EPOCH = b"epoch..."
MEMBER = m.Member(KEY, 3, {"name": "n"})
CONTRACT = m.ClassContract(1, 1_000, 2_000, 50)
INTENT = m.RoomIntent("r")
INCARNATION = m.Incarnation(1_700_000_000_000, EPOCH)

# One of each message, and its array as the specification writes it.
ARRAYS: dict[m.Message, list[Any]] = {
    m.Pong(b"t"): [21, b"t"],
    m.Ping(m.PingKind.FLUSH, b"t"): [20, 1, b"t"],
    m.Join("r", m.JoinFlags.WATCH | m.JoinFlags.OBSERVE, b"c"): [2, "r", 3, b"c"],
    m.Join("r"): [2, "r", 0, None],
    m.Joined("r", 5, 2, 9, (CONTRACT,)): [3, "r", 5, 2, 9, [[1, 1_000, 2_000, 50]]],
    m.Leave("r"): [4, "r"],
    m.Left("r", ErrorCode.EVICTED): [5, "r", 44],
    m.Publish("r", m.TrafficClass.DATA, m.Content.APPLICATION, b"p"): [6, "r", 1, 0, b"p"],
    m.Send(KEY, 5, 4, b"p"): [7, KEY, 5, 4, b"p"],
    m.Anycast("r", 2, 23, b""): [8, "r", 2, 23, b""],
    m.Deliver(m.Mode.ANYCAST, KEY, "r", 0, 0, b"p"): [9, 2, KEY, "r", 0, 0, b"p"],
    m.Deliver(m.Mode.UNICAST, KEY, None, 0, 0, b"p"): [9, 1, KEY, None, 0, 0, b"p"],
    m.Members("r", 7): [10, "r", 7],
    m.Present("r", b"c"): [14, "r", b"c"],
    m.Contract(None, 0, (CONTRACT,)): [15, None, 0, [[1, 1_000, 2_000, 50]]],
    m.Reject(1, 2, ErrorCode.NO_MEMBERS, 4): [16, 1, 2, 32, 4],
    m.Gap("r", None, 1, 2, 3, 36): [17, "r", None, 1, 2, 3, 36],
    m.Pause("r", 1, 2): [18, "r", 1, 2],
    m.Pause(KEY, 1, 2): [18, KEY, 1, 2],
    m.Pause(None, 1, 2): [18, None, 1, 2],
    m.Resume(None, 1): [19, None, 1],
    m.Goaway(7, 1, 2, ("ac://x",)): [22, 7, 1, 2, ["ac://x"]],
    m.Fragment(1, m.FragmentEnd.LAST, b"c"): [23, 1, 1, b"c"],
    m.Stats(): [24],
    m.Close(1, "why"): [26, 1, "why"],
}  # fmt: skip
UNHASHABLE_ARRAYS: list[tuple[m.Message, list[Any]]] = [
    (
        m.Hello(1, INCARNATION, 2, {"name": "n"}, (m.RoomIntent("r", 1),)),
        [0, 1, [1_700_000_000_000, EPOCH], 2, {"name": "n"}, [["r", 1, None]]],
    ),
    (
        m.Welcome(1, EPOCH, {"rooms": 8}, (CONTRACT,), ("ac://x",)),
        [1, 1, EPOCH, {"rooms": 8}, [[1, 1_000, 2_000, 50]], ["ac://x"]],
    ),
    (m.MembersPage("r", 0, 5, (MEMBER,), 3), [11, "r", 0, 5, [[KEY, 3, {"name": "n"}]], 3]),
    (m.MembersPage("r", 39, 0), [11, "r", 39, 0, [], None]),
    (m.Presence("r", 4, 6, (KEY,), (MEMBER,)), [13, "r", 4, 6, [KEY], [[KEY, 3, {"name": "n"}]]]),
    (m.StatsReport({"a": 1, "b": (2, 3)}), [25, {"a": 1, "b": [2, 3]}]),
]
EXAMPLES = [*ARRAYS.items(), *UNHASHABLE_ARRAYS]

CLIENT_KINDS = set(get_args(m.ClientMessage))
RELAY_KINDS = set(get_args(m.RelayMessage))
KINDS = {message.KIND for message in MESSAGES}


def sender_of(message: m.Message) -> Role:
    """A side that may send this."""
    if isinstance(message, m.Pause | m.Resume):
        return Role.CLIENT if message.target is None else Role.RELAY
    return Role.CLIENT if type(message) in CLIENT_KINDS else Role.RELAY


def refusal(values: object, sender: Role) -> RemoteProtocolError:
    with pytest.raises(RemoteProtocolError) as refused:
        decode_body(cbor.encode(values), sender)
    return refused.value


def test_every_message_has_an_example_and_a_strategy() -> None:
    assert {type(message) for message, _ in EXAMPLES} == set(MESSAGES) == CLIENT_KINDS | RELAY_KINDS
    assert len(KINDS) == len(MESSAGES)


@pytest.mark.parametrize(("message", "values"), EXAMPLES)
def test_array(message: m.Message, values: list[Any]) -> None:
    assert encode_body(message) == cbor.encode(values)
    assert decode_body(cbor.encode(values), sender_of(message)) == message


@pytest.mark.parametrize(("message", "values"), EXAMPLES)
def test_a_field_too_few_or_too_many_is_refused(message: m.Message, values: list[Any]) -> None:
    for wrong in ([*values, 0], *([values[:-1]] if len(values) > 1 else [])):
        error = refusal(wrong, sender_of(message))
        assert error.code is ErrorCode.PROTOCOL_ERROR
        assert f"has {len(values) - 1} fields, not {len(wrong) - 1}" in str(error)


@pytest.mark.parametrize(("message", "values"), EXAMPLES)
def test_a_field_of_a_wrong_type_is_refused_by_name(message: m.Message, values: list[Any]) -> None:
    for at, name in enumerate(attrs.fields_dict(type(message)), start=1):
        wrongs: list[Any] = [True, -1, [[[]]], {"": -1}]
        for wrong in wrongs:
            error = refusal([*values[:at], wrong, *values[at + 1 :]], sender_of(message))
            assert error.code is ErrorCode.PROTOCOL_ERROR
            if not isinstance(wrong, list):
                assert name in str(error).lower()


@given(client_messages)
def test_client_messages_survive(message: m.Message) -> None:
    assert decode_body(encode_body(message), Role.CLIENT) == message


@given(relay_messages)
def test_relay_messages_survive(message: m.Message) -> None:
    assert decode_body(encode_body(message), Role.RELAY) == message


@given(messages)
def test_a_frame_is_the_length_and_the_body(message: m.Message) -> None:
    frame, body = encode_frame(message), encode_body(message)
    assert frame == len(body).to_bytes(4, "big") + body


# ---- who may send what -------------------------------------------------------------------------------


@pytest.mark.parametrize(("message", "values"), EXAMPLES)
def test_the_wrong_side_is_refused(message: m.Message, values: list[Any]) -> None:
    for side, kinds in ((Role.CLIENT, CLIENT_KINDS), (Role.RELAY, RELAY_KINDS)):
        if type(message) not in kinds:
            assert refusal(values, side).code is ErrorCode.UNEXPECTED_MESSAGE


@pytest.mark.parametrize("sender", Role)
@pytest.mark.parametrize("kind", sorted(set(range(64)) - KINDS))
def test_an_unknown_kind_is_refused(kind: int, sender: Role) -> None:
    assert refusal([kind], sender).code is ErrorCode.UNEXPECTED_MESSAGE


@pytest.mark.parametrize("sender", Role)
@pytest.mark.parametrize("kind", [64, 65, 1 << 32, (1 << 64) - 1])
def test_an_extension_is_ignored_but_must_be_cbor(kind: int, sender: Role) -> None:
    body = cbor.encode([kind, {"a": [1]}])
    assert decode_body(body, sender) is None
    with pytest.raises(RemoteProtocolError):
        decode_body(body + b"\x00", sender)


@pytest.mark.parametrize("values", [0, {}, [], "x", [-1], [None], [True], ["x"], [[0]], None])
def test_what_does_not_begin_with_a_kind_is_refused(values: object) -> None:
    assert "begins with a message kind" in str(refusal(values, Role.CLIENT))


def test_targets_are_null_from_a_client_and_something_from_a_relay() -> None:
    for target in ("room", KEY):
        assert "target must be null" in str(refusal([18, target, 0, 0], Role.CLIENT))
        assert "target must be null" in str(refusal([19, target, 0], Role.CLIENT))
    assert "target must be a room or a key" in str(refusal([18, None, 0, 0], Role.RELAY))
    assert "target must be a room or a key" in str(refusal([19, None, 0], Role.RELAY))


def test_a_client_may_not_send_as_many_items_as_a_relay() -> None:
    values = [64, [0] * 4_000, [0] * 4_000]
    assert "more items than allowed" in str(refusal(values, Role.CLIENT))
    assert decode_body(cbor.encode(values), Role.RELAY) is None


def test_the_longest_hello_is_well_below_what_a_client_may_send() -> None:
    rooms = tuple(m.RoomIntent(str(number)) for number in range(256))
    hello = m.Hello(1, INCARNATION, 1, {f"{number}": 0 for number in range(16)}, rooms)
    assert cbor.decode(encode_body(hello), 1_064)
    assert decode_body(encode_body(hello), Role.CLIENT) == hello


# ---- fields ------------------------------------------------------------------------------------------

LONG = "x" * 129
TOO_MUCH = 1 << 64


def make(cls: Callable[..., object], *values: object) -> object:
    return cls(*values)


@pytest.mark.parametrize(
    ("cls", "values", "text"),
    [
        (m.Leave, [""], "LEAVE room must be text of 1 to 128 bytes of UTF-8"),
        (m.Leave, [LONG], "LEAVE room must be text of 1 to 128 bytes"),
        (m.Leave, ["é" * 65], "LEAVE room must be text of 1 to 128 bytes"),
        (m.Leave, ["\ud800"], "LEAVE room must be text of 1 to 128 bytes"),
        (m.Leave, [b"room"], "LEAVE room must be text of 1 to 128 bytes"),
        (m.Close, [0, "x" * 257], "CLOSE detail must be text of 0 to 256 bytes"),
        (m.Close, [-1], f"CLOSE code must be an integer from 0 to {TOO_MUCH - 1}"),
        (m.Close, [TOO_MUCH], "CLOSE code must be an integer"),
        (m.Close, [False], "CLOSE code must be an integer"),
        (m.Close, [1.0], "CLOSE code must be an integer"),
        (m.Ping, [2, b""], "PING kind must be an integer from 0 to 1"),
        (m.Ping, [0, bytes(33)], "PING token must be 0 to 32 bytes"),
        (m.Pong, ["t"], "PONG token must be 0 to 32 bytes"),
        (m.Join, ["r", 4], "JOIN flags must be an integer from 0 to 3"),
        (m.Join, ["r", 0, b""], "JOIN capability must be 1 to 4096 bytes"),
        (m.Present, ["r", bytes(4_097)], "PRESENT capability must be 1 to 4096 bytes"),
        (m.Present, ["r", None], "PRESENT capability must be 1 to 4096 bytes"),
        (m.Publish, ["r", 7, 0, b""], "PUBLISH traffic_class must be an integer from 0 to 6"),
        (m.Publish, ["r", 0, 24, b""], "PUBLISH content must be an integer from 0 to 23"),
        (m.Publish, ["r", 0, 0, "text"], "PUBLISH payload must be bytes"),
        (m.Send, [KEY[1:], 0, 0, b""], "SEND peer must be 32 bytes"),
        (m.Deliver, [3, KEY, "r", 0, 0, b""], "DELIVER mode must be an integer from 0 to 2"),
        (m.Deliver, [0, KEY, None, 0, 0, b""], "DELIVER room must be text of 1 to 128 bytes"),
        (m.Deliver, [1, KEY, "r", 0, 0, b""], "DELIVER room must be null in a unicast"),
        (m.Reject, [0, 1, 1], "REJECT first must be an integer from 1"),
        (m.Reject, [1, 0, 1], "REJECT count must be an integer from 1"),
        (m.Gap, ["r", b"k", 0, 1, 1, 1], "GAP sender must be 32 bytes"),
        (m.Pause, ["", 0], "PAUSE target must be a room, a key or null"),
        (m.Resume, [b"k", 0], "RESUME target must be a room, a key or null"),
        (m.Resume, [3, 0], "RESUME target must be a room, a key or null"),
        (m.Fragment, [0, 3, b""], "FRAGMENT end must be an integer from 0 to 2"),
        (m.Fragment, [0, 0, bytes(1_023)], "FRAGMENT chunk must be 1024 to 65536 bytes"),
        (m.Fragment, [0, 1, b""], "FRAGMENT chunk must be 1 to 65536 bytes"),
        (m.Fragment, [0, 1, bytes(65_537)], "FRAGMENT chunk must be 1 to 65536 bytes"),
        (m.Fragment, [0, 2, b"x"], "FRAGMENT chunk must be 0 bytes"),
        (m.Incarnation, [0, b"short"], "INCARNATION random must be 8 bytes"),
        (m.Hello, [1, (0, EPOCH), 0], "HELLO incarnation must be an Incarnation"),
        (m.Hello, [1, INCARNATION, 0, {}, (INTENT,) * 257], "HELLO rooms must be a tuple of at most 256"),
        (m.Hello, [1, INCARNATION, 0, {}, [INTENT]], "HELLO rooms must be a tuple"),
        (m.Hello, [1, INCARNATION, 0, {}, ("r",)], "HELLO rooms must be a tuple of at most 256 room intents"),
        (m.Member, [KEY, 0, {str(n): 0 for n in range(17)}], "MEMBER attributes must be a map of at most 16"),
        (m.Member, [KEY, 0, {"": 0}], "MEMBER attributes must be a map of at most 16 names of 1 to 64 bytes"),
        (m.Member, [KEY, 0, {"x" * 65: 0}], "MEMBER attributes must be a map"),
        (m.Member, [KEY, 0, {1: 0}], "MEMBER attributes must be a map"),
        (m.Member, [KEY, 0, {"a": 1.5}], "MEMBER attributes must be a map"),
        (m.Member, [KEY, 0, {"a": ()}], "MEMBER attributes must be a map"),
        (m.Member, [KEY, 0, {"a": TOO_MUCH}], "MEMBER attributes must be a map"),
        (m.Member, [KEY, 0, {"a": -TOO_MUCH - 1}], "MEMBER attributes must be a map"),
        (m.Member, [KEY, 0, {"a": "\ud800"}], "MEMBER attributes must be a map"),
        (m.Member, [KEY, 0, None], "MEMBER attributes must be a map"),
        (m.Member, [KEY, 0, {"a": bytes(1_020)}], "MEMBER attributes must be at most 1024 bytes when"),
        (m.Welcome, [1, EPOCH, {"a": -1}], "WELCOME limits must be a map of at most 32 names"),
        (m.Welcome, [1, EPOCH, {str(n): 0 for n in range(33)}], "WELCOME limits must be a map of at most 32"),
        (m.Welcome, [1, EPOCH, {}, (CONTRACT,) * 8], "WELCOME contracts must be a tuple of at most 7"),
        (m.Welcome, [1, EPOCH, {}, (), ("",)], "WELCOME alternates must be a tuple of at most 16 texts"),
        (m.Goaway, [1, 0, 0, ("x",) * 17], "GOAWAY alternates must be a tuple of at most 16 texts"),
        (m.MembersPage, ["r", 0, 0, (KEY,)], "MEMBERS_PAGE page must be a tuple of at most 4096 members"),
        (m.MembersPage, ["r", 0, 0, (MEMBER,) * 4_097], "MEMBERS_PAGE page must be a tuple of at most 4096"),
        (m.Presence, ["r", 0, 0, (KEY[1:],)], "PRESENCE left must be a tuple of at most 4096 keys"),
        (m.StatsReport, [{"a": -1}], "STATS_REPORT counters must be a map"),
        (m.StatsReport, [{"a": (True,)}], "STATS_REPORT counters must be a map"),
        (m.StatsReport, [{"a": (0,) * 4_097}], "STATS_REPORT counters must be a map"),
    ],
)  # fmt: skip
def test_an_invalid_message_cannot_be_made(cls: type, values: list[object], text: str) -> None:
    with pytest.raises(LocalProtocolError) as refused:
        make(cls, *values)
    assert str(refused.value).startswith(text)


@pytest.mark.parametrize(
    "message",
    [
        m.Leave("é" * 64),
        m.Member(KEY, 0, {"a": bytes(1_018)}),
        m.Member(KEY, 0, {"a": -TOO_MUCH, "b": TOO_MUCH - 1, "c": False, "d": None, "e": ""}),
        m.Fragment(0, 0, bytes(1_024)),
        m.Fragment(0, 1, bytes(65_536)),
        m.StatsReport({"a": (0,) * 4_096}),
    ],
    ids=lambda message: type(message).__name__,
)
def test_limits_hold_exactly(message: object) -> None:
    assert attrs.evolve(message) == message  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([11, "r", 0, 0, [[KEY, 3]], None], "bad MEMBERS_PAGE: MEMBER must be an array of 3 items"),
        ([11, "r", 0, 0, [[KEY, -3, {}]], None], "bad MEMBERS_PAGE: MEMBER joined must be an integer"),
        ([5, LONG, 0], "bad LEFT: LEFT room must be text of 1 to 128 bytes of UTF-8"),
    ],
)
def test_the_peers_mistake_is_named(values: list[object], text: str) -> None:
    error = refusal(values, Role.RELAY)
    assert error.code is ErrorCode.PROTOCOL_ERROR
    assert str(error).startswith(text)


# ---- what follows from a message ---------------------------------------------------------------------


@given(messages)
def test_class(message: m.Message) -> None:
    if isinstance(message, m.Publish | m.Send | m.Anycast | m.Deliver | m.Gap | m.Fragment):
        assert m.class_of(message) == message.traffic_class
    elif isinstance(message, m.MembersPage | m.Presence | m.StatsReport):
        assert m.class_of(message) == 2
    else:
        assert m.class_of(message) == m.TrafficClass.CONTROL


@pytest.mark.parametrize(("message", "values"), EXAMPLES)
def test_barriers(message: m.Message, values: list[Any]) -> None:
    assert m.is_barrier(message) == (values[0] in (4, 5, 26) or values[:2] == [20, 1])


def test_a_keepalive_is_no_barrier() -> None:
    assert not m.is_barrier(m.Ping(m.PingKind.KEEPALIVE))


# ---- heads of the hot path ---------------------------------------------------------------------------


@given(room_texts, traffic_classes, contents, payloads)
def test_room_prefixes(room: str, traffic_class: int, content: int, payload: bytes) -> None:
    flow = (room, traffic_class, content)
    tail = m.payload_head(len(payload)) + payload
    assert m.publish_prefix(*flow) + tail == encode_body(m.Publish(*flow, payload))
    assert m.anycast_prefix(*flow) + tail == encode_body(m.Anycast(*flow, payload))


@given(keys, traffic_classes, contents, payloads)
def test_peer_prefixes(key: bytes, traffic_class: int, content: int, payload: bytes) -> None:
    flow = (key, traffic_class, content)
    tail = m.payload_head(len(payload)) + payload
    assert m.send_prefix(*flow) + tail == encode_body(m.Send(*flow, payload))
    route = (m.Mode.UNICAST, key, None, traffic_class, content)
    assert m.deliver_prefix(*route) + tail == encode_body(m.Deliver(*route, payload))


@given(room_modes, keys, room_texts, traffic_classes, contents, payloads)
def test_deliver_prefix(mode: int, key: bytes, room: str, traffic_class: int, content: int, payload: bytes) -> None:
    route = (mode, key, room, traffic_class, content)
    tail = m.payload_head(len(payload)) + payload
    assert m.deliver_prefix(*route) + tail == encode_body(m.Deliver(*route, payload))


@given(MESSAGES[m.Deliver], payloads)
def test_another_payload(message: m.Deliver, payload: bytes) -> None:
    assert message.with_payload(payload) == attrs.evolve(message, payload=payload)


def test_a_prefix_is_checked_like_a_message() -> None:
    with pytest.raises(LocalProtocolError, match="PUBLISH room"):
        m.publish_prefix("", 0, 0)
