"""Processes of a benchmark: the load generator, a relay to put under load, and what any process costs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from awesomeconnect.bench.generator import Job

Cores = frozenset[int]
STOP_S = 10


def cpu_ns(pid: int) -> int:
    """CPU time of a process, user and system, of all threads, living and dead.

    It is what utime + stime of /proc/PID/stat count in ticks of 10 ms, in nanoseconds: the process's CPU clock as
    clock_getcpuclockid(3) names it.
    """
    return time.clock_gettime_ns(~pid << 3 | 2)


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    resident_pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(resident_pages) * os.sysconf("SC_PAGE_SIZE")


def waited_ns(pid: int) -> int:
    """How long a process's main thread was ready to run and found no core free; 0 where Linux does not count it."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1])
    except FileNotFoundError:
        return 0


class Failed(Exception):
    """The load generator could not do its job, or there is no relay to do it with.

    Attributes:
        error: the name of the exception that ended it; empty if it ended without a word.
    """

    def __init__(self, reason: str, error: str = "") -> None:
        super().__init__(reason)
        self.error = error


class Generator:
    """A running load generator: `expect("ready")`, `go()`, `expect("done")`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    def go(self) -> None:
        """Begin the measurement."""
        self._say("go")

    def stop(self) -> None:
        """End the measurement early: "done" comes soon, or "failed" if it had not begun. Signal handlers may."""
        self._say("stop")

    def events(self) -> Iterator[dict[str, Any]]:
        """All that it tells, each with its name in `event`.

        Raises:
            Failed: it failed, or ended.
        """
        assert self._process.stdout is not None
        for line in self._process.stdout:
            fields: dict[str, Any] = json.loads(line)
            if fields["event"] == "failed":
                raise Failed(fields["reason"], fields["error"])
            yield fields
        raise Failed("the load generator ended")

    def expect(self, event: str) -> dict[str, Any]:
        """Wait for an event; its fields.

        Raises:
            Failed: it failed, or ended.
        """
        return next(fields for fields in self.events() if fields["event"] == event)

    def _say(self, word: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, and its last words are read elsewhere
            # Not through the buffer: `stop` may be called by a signal handler while `go` writes.
            os.write(self._process.stdin.fileno(), f"{word}\n".encode())


@contextlib.contextmanager
def generator(
    job: Job, on: Cores | None = None, module: str = "awesomeconnect.bench.generator"
) -> Iterator[Generator]:
    """Run a load generator, on these cores only if they are given, until the block ends.

    Connections stay open until then, so that the server's memory can be read.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", module, json.dumps(attrs.asdict(job))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for who started it
        preexec_fn=None if on is None else lambda: os.sched_setaffinity(0, on),
    )
    with process:  # closes its stdin, which ends it, and waits
        try:
            yield Generator(process)
        except BaseException:
            process.kill()
            raise


@contextlib.contextmanager
def embedded_relay() -> Iterator[tuple[str, int]]:
    """Run a relay on a free loopback port, with a key of its own, until the block ends: its address and process.

    Raises:
        Failed: it ended before it was ready.
    """
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="awesomeconnect-")))
        log = stack.enter_context(open(directory / "log", "w+"))
        serve = [sys.executable, "-m", "awesomeconnect", "serve", "--json"]
        process = subprocess.Popen(
            [*serve, "--listen", "127.0.0.1:0", "--key", str(directory / "relay.key")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        stack.callback(_end, process)
        assert process.stdout is not None
        if not (ready := process.stdout.readline()):
            log.seek(0)
            raise Failed(f"the relay did not start: {log.read().strip()}")
        yield json.loads(ready)["addresses"][0], process.pid


def _end(relay: subprocess.Popen[str]) -> None:
    relay.send_signal(signal.SIGINT)  # at once, without waiting for its clients to leave
    try:
        relay.communicate(timeout=STOP_S)
    except subprocess.TimeoutExpired:
        relay.kill()
        relay.communicate()
