"""What outlives a process, if the application wants that: two hooks, called at the places that matter.

An `OutboxStore` keeps what a sender has taken and not settled, and its sequences: after a restart the sender goes
on in the same incarnation, so receivers still know duplicates. A `TakenStore` keeps what a receiver has taken. Both
are called synchronously, and what they raise comes out of the call that the application made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class StoredMessage(NamedTuple):
    """A message that was taken from the application and has not ended. Unix time outlives clocks."""

    peer: bytes
    traffic_class: int
    sequence: int
    content: int
    payload: bytes
    expires_unix_ms: int


class StoredOutbox(NamedTuple):
    """What an `OutboxStore` knows when a node begins.

    Attributes:
        incarnation: of the sender; None: the store is new.
        messages: in the order of sequences in each stream.
        next_sequences: (peer, class) -> what comes after all that were ever used there, for streams with messages.
        floor: above all sequences that were ever used in any stream; 1 in a new store.
    """

    incarnation: bytes | None
    messages: Sequence[StoredMessage]
    next_sequences: dict[tuple[bytes, int], int]
    floor: int


class OutboxStore(Protocol):
    """Keeps messages until they have ended."""

    def load_outbox(self) -> StoredOutbox:
        """What was kept."""

    def begin(self, incarnation: bytes) -> None:
        """Keep the incarnation of a new store."""

    def add(self, message: StoredMessage) -> None:
        """Keep a message, and that its sequence is used; called before it is sent."""

    def remove(self, peer: bytes, traffic_class: int, sequence: int) -> None:
        """A message has ended."""


class StoredStream(NamedTuple):
    """What was taken of a stream.

    Attributes:
        next: everything below it.
        beyond: what is above.
        longest_ms: the longest expiry that was seen.
        heard_unix_ms: when it was last heard.
    """

    sender: bytes
    traffic_class: int
    incarnation: bytes
    next: int
    beyond: Sequence[int]
    longest_ms: int
    heard_unix_ms: int


class TakenStore(Protocol):
    """Keeps what was taken, so that it is not handed over again."""

    def load_taken(self) -> Sequence[StoredStream]:
        """What was kept."""

    def taken(self, stream: StoredStream) -> None:
        """Keep this in place of what was kept of the stream; called before a message counts as taken."""

    def forget(self, sender: bytes, traffic_class: int) -> None:
        """A stream need not be kept any more."""
