"""A command's connection to its relay, and what people are told about it on stderr."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from awesomeconnect.cli.exits import one_line
from awesomeconnect.cli.text import safe
from awesomeconnect.errors import Refused, code_label

if TYPE_CHECKING:
    from awesomeconnect.client import Node


def run(command: Callable[[], Awaitable[None]]) -> None:
    """Run a command's coroutine."""
    import anyio

    anyio.run(command, backend="trio")


def tell(text: str) -> None:
    """A line for people."""
    click.echo(text, err=True)


class Link(NamedTuple):
    """How to reach the relay, and as whom."""

    relays: Sequence[str]
    key_file: Path | None
    attributes: dict[str, str]
    timeout_s: float

    @asynccontextmanager
    async def open(self, rooms: Sequence[str] = ()) -> AsyncIterator[tuple[Node, Notices]]:
        """Connect and join; what happens to the connection meanwhile is told on stderr and noted."""
        import anyio

        from awesomeconnect.client import connect

        async with (
            connect(
                list(self.relays),
                identity=self.key_file,
                attributes=self.attributes,
                rooms=list(rooms),
                timeout_s=self.timeout_s,
            ) as node,
            anyio.create_task_group() as tasks,
        ):
            notices = Notices()
            tasks.start_soon(notices.follow, node)
            yield node, notices
            await node.aclose()  # ends the events too, so that all of them have been seen


class Notices:
    """What went wrong on a connection.

    Attributes:
        lost: messages that were lost on the way to this node.
        refused: messages of this node that the relay refused; flushing raises why.
        was_interrupted: the connection broke; what was sent to this node until it was back is missing.
        on_lost: called after `lost` has grown.
    """

    def __init__(self) -> None:
        self.lost = 0
        self.refused = 0
        self.was_interrupted = False
        self.on_lost: Callable[[], None] = lambda: None

    async def follow(self, node: Node) -> None:
        """Tell and note events until cancelled."""
        from awesomeconnect.client import (
            Connected,
            Disconnected,
            GapReport,
            GoingAway,
            Moved,
            Refusal,
            RoomLost,
        )

        async for event in node.events():
            match event:
                case Disconnected(error, retry_in_s) if retry_in_s is not None:
                    self.was_interrupted = True
                    again = f"trying again in {retry_in_s:.1f} s"
                    tell(f"Warning: connection lost: {one_line(error)}; {again}")
                case Connected(relay) if self.was_interrupted:
                    tell(f"connected again to {relay}")
                case Moved(relay):
                    tell(f"moved to {relay}")
                case GapReport():
                    self.lost += event.count
                    where = f" in {safe(event.room)}" if event.room else ""
                    size = f"{event.count} messages ({event.lost_bytes:,} bytes)"
                    why = "this command was too slow" if event.local else code_label(event.code)
                    tell(f"Warning: lost {size}{where}: {why}")
                    self.on_lost()
                case Refusal():
                    self.refused += len(event.ordinals)
                case GoingAway():
                    tell(f"the relay asks its nodes to leave: {code_label(event.code)}")
                case RoomLost(room, code):
                    raise Refused.from_code(code, f"no longer in room {room!r}")

    def problem(self) -> str | None:
        """Why the received messages may be incomplete; None when they are not."""
        if self.lost:
            return f"{self.lost} messages were lost on the way here; read faster, or let the sender wait"
        if self.was_interrupted:
            return "the connection broke meanwhile, so messages may be missing; ask for them again"
        return None
