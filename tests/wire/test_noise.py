"""ZeroProof: published vectors, an independent implementation, every check, and a simulated transcript."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from noise.connection import Keypair, NoiseConnection

from awesomeconnect.errors import HandshakeError, LocalProtocolError, RelayKeyMismatch
from awesomeconnect.identity import Identity
from awesomeconnect.wire.noise import (
    ACT1_BYTES,
    ACT2_BYTES,
    ACT3_BYTES,
    PREFACE,
    ClientHandshake,
    HandshakeResult,
    HandshakeState,
    KeyPair,
    RelayHandshake,
    SymmetricState,
    diffie_hellman,
)
from awesomeconnect.wire.records import Opener, Sealer

VECTORS = Path(__file__).resolve().parents[3] / "shared/vectors/noise_xx.json"

CLIENT = Identity.from_seed(b"c" * 32)
RELAY = Identity.from_seed(b"r" * 32)
CLIENT_EPHEMERAL = b"\x11" * 32
RELAY_EPHEMERAL = b"\x22" * 32

# The X25519 inputs whose product with any clamped scalar is zero: order 1, 2, 4, 8, on the curve or its
# twist, and their encodings that are not canonical.
SMALL_ORDER = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


def negative(public_key: bytes) -> bytes:
    """-K: the key with the other sign, and the same X25519 image."""
    return public_key[:31] + bytes([public_key[31] ^ 0x80])


def client_handshake() -> ClientHandshake:
    return ClientHandshake(CLIENT, RELAY.public_key, ephemeral=CLIENT_EPHEMERAL)


def relay_handshake() -> RelayHandshake:
    return RelayHandshake(RELAY, ephemeral=RELAY_EPHEMERAL)


def transcript() -> tuple[bytes, bytes, bytes]:
    """The three acts of a real handshake of CLIENT with RELAY."""
    client, relay = client_handshake(), relay_handshake()
    relay.read_act1(act1 := client.act1())
    client.read_act2(act2 := relay.act2())
    relay.read_act3(act3 := client.act3())
    return act1, act2, act3


def raw_state(identity: Identity, *, initiator: bool, prologue: bytes = PREFACE) -> HandshakeState:
    """A side that keeps to Noise and to nothing else."""
    return HandshakeState(
        initiator=initiator,
        prologue=prologue,
        static=KeyPair(identity.x25519_private, identity.x25519_public),
        ephemeral=KeyPair.from_private(b"\x33" * 32),
    )


def independent(identity: Identity, ephemeral: bytes, *, initiator: bool) -> Any:
    """The noiseprotocol package in one of the roles."""
    noise = NoiseConnection.from_name(b"Noise_XX_25519_ChaChaPoly_SHA256")
    noise.set_as_initiator() if initiator else noise.set_as_responder()
    noise.set_prologue(PREFACE)
    noise.set_keypair_from_private_bytes(Keypair.STATIC, identity.x25519_private)
    noise.set_keypair_from_private_bytes(Keypair.EPHEMERAL, ephemeral)
    noise.start_handshake()
    return noise


class TestPublishedVectors:
    @pytest.mark.skipif(not VECTORS.exists(), reason="no published Noise vectors beside the repository")
    def test_pass(self) -> None:
        for vector in json.loads(VECTORS.read_text())["vectors"]:
            self.check(vector)

    @staticmethod
    def check(vector: dict[str, Any]) -> None:
        sides = [
            HandshakeState(
                initiator=role == "init",
                prologue=bytes.fromhex(vector[f"{role}_prologue"]),
                static=KeyPair.from_private(bytes.fromhex(vector[f"{role}_static"])),
                ephemeral=KeyPair.from_private(bytes.fromhex(vector[f"{role}_ephemeral"])),
            )
            for role in ("init", "resp")
        ]
        messages = [(bytes.fromhex(m["payload"]), bytes.fromhex(m["ciphertext"])) for m in vector["messages"]]
        for number, (payload, ciphertext) in enumerate(messages[:3]):
            writer, reader = sides[number % 2], sides[1 - number % 2]
            assert writer.write_message(payload) == ciphertext
            assert reader.read_message(ciphertext) == payload
        initiator, responder = sides
        assert initiator.handshake_hash == responder.handshake_hash
        if "handshake_hash" in vector:
            assert initiator.handshake_hash.hex() == vector["handshake_hash"]
        assert initiator.split() == responder.split()[::-1]
        sealers = [Sealer(side.split()[0]) for side in sides]
        openers = [Opener(side.split()[1]) for side in sides]
        for number, (payload, ciphertext) in enumerate(messages[3:], start=3):
            record = sealers[number % 2].seal(payload)
            assert record[2:] == ciphertext
            assert openers[1 - number % 2].open(record) == [payload]


@pytest.mark.filterwarnings("ignore:One of ephemeral keypairs is already set")
class TestIndependentImplementation:
    """The noiseprotocol package as the other side, byte for byte, with records across three rekeyings."""

    def test_as_relay(self) -> None:
        client, relay = client_handshake(), independent(RELAY, RELAY_EPHEMERAL, initiator=False)
        relay.read_message(client.act1()[len(PREFACE) :])
        client.read_act2(bytes(relay.write_message(RELAY.public_key)))
        assert relay.read_message(client.act3()) == CLIENT.public_key
        assert client.result.peer_key == RELAY.public_key
        self.exchange_records(client.result, relay)

    def test_as_client(self) -> None:
        relay, client = relay_handshake(), independent(CLIENT, CLIENT_EPHEMERAL, initiator=True)
        relay.read_act1(PREFACE + client.write_message(b""))
        assert client.read_message(relay.act2()) == RELAY.public_key
        relay.read_act3(bytes(client.write_message(CLIENT.public_key)))
        assert relay.result.peer_key == CLIENT.public_key
        self.exchange_records(relay.result, client)

    def test_same_transcript(self) -> None:
        client = independent(CLIENT, CLIENT_EPHEMERAL, initiator=True)
        relay = independent(RELAY, RELAY_EPHEMERAL, initiator=False)
        relay.read_message(act1 := client.write_message(b""))
        client.read_message(act2 := relay.write_message(RELAY.public_key))
        act3 = client.write_message(CLIENT.public_key)
        assert (PREFACE + act1, act2, act3) == transcript()

    @staticmethod
    def exchange_records(ours: HandshakeResult, theirs: Any) -> None:
        assert ours.handshake_hash == theirs.get_handshake_hash()
        sealer, opener = Sealer(ours.send_key), Opener(ours.receive_key)
        for number in range(3 * 1024 + 2):
            plaintext = number.to_bytes(4, "big")
            assert theirs.decrypt(sealer.seal(plaintext)[2:]) == plaintext
            ciphertext = theirs.encrypt(plaintext)
            assert opener.open(len(ciphertext).to_bytes(2, "big") + ciphertext) == [plaintext]
            if number % 1024 == 1023:
                theirs.rekey_inbound_cipher()
                theirs.rekey_outbound_cipher()


class TestHandshake:
    @given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
    @settings(max_examples=20, deadline=None)
    def test_any_two_identities_agree(self, client_seed: bytes, relay_seed: bytes) -> None:
        client_identity = Identity.from_seed(client_seed)
        relay_identity = Identity.from_seed(relay_seed)
        assume(client_identity != relay_identity)
        client = ClientHandshake(client_identity, relay_identity.public_key)
        relay = RelayHandshake(relay_identity)
        act1 = client.act1()
        relay.read_act1(memoryview(act1))
        act2 = relay.act2()
        client.read_act2(bytearray(act2))
        act3 = client.act3()
        relay.read_act3(memoryview(act3))
        assert (len(act1), len(act2), len(act3)) == (ACT1_BYTES, ACT2_BYTES, ACT3_BYTES) == (36, 128, 96)
        ours, theirs = client.result, relay.result
        assert (ours.peer_key, theirs.peer_key) == (relay_identity.public_key, client_identity.public_key)
        assert (ours.send_key, ours.receive_key) == (theirs.receive_key, theirs.send_key)
        assert ours.send_key != ours.receive_key
        assert ours.handshake_hash == theirs.handshake_hash

    def test_ephemerals_are_fresh(self) -> None:
        """SECURITY 29: a replayed act meets another ephemeral key."""
        acts = {ClientHandshake(CLIENT, RELAY.public_key).act1() for _ in range(3)}
        assert len(acts) == 3
        act1, _, act3 = transcript()
        relay = RelayHandshake(RELAY)
        relay.read_act1(act1)
        relay.act2()
        with pytest.raises(HandshakeError):
            relay.read_act3(act3)

    def test_result_shows_no_keys(self) -> None:
        client = client_handshake()
        _, act2, _ = transcript()
        client.act1()
        client.read_act2(act2)
        client.act3()
        for secret in (client.result.send_key, client.result.receive_key):
            assert secret.hex() not in repr(client.result)
            assert repr(secret) not in repr(client.result)
        assert RELAY.public_key.hex() in repr(client.result)


class TestLengths:
    """SECURITY 25: PyNaCl never sees a key of another length."""

    @pytest.mark.parametrize("size", [0, 1, 31, 33])
    def test_of_keys(self, size: int) -> None:
        with pytest.raises(ValueError, match="32 bytes"):
            ClientHandshake(CLIENT, bytes(size))
        with pytest.raises(ValueError, match="32 bytes"):
            RelayHandshake(RELAY, ephemeral=bytes(size))
        for private, public in ((bytes(size), b"\x09" * 32), (b"\x09" * 32, bytes(size))):
            with pytest.raises(HandshakeError, match="32 bytes"):
                diffie_hellman(private, public)

    @pytest.mark.parametrize("size", [0, 3, 4, 5, 35, 37, 68])
    def test_of_act_1(self, size: int) -> None:
        with pytest.raises(HandshakeError):
            relay_handshake().read_act1((PREFACE + b"\x09" * 64)[:size])

    @pytest.mark.parametrize("size", [0, 1, 32, 127, 129])
    def test_of_act_2(self, size: int) -> None:
        client = client_handshake()
        client.act1()
        with pytest.raises(HandshakeError, match="instead of 128"):
            client.read_act2((transcript()[1] + bytes(1))[:size])

    @pytest.mark.parametrize("size", [0, 1, 48, 95, 97])
    def test_of_act_3(self, size: int) -> None:
        relay = relay_handshake()
        relay.read_act1(transcript()[0])
        relay.act2()
        with pytest.raises(HandshakeError, match="instead of 96"):
            relay.read_act3((transcript()[2] + bytes(1))[:size])

    @pytest.mark.parametrize("size", [*range(0, 48), 95])
    def test_of_messages_under_the_acts(self, size: int) -> None:
        """The Noise core holds without the acts' fixed sizes."""
        initiator = raw_state(CLIENT, initiator=True)
        initiator.write_message(b"")
        with pytest.raises(HandshakeError):
            initiator.read_message(transcript()[1][:size])


class TestTampering:
    @given(st.integers(0, 8 * ACT1_BYTES - 1))
    @settings(deadline=None)
    def test_of_act_1(self, bit: int) -> None:
        client, relay = client_handshake(), relay_handshake()
        act1 = flipped(client.act1(), bit)
        if bit < 8 * len(PREFACE):
            with pytest.raises(HandshakeError, match="another protocol"):
                relay.read_act1(act1)
            return
        relay.read_act1(act1)  # any 32 bytes may be a key: the relay's answer shows the client the difference
        act2 = relay.act2()
        with pytest.raises(HandshakeError, match="authentication failed"):
            client.read_act2(act2)

    @given(st.integers(0, 8 * ACT2_BYTES - 1))
    @settings(deadline=None)
    def test_of_act_2(self, bit: int) -> None:
        client, relay = client_handshake(), relay_handshake()
        relay.read_act1(client.act1())
        with pytest.raises(HandshakeError):
            client.read_act2(flipped(relay.act2(), bit))
        with pytest.raises(LocalProtocolError):
            client.act3()

    @given(st.integers(0, 8 * ACT3_BYTES - 1))
    @settings(deadline=None)
    def test_of_act_3(self, bit: int) -> None:
        client, relay = client_handshake(), relay_handshake()
        relay.read_act1(client.act1())
        client.read_act2(relay.act2())
        with pytest.raises(HandshakeError):
            relay.read_act3(flipped(client.act3(), bit))
        with pytest.raises(LocalProtocolError):
            _ = relay.result

    @pytest.mark.parametrize(
        "opening",
        [
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".ljust(36, b"\x00"),
            b'CONNECT {"verbose":false,"pedantic":false}\r\n',
            b"AWC\x02" + b"\x09" * 32,
        ],
    )
    def test_another_protocol_or_version(self, opening: bytes) -> None:
        with pytest.raises(HandshakeError, match="another protocol"):
            relay_handshake().read_act1(opening[:36])

    def test_another_prologue(self) -> None:
        """The version is authenticated: a side that speaks another one cannot be talked down."""
        relay = raw_state(RELAY, initiator=False, prologue=b"AWC\x02")
        client = client_handshake()
        relay.read_message(client.act1()[len(PREFACE) :])
        with pytest.raises(HandshakeError, match="authentication failed"):
            client.read_act2(relay.write_message(RELAY.public_key))


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


class TestSmallOrder:
    """SECURITY 27: an all-zero Diffie-Hellman result fails, whichever key brings it about."""

    @pytest.mark.parametrize("point", SMALL_ORDER)
    def test_ephemeral_of_the_client(self, point: str) -> None:
        relay = relay_handshake()
        relay.read_act1(PREFACE + bytes.fromhex(point))
        with pytest.raises(HandshakeError, match="small order"):
            relay.act2()

    @pytest.mark.parametrize("point", SMALL_ORDER)
    def test_ephemeral_of_the_relay(self, point: str) -> None:
        client = client_handshake()
        client.act1()
        with pytest.raises(HandshakeError, match="small order"):
            client.read_act2(bytes.fromhex(point) + bytes(96))

    @pytest.mark.parametrize("point", SMALL_ORDER)
    def test_static_of_the_client(self, point: str) -> None:
        client = HandshakeState(
            initiator=True,
            prologue=PREFACE,
            static=KeyPair(bytes(32), bytes.fromhex(point)),
            ephemeral=KeyPair.from_private(CLIENT_EPHEMERAL),
        )
        relay = relay_handshake()
        relay.read_act1(PREFACE + client.write_message(b""))
        client.read_message(relay.act2())
        with pytest.raises(HandshakeError, match="small order"):
            relay.read_act3(client.write_message(CLIENT.public_key))


class TestIdentities:
    def test_the_pinned_relay_only(self) -> None:
        other = Identity.from_seed(b"o" * 32)
        client = ClientHandshake(CLIENT, other.public_key)
        relay = relay_handshake()
        relay.read_act1(client.act1())
        with pytest.raises(RelayKeyMismatch, match=f"{RELAY.public_key.hex()}.*{other.public_key.hex()}"):
            client.read_act2(relay.act2())
        with pytest.raises(LocalProtocolError):
            client.act3()

    def test_the_pin_is_the_identity_and_not_its_image(self) -> None:
        client = ClientHandshake(CLIENT, negative(RELAY.public_key))
        relay = relay_handshake()
        relay.read_act1(client.act1())
        with pytest.raises(RelayKeyMismatch):
            client.read_act2(relay.act2())

    @pytest.mark.parametrize(
        ("claim", "complaint"),
        [
            (Identity.from_seed(b"o" * 32).public_key, "not the key that was proved"),
            (bytes([1]) + bytes(31), "not a valid key"),
            (bytes(32), "not a valid key"),
            (b"\xff" * 32, "not a valid key"),
        ],
    )
    def test_a_claim_that_was_not_proved(self, claim: bytes, complaint: str) -> None:
        client = raw_state(CLIENT, initiator=True)
        relay = relay_handshake()
        relay.read_act1(PREFACE + client.write_message(b""))
        client.read_message(relay.act2())
        with pytest.raises(HandshakeError, match=complaint):
            relay.read_act3(client.write_message(claim))

        false_relay = raw_state(RELAY, initiator=False)
        pinning_client = ClientHandshake(CLIENT, claim)
        false_relay.read_message(pinning_client.act1()[len(PREFACE) :])
        with pytest.raises(HandshakeError, match=complaint):
            pinning_client.read_act2(false_relay.write_message(claim))

    @pytest.mark.parametrize("claimed", [RELAY.public_key, negative(RELAY.public_key)], ids=["K", "-K"])
    def test_the_own_identity_at_the_other_end(self, claimed: bytes) -> None:
        """SECURITY 30: reflection and self-connection, under either sign of the key."""
        client = raw_state(RELAY, initiator=True)
        relay = relay_handshake()
        relay.read_act1(PREFACE + client.write_message(b""))
        client.read_message(relay.act2())
        with pytest.raises(HandshakeError, match="own identity"):
            relay.read_act3(client.write_message(claimed))

        same = raw_state(RELAY, initiator=False)
        pinning_client = ClientHandshake(RELAY, claimed)
        same.read_message(pinning_client.act1()[len(PREFACE) :])
        with pytest.raises(HandshakeError, match="own identity"):
            pinning_client.read_act2(same.write_message(claimed))

    def test_a_rogue_relay_cannot_forward(self) -> None:
        """SECURITY 28: what a client proved to a rogue relay means nothing to the relay behind it."""
        rogue = Identity.from_seed(b"x" * 32)
        victim = ClientHandshake(CLIENT, rogue.public_key, ephemeral=CLIENT_EPHEMERAL)
        front = RelayHandshake(rogue, ephemeral=RELAY_EPHEMERAL)
        target = relay_handshake()
        act1 = victim.act1()
        front.read_act1(act1)
        target.read_act1(act1)
        target.act2()
        victim.read_act2(front.act2())
        with pytest.raises(HandshakeError, match="authentication failed"):
            target.read_act3(victim.act3())


def client_steps() -> list[Callable[[ClientHandshake], object]]:
    _, act2, _ = transcript()
    return [ClientHandshake.act1, lambda client: client.read_act2(act2), ClientHandshake.act3]


def relay_steps() -> list[Callable[[RelayHandshake], object]]:
    act1, _, act3 = transcript()
    return [
        lambda relay: relay.read_act1(act1),
        RelayHandshake.act2,
        lambda relay: relay.read_act3(act3),
    ]


@pytest.mark.parametrize(
    ("start", "steps"),
    [(client_handshake, client_steps), (relay_handshake, relay_steps)],
    ids=["client", "relay"],
)
class TestOrder:
    """SECURITY 9: each act exactly once, in its turn; every state x every step."""

    @pytest.mark.parametrize("done", range(4))
    @pytest.mark.parametrize("wrong", range(3))
    def test_out_of_turn(self, start: Any, steps: Any, done: int, wrong: int) -> None:
        handshake = start()
        for step in steps()[:done]:
            step(handshake)
        if wrong == done:
            steps()[wrong](handshake)
            return
        with pytest.raises(LocalProtocolError, match="out of turn"):
            steps()[wrong](handshake)
        for step in steps():
            with pytest.raises(LocalProtocolError, match="out of turn"):
                step(handshake)
        with pytest.raises(LocalProtocolError, match="not complete"):
            _ = handshake.result

    def test_no_result_before_the_end(self, start: Any, steps: Any) -> None:
        handshake = start()
        for step in steps():
            with pytest.raises(LocalProtocolError, match="not complete"):
                _ = handshake.result
            step(handshake)
        assert handshake.result == handshake.result


class TestZeroKnowledge:
    """Anyone with one side's key simulates the whole transcript, so it convinces nobody else (deniability).

    The simulator has the verifier's identity and the other side's PUBLIC key. It chooses both ephemeral keys,
    so it knows the ephemeral private key in each Diffie-Hellman result of the prover's static key.
    """

    @staticmethod
    def simulate(verifier: Identity, prover_key: bytes, prover_image: bytes, *, verifier_is_relay: bool) -> Any:
        """The three acts, made without the prover's private key."""
        client_e, relay_e = (KeyPair.from_private(key) for key in (CLIENT_EPHEMERAL, RELAY_EPHEMERAL))
        prover = (prover_key, prover_image)
        own = (verifier.public_key, verifier.x25519_public)
        (client_key, client_image), (relay_key, relay_image) = (prover, own) if verifier_is_relay else (own, prover)
        symmetric = SymmetricState(PREFACE)
        symmetric.mix_hash(client_e.public)
        act1 = PREFACE + client_e.public + symmetric.encrypt_and_hash(b"")

        symmetric.mix_hash(relay_e.public)
        symmetric.mix_key(diffie_hellman(client_e.private, relay_e.public))
        act2 = relay_e.public + symmetric.encrypt_and_hash(relay_image)
        symmetric.mix_key(diffie_hellman(client_e.private, relay_image))  # es, without the relay's private key
        act2 += symmetric.encrypt_and_hash(relay_key)

        act3 = symmetric.encrypt_and_hash(client_image)
        symmetric.mix_key(diffie_hellman(relay_e.private, client_image))  # se, without the client's
        act3 += symmetric.encrypt_and_hash(client_key)
        return act1, act2, act3

    def test_a_relay_can_make_up_a_client(self) -> None:
        act1, act2, act3 = simulated = self.simulate(
            RELAY, CLIENT.public_key, CLIENT.x25519_public, verifier_is_relay=True
        )
        relay = relay_handshake()
        relay.read_act1(act1)
        assert relay.act2() == act2
        relay.read_act3(act3)
        assert relay.result.peer_key == CLIENT.public_key
        assert simulated == transcript(), "not even the same randomness tells it from a real one"

    def test_a_client_can_make_up_a_relay(self) -> None:
        act1, act2, act3 = simulated = self.simulate(
            CLIENT, RELAY.public_key, RELAY.x25519_public, verifier_is_relay=False
        )
        client = client_handshake()
        assert client.act1() == act1
        client.read_act2(act2)
        assert client.act3() == act3
        assert client.result.peer_key == RELAY.public_key
        assert simulated == transcript()

    def test_but_nobody_else_is_convinced(self) -> None:
        """Against ephemeral keys that it did not choose, the simulator is just another stranger."""
        act1, _, act3 = self.simulate(RELAY, CLIENT.public_key, CLIENT.x25519_public, verifier_is_relay=True)
        relay = RelayHandshake(RELAY)
        relay.read_act1(act1)
        relay.act2()
        with pytest.raises(HandshakeError, match="authentication failed"):
            relay.read_act3(act3)


class TestVectorsOfFailures:
    """The acts under "Vectors of failures" in protocol-spec/handshake.md."""

    SPECIFICATION = Path(__file__).resolve().parents[2] / "protocol-spec" / "handshake.md"

    @classmethod
    def blocks(cls) -> list[tuple[str, bytes]]:
        """The heading of each block, and the act: the last lines of 64 digits (act 3: three, act 2: four)."""
        text = cls.SPECIFICATION.read_text().partition("### Vectors of failures")[2].partition("```")[2]
        blocks = []
        for block in text.partition("```")[0].strip().split("\n\n"):
            lines = block.split("\n")
            count = 4 if lines[0].startswith("refuse: act 2") else 3
            blocks.append(("\n".join(lines[:-count]), bytes.fromhex("".join(lines[-count:]))))
        return blocks

    def test_verdicts(self) -> None:
        client_identity, relay_identity = Identity.from_seed(b"\x11" * 32), Identity.from_seed(b"\x22" * 32)
        refused = []
        for heading, act in self.blocks():
            pinned = re.search(r"pinned ([0-9a-f]{64})", heading)
            pin = bytes.fromhex(pinned[1]) if pinned else relay_identity.public_key
            client = ClientHandshake(client_identity, pin, ephemeral=b"\x33" * 32)
            relay = RelayHandshake(relay_identity, ephemeral=b"\x44" * 32)
            relay.read_act1(client.act1())
            relay.act2()
            take = client.read_act2 if pinned else relay.read_act3
            if heading.startswith("accept"):
                take(act)
            else:
                with pytest.raises(HandshakeError) as error:
                    take(act)
                refused.append(str(error.value))
        assert len(refused) == 7
        assert not any("decrypt" in text or "changed" in text for text in refused), refused
