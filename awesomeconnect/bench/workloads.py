"""What is asked of every system under test, in numbers. Knows neither protocols nor processes."""

from __future__ import annotations

from enum import StrEnum

import attrs

ROOM = "bench"


class Kind(StrEnum):
    """What is measured, and how."""

    STREAM = "stream"  #: one room, and as much traffic through it as a window allows
    RTT = "rtt"  #: pairs of members that answer each other
    CONNECT = "connect"  #: connections made and dropped
    IDLE = "idle"  #: connections that say nothing


@attrs.frozen
class Workload:
    """Connections, and what they do.

    `payload_bytes` is the application's part of a message. Of a stream, `publishers` connections outside the room
    publish to it, in turn; 0 means that the members themselves do. `pack` messages leave in one send() (for the
    relay: in one record). At most `window` messages are published and not yet received by every member.

    Of the other kinds, `members` is how many there are: pairs that answer each other, with `window` messages each
    under way; connections made at a time; idle connections.
    """

    name: str
    payload_bytes: int
    publishers: int
    members: int
    pack: int
    window: int = attrs.field()
    kind: Kind = attrs.field(default=Kind.STREAM, converter=Kind)

    @window.validator
    def _holds_a_batch(self, attribute: attrs.Attribute[int], window: int) -> None:
        if window < self.pack:
            raise ValueError(f"{self.name}: a window of {window} messages never lets {self.pack} at once leave")

    @property
    def deliveries_per_message(self) -> int:
        """Or handshakes, and so on: what one step of the kind comes to."""
        match self.kind:
            case Kind.STREAM:
                return self.members if self.publishers else self.members - 1
            case Kind.RTT:
                return 2
            case _:
                return 1


# `pair16k`: 3 frames fill a record; the window stays below the relay's high-water mark of 1 MiB a queue.
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("fanout", payload_bytes=128, publishers=1, members=100, pack=8, window=256),
        Workload("pair", payload_bytes=128, publishers=1, members=1, pack=64, window=1024),
        Workload("room", payload_bytes=200, publishers=0, members=20, pack=8, window=256),
        Workload("pair16k", payload_bytes=16_384, publishers=1, members=1, pack=3, window=48),
        Workload("rtt", payload_bytes=128, publishers=0, members=1, pack=1, window=1, kind=Kind.RTT),
        Workload("connect", payload_bytes=0, publishers=0, members=4, pack=1, window=1, kind=Kind.CONNECT),
        Workload("idle", payload_bytes=0, publishers=0, members=1_000, pack=1, window=1, kind=Kind.IDLE),
    )
}
STREAMS = {name: workload for name, workload in WORKLOADS.items() if workload.kind is Kind.STREAM}
