"""Other protocols and broken clients at the relay's port: they are cut off, and nobody else notices."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress

import pytest

from awesomeconnect.identity import RelayAddress

from .conftest import PATIENCE_S, Program

STRANGERS = {
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "tls": bytes.fromhex("16030100c8010000c40303") + bytes(192),
    "nats": b'CONNECT {"verbose":false,"pedantic":false,"lang":"go"}\r\nPING\r\n',
    "ssh": b"SSH-2.0-OpenSSH_9.2\r\n",
    "noise": os.urandom(4_096),
    "half a handshake": b"AWC\x01" + bytes(range(10)),
    "wrong version": b"AWC\x02" + bytes(32),
    "low order point": b"AWC\x01" + bytes(32),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_are_cut_off_while_others_go_on(
    name: str,
    relay: str,
    start: Callable[..., Program],
    run: Callable[..., tuple[int, bytes, str]],
) -> None:
    address = RelayAddress.parse(relay)
    sub = start("sub", "calm", "--lines", "--count", "1", AWESOMECONNECT_RELAY=relay)
    sub.wait_for("joined calm")
    with socket.create_connection((address.host, address.port), PATIENCE_S) as stranger:
        stranger.sendall(STRANGERS[name])
        if name == "half a handshake":
            stranger.shutdown(socket.SHUT_WR)
        assert run("pub", "calm", stdin=b"hello")[0] == 0
        assert sub.finish()[:2] == (0, b"hello\n")
        with suppress(ConnectionResetError):
            assert stranger.recv(1) == b""  # told nothing: it has proved nothing
