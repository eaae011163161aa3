"""``sub`` and ``recv``: messages become bytes on standard output, or lines of JSON."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from awesomeconnect.cli import options
from awesomeconnect.cli.exits import ExitCode, Failure
from awesomeconnect.cli.link import Link, run, tell
from awesomeconnect.cli.options import (
    CLASS_NAMES,
    count_option,
    json_option,
    link_options,
    wait_option,
)
from awesomeconnect.cli.text import json_line, safe

if TYPE_CHECKING:
    from awesomeconnect.client import Message

_BROADCAST, _UNICAST, _ANYCAST = range(3)
_MODE_LABELS = ("broadcast", "unicast", "anycast")
CLASS_LABELS = {number: name for name, number in CLASS_NAMES.items()}

_lines_option = click.option("--lines", is_flag=True, help="Write a line end after each message.")


@click.command()
@click.argument("rooms", type=options.room, nargs=-1, required=True, metavar="ROOM...")
@count_option
@wait_option
@json_option
@_lines_option
@link_options
def sub(
    rooms: tuple[str, ...], count: int | None, wait_s: float | None, as_json: bool, lines: bool, link: Link
) -> None:
    """Join each ROOM and write the messages sent to it to standard output, byte for byte.

    Messages to this node alone are left out: `recv` takes those.

    Prints "joined ROOM on ADDRESS" to stderr once messages are received. With --json each line has room,
    sender, class, mode, size, and the message as payload (valid UTF-8) or payload_base64; that is also the
    form to read messages of strangers in on a terminal.

    \b
    Examples:
      awesomeconnect sub greetings --lines
      awesomeconnect sub backups --wait 5 > dump.tar
      awesomeconnect sub alerts news --json | jq .payload
      awesomeconnect sub greetings --count 1 --wait 10
    """
    run(
        partial(
            _receive, link, list(dict.fromkeys(rooms)), (_BROADCAST, _ANYCAST), count, wait_s, _form(as_json, lines)
        )
    )


@click.command()
@click.argument("rooms", type=options.room, nargs=-1, metavar="[ROOM...]")
@count_option
@wait_option
@json_option
@_lines_option
@link_options
def recv(
    rooms: tuple[str, ...], count: int | None, wait_s: float | None, as_json: bool, lines: bool, link: Link
) -> None:
    """Write the messages sent to this node to standard output, byte for byte.

    These are those by `send`, and as a member of each ROOM those by `pub --any` that the relay gives to this
    node. Prints "listening as KEY on ADDRESS" to stderr once messages are received. --json as in `sub`.

    \b
    Examples:
      awesomeconnect recv --key alice.key --count 1 > photo.jpg
      awesomeconnect recv jobs --lines
    """
    run(
        partial(
            _receive, link, list(dict.fromkeys(rooms)), (_UNICAST, _ANYCAST), count, wait_s, _form(as_json, lines)
        )
    )


def _form(as_json: bool, lines: bool) -> Callable[[Message], bytes]:
    """How a message is written."""
    if as_json:
        return _as_json
    return (lambda message: message.payload + b"\n") if lines else (lambda message: message.payload)


def _as_json(message: Message) -> bytes:
    fields: dict[str, Any] = {
        "room": message.room,
        "sender": message.sender.hex(),
        "class": CLASS_LABELS.get(message.traffic_class, message.traffic_class),
        "mode": _MODE_LABELS[message.mode],
        "size": len(message.payload),
    }
    try:
        fields["payload"] = message.payload.decode()
    except UnicodeDecodeError:
        fields["payload_base64"] = base64.b64encode(message.payload).decode()
    return json_line(**fields).encode() + b"\n"


async def _receive(
    link: Link,
    rooms: Sequence[str],
    modes: Sequence[int],
    count: int | None,
    wait_s: float | None,
    form: Callable[[Message], bytes],
) -> None:
    import anyio

    from awesomeconnect.cli.streams import Sink

    sink = Sink()
    received = 0
    async with link.open(rooms) as (node, notices):
        if _UNICAST in modes:
            tell(f"listening as {node.key.hex()} on {node.relay}")
        for room in rooms:
            tell(f"joined {safe(room)} on {node.relay}")
        with anyio.CancelScope() as taking:

            def is_enough() -> bool:
                """Lost messages count, or the command would wait for them for ever."""
                return count is not None and received + notices.lost >= count

            notices.on_lost = lambda: taking.cancel() if is_enough() else None
            while not is_enough():
                with anyio.move_on_after(wait_s) as waiting:
                    message = await anext(node, None)
                if waiting.cancelled_caught:
                    break
                if message is None:
                    raise Failure("the relay ended the connection", ExitCode.NO_CONNECTION)
                if message.mode in modes:
                    await sink.write(form(message))
                    received += 1
    if problem := notices.problem():
        raise Failure(problem, ExitCode.LOST)
    if received < (count or 1):
        raise Failure(
            f"--wait: no message for {wait_s:g} s; received {received} of {count or 'any'}", ExitCode.TIMEOUT
        )
