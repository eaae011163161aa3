"""Files, pipes and terminals, read and written without holding the event loop.

Bare file descriptors, since a thread that waits inside one of Python's buffered streams would hold its lock when
the interpreter ends.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import sys
from collections.abc import AsyncIterator
from typing import TextIO

from anyio.to_thread import run_sync

_READ_BYTES = 64 << 10  # what a pipe holds


class Source:
    """A file, or stdin when the path is ``-``.

    Attributes:
        size: bytes of a regular file; None where the end is not known beforehand.
    """

    def __init__(self, path: str) -> None:
        self._file = _descriptor(sys.stdin) if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        status = os.fstat(self._file)
        self.size = status.st_size if stat.S_ISREG(status.st_mode) else None

    async def blocks(self, size: int) -> AsyncIterator[bytes]:
        """The content in blocks of exactly ``size`` bytes, but for the last; an empty input is one empty block."""
        block = await run_sync(_read_block, self._file, size, abandon_on_cancel=True)
        yield block
        while len(block) == size:
            block = await run_sync(_read_block, self._file, size, abandon_on_cancel=True)
            if block:
                yield block

    async def lines(self, most: int) -> AsyncIterator[list[bytes]]:
        """The lines without their ends, as they come: in each item all that could be read without waiting.

        Raises:
            LineTooLong: a line has more than ``most`` bytes; the lines before it were yielded.
        """
        rest = b""
        number = 0
        while data := await run_sync(os.read, self._file, _READ_BYTES, abandon_on_cancel=True):
            *lines, rest = (rest + data).split(b"\n")
            fitting = next((at for at, line in enumerate([*lines, rest]) if len(line) > most), None)
            if lines[:fitting]:
                yield lines[:fitting]
            if fitting is not None:
                raise LineTooLong(number + fitting + 1, most)
            number += len(lines)
        if rest:
            yield [rest]


class LineTooLong(Exception):
    """A line is longer than a message may be."""

    def __init__(self, number: int, most: int) -> None:
        super().__init__(f"line {number} is longer than a message may be ({most} bytes); send it without --lines")


class Sink:
    """Stdout, byte for byte. Whoever reads it slowly slows the reader of messages, not the event loop."""

    def __init__(self) -> None:
        self._file = _descriptor(sys.stdout)
        self._is_file = stat.S_ISREG(os.fstat(self._file).st_mode)
        self._poll = select.poll()
        self._poll.register(self._file, select.POLLOUT)

    async def write(self, data: bytes) -> None:
        """Write all of it.

        Raises:
            BrokenPipeError: nobody reads any more.
        """
        # A pipe that polls as writable takes PIPE_BUF bytes at once (POSIX), which is cheaper than a thread.
        if self._is_file or (len(data) <= select.PIPE_BUF and self._poll.poll(0)):
            _write_all(self._file, data)
        else:
            await run_sync(_write_all, self._file, data, abandon_on_cancel=True)


def _descriptor(stream: TextIO | None) -> int:
    if stream is None:  # the program was started with it closed
        raise OSError(errno.EBADF, "standard input or output is closed; redirect it from or to /dev/null")
    return stream.fileno()


def _read_block(file: int, size: int) -> bytes:
    block = os.read(file, size)
    if not block or len(block) == size:
        return block
    parts = [block]
    missing = size - len(block)
    while missing and (block := os.read(file, missing)):
        parts.append(block)
        missing -= len(block)
    return b"".join(parts)


def _write_all(file: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]
