"""When to dial again, and who says so: backoff with full jitter, and the incarnation of this process.

Knows no connection; time and randomness are arguments.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable

from awesomeconnect.errors import (
    AwesomeConnectError,
    ConnectionEnded,
    ErrorCode,
    RelayKeyMismatch,
    code_label,
)
from awesomeconnect.wire.messages import Incarnation

#: A relay's spread and window are believed up to this, seconds.
MOST_SPREAD_S = 600.0
#: What is left of the window is for connecting, and for leaving in order.
MOVE_PART = 0.75
_CODES = {int(code) for code in ErrorCode}


class Backoff:
    """How long to wait before attempt n = 1, 2, 3 … (protocol-spec/sessions.md, Reconnecting)."""

    def __init__(
        self, backoff_s: float, first_cap_s: float, later_cap_s: float, patience_s: float, settled_s: float
    ) -> None:
        self._backoff_s = backoff_s
        self._first_cap_s = first_cap_s
        self._later_cap_s = later_cap_s
        self._patience_s = patience_s
        self._settled_s = settled_s
        self._attempt = 0
        self._connected_at = 0.0
        self._broken_at = 0.0

    def connected(self, now: float) -> None:
        """A connection is up."""
        self._connected_at = now

    def broke(self, now: float) -> None:
        """It ended."""
        self._broken_at = now
        if now - self._connected_at >= self._settled_s:
            self._attempt = 0

    def next_delay_s(self, now: float, random: float) -> float:
        """The wait before the next attempt; ``random`` is uniform in [0, 1)."""
        self._attempt += 1
        early = now - self._broken_at < self._patience_s
        cap = self._first_cap_s if early else self._later_cap_s
        return random * min(cap, self._backoff_s * 2.0 ** min(self._attempt, 32))


def move_delay_s(key: bytes, epoch: bytes, window_s: float) -> float:
    """When a node leaves a relay that drains: at a time of its own, so that the next relay is not overrun."""
    # SPEC sessions.md: A client that moves SHOULD begin after SHA-256(key ‖ epoch) / 2^256 of three quarters of the
    #   window.
    share = int.from_bytes(hashlib.sha256(key + epoch).digest(), "big") / 2**256
    return share * MOVE_PART * min(window_s, MOST_SPREAD_S)


def is_final(error: Exception) -> bool:
    """Whether the relay that a connection ended like this with must not be dialled again."""
    if isinstance(error, RelayKeyMismatch):
        return True
    # SPEC sessions.md: A client SHOULD treat a CLOSE 0 of the relay that it did not ask for like a broken
    #   connection when it decides whether to connect again.
    if not isinstance(error, ConnectionEnded) or error.code == ErrorCode.OK:
        return False
    return error.code in _CODES and not ErrorCode(error.code).may_retry


def ends_node(error: Exception) -> bool:
    """Whether no relay at all must be dialled again: this key is in use elsewhere, or the library has an error."""
    if isinstance(error, ConnectionEnded):
        return error.code in (ErrorCode.REPLACED, ErrorCode.SUPERSEDED)
    return not isinstance(error, AwesomeConnectError)


def ended_text(code: int, detail: str) -> str:
    """What a CLOSE or GOAWAY says to people."""
    text = {
        ErrorCode.REPLACED: "another process connected with the same key; give each process a key of its own",
        ErrorCode.SUPERSEDED: "this process made a newer connection with the same key",
        ErrorCode.DRAINING: "the relay is shutting down",
        ErrorCode.NOT_ALLOWED: "the relay does not allow this key",
        ErrorCode.OVERLOADED: "the relay is overloaded; try later",
    }.get(code, f"the relay closed the connection, {code_label(code)}")  # type: ignore[call-overload]
    return f"{text}: {detail}" if detail and detail not in text else str(text)


class Process:
    """One run of a process, as relays see it: for each key one incarnation, and a number for each connection.

    Args:
        now_ms: Unix time.
        random_bytes: a secure source.
    """

    def __init__(
        self,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.random_bytes = random_bytes
        self.now_ms = now_ms
        self._last_start_ms = -1
        self._runs: dict[tuple[int, bytes], tuple[Incarnation, int]] = {}

    def next_connection(self, key: bytes) -> tuple[Incarnation, int]:
        """The incarnation of a key in this process, and the number of its next connection, from 1."""
        run = (os.getpid(), key)  # a forked child is another process
        if run not in self._runs:
            self._runs[run] = (Incarnation(self.now_ms(), self.random_bytes(8)), 0)
        incarnation, number = self._runs[run]
        self._runs[run] = (incarnation, number + 1)
        return incarnation, number + 1

    def new_run(self) -> Incarnation:
        """An incarnation greater than all that this process has drawn here before."""
        # SPEC reliable.md: A node MUST draw the last 8 bytes of an incarnation from a secure random source.
        self._last_start_ms = max(self.now_ms(), self._last_start_ms + 1)
        return Incarnation(self._last_start_ms, self.random_bytes(8))


THIS_PROCESS = Process()
