"""``who`` and ``ping``: look at a room, and at the way to the relay."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import click

from awesomeconnect.cli import options
from awesomeconnect.cli.link import Link, run, tell
from awesomeconnect.cli.options import json_option, link_options
from awesomeconnect.cli.text import attributes_text, json_line, safe

if TYPE_CHECKING:
    from awesomeconnect.wire.parts import Member


@click.command()
@click.argument("room", type=options.room)
@json_option
@link_options
def who(room: str, as_json: bool, link: Link) -> None:
    """List the members of ROOM in the order in which they joined, with what they say of themselves.

    Looking does not make this node a member. --json prints one object per member: key, joined (its place in
    the join order) and attributes.

    \b
    Examples:
      awesomeconnect who greetings
      awesomeconnect who greetings --json | jq -r .key
    """
    run(partial(_who, link, room, as_json))


@click.command()
@click.option("--count", type=click.IntRange(min=1), default=4, show_default=True, help="How often.")
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(min=0),
    default=0.5,
    show_default=True,
    metavar="S",
    help="Seconds between two.",
)
@json_option
@link_options
def ping(count: int, interval_s: float, as_json: bool, link: Link) -> None:
    """Measure the round trip to the relay: through its queues, as a message would go.

    \b
    Examples:
      awesomeconnect ping
      awesomeconnect ping --count 100 --interval 0.1 --json
    """
    run(partial(_ping, link, count, interval_s, as_json))


async def _who(link: Link, room: str, as_json: bool) -> None:
    async with link.open() as (node, _notices):
        await node.join(room, observe=True)
        members = await node.members(room)
    if as_json:
        for member in members:
            click.echo(json_line(key=member.key.hex(), joined=member.joined, attributes=dict(member.attributes)))
    elif not members:
        tell(f"nobody is in {safe(room)}")
    elif sys.stdout.isatty():
        _print_table(room, members)
    else:
        for member in members:
            click.echo(f"{member.key.hex()}  {attributes_text(member.attributes)}".rstrip())


def _print_table(room: str, members: Sequence[Member]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"{safe(room)}: {len(members)} members"), box=None, title_justify="left")
    # Whole keys, as `send` needs them.
    table.add_column("key", no_wrap=True, min_width=64)
    table.add_column("attributes", overflow="fold")
    for member in members:
        table.add_row(member.key.hex(), Text(attributes_text(member.attributes)))
    Console().print(table)


async def _ping(link: Link, count: int, interval_s: float, as_json: bool) -> None:
    import anyio

    async with link.open() as (node, _notices):
        trips_ms: list[float] = []
        for number in range(count):
            if number:
                await anyio.sleep(interval_s)
            trips_ms.append(await node.ping() * 1000)
            if as_json:
                click.echo(json_line(relay=str(node.relay), rtt_ms=round(trips_ms[-1], 3)))
            else:
                click.echo(f"{node.relay}: {trips_ms[-1]:.3f} ms")
        if not as_json:
            mean = sum(trips_ms) / count
            click.echo(f"min/avg/max {min(trips_ms):.3f}/{mean:.3f}/{max(trips_ms):.3f} ms")
