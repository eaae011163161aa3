"""The flow cache and the full decoder agree on every input.

The same stream of bytes goes through two relays, cut in different ways. One has a flow cache, in the other `bind`
does nothing, so that every frame is decoded. Both must deliver the same, reject the same ordinals, hand out
the same control messages and, if they refuse the connection, refuse it with the same code at the same place. Order
counts for each receiver, destination and class.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from random import Random
from typing import Any
from unittest import mock

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from awesomeconnect.errors import ErrorCode, RemoteProtocolError
from awesomeconnect.relay import flows
from awesomeconnect.relay.flows import Router, Traffic, Unicast
from awesomeconnect.relay.ingress import Ingress
from awesomeconnect.relay.rooms import Place, Registry, Room
from awesomeconnect.shaping.ats import Scheduler, SchedulerGroup
from awesomeconnect.shaping.egress import Egress, EgressLimits
from awesomeconnect.wire import framing
from awesomeconnect.wire.connection import Connection
from awesomeconnect.wire.framing import FRAGMENT_ABOVE_BYTES, FRAME_OVERHEAD_BYTES, frame
from awesomeconnect.wire.messages import (
    Anycast,
    Close,
    Deliver,
    Fragment,
    FragmentEnd,
    JoinFlags,
    Leave,
    Members,
    Message,
    Mode,
    Ping,
    Publish,
    Role,
    Send,
    Stats,
    Welcome,
    anycast_prefix,
    decode_body,
    deliver_prefix,
    encode_frame,
    payload_head,
    publish_prefix,
    send_prefix,
)
from awesomeconnect.wire.records import MAX_PLAINTEXT
from tests.strategies import client_messages
from tests.wire.playbook import (
    CLIENT_IDENTITY,
    HELLO,
    Counted,
    established,
    frames_of,
    without_flow_cache,
)

ALICE = CLIENT_IDENTITY.public_key
BOB, CAROL, NOBODY = (bytes([number]) * 32 for number in (1, 2, 3))
OWN_ROOM, FOREIGN_ROOM = f"@{ALICE.hex()}/x", f"@{BOB.hex()}/x"
ROOMS = {"all": (ALICE, BOB, CAROL), "two": (BOB, CAROL), OWN_ROOM: (BOB,), "me": (ALICE,)}
BOUNDLESS = EgressLimits(1 << 40, 1 << 40, 1 << 40)

# ---- two relays ----------------------------------------------------------------------------------------


@define(eq=False)
class Node:
    """A receiver: a queue that nobody empties."""

    key: bytes
    attributes: dict[str, Any] = field(factory=dict)
    rooms: dict[Room, Place] = field(factory=dict)
    egress: Egress = field(factory=lambda: Egress(BOUNDLESS))


@define
class Outcome:
    """What came of a stream of bytes.

    Attributes:
        delivered: by receiver, class and destination, the frames in order.
        rejected: ordinal -> code.
        unicasts: ordinal -> receiver and class of what went to one receiver alone.
        control: control messages with the number of application messages before each.
        ordinals: application messages in all.
        refused: the code with which the connection was refused.
    """

    delivered: dict[tuple[bytes, int, str | None], list[bytes]] = field(factory=lambda: defaultdict(list))
    rejected: dict[int, ErrorCode] = field(factory=dict)
    unicasts: dict[int, tuple[bytes, int]] = field(factory=dict)
    control: list[Counted] = field(factory=list)
    ordinals: int = 0
    refused: ErrorCode | None = None
    traffic: Traffic = field(factory=Traffic)


class House:
    """A relay to which Alice is connected, with Bob and Carol as receivers."""

    def __init__(self, payload_bytes: int, *, cached: bool) -> None:
        self.client, self.relay = established(payload_bytes)
        if not cached:
            without_flow_cache(self.relay)
        self.outcome = Outcome()
        self.registry = Registry()
        self.nodes = {key: Node(key) for key in (ALICE, BOB, CAROL)}
        for room, keys in ROOMS.items():
            for key in keys:
                self.join(key, room)
        # Holding the slots keeps them.
        self.peers = [self.registry.peer(key) for key in self.nodes]
        for peer in self.peers:
            peer.egress = self.nodes[peer.key].egress
        self.unicasts: list[Unicast] = []
        self.router = Router(
            registry=self.registry,
            key=ALICE,
            egress=self.nodes[ALICE].egress,
            reader=self.relay.reader,
            traffic=self.outcome.traffic,
            touched={},
            unicasts=self.unicasts,
            gone=self.gone,
            ingress=Ingress((), 0),
            fan_out=Scheduler(1 << 40, 1 << 40, SchedulerGroup(0), now_ns=0),
            room_contracts=lambda _room: (),
            refuse=self.refuse,
            congested=self.congested,
        )

    def join(self, key: bytes, room: str) -> None:
        self.registry.join(self.nodes[key], self.nodes[key].egress, room, JoinFlags.NONE)

    def refuse(self, first: int, count: int, code: ErrorCode, _retry_after_ms: int) -> None:
        for ordinal in range(first, first + count):
            assert ordinal not in self.outcome.rejected
            self.outcome.rejected[ordinal] = code

    def gone(self, first: int, count: int) -> None:
        raise AssertionError("nobody goes")

    def congested(self, target: object, traffic_class: int, egress: Egress) -> None:
        raise AssertionError("the queues are boundless")

    def play(self, chunks: list[bytes]) -> Outcome:
        """Feed plaintext, each chunk in one read, and do with it what a session does."""
        outcome = self.outcome
        try:
            for chunk in [encode_frame(HELLO), *chunks]:
                self.relay.receive(sealed(self.client, chunk))
                self.turn()
        except RemoteProtocolError as error:
            outcome.refused = error.code
        outcome.ordinals = self.relay.reader.ordinal
        keys = {id(node.egress): key for key, node in self.nodes.items()}
        for egress, traffic_class, _, first, count in self.unicasts:
            for ordinal in range(first, first + count):
                assert ordinal not in outcome.unicasts
                outcome.unicasts[ordinal] = (keys[id(egress)], traffic_class)
        for node in self.nodes.values():
            for blob in node.egress.entries():
                assert len(blob) <= MAX_PLAINTEXT or len(list(frames_of(blob))) == 1
                for body in frames_of(blob):
                    message = decode_body(body, Role.RELAY)
                    assert isinstance(message, Deliver)
                    assert message.sender == ALICE
                    outcome.delivered[node.key, message.traffic_class, message.room].append(body)
        return outcome

    def turn(self) -> None:
        while True:
            try:
                message = self.relay.next_message()
            finally:
                if self.relay.reader.touched:
                    self.router.route_gathered(0)
            if message is None:
                return
            self.handle(message, self.relay.reader.ordinal)

    def handle(self, message: Message, ordinal: int) -> None:
        if isinstance(message, Publish):
            self.router.publish(message, ordinal, 0)
        elif isinstance(message, Send):
            self.router.send(message, ordinal, 0)
        elif isinstance(message, Anycast):
            self.router.anycast(message, ordinal, 0)
        else:
            self.outcome.control.append(Counted(ordinal, message))
            self.change(message)

    def change(self, message: Message) -> None:
        """Some control messages change the house, to see cached routes follow."""
        bob = self.nodes[BOB]
        if isinstance(message, Stats):
            self.peers[1].egress = None if self.peers[1].egress else bob.egress
        elif isinstance(message, Leave) and message.room in ROOMS:
            if not self.registry.leave(bob, bob.egress, message.room):
                self.join(BOB, message.room)
        elif isinstance(message, Members):
            self.router.forget()


def sealed(connection: Connection, data: bytes) -> bytes:
    return b"".join(connection.seal(data[at : at + MAX_PLAINTEXT]) for at in range(0, len(data), MAX_PLAINTEXT))


def chunks_of(data: bytes, cuts: list[int]) -> list[bytes]:
    """The data cut after so many bytes, again and again."""
    chunks, at, turn = [], 0, 0
    while at < len(data):
        size = cuts[turn % len(cuts)]
        chunks.append(data[at : at + size])
        at, turn = at + size, turn + 1
    return chunks


def agree(data: bytes, cached_cuts: list[int], plain_cuts: list[int], payload_bytes: int = 20_000) -> Outcome:
    cached = House(payload_bytes, cached=True).play(chunks_of(data, cached_cuts))
    plain = House(payload_bytes, cached=False).play(chunks_of(data, plain_cuts))
    assert cached == plain
    assert cached.ordinals == cached.traffic.received_messages + cached.traffic.rejected_messages
    assert len(cached.rejected) == cached.traffic.rejected_messages
    assert sum(map(len, cached.delivered.values())) == cached.traffic.delivered_messages
    return cached


# ---- streams of frames -----------------------------------------------------------------------------------

#: What stands before the payload's head, for every flow of Alice.
PREFIXES = [
    publish_prefix("all", 1, 0),
    publish_prefix("all", 1, 1),
    publish_prefix("all", 5, 0),
    publish_prefix("two", 1, 0),
    publish_prefix("me", 1, 0),
    publish_prefix("nobody is here", 1, 0),
    publish_prefix(OWN_ROOM, 0, 23),
    publish_prefix(FOREIGN_ROOM, 1, 0),
    publish_prefix("a\nb", 1, 0),
    send_prefix(BOB, 1, 0),
    send_prefix(BOB, 5, 4),
    send_prefix(ALICE, 1, 0),
    send_prefix(NOBODY, 1, 0),
    anycast_prefix("two", 1, 0),
]
DELIVER_PREFIXES = [
    deliver_prefix(Mode.BROADCAST, BOB, "all", 1, 0),
    deliver_prefix(Mode.BROADCAST, CAROL, "all", 1, 0),
    deliver_prefix(Mode.BROADCAST, BOB, "r", 5, 23),
    deliver_prefix(Mode.UNICAST, BOB, None, 1, 0),
    deliver_prefix(Mode.ANYCAST, BOB, "r", 1, 4),
]


def whole(prefix: bytes, payload: bytes) -> bytes:
    return frame(prefix + payload_head(len(payload)) + payload)


def size_of_payload(random: Random, payload_bytes: int) -> int:
    """Mostly short, else near a boundary."""
    longest = FRAGMENT_ABOVE_BYTES - 50  # around what still passes through the cache, for every prefix
    return random.choice(
        [
            random.choice([0, 1, 22, 23, 24, 25, 254, 255, 256, 257]),
            random.choice([10, 20, 30]),
            random.randint(0, 300),
            random.randint(longest, longest + 50) if random.random() < 0.3 else 7,
            random.choice([65_535, 65_536]) if random.random() < 0.1 else 8,
            payload_bytes + random.randint(-1, 1) if random.random() < 0.3 else 9,
            payload_bytes + FRAME_OVERHEAD_BYTES + random.randint(-300, -20) if random.random() < 0.05 else 10,
        ]
    )


def run(random: Random, prefix: bytes, payload_bytes: int) -> bytes:
    """Some frames of a flow and a length."""
    size = size_of_payload(random, payload_bytes)
    return b"".join(
        whole(prefix, random.randbytes(size)) for _ in range(random.choice([1, 1, 2, 3, 30 if size < 400 else 4]))
    )


def mutated(random: Random, prefix: bytes) -> bytes:
    """A frame as only an attacker sends it, or one that looks alike and is legal."""
    payload = random.randbytes(random.choice([0, 1, 23, 24, 25, 255, 256, 300]))
    head = payload_head(len(payload))
    good = whole(prefix, payload)
    bit = random.randrange(8 * min(len(good), 60))
    width = random.choice([width for width in (1, 2, 4, 8) if len(payload) < 1 << 8 * width])
    other_length = max(0, len(good) - 4 + random.choice([-2, -1, 1, 2, 1 << 16, 1 << 31]))
    return random.choice(
        [
            good[: bit // 8] + bytes([good[bit // 8] ^ 1 << bit % 8]) + good[bit // 8 + 1 :],
            other_length.to_bytes(4, "big") + good[4:],
            frame(prefix + bytes([0x57 + width.bit_length()]) + len(payload).to_bytes(width, "big") + payload),
            frame(good[4:] + b"\x00"),
            frame(good[4:-1]),
            frame(prefix[:-2] + b"\x18" + prefix[-2:] + head + payload),
            frame(prefix + bytes([head[0] | 0x20]) + head[1:] + payload),
            frame(prefix + b"\x5f" + head + payload + b"\xff"),
            bytes(4),
        ]
    )


def fragmented(random: Random, prefix: bytes, between: list[bytes]) -> bytes:
    """A frame in fragments with others between them, or one that is aborted or never ends."""
    traffic_class = prefix[-2] if random.random() < 0.95 else 5
    body = prefix + payload_head(3_000) + random.randbytes(3_000)
    more, rest, abort = (
        encode_frame(Fragment(traffic_class, end, chunk))
        for end, chunk in (
            (FragmentEnd.MORE, body[:1_024]),
            (FragmentEnd.LAST, body[1_024:]),
            (FragmentEnd.ABORT, b""),
        )
    )
    return more + random.choice(between) + random.choice([rest] * 12 + [abort] * 4 + [more + abort] * 3 + [b""])


CONTROL = [Ping(0), Stats(), Leave("all"), Leave("two"), Leave(OWN_ROOM), Members("r")]


@st.composite
def streams(draw: st.DrawFn, prefixes: list[bytes], control: list[Message], payload_bytes: int) -> bytes:
    """A stream of bytes: mostly runs of frames that the cache knows, and everything that may disturb it."""
    favourites = draw(st.lists(st.sampled_from(prefixes), min_size=1, max_size=4))
    between = [b"", frame(b"\x82\x18\x40\x00"), *map(encode_frame, control)]

    def part(seed: int) -> bytes:
        random = Random(seed)
        prefix = random.choice(favourites)
        fault = random.random()
        if seed == 0:
            return b""
        if fault < 0.015:
            return mutated(random, prefix)
        if fault < 0.08:
            return fragmented(random, prefix, [*between, run(random, random.choice(prefixes), payload_bytes)])
        if fault < 0.2:
            return random.choice(between)
        return run(random, prefix, payload_bytes)

    data = b"".join(map(part, draw(st.lists(st.integers(0, 1 << 24), min_size=12, max_size=40))))
    data += draw(st.just(b"") | client_messages.map(encode_frame))
    return data[: len(data) - draw(st.sampled_from([0, 0, 1, 3, 30]))]


cuts = st.just([1 << 20]) | st.lists(st.integers(5, 90) | st.integers(1_000, 100_000), min_size=1, max_size=6)
table_sizes = st.sampled_from([1, 2, 3, 512])
payload_limits = st.sampled_from([100, 17_380, 70_000])


# ---- tests -------------------------------------------------------------------------------------------------


class TestRelay:
    @given(st.data(), payload_limits, table_sizes, st.tuples(cuts, cuts))
    @settings(max_examples=200, deadline=None)
    def test_both_ways_agree(
        self, data: st.DataObject, payload_bytes: int, table_size: int, cut: tuple[list[int], list[int]]
    ) -> None:
        stream = data.draw(streams(PREFIXES, CONTROL, payload_bytes))
        with (
            mock.patch.object(framing, "MAX_HEADS", table_size),
            mock.patch.object(flows, "MAX_STREAMS", table_size),
        ):
            agree(stream, *cut, payload_bytes)

    @pytest.mark.parametrize("prefix", PREFIXES, ids=lambda prefix: prefix.hex())
    def test_every_size_near_a_boundary(self, prefix: bytes) -> None:
        sizes = [*range(30), *range(250, 260), *range(FRAGMENT_ABOVE_BYTES - 70, FRAGMENT_ABOVE_BYTES + 5)]
        data = b"".join(whole(prefix, Random(seed).randbytes(size)) for seed in (1, 2) for size in sizes)
        outcome = agree(data, [1 << 20], [1 << 20])
        assert outcome.ordinals == 2 * len(sizes)
        assert outcome.refused is None

    @pytest.mark.parametrize("prefix", PREFIXES[:2] + PREFIXES[9:10], ids=lambda prefix: prefix.hex())
    def test_every_bit_of_a_known_head(self, prefix: bytes) -> None:
        good = whole(prefix, b"payload")
        for bit in range(8 * (len(good) - 7)):
            changed = bytearray(good)
            changed[bit // 8] ^= 1 << bit % 8
            agree(good * 2 + changed + good, [1 << 20], [1 << 20])

    def test_more_flows_and_lengths_than_the_tables_hold(self) -> None:
        random = Random(1)
        rooms = [publish_prefix(f"room {number}", 1, 0) for number in range(600)] + PREFIXES
        frames = [whole(random.choice(rooms), random.randbytes(random.randrange(40))) for _ in range(3_000)]
        frames += [whole(PREFIXES[0], bytes(size)) for size in range(1_200)]
        assert agree(b"".join(frames), [70_000], [1 << 20]).ordinals == 4_200

    def test_the_cache_is_used(self) -> None:
        """What the others compare would be equal, too, if nothing were ever cached."""
        house = House(20_000, cached=True)
        with mock.patch.object(Connection, "_decoded", autospec=True, side_effect=Connection._decoded) as decoded:
            house.play([whole(PREFIXES[0], b"payload") * 100])
        assert decoded.call_count == 2  # HELLO and the first frame of the flow
        assert house.outcome.ordinals == 100

    def test_faults_come_after_what_was_before_them(self) -> None:
        good = whole(PREFIXES[0], b"payload")
        outcome = agree(good * 5 + bytes(4) + good, [1 << 20], [7])
        assert outcome.refused is ErrorCode.PROTOCOL_ERROR
        assert outcome.ordinals == 5
        assert {len(frames) for frames in outcome.delivered.values()} == {5}

    def test_nothing_passes_after_close(self) -> None:
        good = whole(PREFIXES[0], b"payload")
        outcome = agree(good * 2 + encode_frame(Close()) + good * 2, [1 << 20], [7])
        assert outcome.refused is ErrorCode.UNEXPECTED_MESSAGE
        assert outcome.ordinals == 2

    def test_long_runs_are_cut_to_fit_records(self) -> None:
        for prefix in PREFIXES:
            assert agree(whole(prefix, bytes(16_384)) * 20, [1 << 20], [1 << 20]).ordinals == 20

    def test_rejects_are_told_in_the_order_of_their_messages(self) -> None:
        """And at a cost that does not grow with flows times messages."""
        house = House(20_000, cached=True)
        frames = [whole(prefix, b"x") for prefix in (send_prefix(BOB, 1, 0), send_prefix(BOB, 5, 0))]
        house.play([b"".join(frames), encode_frame(Stats()), b"".join(frames) * 10])
        assert list(house.outcome.rejected) == list(range(3, 23))
        assert set(house.outcome.rejected.values()) == {ErrorCode.NO_SUCH_PEER}


class TestClient:
    @given(st.data(), payload_limits, table_sizes, st.tuples(cuts, cuts))
    @settings(max_examples=100, deadline=None)
    def test_both_ways_agree(
        self, data: st.DataObject, payload_bytes: int, table_size: int, cut: tuple[list[int], list[int]]
    ) -> None:
        stream = data.draw(streams(DELIVER_PREFIXES, [Ping(0)], payload_bytes))
        with mock.patch.object(framing, "MAX_HEADS", table_size):
            cached = list(self.received(stream, cut[0], payload_bytes, cached=True))
            plain = list(self.received(stream, cut[1], payload_bytes, cached=False))
        assert cached == plain

    def received(self, data: bytes, cuts: list[int], payload_bytes: int, *, cached: bool) -> Iterator[object]:
        client, relay = established()
        if not cached:
            without_flow_cache(client)
        welcome = encode_frame(Welcome(1, b"8 bytes.", {"payload_bytes": payload_bytes}))
        try:
            for chunk in [welcome, *chunks_of(data, cuts)]:
                client.receive(sealed(relay, chunk))
                yield from iter(client.next_message, None)
        except RemoteProtocolError as error:
            yield error.code
