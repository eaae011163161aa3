"""Real processes of the command line, awaited by what they print."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

#: A process that is not done by then hangs.
PATIENCE_S = 30.0


class Program:
    """A running ``awesomeconnect`` command."""

    def __init__(self, *arguments: str, stdin: int | None = subprocess.DEVNULL, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "awesomeconnect", *arguments],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **environment},
            # A shell starts background jobs with interrupts ignored, and they pass that on.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        self._guard = threading.Timer(PATIENCE_S, self.process.kill)
        self._guard.daemon = True
        self._guard.start()

    def line(self, stream: str = "stdout") -> str:
        """The next line of a stream, without its end."""
        return self._stream(stream).readline().decode().rstrip("\n")

    def wait_for(self, text: str, stream: str = "stderr") -> str:
        """The next line of a stream that contains a text."""
        seen = []
        for line in self._stream(stream):
            seen.append(line.decode().rstrip("\n"))
            if text in seen[-1]:
                return seen[-1]
        raise AssertionError(f"{text!r} never came; {stream}: {seen}")

    def write(self, data: bytes) -> None:
        """Give the command some input."""
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def finish(self, number: signal.Signals | None = None) -> tuple[int, bytes, str]:
        """Exit code and remaining output, after a signal if one is given."""
        if number is not None:
            self.process.send_signal(number)
        stdout, stderr = self.process.communicate()
        self._guard.cancel()
        return self.process.returncode, stdout, stderr.decode()

    def kill(self) -> None:
        """End it, whatever it does."""
        self._guard.cancel()
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def _stream(self, name: str) -> IO[bytes]:
        stream: IO[bytes] | None = getattr(self.process, name)
        assert stream is not None
        return stream


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Commands that run inside the test process set up logging for theirs."""
    log = logging.getLogger("awesomeconnect")
    before = log.handlers, log.level
    yield
    log.handlers, log.level = before


@pytest.fixture
def start() -> Iterator[Callable[..., Program]]:
    """Starts commands, and ends those that a test leaves running."""
    started: list[Program] = []

    def start(*arguments: str, stdin: int | None = subprocess.DEVNULL, **environment: str) -> Program:
        started.append(Program(*arguments, stdin=stdin, **environment))
        return started[-1]

    yield start
    for program in started:
        program.kill()


@pytest.fixture(scope="session")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a relay that all tests share: whatever one does to it, the others must not notice."""
    key_file = tmp_path_factory.mktemp("relay") / "relay.key"
    program = Program("serve", "--listen", "127.0.0.1:0", "--key", str(key_file), "--json")
    program._guard.cancel()
    address: str = json.loads(program.line())["addresses"][0]
    # A pipe that is full would stop it.
    logged: list[bytes] = []
    reader = threading.Thread(target=logged.extend, args=(program.process.stderr,), daemon=True)
    reader.start()
    yield address
    survived = program.process.poll() is None
    program.process.terminate()
    code = program.process.wait(PATIENCE_S)
    reader.join()
    log = b"".join(logged).decode()
    assert survived, log
    assert code == 0, log
    assert "Traceback" not in log, log


@pytest.fixture
def run(relay: str) -> Callable[..., tuple[int, bytes, str]]:
    """Runs one command against the relay to its end: exit code, stdout, stderr."""

    def run(*arguments: str, stdin: bytes = b"", **environment: str) -> tuple[int, bytes, str]:
        ended = subprocess.run(
            [sys.executable, "-m", "awesomeconnect", *arguments],
            input=stdin,
            capture_output=True,
            timeout=PATIENCE_S,
            env={**os.environ, "AWESOMECONNECT_RELAY": relay, **environment},
            check=False,
        )
        return ended.returncode, ended.stdout, ended.stderr.decode()

    return run


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """The key file of a node."""
    from awesomeconnect.identity import Identity

    path = tmp_path / "node.key"
    Identity.generate().save(path)
    return path
