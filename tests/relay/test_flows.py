"""Routing of what connections send: to whom, in which order, and what is refused by which ordinal.

`Sender` is a connection without sockets: real bytes of a real client go through the relay's state machine into
a `Router`, as `awesomeconnect.server.session` does it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from awesomeconnect.errors import ErrorCode
from awesomeconnect.identity import Identity
from awesomeconnect.relay.flows import MAX_STREAMS, Router, Traffic, count_frames
from awesomeconnect.relay.ingress import Ingress
from awesomeconnect.relay.rooms import Peer, Place, Registry, Room
from awesomeconnect.shaping.ats import Scheduler, SchedulerGroup
from awesomeconnect.shaping.egress import Egress, EgressLimits
from awesomeconnect.wire.connection import ClientConnection, RelayConnection
from awesomeconnect.wire.messages import (
    REVISION,
    Anycast,
    Attributes,
    ClassContract,
    Deliver,
    Fragment,
    FragmentEnd,
    Gap,
    Hello,
    Incarnation,
    Message,
    Mode,
    Publish,
    Role,
    Send,
    decode_body,
    encode_body,
    encode_frame,
)
from awesomeconnect.wire.records import MAX_PLAINTEXT

RELAY = Identity.from_seed(bytes(32))
LIMITS = EgressLimits(high_water_bytes=5_000, class_bytes=40_000, total_bytes=80_000)
NOWHERE = b"\xff" * 32


@frozen
class Verdict:
    """A refusal as REJECT tells it."""

    first: int
    count: int
    code: ErrorCode
    retry_after_ms: int = 0


class World:
    """A registry with connections."""

    def __init__(self, payload_bytes: int = 50_000, contracts: tuple[ClassContract, ...] = ()) -> None:
        self.registry = Registry()
        self.traffic = Traffic()
        self.payload_bytes = payload_bytes
        self.contracts = contracts
        self.fan_out = Scheduler(1 << 40, 1 << 40, SchedulerGroup(0), now_ns=0)
        self.now_ns = 0

    def sender(self, number: int, *rooms: str) -> Sender:
        return Sender(self, number, rooms)


class Sender:
    """A connection: what its client sends is routed, what it gets waits in its queue."""

    def __init__(self, world: World, number: int, rooms: tuple[str, ...]) -> None:
        self.attributes: Attributes = {}
        identity = Identity.from_seed(number.to_bytes(32, "big"))
        self.key = identity.public_key
        self.rooms: dict[Room, Place] = {}
        self.egress = Egress(LIMITS)
        self.refused: list[Verdict] = []
        self.gone: list[tuple[int, int]] = []
        self.congested: list[tuple[Room | Peer, int, Any]] = []
        self.touched: dict[Any, None] = {}
        self.unicasts: list[Any] = []
        self.world = world
        self.client = ClientConnection(identity, RELAY.public_key)
        self.relay = RelayConnection(RELAY, world.payload_bytes)
        self.relay.receive(self.client.handshake_bytes())
        self.client.receive(self.relay.handshake_bytes())
        self.relay.receive(
            self.client.handshake_bytes() + self.client.send(Hello(REVISION, Incarnation(1, bytes(8)), 1))
        )
        assert isinstance(self.relay.next_message(), Hello)
        self.peer = world.registry.peer(self.key)
        self.peer.egress = self.egress
        for room in rooms:
            world.registry.join(self, self.egress, room, 0)
        self.router = Router(
            world.registry,
            self.key,
            self.egress,
            self.relay.reader,
            world.traffic,
            self.touched,
            self.unicasts,
            lambda first, count: self.gone.append((first, count)),
            Ingress(world.contracts, world.now_ns),
            world.fan_out,
            lambda _room: (),
            lambda *verdict: self.refused.append(Verdict(*verdict)),
            lambda target, traffic_class, egress: self.congested.append((target, traffic_class, egress)),
        )

    def send(self, *messages: Message) -> None:
        """All messages arrive in one chunk."""
        self.arrive(self.client.send(*messages))

    def arrive(self, data: bytes) -> None:
        self.relay.receive(data)
        routes: dict[type, Any] = {
            Publish: self.router.publish,
            Send: self.router.send,
            Anycast: self.router.anycast,
        }
        while True:
            message = self.relay.next_message()
            if self.relay.reader.touched:
                self.router.route_gathered(self.world.now_ns)
            if message is None:
                return
            routes[type(message)](message, self.relay.reader.ordinal, self.world.now_ns)

    def got(self) -> list[Message]:
        """Everything that waits for this connection, in order of departure."""
        return list(messages_in(self.egress))

    def payloads(self) -> list[bytes]:
        return [message.payload for message in self.got() if isinstance(message, Deliver)]


def messages_in(egress: Egress) -> Iterator[Message]:
    reassembled: dict[int, bytes] = {}
    while record := egress.take():
        assert len(record) <= MAX_PLAINTEXT
        while record:
            end = 4 + int.from_bytes(record[:4], "big")
            message = decode_body(record[4:end], Role.RELAY)
            record = record[end:]
            if isinstance(message, Fragment):
                whole = reassembled.pop(message.traffic_class, b"") + message.chunk
                if not message.end:
                    reassembled[message.traffic_class] = whole
                    continue
                message = decode_body(whole, Role.RELAY)
            assert message is not None
            yield message


@pytest.fixture
def world() -> World:
    return World()


def publish(text: str | bytes, room: str = "x", traffic_class: int = 1, content: int = 0) -> Publish:
    return Publish(room, traffic_class, content, text.encode() if isinstance(text, str) else text)


# ---- where messages go -------------------------------------------------------------------------------


def test_a_publish_goes_to_every_other_member(world: World) -> None:
    a, b, c, outside = world.sender(1, "x"), world.sender(2, "x"), world.sender(3, "x"), world.sender(4, "y")
    for text in ("first", "second", "third"):
        a.send(publish(text))
    expected = [Deliver(Mode.BROADCAST, a.key, "x", 1, 0, t) for t in (b"first", b"second", b"third")]
    assert b.got() == c.got() == expected
    assert a.got() == outside.got() == []
    assert set(a.touched) == {b.egress, c.egress}
    assert not a.unicasts
    assert (world.traffic.received_messages, world.traffic.delivered_messages) == (3, 6)
    room = world.registry.find_room("x")
    assert room is not None
    assert room.messages == 3


def test_who_is_not_a_member_may_publish(world: World) -> None:
    member, outside = world.sender(1, "x"), world.sender(2)
    outside.send(publish("1"), publish("2"))
    assert member.payloads() == [b"1", b"2"]
    assert not outside.refused


def test_a_send_goes_to_one_peer(world: World) -> None:
    a, b, c = (world.sender(number, "x") for number in (1, 2, 3))
    a.send(Send(b.key, 5, 4, b"1"))
    a.send(Send(b.key, 5, 4, b"2"), Send(b.key, 5, 4, b"3"))
    assert b.got() == [Deliver(Mode.UNICAST, a.key, None, 5, 4, payload) for payload in (b"1", b"2", b"3")]
    assert c.got() == []
    assert [(egress, cls, first, count) for egress, cls, _, first, count in a.unicasts] == [
        (b.egress, 5, 1, 1),
        (b.egress, 5, 2, 2),
    ]
    a.unicasts[1][2](2, 2)
    assert a.gone == [(2, 2)]


def test_a_send_to_oneself_comes_back(world: World) -> None:
    a = world.sender(1)
    a.send(Send(a.key, 1, 0, b"note"))
    a.send(Send(a.key, 1, 0, b"to self"))
    assert a.payloads() == [b"note", b"to self"]


def test_an_anycast_goes_to_one_other_member(world: World) -> None:
    a, b, c = (world.sender(number, "x") for number in (1, 2, 3))
    a.send(*(Anycast("x", 1, 0, bytes([number])) for number in range(6)))
    got_b, got_c = b.got(), c.got()
    assert a.got() == []
    assert sorted(m.payload for m in got_b + got_c if isinstance(m, Deliver)) == [bytes([n]) for n in range(6)]
    assert len(got_b) == len(got_c) == 3
    assert {(m.mode, m.sender, m.room) for m in got_b if isinstance(m, Deliver)} == {(Mode.ANYCAST, a.key, "x")}
    assert [(first, count) for *_, first, count in a.unicasts] == [(number, 1) for number in range(1, 7)]


def test_classes_and_contents_of_one_destination(world: World) -> None:
    a, b = world.sender(1, "x"), world.sender(2, "x")
    for _ in range(2):
        a.send(publish("d0"), publish("u0", traffic_class=5), publish("d1", content=1), publish("d2"))
    assert [m.payload for m in b.got() if isinstance(m, Deliver)] == [b"u0", b"u0", *[b"d0", b"d1", b"d2"] * 2]


def test_large_messages(world: World) -> None:
    a, b = world.sender(1, "x"), world.sender(2, "x")
    large = bytes(range(256)) * 100
    a.send(publish("before"), publish(large), publish("after"))
    a.send(Send(b.key, 1, 0, large[:3_000]))
    assert b.payloads() == [b"before", large, b"after", large[:3_000]]


def test_many_frames_of_one_chunk_become_blobs_that_fit_records() -> None:
    world = World()
    a, b = world.sender(1, "x"), world.sender(2, "x")
    b.egress.limits = EgressLimits()
    a.send(publish("first"))
    payloads = [bytes([n % 256]) * (n * 7 % 3_000) for n in range(150)]
    a.send(*map(publish, payloads))
    assert len(list(b.egress.entries())) < 10
    assert b.payloads() == [b"first", *payloads]


def test_a_message_reaches_who_is_in_the_room_when_it_is_processed(world: World) -> None:
    a, b, c = world.sender(1, "x"), world.sender(2, "x"), world.sender(3)
    a.send(publish("1"))
    world.registry.join(c, c.egress, "x", 0)
    a.send(publish("2"))
    world.registry.leave(b, b.egress, "x")
    a.send(publish("3"))
    assert b.payloads() == [b"1", b"2"]
    assert c.payloads() == [b"2", b"3"]


def test_a_cached_route_follows_a_peer_to_its_next_connection(world: World) -> None:
    a, b = world.sender(1), world.sender(2)
    a.send(Send(b.key, 1, 0, b"1"))
    again = Egress(LIMITS)
    b.peer.egress = again
    a.send(Send(b.key, 1, 0, b"2"))
    b.peer.egress = None
    a.send(Send(b.key, 1, 0, b"3"))
    assert b.payloads() == [b"1"]
    assert [m.payload for m in messages_in(again) if isinstance(m, Deliver)] == [b"2"]
    assert a.refused == [Verdict(3, 1, ErrorCode.NO_SUCH_PEER)]


def test_more_destinations_than_routes_are_kept(world: World) -> None:
    a, b = world.sender(1), world.sender(2, *(f"room {n}" for n in range(MAX_STREAMS + 5)))
    for _ in range(2):
        for n in range(MAX_STREAMS + 5):
            a.send(publish(str(n), f"room {n}"))
            assert b.payloads() == [str(n).encode()]
    a.router.forget()
    a.send(publish("again", "room 1"))
    assert b.payloads() == [b"again"]


# ---- refusals ----------------------------------------------------------------------------------------


def test_refusals_name_their_ordinals(world: World) -> None:
    a = world.sender(1, "alone")
    b = world.sender(2, "x")
    a.send(
        publish("1"),
        publish("2", "alone"),
        Send(NOWHERE, 1, 0, b"3"),
        publish("4", "@nobody"),
        publish("5", f"@{b.key.hex()}/private"),
        Anycast("empty", 1, 0, b"6"),
        Anycast("alone", 1, 0, b"7"),
        Anycast("@nobody", 1, 0, b"8"),
        publish(bytes(50_001)),
        Send(b.key, 1, 0, bytes(50_001)),
        Anycast("x", 1, 0, bytes(50_001)),
        publish("12"),
    )
    assert a.refused == [
        Verdict(2, 1, ErrorCode.NO_MEMBERS),
        Verdict(3, 1, ErrorCode.NO_SUCH_PEER),
        Verdict(4, 1, ErrorCode.BAD_ROOM),
        Verdict(5, 1, ErrorCode.CAPABILITY_REQUIRED),
        Verdict(6, 1, ErrorCode.NO_MEMBERS),
        Verdict(7, 1, ErrorCode.NO_MEMBERS),
        Verdict(8, 1, ErrorCode.BAD_ROOM),
        Verdict(9, 1, ErrorCode.PAYLOAD_TOO_LARGE),
        Verdict(10, 1, ErrorCode.PAYLOAD_TOO_LARGE),
        Verdict(11, 1, ErrorCode.PAYLOAD_TOO_LARGE),
    ]
    assert b.payloads() == [b"1", b"12"]
    assert world.traffic.rejected_messages == 10
    assert world.traffic.received_messages == 2


def test_the_owner_may_use_an_owned_room(world: World) -> None:
    owner = world.sender(1)
    room = f"@{owner.key.hex()}/private"
    world.registry.join(owner, owner.egress, room, 0)
    owner.send(publish("1", room))
    assert [v.code for v in owner.refused] == [ErrorCode.NO_MEMBERS], "allowed, but nobody else is there"


def test_refusals_of_interleaved_streams(world: World) -> None:
    a, b, c = world.sender(1), world.sender(2), world.sender(3)
    a.send(Send(b.key, 1, 0, b"1"), Send(c.key, 1, 0, b"2"))
    b.peer.egress = None
    kinds = "bbcbccb"
    a.send(*(Send({"b": b.key, "c": c.key}[kind], 1, 0, kind.encode()) for kind in kinds))
    refused = [n for verdict in a.refused for n in range(verdict.first, verdict.first + verdict.count)]
    assert sorted(refused) == [3 + at for at, kind in enumerate(kinds) if kind == "b"]
    assert {verdict.code for verdict in a.refused} == {ErrorCode.NO_SUCH_PEER}
    assert c.payloads() == [b"2", b"c", b"c", b"c"]
    assert [(first, count) for egress, _, _, first, count in a.unicasts if egress is c.egress] == [
        (2, 1),
        (5, 1),
        (7, 2),
    ]


def test_a_message_in_fragments_is_counted_with_its_last_piece(world: World) -> None:
    a, b = world.sender(1), world.sender(2, "x")
    body = encode_body(publish(bytes(30_000), traffic_class=0))
    a.send(Fragment(0, FragmentEnd.MORE, body[:16_000]))
    assert a.relay.reader.ordinal == 0
    a.send(publish("1", traffic_class=5), Fragment(0, FragmentEnd.LAST, body[16_000:]), publish("3", "empty"))
    assert a.relay.reader.ordinal == 3
    assert a.refused == [Verdict(3, 1, ErrorCode.NO_MEMBERS)]
    assert b.payloads() == [b"1", bytes(30_000)]


destinations = st.sampled_from(["x", "y", "empty", "peer", "nowhere"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(destinations, st.sampled_from([1, 5])), max_size=12), max_size=6))
def test_every_message_is_delivered_or_refused_once(chunks: list[list[tuple[str, int]]]) -> None:
    world = World()
    a, b, c = world.sender(1, "x"), world.sender(2, "x"), world.sender(3, "x", "y")
    to = {"peer": b.key, "nowhere": NOWHERE}
    receivers = {"x": [b, c], "y": [c], "empty": [], "peer": [b], "nowhere": []}
    expected: dict[int, list[int]] = {id(b): [], id(c): []}
    refused: list[int] = []
    ordinal = 0
    for chunk in chunks:
        messages: list[Message] = []
        for destination, traffic_class in chunk:
            ordinal += 1
            payload = ordinal.to_bytes(4, "big")
            if destination in to:
                messages.append(Send(to[destination], traffic_class, 0, payload))
            else:
                messages.append(Publish(destination, traffic_class, 0, payload))
            for receiver in receivers[destination]:
                expected[id(receiver)].append(ordinal)
            if not receivers[destination]:
                refused.append(ordinal)
        a.send(*messages)
    named = [n for verdict in a.refused for n in range(verdict.first, verdict.first + verdict.count)]
    assert sorted(named) == refused
    everything = [pair for chunk in chunks for pair in chunk]
    for receiver in (b, c):
        got = [(m, int.from_bytes(m.payload, "big")) for m in receiver.got() if isinstance(m, Deliver)]
        assert sorted(n for _, n in got) == expected[id(receiver)]
        for destination in ("x", "y", "peer"):
            for traffic_class in (1, 5):
                order = [n for m, n in got if everything[n - 1] == (destination, traffic_class)]
                assert order == sorted(order), "one destination and class is first in, first out"
    assert world.traffic.rejected_messages == len(refused)
    assert world.traffic.received_messages + len(refused) == ordinal


# ---- full queues -------------------------------------------------------------------------------------


def fill(egress: Egress, traffic_class: int, size: int) -> None:
    """Queue a message of this many bytes, its head not counted."""
    message = Deliver(Mode.UNICAST, NOWHERE, None, traffic_class, 0, bytes(size - 60))
    assert egress.push(traffic_class, encode_frame(message))


def test_above_the_high_water_mark_the_sender_is_asked_to_pause(world: World) -> None:
    a, b, c = world.sender(1, "x"), world.sender(2, "x"), world.sender(3, "x")
    room = world.registry.room("x")
    a.send(publish(bytes(4_000)))
    assert not a.congested
    c.got()
    a.send(publish(bytes(4_000)))
    assert a.congested == [(room, 1, b.egress)]
    a.send(Send(b.key, 1, 0, b"also"))
    assert a.congested[1:] == [(b.peer, 1, b.egress)]
    fill(c.egress, 5, 6_000)
    world.registry.leave(b, b.egress, "x")
    a.send(Anycast("x", 5, 0, b"also"))
    assert a.congested[2:] == [(room, 5, c.egress)]
    assert not a.refused, "to be asked to pause is not to be refused"


def test_a_full_queue_refuses_a_unicast_to_its_sender(world: World) -> None:
    a, b = world.sender(1), world.sender(2)
    chunk = [Send(b.key, 1, 0, bytes(10_000))] * 2
    a.send(*chunk)
    for _ in range(2):
        a.send(chunk[0])
    assert a.refused == [Verdict(4, 1, ErrorCode.RECEIVER_CONGESTED)]
    assert a.congested[-1] == (b.peer, 1, b.egress)
    assert len(b.payloads()) == 3


def test_a_gathered_unicast_stream_is_queued_or_refused_as_a_whole(world: World) -> None:
    a, b = world.sender(1), world.sender(2)
    a.send(Send(b.key, 1, 0, b"first"))
    a.send(*(Send(b.key, 1, 0, bytes(9_000)) for _ in range(6)))
    assert [m.payload for m in b.got() if isinstance(m, Deliver)] == [b"first"]
    assert a.refused == [Verdict(2, 6, ErrorCode.RECEIVER_CONGESTED)]


def test_a_full_queue_refuses_an_anycast_when_no_other_member_takes_it(world: World) -> None:
    a, b = world.sender(1), world.sender(2, "x")
    fill(b.egress, 1, 39_990)
    a.send(Anycast("x", 1, 0, b"1"))
    assert a.refused == [Verdict(1, 1, ErrorCode.RECEIVER_CONGESTED)]
    assert a.congested == [(world.registry.room("x"), 1, b.egress)]
    c = world.sender(3, "x")
    fill(c.egress, 2, 39_000)
    fill(c.egress, 3, 1_000)
    a.send(Anycast("x", 1, 0, b"2"))
    assert c.payloads()[-1:] == [b"2"], "it is the busier one, but has room in this class"
    assert len(a.refused) == 1


def test_losses_of_a_broadcast_are_gaps_at_that_receiver_only(world: World) -> None:
    a, slow, fast = world.sender(1, "x"), world.sender(2, "x"), world.sender(3, "x")
    numbers = range(50)
    heard: list[bytes] = []
    for number in numbers:
        a.send(publish(number.to_bytes(1, "big") + bytes(2_000)))
        heard += fast.payloads()
    assert [payload[0] for payload in heard] == list(numbers)
    got = slow.got()
    told = [message for message in got if isinstance(message, Gap)]
    arrived = [message for message in got if isinstance(message, Deliver)]
    assert [message.payload[0] for message in arrived] == list(range(len(arrived)))
    assert sum(gap.count for gap in told) + len(arrived) == len(numbers)
    assert all((gap.room, gap.sender, gap.traffic_class) == ("x", None, 1) for gap in told)
    assert all(gap.lost_bytes > 2_000 * gap.count for gap in told)
    assert isinstance(got[-1], Gap)
    assert not a.refused
    assert world.traffic.gap_messages == len(numbers) - len(arrived)


def test_a_blob_that_does_not_fit_is_counted_in_messages(world: World) -> None:
    a, b = world.sender(1, "x"), world.sender(2, "x")
    a.send(publish("first"))
    a.send(*(publish(bytes(900)) for _ in range(60)))
    [first, gap] = b.got()
    assert isinstance(first, Deliver)
    assert isinstance(gap, Gap)
    assert gap.count == 60


def test_what_was_lost_is_not_counted_as_delivered(world: World) -> None:
    a, b = world.sender(1, "x"), world.sender(2, "x")
    for _ in range(30):
        a.send(publish(bytes(2_000)))
    traffic = world.traffic
    assert traffic.received_messages == 30
    assert traffic.delivered_messages + traffic.gap_messages == 30
    assert len(b.payloads()) == traffic.delivered_messages


@pytest.mark.parametrize("count", [0, 1, 5])
def test_count_frames(count: int) -> None:
    assert count_frames(b"\x00\x00\x00\x03abc" * count) == count
