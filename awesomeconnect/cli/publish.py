"""``pub`` and ``send``: files, lines and standard input become messages."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from awesomeconnect.cli import options
from awesomeconnect.cli.exits import Failure, leaves, one_line
from awesomeconnect.cli.link import Link, Notices, run, tell
from awesomeconnect.cli.options import class_option, link_options
from awesomeconnect.errors import Refused

if TYPE_CHECKING:
    from awesomeconnect.cli.streams import Source
    from awesomeconnect.client import Node

#: Bytes of a message unless ``--size`` says otherwise: large enough to be cheap, small enough for any relay.
MESSAGE_BYTES = 256 << 10

_file_argument = click.argument(
    "file", type=click.Path(exists=True, dir_okay=False, readable=True, allow_dash=True), default="-"
)
_lines_option = click.option(
    "--lines", is_flag=True, help="One message per line, without its end; sent as soon as it is read."
)
_size_option = click.option(
    "--size",
    type=click.IntRange(min=1),
    metavar="BYTES",
    help="Cut the input into messages of this size.  [default: 262144, or the relay's limit]",
)


@click.command()
@click.argument("room", type=options.room)
@_file_argument
@_lines_option
@_size_option
@click.option(
    "--any", "to_any", is_flag=True, help="Each message to one member of the room, which the relay chooses."
)
@class_option
@link_options
def pub(room: str, file: str, lines: bool, size: int | None, to_any: bool, traffic_class: int, link: Link) -> None:
    """Publish FILE, or standard input, to ROOM.

    The input is cut into messages of --size bytes; an empty input is one empty message. Publishing takes the
    pace of the slowest reader, so a file arrives whole at all of them.

    \b
    Examples:
      awesomeconnect pub backups dump.tar
      echo hello | awesomeconnect pub greetings
      tail -f app.log | awesomeconnect pub logs --lines --class bulk
      awesomeconnect pub jobs jobs.txt --lines --any
    """

    def sender(node: Node) -> Callable[[bytes], Awaitable[Any]]:
        send = node.send_any if to_any else node.publish
        return partial(send, room, traffic_class=traffic_class, wait=True)

    run(partial(_transmit, link, file, lines, size, sender))


@click.command()
@click.argument("peer", type=options.peer)
@_file_argument
@_lines_option
@_size_option
@class_option
@link_options
def send(peer: bytes, file: str, lines: bool, size: int | None, traffic_class: int, link: Link) -> None:
    """Send FILE, or standard input, to the node with the public key PEER.

    \b
    Examples:
      awesomeconnect send 3d40…(64 digits)…9c photo.jpg
      echo hello | awesomeconnect send $(awesomeconnect key show alice.key) --class urgent
    """

    def sender(node: Node) -> Callable[[bytes], Awaitable[Any]]:
        return partial(node.send, peer, traffic_class=traffic_class, wait=True)

    run(partial(_transmit, link, file, lines, size, sender))


async def _transmit(
    link: Link,
    file: str,
    lines: bool,
    size: int | None,
    sender: Callable[[Node], Callable[[bytes], Awaitable[Any]]],
) -> None:
    from awesomeconnect.cli.streams import LineTooLong, Source

    source = Source(file)
    if file == "-" and sys.stdin.isatty():
        tell("reading standard input; end it with Ctrl-D")
    async with link.open() as (node, notices):
        limit = node.limits.payload_bytes
        if size is not None and size > limit:
            raise Failure(f"--size {size} is more than this relay takes in one message; give at most {limit}")
        if lines:
            try:
                await _send_lines(node, source, sender(node), limit)
            except LineTooLong as problem:
                raise Failure(str(problem)) from None
        else:
            await _send_blocks(node, notices, source, sender(node), size or min(MESSAGE_BYTES, limit))


async def _send_blocks(
    node: Node, notices: Notices, source: Source, send: Callable[[bytes], Awaitable[Any]], size: int
) -> None:
    """A file with a hole is of no use: stops at the first refusal, which the flush raises."""
    with _progress(source.size) as advance:
        async for block in source.blocks(size):
            await send(block)
            advance(len(block))
            if notices.refused:
                break
        await node.flush()


async def _send_lines(node: Node, source: Source, send: Callable[[bytes], Awaitable[Any]], limit: int) -> None:
    """A stream may outlive its readers: refusals are told, and the next lines are sent all the same."""
    sent = refused = 0
    async for lines in source.lines(limit):
        for line in lines:
            await send(line)
        sent += len(lines)
        try:
            await node.flush()
        except* Refused as group:
            for refusal in leaves(group):
                tell(f"Warning: {one_line(refusal)}")
                refused += len(refusal.ordinals)
    if refused:
        raise Failure(f"{refused} of {sent} lines were refused; the reasons are above")


@contextmanager
def _progress(size: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, for an input whose end is known."""
    if size is None or not sys.stderr.isatty():
        yield lambda _size: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=size)
        yield partial(progress.advance, task)
