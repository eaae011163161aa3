"""Server processes under test: start on a free loopback port, pin, read CPU time and memory, stop.

Knows how each system is started and how it says that it is ready; knows nothing of what is sent to it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from awesomeconnect.bench import processes
from awesomeconnect.bench.processes import Cores

STOP_S = 10


class Absent(Exception):
    """The system is not installed here."""


class Failed(Exception):
    """The system is installed but did not start."""


def cores() -> tuple[Cores, Cores]:
    """One for the server and another for the load generator; the same for both where there is only one."""
    usable = sorted(os.sched_getaffinity(0))
    return frozenset(usable[:1]), frozenset(usable[-1:])


@attrs.frozen
class Server:
    """A running server process. `address` is what a client of that system takes."""

    address: str
    process: subprocess.Popen[str]

    def cpu_ns(self) -> int:
        return processes.cpu_ns(self.process.pid)

    def rss_bytes(self) -> int:
        return processes.rss_bytes(self.process.pid)


@attrs.frozen
class System:
    """How to start one system in `directory`, which is its own, and where its ready line stands."""

    name: str
    command: Callable[[Path], list[str]]
    version: Callable[[], str]
    ready_on_stdout: bool
    parse_ready: Callable[[list[str]], str | None]  # all lines so far -> the address, once it is ready

    @contextlib.contextmanager
    def run(self, on: Cores) -> Iterator[Server]:
        """Run the server on these cores until the block ends.

        Raises:
            Absent: it is not installed.
            Failed: it ended before it was ready.
        """
        with tempfile.TemporaryDirectory(prefix="benchmark-") as directory, contextlib.ExitStack() as stack:
            log = stack.enter_context(open(Path(directory, "log"), "w+"))
            process = subprocess.Popen(
                self.command(Path(directory)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if self.ready_on_stdout else log,
                stderr=log if self.ready_on_stdout else subprocess.PIPE,
                text=True,
                env={**os.environ, "XDG_STATE_HOME": directory},
                # Before exec: Go sizes its scheduler by the cores it sees when it starts.
                preexec_fn=lambda: os.sched_setaffinity(0, on),
            )
            stack.callback(_stop, process)
            lines: list[str] = []
            for line in (process.stdout if self.ready_on_stdout else process.stderr) or ():
                lines.append(line)
                if address := self.parse_ready(lines):
                    yield Server(address, process)
                    return
            log.seek(0)
            raise Failed(f"{self.name} ended before it was ready: {''.join(lines)}{log.read()}".strip())


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


# ---- our relay -----------------------------------------------------------------------------------------


def _relay_command(directory: Path) -> list[str]:
    serve = [sys.executable, "-m", "awesomeconnect", "serve", "--json"]
    return [*serve, "--listen", "127.0.0.1:0", "--key", str(directory / "relay.key")]


def _relay_version() -> str:
    command = [sys.executable, "-c", "import importlib.metadata as m; print(m.version('awesomeconnect'))"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "source tree"


def _relay_ready(lines: list[str]) -> str | None:
    event = json.loads(lines[-1])
    return str(event["addresses"][0]) if event.get("event") == "ready" else None


# ---- nats-server ---------------------------------------------------------------------------------------


def _nats_binary() -> str:
    binary = shutil.which("nats-server") or shutil.which("nats-server", path="/usr/sbin:/usr/local/sbin")
    if binary is None:
        raise Absent("nats-server is not installed (Debian package nats-server)")
    return binary


def _nats_version() -> str:
    return subprocess.run([_nats_binary(), "--version"], capture_output=True, text=True).stdout.split()[-1]


def _nats_ready(lines: list[str]) -> str | None:
    if "Server is ready" not in lines[-1]:
        return None
    found = re.search(r"Listening for client connections on (\S+)", "".join(lines))
    return found[1] if found else None


RELAY = System(
    name="relay",
    command=_relay_command,
    version=_relay_version,
    ready_on_stdout=True,
    parse_ready=_relay_ready,
)
NATS = System(
    name="nats",
    command=lambda directory: [_nats_binary(), "-a", "127.0.0.1", "-p", "-1"],
    version=_nats_version,
    ready_on_stdout=False,
    parse_ready=_nats_ready,
)


def relay_with(name: str, arguments: list[str]) -> System:
    """Our relay with more arguments of ``serve``."""
    return attrs.evolve(RELAY, name=name, command=lambda directory: [*_relay_command(directory), *arguments])


SYSTEMS = {system.name: system for system in (RELAY, NATS)}
