"""Has the hot path become slower? CPU of the relay's own path against a plain loop, in one process, as a ratio.

    python -m tests.benchmarks.guard               # a few seconds; exit status 1 on a regression of 30 %
    python -m tests.benchmarks.guard --update      # the hot path has changed on purpose: new reference ratios

What is timed is everything that the relay does with application messages, but for the kernel: sealed records lie
ready in memory, sessions of a real `Relay` read them, open, cut, route and seal them, and the transport drops what
they send. Beside it, in turns of some milliseconds, runs the yardstick: a loop in pure Python over as much input
that does what no relay can leave out, with nothing around it. A slower machine, another version of Python or of the
cipher library, and a neighbour who takes half of the core slow both; the ratio stays. It is taken of CPU time, of
the least that each of the two took, and where it looks like a regression more turns are taken, up to four times as
many.

Knows sessions by their transport only. Reads no clock but CPU time, and the input is the same in every run.
"""

from __future__ import annotations

import gc
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import click
import trio
import trio.testing
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from awesomeconnect.identity import Identity
from awesomeconnect.server import Relay
from awesomeconnect.wire.connection import ClientConnection
from awesomeconnect.wire.messages import (
    Content,
    Hello,
    Incarnation,
    Joined,
    Publish,
    RoomIntent,
    TrafficClass,
    Welcome,
    encode_frame,
)

REFERENCE = Path(__file__).with_name("guard.json")
TOLERANCE = 1.3
ATTEMPTS = 4
ROOM = "guard"


@attrs.frozen
class Row:
    """A workload: `publishers` outside the room, or 0 when its members publish; `pack` messages a record.

    `messages` pass in one turn of the measurement, `turns` turns are taken.
    """

    name: str
    payload_bytes: int
    publishers: int
    members: int
    pack: int
    messages: int
    turns: int

    @property
    def deliveries(self) -> int:
        return self.messages * (self.members if self.publishers else self.members - 1)


ROWS = (
    Row("fanout", payload_bytes=128, publishers=1, members=100, pack=8, messages=512, turns=120),
    Row("room", payload_bytes=200, publishers=0, members=20, pack=8, messages=640, turns=120),
    Row("pair", payload_bytes=128, publishers=1, members=1, pack=64, messages=4_096, turns=120),
    Row("pair_single", payload_bytes=128, publishers=1, members=1, pack=1, messages=512, turns=120),
    Row("pair16k", payload_bytes=16_384, publishers=1, members=1, pack=3, messages=144, turns=120),
)


class MemoryTransport:
    """The relay's end of a connection that gives what it was fed, and takes everything at once."""

    peer = "memory"
    path = None

    def __init__(self) -> None:
        self.sent: list[bytes] | None = []  # kept until the node is let in
        self._input = memoryview(b"")
        self._fed = trio.Event()

    def feed(self, data: bytes) -> None:
        self._input = memoryview(data)
        self._fed.set()

    def recv_into(self, buffer: Any) -> int:
        size = min(len(buffer), len(self._input))
        if not size:
            raise BlockingIOError
        buffer[:size] = self._input[:size]
        self._input = self._input[size:]
        return size

    def send(self, data: Any) -> int:
        if self.sent is not None:
            self.sent.append(bytes(data))
        return len(data)

    async def wait_readable(self) -> None:
        if not self._input:
            self._fed = trio.Event()
            await self._fed.wait()

    async def wait_writable(self) -> None:
        await trio.lowlevel.checkpoint()

    def half_close(self) -> None:
        """Nobody reads."""

    def close(self) -> None:
        """Nobody reads."""


class Node:
    """A client whose bytes are made ready before the clock runs."""

    def __init__(self, relay: Relay, seed: int, rooms: tuple[RoomIntent, ...]) -> None:
        self._rooms = rooms
        self.transport = MemoryTransport()
        self._connection = ClientConnection(Identity.from_seed(seed.to_bytes(32, "big")), relay.identity.public_key)
        relay.connect(self.transport)

    async def enter(self) -> None:
        connection, sent = self._connection, self.transport.sent
        assert sent is not None
        awaited: list[type] = [Welcome, *(Joined for _ in self._rooms)]
        self.transport.feed(connection.handshake_bytes())
        while awaited:
            await trio.testing.wait_all_tasks_blocked()
            connection.receive(b"".join(sent))
            sent.clear()
            if act := connection.handshake_bytes():
                hello = connection.send(Hello(1, Incarnation(1, bytes(8)), 1, rooms=self._rooms))
                self.transport.feed(act + hello)
            while (message := connection.next_message()) is not None:
                assert type(message) is awaited.pop(0), message
        self.transport.sent = None

    def sealed(self, frames: bytes, records: int) -> bytes:
        return b"".join(self._connection.seal(frames) for _ in range(records))


async def measure_path(row: Row, yardstick: Callable[[], None]) -> tuple[float, float]:
    """Take turns of path and yardstick; the least CPU time of each, in seconds a turn."""
    relay = Relay(Identity.from_seed(bytes(32)))
    async with trio.open_nursery() as nursery:
        await nursery.start(relay.serve)
        gc.disable()  # which the relay sets up for its own needs, and the pauses of which are not asked about here
        nodes = [
            Node(relay, 1 + index, (RoomIntent(ROOM),) if index < row.members else ())
            for index in range(row.members + row.publishers)
        ]
        for node in nodes:
            await node.enter()
        senders = nodes[row.members :] or nodes
        batch = encode_frame(Publish(ROOM, TrafficClass.DATA, Content.APPLICATION, bytes(row.payload_bytes)))
        records = row.messages // row.pack // len(senders)
        path_s: list[float] = []
        yardstick_s: list[float] = []
        for turn in range(row.turns + 1):
            inputs = [node.sealed(batch * row.pack, records) for node in senders]
            delivered = relay.traffic.delivered_messages
            begin = time.thread_time()
            for node, data in zip(senders, inputs, strict=True):
                node.transport.feed(data)
            await trio.testing.wait_all_tasks_blocked()
            end = time.thread_time()
            yardstick()
            if turn:  # the first one makes flows known
                path_s.append(end - begin)
                yardstick_s.append(time.thread_time() - end)
            if relay.traffic.delivered_messages - delivered != row.deliveries:
                raise click.ClickException(f"{row.name}: the relay did not deliver what it was sent")
        nursery.cancel_scope.cancel()
    return min(path_s), min(yardstick_s)


def make_yardstick(row: Row) -> Callable[[], None]:
    """The bare work of one turn: open each record, look each head up, join, and seal 16 KiB or more a member."""
    cipher = ChaCha20Poly1305(bytes(32))
    nonce = bytes(12)
    frame = encode_frame(Publish(ROOM, TrafficClass.DATA, Content.APPLICATION, bytes(row.payload_bytes)))
    head = frame[: -row.payload_bytes]
    record = cipher.encrypt(nonce, frame * row.pack, None)
    # As many bytes as the relay reads, so that the caches of the processor hold as much of both.
    records = [bytes(bytearray(record)) for _ in range(row.messages // row.pack)]
    streams: dict[bytes, list[bytes]] = {head: []}
    receivers = row.deliveries // row.messages
    flush_bytes = 16_384

    def work() -> None:
        queues: list[list[bytes]] = [[] for _ in range(receivers)]
        gathered = 0
        for number, record in enumerate(records, 1):
            plaintext = cipher.decrypt(nonce, record, None)
            for offset in range(0, len(plaintext), len(frame)):
                stream = streams[plaintext[offset : offset + len(head)]]
                stream.append(plaintext[offset + len(head) : offset + len(frame)])
            gathered += len(plaintext)
            if gathered >= flush_bytes or number == len(records):
                gathered = 0
                blob = head.join(streams[head])
                streams[head].clear()
                for queue in queues:
                    queue.append(blob)
                for queue in queues:
                    cipher.encrypt(nonce, queue.pop(), None)

    return work


def measure(row: Row, limit: float = 0.0) -> tuple[float, float]:
    """CPU of the path, in µs a delivery, and its ratio to the yardstick's; measured longer while above a limit."""
    yardstick = make_yardstick(row)
    path_s = yardstick_s = math.inf
    for _ in range(ATTEMPTS):
        found = trio.run(measure_path, row, yardstick)
        path_s, yardstick_s = min(path_s, found[0]), min(yardstick_s, found[1])
        if path_s / yardstick_s <= limit:
            break
    return path_s * 1e6 / row.deliveries, path_s / yardstick_s


@click.command()
@click.option("--update", is_flag=True, help="Write the ratios measured now as the new reference.")
def main(update: bool) -> None:
    """Fail when the relay's hot path takes 30 % more CPU than it did, as a ratio to a plain Python loop."""
    if update:
        ratios = {row.name: round(measure(row)[1], 3) for row in ROWS}
        REFERENCE.write_text(json.dumps(ratios, indent=2) + "\n")
        click.echo(f"wrote {REFERENCE.name}: {ratios}")
        return
    reference = json.loads(REFERENCE.read_text())
    click.echo(f"{'hot path':12}{'µs each':>9}{'ratio':>9}{'reference':>11}{'change':>9}")
    slower = []
    for row in ROWS:
        limit = reference[row.name] * TOLERANCE
        us, ratio = measure(row, limit)
        change = ratio / reference[row.name] - 1
        click.echo(f"{row.name:12}{us:>9.3f}{ratio:>9.2f}{reference[row.name]:>11.2f}{change:>+9.0%}")
        if ratio > limit:
            slower.append(row.name)
    if slower:
        click.echo(f"slower by more than {TOLERANCE - 1:.0%}: {', '.join(slower)}; see tests/benchmarks/README.md")
        sys.exit(1)


if __name__ == "__main__":
    main()
