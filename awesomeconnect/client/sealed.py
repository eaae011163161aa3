"""Sealed messages of a node by SEND: their sequences, and what was opened before."""

from __future__ import annotations

from awesomeconnect.errors import AddressError
from awesomeconnect.identity import Identity
from awesomeconnect.wire.sealing import (
    BY_SEND,
    IN_SEGMENT,
    Place,
    ReplayGuard,
    SealBroken,
    Sealer,
    decode_sealed,
    encode_sealed,
)

#: Peers and classes whose sequences are remembered, in each direction.
MAX_STREAMS = 16_384


class Sealing:
    """Seals and opens, by SEND and in segments.

    Args:
        incarnation: of this node, 16 bytes.
    """

    def __init__(self, identity: Identity, incarnation: bytes) -> None:
        self._sealer = Sealer(identity)
        self._incarnation = incarnation
        self._sequences: dict[tuple[bytes, int], int] = {}
        self._floor = 0  # above all sequences that were forgotten
        self._guards: dict[tuple[bytes, int], ReplayGuard] = {}

    def check(self, peer: bytes) -> None:
        """Raise AddressError for what is no key of a peer."""
        try:
            self._sealer.check(peer)
        except ValueError as problem:
            raise AddressError(f"cannot seal for this peer: {problem}") from problem

    def seal(self, peer: bytes, traffic_class: int, content: int, payload: bytes) -> bytes:
        """The payload of content 3 that carries a message; raises AddressError for what is no key."""
        # SPEC sealed.md: A sender MUST give the sealed messages by SEND to one receiver in one class ascending
        #   sequences within an incarnation.
        self.check(peer)
        if len(self._sequences) >= MAX_STREAMS:
            self._floor = max(self._sequences.values())
            self._sequences.clear()
        sequence = self._sequences.get((peer, traffic_class), self._floor) + 1
        place = Place(BY_SEND, traffic_class, self._incarnation, sequence)
        box = self._sealer.seal(peer, place, content, payload)
        self._sequences[peer, traffic_class] = sequence
        return encode_sealed(self._incarnation, sequence, box)

    def open(self, sender: bytes, traffic_class: int, payload: bytes) -> tuple[int, bytes]:
        """Content and payload inside a payload of content 3; raises SealBroken."""
        incarnation, sequence, box = decode_sealed(payload)
        guard = self._guards.get((sender, traffic_class)) or ReplayGuard()
        # SPEC sealed.md: A receiver MUST ignore a sealed message by SEND whose incarnation is lower than one that
        #   it has opened from this sender.
        # SPEC sealed.md: A receiver MUST NOT open two sealed messages by SEND with the same incarnation, class and
        #   sequence from one sender.
        if not guard.admits(incarnation, sequence):
            raise SealBroken("a sealed message that was opened before")
        opened = self._sealer.open(sender, Place(BY_SEND, traffic_class, incarnation, sequence), box)
        guard.note(incarnation, sequence)
        self._guards.pop((sender, traffic_class), None)
        if len(self._guards) >= MAX_STREAMS:
            del self._guards[next(iter(self._guards))]  # heard of longest ago
        self._guards[sender, traffic_class] = guard
        return opened

    def seal_segment(
        self, peer: bytes, traffic_class: int, incarnation: bytes, sequence: int, content: int, payload: bytes
    ) -> bytes:
        """The payload of a segment that carries a sealed message to a peer that was checked."""
        return self._sealer.seal(peer, Place(IN_SEGMENT, traffic_class, incarnation, sequence), content, payload)

    def open_segment(
        self, sender: bytes, traffic_class: int, incarnation: bytes, sequence: int, box: bytes
    ) -> tuple[int, bytes]:
        """Content and payload inside a sealed segment; raises SealBroken."""
        return self._sealer.open(sender, Place(IN_SEGMENT, traffic_class, incarnation, sequence), box)
