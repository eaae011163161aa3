"""Sealed messages: what only one receiver can open, and only if the named sender made it (protocol-spec/sealed.md).

A NaCl box between the X25519 images of two identities. Its nonce is computed from the message's place, so it opens
only there: this sender, this receiver, this class, this incarnation and sequence.

Pure: no clock, no randomness. Beside ``identity.py`` and ``wire/noise.py`` the only module that touches PyNaCl.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final, NamedTuple

from nacl.bindings import crypto_box_afternm, crypto_box_beforenm, crypto_box_open_afternm
from nacl.exceptions import CryptoError

from awesomeconnect.errors import RemoteProtocolError
from awesomeconnect.identity import Identity, x25519_image
from awesomeconnect.wire import cbor
from awesomeconnect.wire.fields import MAX_UINT
from awesomeconnect.wire.parts import Content

INCARNATION_BYTES: Final = 16
#: What sealing adds to a payload: content and tag, and outside of segments the array.
OVERHEAD_BYTES: Final = 64
#: Forms, for the nonce.
BY_SEND, IN_SEGMENT = 0, 1

_CONTEXT: Final = b"awesomeconnect-sealed-1"
_NONCE_BYTES: Final = 24
_TAG_BYTES: Final = 16
_INNER: Final = frozenset({Content.APPLICATION, Content.REQUEST, Content.RESPONSE})
#: Peers whose shared keys are kept.
_MAX_PEERS: Final = 1_024


class SealBroken(Exception):
    """A sealed message that does not open, or holds what it must not; it is to be ignored."""


class Place(NamedTuple):
    """Where a sealed message belongs, besides its sender and receiver.

    Attributes:
        form: BY_SEND or IN_SEGMENT.
        incarnation: of the sender, 16 bytes.
    """

    form: int
    traffic_class: int
    incarnation: bytes
    sequence: int


class Sealer:
    """Seals and opens for one identity."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._shared: dict[bytes, bytes] = {}

    def check(self, peer: bytes) -> None:
        """Raise ValueError for what is not an Ed25519 public key of prime order."""
        self._shared_with(peer)

    def seal(self, receiver: bytes, place: Place, content: int, payload: bytes) -> bytes:
        """The box of a message for a receiver.

        Raises:
            ValueError: the receiver's key is not an Ed25519 public key of prime order.
        """
        # SPEC sealed.md: A sender MUST refuse to seal for a receiver whose identity the handshake would refuse.
        nonce = _nonce(place, self._identity.public_key, receiver)
        box: bytes = crypto_box_afternm(bytes((content,)) + payload, nonce, self._shared_with(receiver))
        return box

    def open(self, sender: bytes, place: Place, box: bytes) -> tuple[int, bytes]:
        """Content and payload of a box from a sender.

        Raises:
            SealBroken: it was not made by this sender for this identity and place.
        """
        # SPEC sealed.md: A receiver MUST ignore a payload of content 3 that does not match the CDDL, that does not
        #   open, or whose content inside is not 0, 4 or 5.
        if len(box) <= _TAG_BYTES:
            raise SealBroken("a box that holds nothing")
        nonce = _nonce(place, sender, self._identity.public_key)
        try:
            inside: bytes = crypto_box_open_afternm(box, nonce, self._shared_with(sender))
        except (CryptoError, ValueError) as problem:
            raise SealBroken(f"a box that does not open: {problem}") from None
        if inside[0] not in _INNER:
            raise SealBroken(f"content {inside[0]} in a box")
        return inside[0], inside[1:]

    def _shared_with(self, peer: bytes) -> bytes:
        shared = self._shared.get(peer)
        if shared is None:
            image = x25519_image(peer)
            if len(self._shared) >= _MAX_PEERS:
                self._shared.clear()
            shared = self._shared[peer] = crypto_box_beforenm(image, self._identity.x25519_private)
        return shared


def _nonce(place: Place, sender: bytes, receiver: bytes) -> bytes:
    form, traffic_class, incarnation, sequence = place
    parts = (
        _CONTEXT,
        bytes((form, traffic_class)),
        incarnation,
        sequence.to_bytes(8, "big"),
        sender,
        receiver,
    )
    return sha256(b"".join(parts)).digest()[:_NONCE_BYTES]


def encode_sealed(incarnation: bytes, sequence: int, box: bytes) -> bytes:
    """The payload of content 3."""
    return cbor.encode([incarnation, sequence, box])


def decode_sealed(data: bytes) -> tuple[bytes, int, bytes]:
    """Incarnation, sequence and box of a payload of content 3.

    Raises:
        SealBroken: it does not match the CDDL.
    """
    try:
        value = cbor.decode(data)
    except RemoteProtocolError as error:
        raise SealBroken(f"bad sealed payload: {error}") from None
    match value:
        case [bytes(incarnation), int(sequence), bytes(box)]:
            if len(incarnation) == INCARNATION_BYTES and 1 <= sequence <= MAX_UINT and sequence is not True:
                return incarnation, sequence, box
    raise SealBroken("not a sealed payload")


class ReplayGuard:
    """What was opened from one sender in one class: sequences, as far back as a window reaches."""

    __slots__ = ("_highest", "_seen", "incarnation")

    #: How much lower than the highest a sequence may be.
    WINDOW = 1_024

    def __init__(self) -> None:
        self.incarnation = b""
        self._highest = 0
        self._seen = 0  # bit n: highest - n was opened

    def admits(self, incarnation: bytes, sequence: int) -> bool:
        """Whether a message was not opened before; asked before it is opened."""
        if incarnation != self.incarnation:
            return incarnation > self.incarnation
        behind = self._highest - sequence
        return behind < 0 or (behind < self.WINDOW and not self._seen >> behind & 1)

    def note(self, incarnation: bytes, sequence: int) -> None:
        """A message was opened."""
        if incarnation != self.incarnation:
            self.incarnation, self._highest, self._seen = incarnation, sequence, 1
        elif sequence > self._highest:
            ahead = min(sequence - self._highest, self.WINDOW)
            self._seen = (self._seen << ahead | 1) & (1 << self.WINDOW) - 1
            self._highest = sequence
        else:
            self._seen |= 1 << self._highest - sequence
