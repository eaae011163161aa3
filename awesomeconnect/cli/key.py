"""``key``: make a key file, and show the public key of one. The private key is never printed."""

from __future__ import annotations

from pathlib import Path

import click

from awesomeconnect.cli.text import json_line


@click.group()
def key() -> None:
    """Make and show key files: who a node or a relay is."""


@key.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def new(file: Path, as_json: bool) -> None:
    """Make a new key in FILE (mode 0600) and print its public key. An existing file is never overwritten.

    \b
    Examples:
      awesomeconnect key new alice.key
      awesomeconnect recv --key alice.key        receives as this node
    """
    from awesomeconnect.identity import Identity

    identity = Identity.generate()
    identity.save(file)
    _print_key(identity.public_key, file, as_json)


@key.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(file: Path | None, as_json: bool) -> None:
    """Print the public key of FILE (default: the key file of the relay on this machine).

    \b
    Examples:
      awesomeconnect key show alice.key
      echo hello | awesomeconnect send $(awesomeconnect key show alice.key)
    """
    from awesomeconnect.identity import Identity

    file = file or default_relay_key()
    _print_key(Identity.load(file).public_key, file, as_json)


def default_relay_key() -> Path:
    """The key file of the relay on this machine, unless it is told another."""
    from awesomeconnect.identity import default_state_dir

    return default_state_dir() / "relay.key"


def _print_key(public_key: bytes, file: Path, as_json: bool) -> None:
    click.echo(json_line(key=public_key.hex(), file=str(file)) if as_json else public_key.hex())
