"""Logs on stderr: compact lines for people."""

from __future__ import annotations

import logging

from awesomeconnect.cli.text import safe

_LINE_CHARACTERS = 1_000


def log_to_stderr(level: int) -> None:
    """Show what the whole project logs, from a level on."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Compact("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    log = logging.getLogger("awesomeconnect")
    log.handlers = [handler]
    log.setLevel(level)


class _Compact(logging.Formatter):
    """What strangers put into a message cannot move the cursor; tracebacks keep their lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = safe(record.message, _LINE_CHARACTERS)
        return super().formatMessage(record)
