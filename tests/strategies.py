"""Hypothesis strategies for every message, part and field of the protocol.

``MESSAGES`` maps each message class to its strategy; ``client_messages`` and ``relay_messages`` draw what one
side may send.
"""

from __future__ import annotations

from typing import Any, get_args

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from awesomeconnect.wire import messages as m
from awesomeconnect.wire.messages import Message

MAX_UINT = (1 << 64) - 1


def text(low: int, high: int) -> SearchStrategy[str]:
    """Text of ``low`` to ``high`` bytes of UTF-8."""
    return st.text(min_size=low, max_size=high).filter(lambda value: low <= len(value.encode()) <= high)


def octets(low: int, high: int) -> SearchStrategy[bytes]:
    """Bytes, mostly few, now and then as many as may be."""
    return st.binary(min_size=low, max_size=min(high, low + 64)) | st.just(bytes(high))


def tuples(items: SearchStrategy[object], most: int) -> SearchStrategy[tuple[object, ...]]:
    return st.lists(items, max_size=min(most, 6)).map(tuple)


uints = st.integers(0, 30) | st.integers(0, MAX_UINT) | st.sampled_from([23, 24, 255, 256, 65_536, MAX_UINT])
positives = uints.filter(bool)
keys = st.binary(min_size=32, max_size=32)
room_texts = text(1, 128)  # any room that a message can carry, a valid name or not
owners = keys.map(bytes.hex)
room_names = text(1, 128).filter(lambda name: m.room_name_problem(name) is None) | owners.map("@{}/room".format)
names = text(1, 64)
traffic_classes = st.integers(0, 6)
contents = st.integers(0, 23)
payloads = st.binary(max_size=300)
capabilities = octets(1, 4_096)
tokens = octets(0, 32)
eight_bytes = st.binary(min_size=8, max_size=8)
alternates = tuples(text(1, 256), 16)
attribute_values = (
    st.none() | st.booleans() | st.integers(-MAX_UINT - 1, MAX_UINT) | st.text(max_size=8) | st.binary(max_size=8)
)
attributes = st.dictionaries(text(1, 16), attribute_values, max_size=16)
limits = st.dictionaries(names, uints, max_size=8)
counters = st.dictionaries(names, uints | tuples(uints, 4), max_size=8)

incarnations = st.builds(m.Incarnation, uints, eight_bytes)
join_flags = st.integers(0, 3)
room_intents = st.builds(m.RoomIntent, room_texts, join_flags, st.none() | capabilities)
contracts = tuples(st.builds(m.ClassContract, traffic_classes, positives, positives, uints), 7)
members = st.builds(m.Member, keys, uints, attributes)
targets = st.none() | room_texts | keys

fragments = (
    st.builds(m.Fragment, traffic_classes, st.just(m.FragmentEnd.MORE), octets(1_024, 65_536))
    | st.builds(m.Fragment, traffic_classes, st.just(m.FragmentEnd.LAST), octets(1, 65_536))
    | st.builds(m.Fragment, traffic_classes, st.just(m.FragmentEnd.ABORT), st.just(b""))
)
room_modes = st.sampled_from([m.Mode.BROADCAST, m.Mode.ANYCAST])
delivers = st.builds(m.Deliver, room_modes, keys, room_texts, traffic_classes, contents, payloads) | st.builds(
    m.Deliver, st.just(m.Mode.UNICAST), keys, st.none(), traffic_classes, contents, payloads
)

MESSAGES: dict[type[Any], SearchStrategy[Message]] = {
    m.Hello: st.builds(m.Hello, uints, incarnations, uints, attributes, tuples(room_intents, 256)),
    m.Welcome: st.builds(m.Welcome, uints, eight_bytes, limits, contracts, alternates),
    m.Close: st.builds(m.Close, uints, text(0, 256)),
    m.Goaway: st.builds(m.Goaway, uints, uints, uints, alternates),
    m.Ping: st.builds(m.Ping, st.sampled_from(m.PingKind), tokens),
    m.Pong: st.builds(m.Pong, tokens),
    m.Join: st.builds(m.Join, room_texts, join_flags, st.none() | capabilities),
    m.Joined: st.builds(m.Joined, room_texts, uints, uints, uints, contracts),
    m.Leave: st.builds(m.Leave, room_texts),
    m.Left: st.builds(m.Left, room_texts, uints),
    m.Members: st.builds(m.Members, room_texts, uints),
    m.MembersPage: st.builds(m.MembersPage, room_texts, uints, uints, tuples(members, 4_096), st.none() | uints),
    m.Presence: st.builds(m.Presence, room_texts, uints, uints, tuples(keys, 4_096), tuples(members, 4_096)),
    m.Present: st.builds(m.Present, room_texts, capabilities),
    m.Contract: st.builds(m.Contract, st.none() | room_texts, uints, contracts),
    m.Publish: st.builds(m.Publish, room_texts, traffic_classes, contents, payloads),
    m.Send: st.builds(m.Send, keys, traffic_classes, contents, payloads),
    m.Anycast: st.builds(m.Anycast, room_texts, traffic_classes, contents, payloads),
    m.Deliver: delivers,
    m.Reject: st.builds(m.Reject, positives, positives, uints, uints),
    m.Gap: st.builds(m.Gap, st.none() | room_texts, st.none() | keys, traffic_classes, positives, uints, uints),
    m.Pause: st.builds(m.Pause, targets, traffic_classes, uints),
    m.Resume: st.builds(m.Resume, targets, traffic_classes),
    m.Stats: st.builds(m.Stats),
    m.StatsReport: st.builds(m.StatsReport, counters),
    m.Fragment: fragments,
}


def _obeys_target(message: Message, sender: m.Role) -> bool:
    """PAUSE and RESUME are for the connection from a client, for a room or peer from a relay."""
    if not isinstance(message, m.Pause | m.Resume):
        return True
    return (message.target is None) == (sender is m.Role.CLIENT)


client_messages: SearchStrategy[Message] = st.one_of(
    *(MESSAGES[kind] for kind in get_args(m.ClientMessage))
).filter(lambda message: _obeys_target(message, m.Role.CLIENT))
relay_messages: SearchStrategy[Message] = st.one_of(*(MESSAGES[kind] for kind in get_args(m.RelayMessage))).filter(
    lambda message: _obeys_target(message, m.Role.RELAY)
)
messages = st.one_of(*MESSAGES.values())
"""Any message of either side."""

cbor_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-MAX_UINT - 1, MAX_UINT)
    | st.binary(max_size=300)
    | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=30) | st.dictionaries(st.text(max_size=30), inner, max_size=30),
    max_leaves=30,
)
"""Values of the CBOR profile, but of any depth."""
