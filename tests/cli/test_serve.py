"""``serve``: addresses, signals, and what happens when it cannot start."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from awesomeconnect.identity import Identity, RelayAddress

from .conftest import Program

Start = Callable[..., Program]


def test_needs_no_configuration(start: Start, tmp_path: Path) -> None:
    """It makes its key in the state folder and prints the address that nodes need."""
    program = start("serve", "--listen", "127.0.0.1:0", XDG_STATE_HOME=str(tmp_path))
    address = RelayAddress.parse(program.wait_for("ac://", "stdout").strip())
    key_file = tmp_path / "awesomeconnect" / "relay.key"
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert address.key == Identity.load(key_file).public_key
    socket.create_connection((address.host, address.port)).close()
    code, stdout, _stderr = program.finish(signal.SIGTERM)
    assert (code, stdout) == (0, b"")


def test_reports_every_listener_as_one_json_line(start: Start, tmp_path: Path, key_file: Path) -> None:
    path = tmp_path / "relay.sock"
    where = ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", str(path)]
    listen = [argument for place in where for argument in ("--listen", place)]
    program = start("serve", "--json", "--key", str(key_file), *listen)
    ready = json.loads(program.line())
    addresses = [RelayAddress.parse(text) for text in ready.pop("addresses")]
    assert ready == {"event": "ready"}
    assert [address.host for address in addresses] == ["127.0.0.1", "127.0.0.1", "::1", ""]
    assert {address.key for address in addresses} == {Identity.load(key_file).public_key}
    assert addresses[-1].path == str(path)
    for address in addresses[:-1]:
        socket.create_connection((address.host, address.port)).close()
    code, stdout, stderr = program.finish(signal.SIGINT)
    assert (code, stdout) == (0, b"")
    assert "other hosts reach" in stderr
    assert not path.exists()


def test_two_on_one_port(start: Start, relay: str, key_file: Path) -> None:
    port = RelayAddress.parse(relay).port
    code, stdout, stderr = start("serve", "--listen", f"127.0.0.1:{port}", "--key", str(key_file)).finish()
    assert (code, stdout) == (1, b"")
    assert stderr == f"Error: 127.0.0.1:{port} is in use: another relay? Choose another port with --listen\n"


def test_two_on_one_path(start: Start, tmp_path: Path, key_file: Path) -> None:
    arguments = ["serve", "--listen", str(tmp_path / "relay.sock"), "--key", str(key_file), "--json"]
    first = start(*arguments)
    first.line()
    code, _stdout, stderr = start(*arguments).finish()
    assert code == 1
    assert "another relay listens there" in stderr
    assert first.finish(signal.SIGTERM)[0] == 0


def test_takes_the_place_of_one_that_was_killed(start: Start, tmp_path: Path, key_file: Path) -> None:
    arguments = ["serve", "--listen", str(tmp_path / "relay.sock"), "--key", str(key_file), "--json"]
    first = start(*arguments)
    first.line()
    first.finish(signal.SIGKILL)
    second = start(*arguments)
    assert json.loads(second.line())["event"] == "ready"
    assert second.finish(signal.SIGTERM)[0] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(start: Start, key_file: Path, number: signal.Signals) -> None:
    program = start("serve", "--listen", "127.0.0.1:0", "--key", str(key_file), "--json")
    address = json.loads(program.line())["addresses"][0]
    node = start("sub", "room", "--relay", address)
    node.wait_for("joined room")
    node.process.send_signal(signal.SIGSTOP)  # one that does not leave when it is asked to
    program.process.send_signal(number)
    program.wait_for("draining 1 connections")
    code, _stdout, stderr = program.finish(number)
    assert code == 0
    assert "cutting 1 connections" in stderr


def test_raises_the_limit_of_open_files(start: Start, key_file: Path) -> None:
    program = start("serve", "--listen", "127.0.0.1:0", "--key", str(key_file), "--json")
    program.line()
    limits = Path(f"/proc/{program.process.pid}/limits").read_text().splitlines()
    soft, hard = next(line for line in limits if line.startswith("Max open files")).split()[3:5]
    assert soft == hard
