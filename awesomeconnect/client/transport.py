"""What a link needs of a connection: four names, so that a simulated network can stand in for a socket.

``recv_into(buffer) -> int`` and ``send(data) -> int`` do not block (they raise BlockingIOError);
``await wait_readable()`` and ``await wait_writable()`` wait. Then ``close()``, which wakes whoever waits with
`anyio.ClosedResourceError`.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

import anyio

from awesomeconnect.identity import RelayAddress

#: Unsent bytes in the kernel below which a socket counts as writable: an urgent message can pass what is queued
#: here, and nothing that is queued there.
NOTSENT_LOWAT_BYTES = 16_384
#: A relay that acknowledges nothing for this long is dead, ms.
USER_TIMEOUT_MS = 60_000
#: An address of a host name is given up after this when there is another.
NEXT_ADDRESS_S = 2.0
_TCP_NOTSENT_LOWAT = 25  # Linux; not in the socket module


class Transport(Protocol):
    """See the module's docstring."""

    @property
    def recv_into(self) -> Callable[[Any], int]: ...
    @property
    def send(self) -> Callable[[Any], int]: ...
    @property
    def wait_readable(self) -> Callable[[], Awaitable[None]]: ...
    @property
    def wait_writable(self) -> Callable[[], Awaitable[None]]: ...

    def close(self) -> None: ...


class SocketTransport:
    """A connected stream socket; its own bound methods are the four names."""

    __slots__ = ("_socket", "recv_into", "send", "wait_readable", "wait_writable")

    def __init__(self, connected: socket.socket) -> None:
        if connected.family != socket.AF_UNIX:
            _tune(connected)
        self._socket = connected
        self.recv_into = connected.recv_into
        self.send = connected.send
        self.wait_readable = partial(anyio.wait_readable, connected)
        self.wait_writable = partial(anyio.wait_writable, connected)

    def close(self) -> None:
        """Close the socket. Idempotent."""
        if self._socket.fileno() >= 0:
            anyio.notify_closing(self._socket)
            self._socket.close()


async def dial(address: RelayAddress) -> Transport:
    """A connection to where a relay listens; its key is not proved yet.

    Raises:
        OSError: the name does not resolve, or no address of it can be reached.
    """
    if address.path:
        return SocketTransport(await _connect(socket.AF_UNIX, address.path))
    found = await anyio.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    problem: OSError = OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    for at, (family, _kind, _proto, _name, place) in enumerate(found):
        patience = NEXT_ADDRESS_S if at + 1 < len(found) else None
        with anyio.move_on_after(patience):
            try:
                return SocketTransport(await _connect(family, place))
            except OSError as error:
                problem = error
    raise problem


async def _connect(family: int, place: Any) -> socket.socket:
    connecting = socket.socket(family, socket.SOCK_STREAM)
    try:
        connecting.setblocking(False)
        try:
            connecting.connect(place)
        except BlockingIOError:
            await anyio.wait_writable(connecting)
            code = connecting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code)) from None
    except BaseException:
        connecting.close()
        raise
    return connecting


def _tune(connected: socket.socket) -> None:
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (getattr(socket, "TCP_USER_TIMEOUT", None), USER_TIMEOUT_MS),
        (_TCP_NOTSENT_LOWAT, NOTSENT_LOWAT_BYTES),
    ):
        if option is not None:
            with suppress(OSError):
                connected.setsockopt(socket.IPPROTO_TCP, option, value)
