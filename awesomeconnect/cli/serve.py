"""``serve``: run a relay until a signal ends it."""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from awesomeconnect.cli.contracts import by_room, contract, rate, room_contract
from awesomeconnect.cli.key import default_relay_key
from awesomeconnect.cli.logs import log_to_stderr
from awesomeconnect.cli.text import json_line

if TYPE_CHECKING:
    import trio

    from awesomeconnect.config import RelaySettings
    from awesomeconnect.identity import Identity
    from awesomeconnect.server import Relay
    from awesomeconnect.wire.messages import ClassContract

log = logging.getLogger("awesomeconnect.serve")

#: File descriptors that are not connections: listeners, standard streams, epoll, log and key files.
RESERVED_FILES = 64
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@click.command()
@click.option(
    "--listen",
    multiple=True,
    default=["127.0.0.1:7420"],
    show_default=True,
    metavar="WHERE",
    help="HOST:PORT, [IPV6]:PORT, PORT (on all addresses) or /PATH of a Unix socket; port 0 takes a free one. "
    "May be repeated.",
)
@click.option(
    "--key",
    "key_file",
    type=click.Path(path_type=Path),
    help="The relay's key file, made when missing.  [default: relay.key in the state folder]",
)
@click.option(
    "--contract",
    "contracts",
    type=contract,
    multiple=True,
    metavar="CLASS:RATE:BURST[:RESIDENCE]",
    help="What each connection may send in a class, e.g. bulk:5MB/s:2MB:500ms. What comes too early is held for "
    "RESIDENCE (100ms) at most, what is longer than BURST is refused. May be repeated; the other classes are free.",
)
@click.option(
    "--room-contract",
    "room_contracts",
    type=room_contract,
    multiple=True,
    metavar="ROOM=CLASS:RATE:BURST[:RESIDENCE]",
    help="The same for what each connection may send to a room. May be repeated.",
)
@click.option(
    "--downlink",
    type=rate,
    metavar="RATE",
    help="What the link of every node carries at least, e.g. 10Mbit/s: nodes are told how long a message waits in "
    "the relay at most, in classes where contracts and --connections bound what is sent.",
)
@click.option(
    "--connections",
    type=click.IntRange(min=1),
    metavar="N",
    help="Nodes at once.  [default: 100000, or what the limit on open files allows]",
)
@click.option(
    "--alternate",
    "alternates",
    multiple=True,
    metavar="ADDRESS",
    help="A relay that could take the nodes of this one when it drains. May be repeated.",
)
@click.option(
    "--pacing/--no-pacing",
    "is_pacing",
    default=True,
    show_default=True,
    help="Hold back what is not urgent where the path to a node would queue it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line once the relay accepts connections.")
@click.pass_obj
def serve(
    verbose: bool,
    listen: tuple[str, ...],
    key_file: Path | None,
    contracts: tuple[ClassContract, ...],
    room_contracts: tuple[tuple[str, ClassContract], ...],
    downlink: int | None,
    connections: int | None,
    alternates: tuple[str, ...],
    is_pacing: bool,
    as_json: bool,
) -> None:
    """Run a relay and print the address that nodes need.

    SIGTERM and Ctrl-C drain: clients are asked to leave, and what is queued for them is sent. A second
    signal ends at once. Logs go to stderr.

    \b
    Examples:
      awesomeconnect serve
      awesomeconnect serve --listen 0.0.0.0:7420 --listen [::]:7420
      awesomeconnect serve --listen /run/awesomeconnect.sock --key /etc/awesomeconnect/relay.key
      awesomeconnect serve --listen 127.0.0.1:0 --json
      awesomeconnect serve --contract bulk:5MB/s:2MB:500ms --contract urgent:20kB/s:4kB
    """
    import trio

    from awesomeconnect.config import RelaySettings
    from awesomeconnect.identity import Identity
    from awesomeconnect.server import Relay
    from awesomeconnect.server.listeners import close_listener, open_listeners

    log_to_stderr(logging.DEBUG if verbose else logging.INFO)
    identity = Identity.load_or_create(key_file or default_relay_key())
    most = raise_file_limit() - RESERVED_FILES
    try:
        settings = RelaySettings(
            connections=max(1, min(connections or RelaySettings().connections, most)),
            contracts=contracts,
            room_contracts=by_room(room_contracts),
            downlink_bytes_per_s=downlink,
            alternates=alternates,
            is_pacing=is_pacing,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    _warn_of_short_bursts(settings)
    relay = Relay(identity, settings)
    listeners: list[socket.socket] = []
    try:
        for where in listen:
            listeners += open_listeners(os.path.abspath(where) if "/" in where else where)
        trio.run(_serve, relay, listeners, lambda: _announce(identity, listeners, as_json))
    finally:
        for listener in listeners:
            close_listener(listener)


def _warn_of_short_bursts(settings: RelaySettings) -> None:
    from awesomeconnect.wire.framing import FRAME_OVERHEAD_BYTES

    for one in settings.contracts:
        if one.cbs_bytes < settings.payload_bytes + FRAME_OVERHEAD_BYTES:
            log.info(
                "class %d: messages above %s bytes are refused, since they are longer than the burst",
                one.traffic_class,
                f"{one.cbs_bytes:,}",
            )


def raise_file_limit() -> int:
    """Every connection takes a file descriptor: use what the system allows; returns how many that is."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


async def _serve(relay: Relay, listeners: list[socket.socket], announce: Callable[[], None]) -> None:
    import trio

    from awesomeconnect.server.garbage import Collector

    collector = Collector()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_obey, signals, relay, nursery)
            nursery.start_soon(collector.run, lambda: relay.traffic.received_messages)
            async with trio.open_nursery() as serving:
                await serving.start(relay.serve, listeners)
                announce()
            nursery.cancel_scope.cancel()
    log.debug("the longest garbage collection took %.1f ms", collector.longest_pause_s * 1e3)


async def _obey(signals: AsyncIterator[int], relay: Relay, nursery: trio.Nursery) -> None:
    received = await anext(signals)
    # A person at the keyboard wants an end; a service manager has time for the clients to leave by themselves.
    window_s = 0 if received == signal.SIGINT else relay.settings.drain_s
    name = signal.Signals(received).name
    log.info("%s: draining %d connections; a second signal ends at once", name, len(relay.sessions))
    nursery.start_soon(relay.drain, window_s)
    name = signal.Signals(await anext(signals)).name
    log.warning("%s again: cutting %d connections", name, len(relay.sessions))
    nursery.cancel_scope.cancel()


def _announce(identity: Identity, listeners: list[socket.socket], as_json: bool) -> None:
    addresses = [str(address) for listener in listeners for address in [_reachable(identity, listener)]]
    if as_json:
        click.echo(json_line(event="ready", addresses=addresses))
    else:
        click.echo("The relay accepts connections. Nodes need this address:")
        for address in addresses:
            click.echo(f"  {address}")
    for listener in listeners:
        if listener.family != socket.AF_UNIX and listener.getsockname()[0] in _WILDCARDS:
            port = listener.getsockname()[1]
            log.info(
                "listening on all addresses: other hosts reach ac://%s@%s:%d",
                identity.public_key.hex(),
                socket.getfqdn(),
                port,
            )


def _reachable(identity: Identity, listener: socket.socket) -> object:
    from awesomeconnect.identity import RelayAddress

    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return RelayAddress(identity.public_key, path=name)
    return RelayAddress(identity.public_key, _WILDCARDS.get(name[0], name[0]), name[1])
