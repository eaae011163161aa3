"""Relays that are real processes: ``awesomeconnect serve`` on loopback, with every signal there is."""

from __future__ import annotations

import random
import signal
import socket
import sys
from pathlib import Path
from subprocess import PIPE

import trio

from awesomeconnect.identity import Identity, RelayAddress

#: Below the ephemeral ports: a client that dials a dead port among those may be connected to itself.
PORTS = range(20_000, 32_000)


def free_port() -> int:
    """A port where nobody listens."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class RelayProcess:
    """A relay: a key and a port, and the process that serves there now.

    Args:
        folder: for the key file and the log.
        port: where it listens; the same port may be another process's before and after.
    """

    def __init__(self, folder: Path, identity: Identity, port: int) -> None:
        self.identity = identity
        self.port = port
        self._key_file = folder / "relay.key"
        self._log_file = folder / f"relay-{port}.log"
        self._process: trio.Process | None = None
        if not self._key_file.exists():
            identity.save(self._key_file)

    @property
    def address(self) -> RelayAddress:
        """What nodes dial."""
        return RelayAddress(self.identity.public_key, "127.0.0.1", self.port)

    @property
    def is_up(self) -> bool:
        """Whether a process runs."""
        return self._process is not None

    async def start(self) -> None:
        """Start the process; returns when it accepts connections."""
        command = [sys.executable, "-m", "awesomeconnect", "serve", "--json"]
        where = ["--listen", f"127.0.0.1:{self.port}", "--key", str(self._key_file)]
        with self._log_file.open("ab") as log:
            self._process = await trio.lowlevel.open_process([*command, *where], stdout=PIPE, stderr=log)
        assert self._process.stdout is not None
        ready = await self._process.stdout.receive_some()
        assert b"ready" in ready, f"the relay did not start: {self._log_file.read_text()}"

    def signal(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    async def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            await self.wait_ended()

    async def wait_ended(self) -> None:
        """Return when the process has ended."""
        if self._process is not None:
            await self._process.wait()
            assert self._process.stdout is not None
            await self._process.stdout.aclose()
            self._process = None

    def log(self) -> str:
        """What all its processes have logged."""
        return self._log_file.read_text()
