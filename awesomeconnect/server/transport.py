"""What a session needs of a connection: four names, so that a simulator can stand in for a socket at no cost.

``recv_into(buffer) -> int`` and ``send(data) -> int`` do not block (they raise BlockingIOError);
``await wait_readable()`` and ``await wait_writable()`` wait. Then ``half_close()`` and ``close()``, which wakes
whoever waits with `trio.ClosedResourceError`; ``peer``, where the connection comes from; and ``path()``, what is
known of the way to the other end, or ``path`` is None where nothing is, and what is sent is not paced.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

import trio

from awesomeconnect.server.tcpinfo import Path, has_path, read_path

# SPEC frames.md: A sender SHOULD NOT seal a frame before it can be sent, since a sealed record can no longer be
#   overtaken.
#: Unsent bytes in the kernel below which a socket counts as writable: queues belong in the relay, where an
#: urgent message can pass them.
NOTSENT_LOWAT_BYTES = 16_384
#: A peer that acknowledges nothing for this long is dead, ms.
USER_TIMEOUT_MS = 60_000
_TCP_NOTSENT_LOWAT = 25  # Linux; not in the socket module


class Transport(Protocol):
    """See the module's docstring."""

    @property
    def peer(self) -> str: ...
    @property
    def path(self) -> Callable[[], Path] | None: ...
    @property
    def recv_into(self) -> Callable[[Any], int]: ...
    @property
    def send(self) -> Callable[[Any], int]: ...
    @property
    def wait_readable(self) -> Callable[[], Awaitable[None]]: ...
    @property
    def wait_writable(self) -> Callable[[], Awaitable[None]]: ...

    def half_close(self) -> None: ...

    def close(self) -> None: ...


class SocketTransport:
    """A connected stream socket; its own bound methods are the names that are used most."""

    __slots__ = ("_has_path", "_socket", "peer", "recv_into", "send")

    def __init__(self, connected: socket.socket, peer: str) -> None:
        connected.setblocking(False)
        if connected.family != socket.AF_UNIX:
            tune(connected)
        self._socket = connected
        self.peer = peer
        self._has_path = has_path(connected)
        self.recv_into = connected.recv_into
        self.send = connected.send

    @property
    def path(self) -> Callable[[], Path] | None:
        """What is known of the way to the other end, or None where nothing is."""
        return partial(read_path, self._socket) if self._has_path else None

    def wait_readable(self) -> Awaitable[None]:
        """Wait until there is something to read; `trio.ClosedResourceError` when `close` comes first."""
        if self._socket.fileno() < 0:
            return _closed()
        return trio.lowlevel.wait_readable(self._socket)  # noqa: ASYNC105 (whoever calls this awaits)

    def wait_writable(self) -> Awaitable[None]:
        """Wait until there is room to send; as `wait_readable`."""
        if self._socket.fileno() < 0:
            return _closed()
        return trio.lowlevel.wait_writable(self._socket)  # noqa: ASYNC105

    def half_close(self) -> None:
        """Send nothing more; the other side sees the end of the stream."""
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the socket; tasks that wait for it get `trio.ClosedResourceError`. Idempotent."""
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()


def tune(connected: socket.socket) -> None:
    """Options that every TCP connection of this protocol wants, on both sides, where the system has them."""
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (getattr(socket, "TCP_USER_TIMEOUT", None), USER_TIMEOUT_MS),
        (_TCP_NOTSENT_LOWAT, NOTSENT_LOWAT_BYTES),
    ):
        if option is not None:
            with suppress(OSError):
                connected.setsockopt(socket.IPPROTO_TCP, option, value)


async def _closed() -> None:
    raise trio.ClosedResourceError("the connection was closed")
