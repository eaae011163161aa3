"""How commands end: the exit codes, and one line for every error."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import click

from awesomeconnect import errors
from awesomeconnect.cli.text import safe


class ExitCode(IntEnum):
    """What a command's exit code means."""

    meaning: str

    def __new__(cls, value: int, meaning: str) -> ExitCode:
        code = int.__new__(cls, value)
        code._value_ = value
        code.meaning = meaning
        return code

    OK = 0, "done"
    FAILURE = 1, "failed: the relay or the other node refused, or a file could not be used"
    USAGE = 2, "the command line is wrong: an option, address, key, key file or room name"
    NO_CONNECTION = 3, "no connection to the relay, a wrong relay key, or the connection was lost"
    TIMEOUT = 4, "--wait ran out"
    LOST = 5, "messages were lost, or may have been while disconnected; the output is incomplete"
    INTERRUPTED = 130, "interrupted (Ctrl-C)"
    BROKEN_PIPE = 141, "whoever read the output went away"


EXIT_CODE_TABLE = "\b\nExit codes:\n" + "\n".join(f"  {code:>3}  {code.meaning}" for code in ExitCode)

_LINE_CHARACTERS = 1_000


class Failure(click.ClickException):
    """Ends the command with ``Error: message`` and an exit code."""

    def __init__(self, message: str, code: ExitCode = ExitCode.FAILURE) -> None:
        super().__init__(message)
        self.exit_code = code  # type: ignore[misc]


#: Of several errors the one that comes first here speaks, and names the exit code.
_CODES: tuple[tuple[type[BaseException], ExitCode], ...] = (
    (Failure, ExitCode.FAILURE),
    (BrokenPipeError, ExitCode.BROKEN_PIPE),
    (errors.AddressError, ExitCode.USAGE),
    (errors.KeyFileError, ExitCode.USAGE),
    (errors.LocalProtocolError, ExitCode.USAGE),
    (errors.RequestTimeout, ExitCode.TIMEOUT),
    (errors.ProtocolError, ExitCode.NO_CONNECTION),
    (errors.LinkError, ExitCode.NO_CONNECTION),
    (errors.AwesomeConnectError, ExitCode.FAILURE),
    (OSError, ExitCode.FAILURE),
)
_BUG = -1


def explain(error: BaseException) -> Failure | click.exceptions.Exit | None:
    """What ends the command for an error or a group; None when one of them is a bug: its traceback is wanted."""
    found = list(leaves(error))
    if any(isinstance(leaf, KeyboardInterrupt) for leaf in found):
        return click.exceptions.Exit(ExitCode.INTERRUPTED)
    told = min(found, key=_rank)
    if _rank(told) == _BUG:
        return None
    if isinstance(told, Failure):
        return told
    code = _CODES[_rank(told)][1]
    if code is ExitCode.BROKEN_PIPE:
        _forget_output()
        return click.exceptions.Exit(code)
    others = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return Failure(one_line(told) + others, code)


def one_line(error: BaseException) -> str:
    """What an error says, on one line."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    line = "; ".join(line.strip() for line in text.splitlines()).replace(":; ", ": ")
    return safe(line or type(error).__name__, _LINE_CHARACTERS)


def leaves(error: BaseException) -> Iterator[Any]:
    """The errors of a group, of groups in it too; an error that is no group is its own leaf."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def _rank(error: BaseException) -> int:
    return next((rank for rank, (kind, _) in enumerate(_CODES) if isinstance(error, kind)), _BUG)


def _forget_output() -> None:
    """Nobody reads stdout any more: the interpreter's last flush shall not complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
