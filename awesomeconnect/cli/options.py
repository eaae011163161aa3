"""Arguments and options that several commands share, and their checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import click

from awesomeconnect.cli.link import Link
from awesomeconnect.errors import AddressError
from awesomeconnect.wire.rooms import room_name_problem

#: Names of traffic classes and their numbers; 7 belongs to the protocol.
CLASS_NAMES = {"bulk": 0, "data": 1, "interactive": 4, "urgent": 5}


def room(name: str) -> str:
    """The name of a room."""
    if problem := room_name_problem(name):
        raise click.BadParameter(problem)
    return name


def peer(text: str) -> bytes:
    """The public key of a node."""
    from awesomeconnect.identity import parse_key

    with _address_checked():
        return parse_key(text)


def relay_address(text: str) -> str:
    """The address of a relay."""
    from awesomeconnect.identity import RelayAddress

    with _address_checked():
        return str(RelayAddress.parse(text))


def traffic_class(text: str) -> int:
    """The number of a traffic class, from its name or number."""
    number = CLASS_NAMES.get(text, int(text) if text.isascii() and text.isdigit() else 7)
    if number > 6:
        raise click.BadParameter(f"{text!r} is none of {', '.join(CLASS_NAMES)} and 0 to 6")
    return number


def _attribute(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise click.BadParameter(f"{text!r}: write NAME=VALUE")
    return name, value


@contextmanager
def _address_checked() -> Iterator[None]:
    try:
        yield
    except AddressError as problem:
        raise click.BadParameter(str(problem)) from None


class_option = click.option(
    "--class",
    "traffic_class",
    type=traffic_class,
    default="data",
    show_default=True,
    metavar="CLASS",
    help="How urgent: urgent, interactive, data, bulk, or a number from 0 to 6.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
count_option = click.option(
    "--count", type=click.IntRange(min=1), metavar="N", help="End after N messages, lost ones included."
)
wait_option = click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="S",
    help="End when no message came for S seconds: exit code 4 if --count was not reached, or none came at all.",
)
timeout_option = click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    metavar="S",
    help="Give up connecting after S seconds.",
)


def relay_option(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``--relay``, or its variable; the command gets all that were given as ``relays``."""
    return click.option(
        "--relay",
        "relays",
        type=relay_address,
        metavar="ADDRESS",
        multiple=True,
        envvar="AWESOMECONNECT_RELAY",
        show_envvar=True,
        help=text,
    )


def link_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every command that connects to a relay; the command gets them as ``link``."""

    @relay_option(
        "Where the relay is: ac://KEY@HOST:PORT, as `awesomeconnect serve` prints it. "
        "May be repeated: addresses are tried until one works."
    )
    @click.option(
        "--key",
        "key_file",
        type=click.Path(path_type=Path),
        envvar="AWESOMECONNECT_KEY",
        show_envvar=True,
        metavar="FILE",
        help="Key file of this node (`awesomeconnect key new`).  [default: a fresh key each time]",
    )
    @click.option(
        "--attribute",
        "attributes",
        type=_attribute,
        metavar="NAME=VALUE",
        multiple=True,
        help="What the node says of itself to others in its rooms; may be repeated.",
    )
    @timeout_option
    @wraps(command)
    def with_link(
        *args: Any,
        relays: tuple[str, ...],
        key_file: Path | None,
        attributes: tuple[tuple[str, str], ...],
        timeout_s: float,
        **options: Any,
    ) -> Any:
        if not relays:
            raise click.UsageError(
                "no relay named; give --relay ac://KEY@HOST:PORT or set AWESOMECONNECT_RELAY "
                "(`awesomeconnect serve` runs a relay and prints its address)"
            )
        return command(*args, link=Link(relays, key_file, dict(attributes), timeout_s), **options)

    return with_link
