"""Connections of both roles as scripted conversations: handshake, frames, fragments, ordinals, the end."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from awesomeconnect.errors import (
    ErrorCode,
    HandshakeError,
    LocalProtocolError,
    RelayKeyMismatch,
    RemoteProtocolError,
)
from awesomeconnect.identity import Identity
from awesomeconnect.wire import cbor
from awesomeconnect.wire.connection import DEFAULT_PAYLOAD_BYTES, ClientConnection, Connection, RelayConnection
from awesomeconnect.wire.framing import FRAGMENT_ABOVE_BYTES, frame
from awesomeconnect.wire.messages import (
    Anycast,
    Close,
    Deliver,
    Fragment,
    FragmentEnd,
    Gap,
    Goaway,
    Hello,
    Join,
    Leave,
    Member,
    MembersPage,
    Message,
    Ping,
    Pong,
    Publish,
    Role,
    RoomIntent,
    Send,
    Welcome,
    encode_body,
    encode_frame,
)
from awesomeconnect.wire.states import State
from tests.wire.playbook import (
    CLIENT_IDENTITY,
    HELLO,
    RELAY_IDENTITY,
    Counted,
    Playbook,
    Refused,
    established,
    without_flow_cache,
)

KEY = bytes(range(32))
WELCOME = Welcome(1, b"8 bytes.", {"payload_bytes": 4_096})
MALFORMED = Refused(ErrorCode.PROTOCOL_ERROR)
UNEXPECTED = Refused(ErrorCode.UNEXPECTED_MESSAGE)
TOO_LARGE = Refused(ErrorCode.FRAME_TOO_LARGE)


def publish(payload: bytes = b"x", traffic_class: int = 1, room: str = "r") -> Publish:
    return Publish(room, traffic_class, 0, payload)


def deliver(payload: bytes = b"x", traffic_class: int = 1) -> Deliver:
    return Deliver(0, KEY, "r", traffic_class, 0, payload)


def pieces(message: Message | bytes, traffic_class: int = 1, chunk_bytes: int = 1_024) -> list[Fragment]:
    """A message as fragments, however short it is."""
    body = message if isinstance(message, bytes) else encode_body(message)
    cut = [body[at : at + chunk_bytes] for at in range(0, len(body), chunk_bytes)]
    return [
        *(Fragment(traffic_class, FragmentEnd.MORE, chunk) for chunk in cut[:-1]),
        Fragment(traffic_class, FragmentEnd.LAST, cut[-1]),
    ]


def messages_of(connection: Connection) -> list[Message]:
    return list(iter(connection.next_message, None))


# ---- handshake ---------------------------------------------------------------------------------------


class TestHandshake:
    def test_proves_both_identities(self) -> None:
        client, relay = established()
        assert client.peer_key == RELAY_IDENTITY.public_key
        assert relay.peer_key == CLIENT_IDENTITY.public_key
        assert client.handshake_hash == relay.handshake_hash
        assert {client.local_state, client.remote_state, relay.local_state, relay.remote_state} == {State.GREETING}
        assert client.next_message() is relay.next_message() is None

    @given(st.lists(st.integers(1, 60), min_size=1))
    @settings(max_examples=30, deadline=None)
    def test_in_any_chunking_with_frames_right_behind(self, sizes: list[int]) -> None:
        self.handshake_in_pieces(sizes)

    def test_byte_by_byte(self) -> None:
        self.handshake_in_pieces([1])

    def handshake_in_pieces(self, sizes: list[int]) -> None:
        client = ClientConnection(CLIENT_IDENTITY, RELAY_IDENTITY.public_key)
        relay = RelayConnection(RELAY_IDENTITY)
        self.trickle(client.handshake_bytes(), relay, sizes)
        act_2 = relay.handshake_bytes()
        assert len(act_2) == 128
        self.trickle(act_2, client, sizes)
        received = self.trickle(client.handshake_bytes() + client.send(HELLO, Join("r"), publish()), relay, sizes)
        assert received == [HELLO, Join("r"), publish()]
        assert self.trickle(relay.send(WELCOME), client, sizes) == [WELCOME]
        assert client.handshake_bytes() == relay.handshake_bytes() == b""

    def trickle(self, data: bytes, to: Connection, sizes: list[int]) -> list[Message]:
        received = []
        at = turn = 0
        while at < len(data):
            size = sizes[turn % len(sizes)]
            to.receive(memoryview(data)[at : at + size])
            received += messages_of(to)
            at, turn = at + size, turn + 1
        return received

    @pytest.mark.parametrize(
        "first", [b"G", b"GET / HTTP/1.1\r\n", b"AWX", b"AWC\x02", b"\x16\x03\x01\x02\x00" * 40]
    )
    def test_the_relay_refuses_another_protocol_on_its_first_bytes(self, first: bytes) -> None:
        with pytest.raises(HandshakeError):
            RelayConnection(RELAY_IDENTITY).receive(first)

    @pytest.mark.parametrize("beginning", [b"A", b"AW", b"AWC", b"AWC\x01", b"AWC\x01" + b"e" * 31])
    def test_the_relay_waits_for_the_rest_of_act_1(self, beginning: bytes) -> None:
        relay = RelayConnection(RELAY_IDENTITY)
        relay.receive(beginning)
        assert not relay.handshake_bytes()

    def test_the_client_refuses_another_relay(self) -> None:
        client = ClientConnection(CLIENT_IDENTITY, KEY)
        relay = RelayConnection(RELAY_IDENTITY)
        relay.receive(client.handshake_bytes())
        with pytest.raises(RelayKeyMismatch):
            client.receive(relay.handshake_bytes())
        assert not client.is_established
        assert client.handshake_bytes() == b""

    def test_the_relay_refuses_a_changed_act_3_and_stays_refused(self) -> None:
        client = ClientConnection(CLIENT_IDENTITY, RELAY_IDENTITY.public_key)
        relay = RelayConnection(RELAY_IDENTITY)
        relay.receive(client.handshake_bytes())
        client.receive(relay.handshake_bytes())
        act_3 = client.handshake_bytes()
        with pytest.raises(HandshakeError):
            relay.receive(act_3[:-1] + bytes([act_3[-1] ^ 1]))
        with pytest.raises(LocalProtocolError, match="failed before"):
            relay.receive(act_3)
        assert not relay.is_established

    def test_a_record_that_does_not_open_is_final(self) -> None:
        client, relay = established()
        good, bad = client.send(HELLO), bytearray(client.send(Join("r")))
        bad[-1] ^= 1
        relay.receive(good)
        assert messages_of(relay) == [HELLO]
        with pytest.raises(RemoteProtocolError) as caught:
            relay.receive(bad)
        assert caught.value.code is ErrorCode.PROTOCOL_ERROR
        with pytest.raises(LocalProtocolError):
            relay.next_message()

    def test_nothing_can_be_sealed_before_it(self) -> None:
        client = ClientConnection(Identity.generate(), KEY)
        with pytest.raises(LocalProtocolError):
            client.seal(b"x")
        with pytest.raises(LocalProtocolError):
            client.send(HELLO)

    def test_the_roles_are_not_in_the_base(self) -> None:
        with pytest.raises(NotImplementedError):
            Connection().receive(b"x")
        with pytest.raises(NotImplementedError):
            Connection()._take_act(b"")


# ---- frames and states ---------------------------------------------------------------------------------


class TestGreeting:
    def test_hello_comes_first(self) -> None:
        assert Playbook(Role.RELAY, greeted=False) >> HELLO << HELLO >> Join("r") << Join("r")

    def test_welcome_comes_first(self) -> None:
        assert Playbook(Role.CLIENT, greeted=False) >> WELCOME << WELCOME >> Ping(0, b"t") << Ping(0, b"t")

    def test_a_relay_may_send_the_client_away(self) -> None:
        away = Goaway(ErrorCode.SUPERSEDED)
        assert Playbook(Role.CLIENT, greeted=False) >> away << away >> Close(9) << Close(9)

    @pytest.mark.parametrize("early", [publish(), Ping(0), Join("r"), Fragment(1, FragmentEnd.LAST, b"x")])
    def test_nothing_before_hello(self, early: Message) -> None:
        assert Playbook(Role.RELAY, greeted=False) >> early << UNEXPECTED

    def test_nothing_before_welcome(self) -> None:
        assert Playbook(Role.CLIENT, greeted=False) >> deliver() << UNEXPECTED

    def test_hello_comes_once(self) -> None:
        assert Playbook(Role.RELAY) >> HELLO << UNEXPECTED

    def test_welcome_comes_once(self) -> None:
        assert Playbook(Role.CLIENT) >> WELCOME << UNEXPECTED

    def test_the_limits_of_welcome_hold(self) -> None:
        client, relay = established()
        relay.receive(client.send(HELLO))
        client.receive(relay.send(WELCOME))
        assert messages_of(client) == [WELCOME]
        assert client.limits == WELCOME.limits
        assert (client.reader.payload_limit, client.reader.limit, client.fragments.limit) == (4_096, 5_120, 5_120)

    def test_a_welcome_without_a_payload_limit(self) -> None:
        client, relay = established()
        client.receive(relay.send(Welcome(1, b"8 bytes.")))
        assert client.next_message() is not None
        assert client.reader.payload_limit == DEFAULT_PAYLOAD_BYTES


class TestFrames:
    @pytest.mark.parametrize("role", Role)
    def test_empty(self, role: Role) -> None:
        assert Playbook(role) >> Ping(0, b"t") << Ping(0, b"t") >> bytes(4) << MALFORMED

    @pytest.mark.parametrize("role", Role)
    @pytest.mark.parametrize("greeted", [True, False])
    def test_too_long_is_refused_on_its_length(self, role: Role, greeted: bool) -> None:
        limit = 4_096 + 1_024 if greeted else 65_536
        length = (limit + 1).to_bytes(4, "big")
        assert Playbook(role, greeted=greeted, payload_bytes=4_096) >> length << TOO_LARGE
        assert Playbook(role, greeted=greeted, payload_bytes=4_096) >> b"\xff\xff\xff\xff" << TOO_LARGE

    @pytest.mark.parametrize("role", Role)
    @pytest.mark.parametrize("greeted", [True, False])
    def test_the_longest_is_awaited(self, role: Role, greeted: bool) -> None:
        limit = 4_096 + 1_024 if greeted else 65_536
        assert Playbook(role, greeted=greeted, payload_bytes=4_096) >> limit.to_bytes(4, "big")

    def test_the_longest(self) -> None:
        body = cbor.encode([64, bytes(65_530)])
        assert len(body) == 65_536
        assert Playbook(Role.RELAY, payload_bytes=65_536 - 1_024) >> frame(body) >> Ping(0) << Ping(0)

    @pytest.mark.parametrize("payload_bytes", [4_095, 4_096])
    def test_a_payload_up_to_the_limit(self, payload_bytes: int) -> None:
        message = publish(bytes(payload_bytes))
        assert (
            Playbook(Role.RELAY, payload_bytes=4_096)
            >> message << Counted(1, message)
            >> message << Counted(2, message)
        )  # fmt: skip

    def test_a_payload_over_the_limit_in_a_legal_frame_is_decoded(self) -> None:
        """The router rejects it by its ordinal: the flow cache must not gather it."""
        small, big = publish(), publish(bytes(4_097))
        assert (
            Playbook(Role.RELAY, payload_bytes=4_096)
            >> small << Counted(1, small)
            >> big << Counted(2, big)
            >> big << Counted(3, big)
            >> small << Counted(4, small)
        )  # fmt: skip

    @pytest.mark.parametrize(
        "message", [deliver(), WELCOME, Gap("r", None, 1, 1, 1, 36), Goaway(7)], ids=lambda m: type(m).__name__
    )
    def test_from_the_wrong_side_to_the_relay(self, message: Message) -> None:
        assert Playbook(Role.RELAY) >> message << UNEXPECTED

    @pytest.mark.parametrize("message", [publish(), HELLO, Leave("r")], ids=lambda m: type(m).__name__)
    def test_from_the_wrong_side_to_the_client(self, message: Message) -> None:
        assert Playbook(Role.CLIENT) >> message << UNEXPECTED

    @pytest.mark.parametrize(
        "body",
        [
            b"\xff",
            b"\x00",
            b"\x80",
            b"\x81\x20",
            cbor.encode(["PING"]),
            cbor.encode([20, 0]),
            cbor.encode([20, 0, b"", 0]),
            cbor.encode([20, 0, b""]) + b"\x00",
            cbor.encode([20, 0, b""])[:-1],
            b"\x83\x14\x18\x00\x40",
            b"\x9f\x14\x00\x40\xff",
            cbor.encode([6, "r", 7, 0, b""]),
            cbor.encode([6, "r", 1, 0, "text"]),
        ],
        ids=bytes.hex,
    )
    def test_malformed(self, body: bytes) -> None:
        assert Playbook(Role.RELAY) >> Ping(0) << Ping(0) >> frame(body) << MALFORMED

    @pytest.mark.parametrize("kind", [12, 27, 63])
    def test_unassigned_kinds(self, kind: int) -> None:
        assert Playbook(Role.RELAY) >> frame(cbor.encode([kind])) << UNEXPECTED
        assert Playbook(Role.CLIENT) >> frame(cbor.encode([kind])) << UNEXPECTED

    @pytest.mark.parametrize("kind", [64, 255, 1 << 40])
    @pytest.mark.parametrize("role", Role)
    def test_extension_kinds_are_ignored(self, role: Role, kind: int) -> None:
        extension = frame(cbor.encode([kind, {"any": [1, None]}]))
        assert Playbook(role) >> extension >> Ping(0) << Ping(0) >> extension + encode_frame(Pong()) << Pong()

    @pytest.mark.parametrize("role", Role)
    def test_extension_kinds_are_well_formed(self, role: Role) -> None:
        assert Playbook(role) >> frame(b"\x82\x18\x40") << MALFORMED

    @pytest.mark.parametrize("role", Role)
    def test_no_extension_before_the_greeting_or_after_the_end(self, role: Role) -> None:
        extension = frame(cbor.encode([64]))
        assert Playbook(role, greeted=False) >> extension << UNEXPECTED
        assert Playbook(role) >> Close() << Close() >> extension << UNEXPECTED

    def test_truncated(self) -> None:
        """What is missing is awaited; that nothing comes any more is for the transport to say."""
        assert Playbook(Role.RELAY) >> encode_frame(publish())[:-1]
        client, relay = established()
        relay.receive(client.send(HELLO))
        assert relay.next_message() == HELLO
        relay.receive(client.seal(encode_frame(publish(bytes(100)))[:-1]))
        assert relay.next_message() is None
        assert relay.reader.buffered_bytes == len(encode_frame(publish(bytes(100)))) - 1

    @pytest.mark.parametrize("follower", [Ping(0), publish(), Close(), Fragment(1, FragmentEnd.LAST, b"x")])
    def test_nothing_after_close_to_the_relay(self, follower: Message) -> None:
        """Not even a frame whose head the flow cache knew."""
        together = encode_frame(Close()) + encode_frame(follower)
        start = Playbook(Role.RELAY) >> publish() << Counted(1, publish())
        assert start >> together << Close() << UNEXPECTED

    @pytest.mark.parametrize("follower", [Ping(0), deliver(), Close()])
    def test_nothing_after_close_to_the_client(self, follower: Message) -> None:
        together = encode_frame(Close()) + encode_frame(follower)
        assert Playbook(Role.CLIENT) >> deliver() << deliver() >> together << Close() << UNEXPECTED

    def test_what_came_before_a_fault_is_not_lost(self) -> None:
        message = encode_frame(publish())
        assert (
            Playbook(Role.RELAY)
            >> message << Counted(1, publish())
            >> message * 2 + frame(b"\xff") + message
            << Counted(2, publish()) << Counted(3, publish()) << MALFORMED
        )  # fmt: skip


# ---- fragments -----------------------------------------------------------------------------------------


class TestFragments:
    @pytest.mark.parametrize("payload_bytes", [0, 1_000, 1_015, 1_016, 1_017, 5_000, 40_000])
    def test_round_trip(self, payload_bytes: int) -> None:
        message = publish(bytes(payload_bytes))
        script = Playbook(Role.RELAY)
        for fragment in pieces(message):
            script >>= fragment
        assert script << Counted(1, message)

    def test_to_the_client(self) -> None:
        message = deliver(bytes(3_000))
        script = Playbook(Role.CLIENT)
        for fragment in pieces(message):
            script >>= fragment
        assert script << message >> deliver() << deliver()

    def test_interleaved_in_all_classes_with_control_between(self) -> None:
        """Ordinals go by the last byte."""
        messages = [publish(bytes([c]) * (1_100 + 1_000 * c), c) for c in range(7)]
        cut = [pieces(message, message.traffic_class) for message in messages]
        script = Playbook(Role.RELAY)
        ordinal = 0
        while any(cut):
            for message, fragments in zip(messages, cut, strict=True):
                if fragments:
                    fragment = fragments.pop(0)
                    script >>= fragment
                    if fragment.end == FragmentEnd.LAST:
                        ordinal += 1
                        script <<= Counted(ordinal, message)
            script = script >> Ping(0) << Ping(0)
        assert ordinal == 7
        assert script

    def test_ordinals_over_fast_path_slow_path_and_fragments(self) -> None:
        """The example of sessions.md, and a frame of each kind after it."""
        bulk, vote = publish(bytes(2_000), 0), publish(b"vote", 5)
        first, last = Fragment(0, 0, encode_body(bulk)[:1_500]), Fragment(0, 1, encode_body(bulk)[1_500:])
        send, anycast = Send(KEY, 1, 0, b"x"), Anycast("r", 1, 0, b"x")
        assert (
            Playbook(Role.RELAY)
            >> first
            >> vote << Counted(1, vote)
            >> last << Counted(2, bulk)
            >> Fragment(1, 0, bytes(1_024)) >> Fragment(1, 2, b"")
            >> send << Counted(3, send)
            >> encode_frame(vote) * 3 << Counted(4, vote) << Counted(5, vote) << Counted(6, vote)
            >> encode_frame(send) + encode_frame(vote) << Counted(7, send) << Counted(8, vote)
            >> anycast << Counted(9, anycast)
            >> first >> encode_frame(vote) + encode_frame(last) << Counted(10, vote) << Counted(11, bulk)
            >> vote << Counted(12, vote)
        )  # fmt: skip

    def test_aborted(self) -> None:
        more, abort = Fragment(1, 0, bytes(1_024)), Fragment(1, 2, b"")
        assert (
            Playbook(Role.RELAY)
            >> more >> more >> abort
            >> publish() << Counted(1, publish())
            >> more >> abort
            >> publish() << Counted(2, publish())
        )  # fmt: skip

    def test_abort_of_nothing(self) -> None:
        abort = Fragment(1, 2, b"")
        assert Playbook(Role.RELAY) >> abort << MALFORMED
        assert Playbook(Role.RELAY) >> Fragment(2, 0, bytes(1_024)) >> abort << MALFORMED

    @pytest.mark.parametrize("payload_bytes", [4_096, 4_096 + 1_024 - 9])
    def test_as_long_as_a_frame_may_be(self, payload_bytes: int) -> None:
        message = publish(bytes(payload_bytes))
        script = Playbook(Role.RELAY, payload_bytes=4_096)
        for fragment in pieces(message):
            script >>= fragment
        assert script << Counted(1, message)

    def test_oversized_is_refused_when_it_grows_over_the_limit(self) -> None:
        more = Fragment(1, 0, bytes(1_024))
        script = Playbook(Role.RELAY, payload_bytes=4_096)
        for _ in range(5):
            script >>= more
        assert script >> Fragment(1, 1, b"x") << TOO_LARGE

    def test_each_class_has_its_own_total(self) -> None:
        script = Playbook(Role.RELAY, payload_bytes=4_096)
        for traffic_class in range(7):
            for _ in range(5):
                script >>= Fragment(traffic_class, 0, bytes(1_024))
        assert script >> Ping(0) << Ping(0) >> Fragment(3, 0, bytes(1_024)) << TOO_LARGE

    def test_a_short_chunk_that_is_not_the_last(self) -> None:
        assert Playbook(Role.RELAY) >> frame(cbor.encode([23, 1, 0, bytes(1_023)])) << MALFORMED

    def test_class_7(self) -> None:
        assert Playbook(Role.RELAY) >> frame(cbor.encode([23, 7, 1, b"x"])) << MALFORMED

    @pytest.mark.parametrize(
        "inner",
        [
            encode_body(publish(b"x", 2)),
            encode_body(Ping(0)),
            encode_body(HELLO),
            encode_body(Close()),
            encode_body(Fragment(1, 1, b"x")),
            cbor.encode([64]),
            b"\xff",
            encode_body(publish()) + b"\x00",
            encode_body(publish())[:-1],
            encode_frame(publish()),
        ],
        ids=["class", "control", "hello", "close", "fragment", "extension", "cbor", "trailing", "short", "length"],
    )
    def test_wrong_inner_frame(self, inner: bytes) -> None:
        assert Playbook(Role.RELAY) >> Fragment(1, FragmentEnd.LAST, inner) << MALFORMED

    def test_inner_frame_of_the_other_side(self) -> None:
        assert Playbook(Role.RELAY) >> Fragment(1, FragmentEnd.LAST, encode_body(deliver())) << UNEXPECTED
        assert Playbook(Role.CLIENT) >> Fragment(1, FragmentEnd.LAST, encode_body(publish())) << UNEXPECTED

    @pytest.mark.parametrize("intruder", [publish(), Send(KEY, 1, 0, b"x"), Anycast("r", 1, 0, b"x")])
    @pytest.mark.parametrize("known", [True, False])
    def test_a_frame_inside_a_fragmented_one_of_its_class(self, intruder: Message, known: bool) -> None:
        """On the fast path as well."""
        script = Playbook(Role.RELAY)
        if known:
            script = script >> intruder << Counted(1, intruder)
        assert script >> Fragment(1, 0, bytes(1_024)) >> intruder << MALFORMED

    @pytest.mark.parametrize("known", [True, False])
    def test_a_deliver_inside_a_fragmented_one_of_its_class(self, known: bool) -> None:
        script = Playbook(Role.CLIENT)
        if known:
            script = script >> deliver() << deliver()
        assert script >> Fragment(1, 0, bytes(1_024)) >> deliver() << MALFORMED

    def test_other_classes_go_on_at_full_speed(self) -> None:
        vote = publish(b"vote", 5)
        assert (
            Playbook(Role.RELAY)
            >> vote << Counted(1, vote)
            >> Fragment(1, 0, bytes(1_024))
            >> encode_frame(vote) * 2 << Counted(2, vote) << Counted(3, vote)
        )  # fmt: skip
        other = deliver(b"vote", 5)
        assert Playbook(Role.CLIENT) >> other << other >> Fragment(1, 0, bytes(1_024)) >> other << other

    def test_close_ends_an_open_frame(self) -> None:
        assert Playbook(Role.RELAY) >> Fragment(1, 0, bytes(1_024)) >> Close() << Close()


# ---- sending -----------------------------------------------------------------------------------------


class TestSend:
    def test_packs_what_is_given_into_one_record(self) -> None:
        client, _ = established()
        messages = (HELLO, Join("r"), publish())
        assert len(client.send(*messages)) == 2 + 16 + sum(len(encode_frame(message)) for message in messages)

    def test_of_nothing_is_nothing(self) -> None:
        client, _ = established()
        assert client.send() == b""

    def test_a_message_of_the_wrong_state_changes_nothing(self) -> None:
        client, relay = established()
        with pytest.raises(LocalProtocolError) as caught:
            client.send(HELLO, publish(), Close(), Join("r"))
        assert caught.value.code is ErrorCode.UNEXPECTED_MESSAGE
        assert client.local_state is State.GREETING
        assert client.sent_ordinal == 0
        relay.receive(client.send(HELLO))
        assert messages_of(relay) == [HELLO]

    def test_follows_the_states(self) -> None:
        client, relay = established()
        client.send(HELLO)
        client.send(Close())
        with pytest.raises(LocalProtocolError):
            client.send(publish())
        relay.note_sent(WELCOME)
        assert relay.local_state is State.OPEN
        with pytest.raises(LocalProtocolError):
            relay.note_sent(WELCOME)

    def test_counts_ordinals(self) -> None:
        client, relay = established()
        messages = [
            HELLO,
            publish(),
            Join("r"),
            publish(bytes(50_000)),
            Send(KEY, 1, 0, b""),
            Anycast("r", 1, 0, b""),
        ]
        relay.receive(client.send(*messages))
        assert messages_of(relay) == messages
        assert client.sent_ordinal == relay.reader.ordinal == 4

    @pytest.mark.parametrize("more_bytes", [-1, 0, 1])
    @pytest.mark.parametrize("message", [publish(), Send(KEY, 1, 0, b""), Anycast("r", 1, 0, b"")])
    def test_fragments_what_is_longer_than_17_408_bytes(self, message: Publish, more_bytes: int) -> None:
        size = FRAGMENT_ABOVE_BYTES + more_bytes - (len(encode_frame(message)) - len(message.payload)) - 2
        message = type(message)(*(getattr(message, name) for name in message.__slots__[:3]), bytes(size))
        assert len(encode_frame(message)) == FRAGMENT_ABOVE_BYTES + more_bytes
        client, relay = established()
        relay.receive(client.send(HELLO, message))
        assert relay.reader._data[len(encode_frame(HELLO)) + 5] == (23 if more_bytes > 0 else message.KIND)
        assert messages_of(relay) == [HELLO, message]

    @pytest.mark.parametrize("payload_bytes", [1 << 16, 900_000, 1 << 20])
    def test_the_largest_messages_arrive(self, payload_bytes: int) -> None:
        client, relay = established()
        messages = [HELLO, publish(bytes(payload_bytes)), publish()]
        relay.receive(client.send(*messages))
        assert messages_of(relay) == messages

    def test_long_control_frames_travel_whole(self) -> None:
        """Only application messages may be fragmented, and HELLO must be a HELLO."""
        client, relay = established()
        hello = Hello(1, HELLO.incarnation, 1, {}, tuple(RoomIntent(f"{n:0128}") for n in range(256)))
        assert len(encode_body(hello)) > FRAGMENT_ABOVE_BYTES
        relay.receive(client.send(hello))
        assert messages_of(relay) == [hello]
        page = MembersPage("r", 0, 1, tuple(Member(KEY, n, {"name": "n" * 900}) for n in range(1, 50)))
        assert len(encode_body(page)) > FRAGMENT_ABOVE_BYTES
        client.receive(relay.send(Welcome(1, b"8 bytes."), page))
        assert messages_of(client)[1:] == [page]


class TestFlowCacheOfTheClient:
    def test_the_same_messages_with_and_without(self) -> None:
        client, relay = established()
        plain, other = established()
        without_flow_cache(plain)
        messages = [Welcome(1, b"8 bytes."), *(deliver(bytes(n % 40)) for n in range(100))]
        client.receive(relay.send(*messages))
        plain.receive(other.send(*messages))
        assert messages_of(client) == messages_of(plain) == messages

    def test_a_known_head_is_not_decoded(self) -> None:
        client, relay = established()
        client.receive(relay.send(Welcome(1, b"8 bytes."), deliver(b"one"), deliver(b"two")))
        assert len(messages_of(client)) == 3
        assert client.reader._heads
