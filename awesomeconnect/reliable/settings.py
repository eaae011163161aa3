"""Bounds and patience of reliable mode. Every value has its reason in protocol-spec/reliable.md, Limits."""

from __future__ import annotations

from attrs import frozen


@frozen
class ReliableSettings:
    """Sizes in bytes, times in milliseconds."""

    #: Whether this node takes reliable messages; senders are told when it does not.
    is_offered: bool = True
    #: Held for all receivers together until they are taken; `send` waits when it is full.
    outbox_bytes: int = 8 << 20
    #: Sent to one receiver in one class and not taken yet.
    window_bytes: int = 1 << 20
    window_messages: int = 1_024
    #: Arrived out of order, of all senders together.
    buffer_bytes: int = 4 << 20
    #: How far ahead of the next expected message one is kept.
    ahead_messages: int = 4_096
    #: Streams that are remembered, in each direction.
    streams: int = 16_384
    #: An acknowledgement of what the application has not taken waits this long.
    ack_delay_ms: int = 100
    #: Until a segment is sent again: at first, at least, at most.
    first_timeout_ms: int = 1_000
    least_timeout_ms: int = 400
    most_timeout_ms: int = 5_000
    #: After a refusal by the relay: attempt n waits up to ``backoff_ms * 2**n``, at most ``most_backoff_ms``.
    backoff_ms: int = 100
    most_backoff_ms: int = 2_500
    #: One refusal answers what one sender sends within this.
    refusal_ms: int = 1_000

    #: Published to all rooms and kept for those who missed it.
    ring_bytes: int = 8 << 20
    ring_ms: int = 300_000
    #: The first mark after a message, and the most between two.
    first_mark_ms: int = 1_000
    most_mark_ms: int = 60_000
    #: The delay of a request: up to so much for each member of the room, within these bounds.
    request_ms_per_member: int = 1
    least_request_ms: int = 10
    most_request_ms: int = 2_000
    #: Until a request is repeated, doubling; and until what is missing is given up.
    request_again_ms: int = 500
    repair_ms: int = 20_000
    #: So many receivers that ask for a message bring a PUBLISH, which then answers all for a while.
    requests_for_publish: int = 3
    published_again_ms: int = 1_000
