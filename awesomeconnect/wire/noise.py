"""ZeroProof, the handshake: each side proves its identity key, and no third party could be shown the proof.

It is Noise_XX_25519_ChaChaPoly_SHA256 (Noise Protocol Framework, revision 34) over the X25519 images of the
Ed25519 identities. The encrypted payloads carry the identities themselves::

    act 1   client -> relay   preface, e                                 4 + 32 bytes
    act 2   relay -> client   e, ee, s, es  {relay's identity}           128 bytes
    act 3   client -> relay   s, se         {client's identity}          96 bytes

Possession of a private key shows only in the Diffie-Hellman results ``es`` and ``se``, and whoever knows one
of the two private keys in each can compute them: a transcript convinces the participant and nobody else.

Rules: the acts happen in this order, each exactly once. Every refusal of the other side's bytes is a
HandshakeError; after any exception the object is dead and the connection must be closed without a word.

This module knows neither records nor sockets nor time. Ephemeral keys come from the operating system.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from hmac import compare_digest
from hmac import digest as hmac_digest

import attrs
from nacl.bindings import (
    crypto_aead_chacha20poly1305_ietf_decrypt,
    crypto_aead_chacha20poly1305_ietf_encrypt,
    crypto_scalarmult,
    crypto_scalarmult_base,
)
from nacl.exceptions import CryptoError

from awesomeconnect.errors import HandshakeError, LocalProtocolError, RelayKeyMismatch
from awesomeconnect.identity import KEY_BYTES, Identity, key_text, x25519_image

PREFACE = b"AWC\x01"
"""What a connection starts with: magic and version. It is also the Noise prologue."""

ACT1_BYTES = 36
ACT2_BYTES = 128
ACT3_BYTES = 96

_PROTOCOL_NAME = b"Noise_XX_25519_ChaChaPoly_SHA256"  # exactly HASHLEN bytes, so it is h itself (5.2)
_TAG_BYTES = 16
_SEALED_KEY_BYTES = KEY_BYTES + _TAG_BYTES

# The message patterns of XX (7.5). Of a pair of letters the first is the initiator's key.
_XX = (("e",), ("e", "ee", "s", "es"), ("s", "se"))

_DEAD = -1


@attrs.frozen
class KeyPair:
    """An X25519 key pair, 32 bytes each."""

    private: bytes = attrs.field(repr=False)
    public: bytes

    @classmethod
    def from_private(cls, private: bytes) -> KeyPair:
        """The pair of a private key.

        Raises:
            ValueError: the key does not have 32 bytes.
        """
        if len(private) != KEY_BYTES:
            raise ValueError(f"an X25519 key has {KEY_BYTES} bytes, not {len(private)}")
        return cls(private, crypto_scalarmult_base(private))


def diffie_hellman(private: bytes, public: bytes) -> bytes:
    """X25519 that fails on the all-zero output of a public key of small order.

    Raises:
        HandshakeError: a key without 32 bytes, or a public key of small order.
    """
    # SPEC handshake.md: A side MUST check that a key has 32 bytes before it passes it to a cryptographic library.
    # The binding reads past the end of a short key.
    if len(private) != KEY_BYTES or len(public) != KEY_BYTES:
        raise HandshakeError("an X25519 key does not have 32 bytes")
    # SPEC handshake.md: A side MUST abort the handshake when an X25519 output is all zero.
    try:
        return crypto_scalarmult(private, public)
    except CryptoError as problem:  # libsodium refuses the all-zero output
        raise HandshakeError("an X25519 key of small order") from problem


class SymmetricState:
    """SymmetricState of Noise 5.2, with the CipherState (5.1) that it owns."""

    __slots__ = ("_chaining_key", "_counter", "_key", "hash")

    def __init__(self, prologue: bytes) -> None:
        self.hash = _PROTOCOL_NAME
        self._chaining_key = _PROTOCOL_NAME
        self._key = b""
        self._counter = 0
        self.mix_hash(prologue)

    def mix_hash(self, data: bytes) -> None:
        self.hash = sha256(self.hash + data).digest()

    def mix_key(self, secret: bytes) -> None:
        self._chaining_key, self._key = self._hkdf(secret)
        self._counter = 0

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        """Ciphertext with its tag; the plaintext itself while there is no key yet."""
        if self._key:
            nonce = self._next_nonce()
            plaintext = crypto_aead_chacha20poly1305_ietf_encrypt(plaintext, self.hash, nonce, self._key)
        self.mix_hash(plaintext)
        return plaintext

    def decrypt_and_hash(self, ciphertext: bytes) -> bytes:
        """The plaintext.

        Raises:
            HandshakeError: the ciphertext is not what the other side encrypted in this handshake.
        """
        plaintext = ciphertext
        if self._key:
            nonce = self._next_nonce()
            if len(ciphertext) < _TAG_BYTES:
                raise HandshakeError("a ciphertext without its tag")
            try:
                plaintext = crypto_aead_chacha20poly1305_ietf_decrypt(ciphertext, self.hash, nonce, self._key)
            except CryptoError as problem:
                raise HandshakeError("authentication failed") from problem
        self.mix_hash(ciphertext)
        return plaintext

    def split(self) -> tuple[bytes, bytes]:
        """The transport keys: of the initiator's direction, of the responder's direction."""
        return self._hkdf(b"")

    def _next_nonce(self) -> bytes:
        nonce = (self._counter << 32).to_bytes(12, "little")
        self._counter += 1
        return nonce

    def _hkdf(self, secret: bytes) -> tuple[bytes, bytes]:
        temporary = hmac_digest(self._chaining_key, secret, "sha256")
        first = hmac_digest(temporary, b"\x01", "sha256")
        return first, hmac_digest(temporary, first + b"\x02", "sha256")


class HandshakeState:
    """HandshakeState of Noise 5.3 for the pattern XX, with any prologue, payloads and static key.

    It judges no identity and keeps no order: the caller writes and reads the three messages in turn.
    """

    __slots__ = ("_initiator", "_local", "_patterns", "_remote", "_symmetric")

    def __init__(self, *, initiator: bool, prologue: bytes, static: KeyPair, ephemeral: KeyPair) -> None:
        self._initiator = initiator
        self._local = {"s": static, "e": ephemeral}
        self._remote: dict[str, bytes] = {}
        self._symmetric = SymmetricState(prologue)
        self._patterns = iter(_XX)

    @property
    def remote_static(self) -> bytes:
        """The other side's static key (32 bytes), once the message that carries it was read."""
        return self._remote["s"]

    @property
    def handshake_hash(self) -> bytes:
        """What both sides saw, in 32 bytes: it names the session (11.2)."""
        return self._symmetric.hash

    def write_message(self, payload: bytes) -> bytes:
        """The next message.

        Raises:
            HandshakeError: a key that the other side sent before is of small order.
        """
        message = bytearray()
        for letters in next(self._patterns):
            if letters == "e":
                message += self._local["e"].public
                self._symmetric.mix_hash(self._local["e"].public)
            elif letters == "s":
                message += self._symmetric.encrypt_and_hash(self._local["s"].public)
            else:
                self._mix_shared_secret(letters)
        message += self._symmetric.encrypt_and_hash(payload)
        return bytes(message)

    def read_message(self, message: bytes) -> bytes:
        """The payload of the other side's next message.

        Raises:
            HandshakeError: too short, changed on the way, made with other keys, or with a key of small order.
        """
        offset = 0
        for letters in next(self._patterns):
            if letters == "e":
                self._remote["e"] = message[offset : offset + KEY_BYTES]
                self._symmetric.mix_hash(self._remote["e"])
                offset += KEY_BYTES
            elif letters == "s":
                sealed_key = message[offset : offset + _SEALED_KEY_BYTES]
                self._remote["s"] = self._symmetric.decrypt_and_hash(sealed_key)
                offset += _SEALED_KEY_BYTES
            else:
                self._mix_shared_secret(letters)
        return self._symmetric.decrypt_and_hash(message[offset:])

    def split(self) -> tuple[bytes, bytes]:
        """After the third message: the keys to send and to receive with."""
        first, second = self._symmetric.split()
        return (first, second) if self._initiator else (second, first)

    def _mix_shared_secret(self, letters: str) -> None:
        local, remote = tuple(letters if self._initiator else reversed(letters))
        self._symmetric.mix_key(diffie_hellman(self._local[local].private, self._remote[remote]))


@attrs.frozen
class HandshakeResult:
    """What a complete handshake leaves, from the point of view of the side that asks.

    Attributes:
        send_key: key of the records that this side seals (32 bytes).
        receive_key: key of the records that this side opens (32 bytes).
        peer_key: the Ed25519 identity that the other side proved (32 bytes).
        handshake_hash: names the session, equal on both sides and on no other session (32 bytes).
    """

    send_key: bytes = attrs.field(repr=False)
    receive_key: bytes = attrs.field(repr=False)
    peer_key: bytes = attrs.field(repr=key_text)
    handshake_hash: bytes = attrs.field(repr=False)


class _Handshake:
    """What both roles share: the order of the acts, and the judgement of the other side's identity."""

    __slots__ = ("_acts_done", "_identity", "_noise", "_peer_key")

    def __init__(self, identity: Identity, ephemeral: bytes | None, *, initiator: bool) -> None:
        self._identity = identity
        self._noise = HandshakeState(
            initiator=initiator,
            prologue=PREFACE,
            static=KeyPair(identity.x25519_private, identity.x25519_public),
            # SPEC handshake.md: A side MUST draw its ephemeral private key anew for every connection from a secure
            #   random source of the operating system.
            ephemeral=KeyPair.from_private(os.urandom(KEY_BYTES) if ephemeral is None else ephemeral),
        )
        self._peer_key = b""
        self._acts_done = 0

    @property
    def result(self) -> HandshakeResult:
        """The outcome.

        Raises:
            LocalProtocolError: the handshake is not complete, or has failed.
        """
        if self._acts_done != len(_XX):
            raise LocalProtocolError("the handshake is not complete")
        send_key, receive_key = self._noise.split()
        return HandshakeResult(send_key, receive_key, self._peer_key, self._noise.handshake_hash)

    @contextmanager
    def _act(self, number: int) -> Iterator[None]:
        """Lets act ``number`` happen in its turn only; an exception in it leaves the object dead."""
        done, self._acts_done = self._acts_done, _DEAD
        # SPEC handshake.md: A side MUST take each act exactly once and in this order.
        if done != number - 1:
            raise LocalProtocolError(f"act {number} is out of turn, or an earlier act failed")
        yield
        self._acts_done = number

    def _read(self, message: bytes | bytearray | memoryview, size: int) -> bytes:
        """The payload of an act of exactly ``size`` bytes."""
        if len(message) != size:
            raise HandshakeError(f"an act of {len(message)} bytes instead of {size}")
        return self._noise.read_message(bytes(message))

    def _judge(self, identity: bytes) -> None:
        """Believe the identity that the other side claims, if it proved it and is not this side's own."""
        proved = self._noise.remote_static
        try:
            image = x25519_image(identity)
        except ValueError as problem:
            raise HandshakeError("the claimed identity is not a valid key") from problem
        # SPEC handshake.md: A side MUST refuse an identity whose X25519 image differs from the static key in the
        #   same act.
        # SPEC handshake.md: A side MUST compare keys in constant time.
        if not compare_digest(image, proved):
            raise HandshakeError("the claimed identity is not the key that was proved")
        # SPEC handshake.md: A side MUST refuse an identity whose X25519 image is its own.
        # By the image, not by the identity: who holds K can also claim -K, and would still be ourselves.
        if compare_digest(proved, self._identity.x25519_public):
            raise HandshakeError("the other side has this side's own identity")
        self._peer_key = identity


class ClientHandshake(_Handshake):
    """The client's side: ``act1()``, ``read_act2(data)``, ``act3()``, ``result``.

    Args:
        identity: the client's own.
        relay_key: the Ed25519 identity that the relay must prove (32 bytes).
        ephemeral: X25519 private key (32 bytes), for reproducible tests only; by default a fresh one.

    Raises:
        ValueError: a key that does not have 32 bytes.
    """

    __slots__ = ("_relay_key",)

    def __init__(self, identity: Identity, relay_key: bytes, *, ephemeral: bytes | None = None) -> None:
        super().__init__(identity, ephemeral, initiator=True)
        if len(relay_key) != KEY_BYTES:
            raise ValueError(f"a relay's key has {KEY_BYTES} bytes, not {len(relay_key)}")
        self._relay_key = relay_key

    def act1(self) -> bytes:
        """The 36 bytes that open the connection.

        Raises:
            LocalProtocolError: out of turn.
        """
        # SPEC handshake.md: A client MUST send exactly these 36 bytes first.
        with self._act(1):
            return PREFACE + self._noise.write_message(b"")

    def read_act2(self, data: bytes | bytearray | memoryview) -> None:
        """Take the relay's 128 bytes, and judge who it is.

        Raises:
            RelayKeyMismatch: the relay proved another identity than the pinned one.
            HandshakeError: anything else is wrong with the bytes.
            LocalProtocolError: out of turn.
        """
        with self._act(2):
            # SPEC handshake.md: A client MUST end the connection when anything in act 2 fails to decrypt.
            self._judge(self._read(data, ACT2_BYTES))
            # SPEC handshake.md: A client MUST end the connection when the relay identity is not byte for byte the
            #   key in the address.
            if not compare_digest(self._peer_key, self._relay_key):
                raise RelayKeyMismatch(
                    f"the relay proved the key {key_text(self._peer_key)}, "
                    f"but its address names {key_text(self._relay_key)}"
                )

    def act3(self) -> bytes:
        """The 96 bytes that prove this client; records may follow them at once.

        Raises:
            LocalProtocolError: out of turn.
        """
        # SPEC handshake.md: A client MUST check the relay identity as described under "Checking an identity" before
        #   it sends act 3.
        with self._act(3):
            return self._noise.write_message(self._identity.public_key)


class RelayHandshake(_Handshake):
    """The relay's side: ``read_act1(data)``, ``act2()``, ``read_act3(data)``, ``result``.

    Args:
        identity: the relay's own.
        ephemeral: X25519 private key (32 bytes), for reproducible tests only; by default a fresh one.

    Raises:
        ValueError: an ephemeral key that does not have 32 bytes.
    """

    __slots__ = ()

    def __init__(self, identity: Identity, *, ephemeral: bytes | None = None) -> None:
        super().__init__(identity, ephemeral, initiator=False)

    def read_act1(self, data: bytes | bytearray | memoryview) -> None:
        """Take the client's 36 bytes.

        Raises:
            HandshakeError: another protocol, another version, or another length.
            LocalProtocolError: out of turn.
        """
        with self._act(1):
            # SPEC handshake.md: A relay MUST close the connection without a word when the version is not 1.
            if data[: len(PREFACE)] != PREFACE:
                raise HandshakeError("another protocol, or another version of this one")
            self._read(data[len(PREFACE) :], ACT1_BYTES - len(PREFACE))

    def act2(self) -> bytes:
        """The 128 bytes that prove this relay.

        Raises:
            HandshakeError: the client's ephemeral key is of small order.
            LocalProtocolError: out of turn.
        """
        with self._act(2):
            return self._noise.write_message(self._identity.public_key)

    def read_act3(self, data: bytes | bytearray | memoryview) -> None:
        """Take the client's 96 bytes, and judge who it is.

        Raises:
            HandshakeError: anything is wrong with the bytes, or the identity is the relay's own.
            LocalProtocolError: out of turn.
        """
        with self._act(3):
            # SPEC handshake.md: A relay MUST close the connection without a word when act 3 fails to decrypt or the
            #   identity fails its check.
            # SPEC handshake.md: A relay MUST accept every valid client identity, unless its configuration says
            #   otherwise.
            self._judge(self._read(data, ACT3_BYTES))
