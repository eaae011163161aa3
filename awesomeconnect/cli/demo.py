"""``demo``: a relay and five nodes in one process move real data, and what arrived is counted and checked.

Ada broadcasts a film to the others while her urgent alerts overtake it; then every node writes letters to its
neighbour, and Ada hands out jobs, each to whichever node the relay picks.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

import click

from awesomeconnect.cli.exits import ExitCode, Failure
from awesomeconnect.cli.link import run, tell

if TYPE_CHECKING:
    from awesomeconnect.client import Node

NAMES = ("Ada", "Bob", "Cleo", "Dan", "Eve")
FILM_BYTES = 8 << 20
PIECE_BYTES = 64 << 10
ALERTS = 50
ALERT_INTERVAL_S = 0.002
LETTERS = 1_000
JOBS = 300
#: All of it takes two seconds on a small machine; what has not come by then is missing.
PATIENCE_S = 30.0
ROOM = "demo"


class Part:
    """One part of the programme, and how much of it has arrived."""

    def __init__(self, name: str, unit: str, expected: int) -> None:
        import trio

        self.name = name
        self.unit = unit
        self.expected = expected
        self.arrived = 0
        self.complete = trio.Event()
        self.show: Callable[[], None] = lambda: None

    def arrive(self, amount: int) -> None:
        """Some more of it has arrived."""
        self.arrived += amount
        if self.arrived >= self.expected:
            self.complete.set()
        self.show()


class Guest:
    """A node of the demo and all that it has received."""

    def __init__(self, name: str, node: Node, parts: dict[str, Part]) -> None:
        self.name = name
        self.node = node
        self.film = hashlib.sha256()
        self.film_bytes = 0
        self.letters: set[bytes] = set()
        self.jobs: set[bytes] = set()
        self.alert_delays_ms: list[float] = []
        self._parts = parts

    async def receive(self) -> None:
        """Take in messages until cancelled."""
        from awesomeconnect.wire.parts import Mode, TrafficClass

        async for message in self.node:
            payload = message.payload
            if message.mode == Mode.UNICAST:
                self._keep(self.letters, payload, "letters")
            elif message.mode == Mode.ANYCAST:
                self._keep(self.jobs, payload, "jobs")
            elif message.traffic_class == TrafficClass.URGENT:
                self.alert_delays_ms.append((time.perf_counter_ns() - int.from_bytes(payload)) / 1e6)
                self._parts["alerts"].arrive(1)
            else:
                self.film.update(payload)
                self.film_bytes += len(payload)
                self._parts["film"].arrive(len(payload))

    def _keep(self, kept: set[bytes], payload: bytes, part: str) -> None:
        if payload not in kept:  # a duplicate is not an arrival
            kept.add(payload)
            self._parts[part].arrive(1)


@click.command()
def demo() -> None:
    """See it work: an embedded relay and five nodes move real data and check what arrives.

    An 8 MiB film to a room with urgent alerts overtaking it, 1,000 letters from node to node, 300 jobs spread
    over workers. Ends with a table of what arrived at whom; exit code 5 if anything is missing.
    """
    run(_demo)


async def _demo() -> None:
    import trio

    from awesomeconnect.client import connect
    from awesomeconnect.identity import Identity
    from awesomeconnect.server import Relay
    from awesomeconnect.server.listeners import bound_address, open_listeners

    others = len(NAMES) - 1
    parts = {
        "film": Part("film to the room", "bytes", FILM_BYTES * others),
        "alerts": Part("urgent alerts", "messages", ALERTS * others),
        "letters": Part("letters, peer to peer", "messages", LETTERS),
        "jobs": Part("jobs, to any one", "messages", JOBS),
    }
    relay = Relay(Identity.generate())
    [listener] = open_listeners("127.0.0.1:0")
    address = f"ac://{relay.identity.public_key.hex()}@{bound_address(listener)}"
    film = os.urandom(FILM_BYTES)
    with listener:
        async with trio.open_nursery() as house:
            await house.start(relay.serve, [listener])
            tell(f"a relay at {address}")
            async with AsyncExitStack() as connections:
                guests = []
                for name in NAMES:
                    link = connect(address, attributes={"name": name}, rooms=[ROOM])
                    guests.append(Guest(name, await connections.enter_async_context(link), parts))
                tell(f"five nodes in the room {ROOM}: {', '.join(NAMES)}")
                async with trio.open_nursery() as receivers:
                    for guest in guests:
                        receivers.start_soon(guest.receive)
                    with _progress(parts.values()), trio.move_on_after(PATIENCE_S):
                        await _perform(guests, film, parts)
                    receivers.cancel_scope.cancel()
            house.cancel_scope.cancel()
    _print_result(guests, hashlib.sha256(film).digest(), parts.values())


async def _perform(guests: list[Guest], film: bytes, parts: dict[str, Part]) -> None:
    """Send everything, part by part, and wait until it has arrived."""
    import trio

    from awesomeconnect.wire.parts import TrafficClass

    ada = guests[0].node

    async def alert() -> None:
        for _ in range(ALERTS):
            now = time.perf_counter_ns().to_bytes(8)
            await ada.publish(ROOM, now, traffic_class=TrafficClass.URGENT)
            await trio.sleep(ALERT_INTERVAL_S)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(alert)
        for at in range(0, FILM_BYTES, PIECE_BYTES):
            piece = film[at : at + PIECE_BYTES]
            await ada.publish(ROOM, piece, traffic_class=TrafficClass.BULK, wait=True)
    await ada.flush()
    await parts["film"].complete.wait()
    await parts["alerts"].complete.wait()

    for number in range(LETTERS):
        writer, reader = guests[number % len(guests)], guests[(number + 1) % len(guests)]
        await writer.node.send(reader.node.key, b"letter %d" % number)
    for guest in guests:
        await guest.node.flush()
    await parts["letters"].complete.wait()

    for number in range(JOBS):
        await ada.send_any(ROOM, b"job %d" % number)
    await ada.flush()
    await parts["jobs"].complete.wait()


@contextmanager
def _progress(parts: Iterable[Part]) -> Iterator[None]:
    """Bars on a terminal, elsewhere a line when a part is complete."""
    if not sys.stderr.isatty():
        for part in parts:
            part.show = partial(_tell_complete, part)
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        for part in parts:
            task = progress.add_task(part.name, total=part.expected)
            part.show = lambda part=part, task=task: progress.update(task, completed=part.arrived)  # type: ignore[misc]
        yield


def _tell_complete(part: Part) -> None:
    if part.complete.is_set():
        tell(f"{part.name}: {part.arrived:,} {part.unit} arrived")


def _print_result(guests: list[Guest], film_hash: bytes, parts: Iterable[Part]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("node", "film", "alerts", "their delay", "letters", "jobs", box=box.SIMPLE)
    damaged = []
    for guest in guests:
        row = ["sent it", "sent them", ""]
        if guest is not guests[0]:
            intact = guest.film.digest() == film_hash
            if not intact:
                damaged.append(guest.name)
            delays = guest.alert_delays_ms or [0.0]
            row = [
                f"{guest.film_bytes >> 10:,} KiB, {'hash matches' if intact else 'DAMAGED'}",
                str(len(guest.alert_delays_ms)),
                f"median {median(delays):.1f} ms, worst {max(delays):.1f} ms",
            ]
        table.add_row(guest.name, *row, str(len(guest.letters)), str(len(guest.jobs)))
    Console(width=None if sys.stdout.isatty() else 110).print(table)
    missing = [
        f"{part.name}: {part.arrived:,} of {part.expected:,}" for part in parts if part.arrived < part.expected
    ]
    if missing or damaged:
        raise Failure("; ".join(missing + [f"the film is damaged at {name}" for name in damaged]), ExitCode.LOST)
    click.echo("Everything arrived.")
