"""Server processes under test: start on a free loopback port, pin, read CPU time and memory, stop.

Knows how each system is started and how it says that it is ready; knows nothing of what is sent to it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import socket
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

    def waited_ns(self) -> int:
        return processes.waited_ns(self.process.pid)

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
                preexec_fn=lambda: _prepare(on),
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


def raise_file_limit() -> None:
    """Thousands of connections are thousands of descriptors."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _prepare(on: Cores) -> None:
    """In the new process, before exec: Go sizes its scheduler by the cores that it sees when it starts."""
    os.sched_setaffinity(0, on)
    raise_file_limit()


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


# ---- others --------------------------------------------------------------------------------------------


def _binary(name: str, package: str) -> str:
    binary = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if binary is None:
        raise Absent(f"{name} is not installed (Debian package {package})")
    return binary


def _version_of(name: str, package: str, *arguments: str) -> str:
    result = subprocess.run([_binary(name, package), *arguments], capture_output=True, text=True, check=False)
    found = re.search(r"\d+\.\d+\.\d+", result.stdout + result.stderr)
    return found[0] if found else "unknown"


def _free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(listener.getsockname()[1])


def _nats_command(_directory: Path) -> list[str]:
    return [_binary("nats-server", "nats-server"), "-a", "127.0.0.1", "-p", "-1"]


def _nats_ready(lines: list[str]) -> str | None:
    if "Server is ready" not in lines[-1]:
        return None
    found = re.search(r"Listening for client connections on (\S+)", "".join(lines))
    return found[1] if found else None


def _redis_command(_directory: Path) -> list[str]:
    """Nothing on disk, and no end of patience with slow subscribers."""
    return [
        *(_binary("redis-server", "redis-server"), "--bind", "127.0.0.1", "--port", _free_port()),
        *("--save", "", "--appendonly", "no", "--maxclients", "10000"),
        *("--client-output-buffer-limit", "pubsub 0 0 0"),
    ]


def _redis_ready(lines: list[str]) -> str | None:
    if "Ready to accept connections" not in lines[-1]:
        return None
    found = re.search(r"port=(\d+)", "".join(lines))
    return f"127.0.0.1:{found[1]}" if found else None


def _mosquitto_command(directory: Path) -> list[str]:
    """Nothing on disk, nothing dropped, no Nagle; and few words, since nobody reads on after the ready line."""
    configuration = directory / "mosquitto.conf"
    configuration.write_text(
        f"listener {_free_port()} 127.0.0.1\nallow_anonymous true\npersistence false\nset_tcp_nodelay true\n"
        "max_queued_messages 0\nlog_type information\nconnection_messages false\n"
    )
    return [_binary("mosquitto", "mosquitto"), "-c", str(configuration)]


def _mosquitto_ready(lines: list[str]) -> str | None:
    if not lines[-1].rstrip().endswith("running"):
        return None
    found = re.search(r"listen socket on port (\d+)", "".join(lines))
    return f"127.0.0.1:{found[1]}" if found else None


RELAY = System(
    name="relay",
    command=_relay_command,
    version=_relay_version,
    ready_on_stdout=True,
    parse_ready=_relay_ready,
)
NATS = System(
    name="nats",
    command=_nats_command,
    version=lambda: _version_of("nats-server", "nats-server", "--version"),
    ready_on_stdout=False,
    parse_ready=_nats_ready,
)
REDIS = System(
    name="redis",
    command=_redis_command,
    version=lambda: _version_of("redis-server", "redis-server", "--version"),
    ready_on_stdout=True,
    parse_ready=_redis_ready,
)
MOSQUITTO = System(
    name="mosquitto",
    command=_mosquitto_command,
    version=lambda: _version_of("mosquitto", "mosquitto", "-h"),
    ready_on_stdout=False,
    parse_ready=_mosquitto_ready,
)
#: Our relay, which also measures the passes of its scheduler.
PASSES = attrs.evolve(
    RELAY, command=lambda directory: [sys.executable, "-m", "tests.benchmarks.passes", str(directory / "relay.key")]
)


def relay_with(name: str, arguments: list[str]) -> System:
    """Our relay with more arguments of ``serve``."""
    return attrs.evolve(RELAY, name=name, command=lambda directory: [*_relay_command(directory), *arguments])


SYSTEMS = {system.name: system for system in (RELAY, NATS, REDIS, MOSQUITTO)}
