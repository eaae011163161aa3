"""Listening sockets from text: ``HOST:PORT``, ``[V6]:PORT``, ``PORT``, or the path of a Unix socket."""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from awesomeconnect.config import DEFAULT_PORT
from awesomeconnect.errors import AddressError

#: Connections that wait for accept; the kernel caps it at net.core.somaxconn (4,096 by default).
BACKLOG = 4_096

#: A client sends its first act without waiting, so the kernel need not tell of a connection before that has come,
#: or before this has passed. The session then begins with reading: one wake-up less.
DEFER_S = 1

_RESOLVE = socket.AI_PASSIVE | socket.AI_ADDRCONFIG
#: A machine without IPv6, or with IPv6 switched off.
_NO_SUCH_FAMILY = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}

#: Which file each Unix socket was bound as.
_bound: WeakKeyDictionary[socket.socket, tuple[int, int]] = WeakKeyDictionary()


def open_listeners(text: str) -> list[socket.socket]:
    """Sockets that listen where ``text`` says: one for every address of a host name, one for a path.

    Args:
        text: ``HOST:PORT``, ``[V6]:PORT``, ``HOST``, ``:PORT`` (all addresses), or a path with a slash.
            Port 0 takes a free one.

    Raises:
        AddressError: the text is none of these.
        OSError: the system refuses; the text says what to do.
    """
    if "/" in text:
        return [_listen_on_path(Path(text))]
    host, port = _split(text)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=_RESOLVE) if host else _anywhere(port)
    except socket.gaierror as error:
        raise OSError(error.errno, f"cannot listen on {text}: {error.strerror}") from None
    opened: list[socket.socket] = []
    try:
        for family, kind, _proto, _name, address in dict.fromkeys(found):
            try:
                opened.append(_listen(family, kind, address, text))
            except OSError as error:
                if host or not opened or error.errno not in _NO_SUCH_FAMILY:
                    raise
    except OSError:
        for listener in opened:
            listener.close()
        raise
    return opened


def bound_address(listener: socket.socket) -> str:
    """Where a listener can be reached: ``host:port``, ``[v6]:port`` or a path."""
    if listener.family == socket.AF_UNIX:
        return str(listener.getsockname())
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if listener.family == socket.AF_INET6 else f"{host}:{port}"


def close_listener(listener: socket.socket) -> None:
    """Stop listening; the path of a Unix socket goes with it. Idempotent."""
    if listener.fileno() < 0:
        return
    path = listener.getsockname() if listener.family == socket.AF_UNIX else None
    listener.close()
    if path:
        with suppress(FileNotFoundError):
            # Somebody may have removed ours, and another relay may listen at the same path now.
            if _file_id(path) == _bound.get(listener):
                os.unlink(path)


def _anywhere(port: int) -> list[tuple[Any, ...]]:
    """All addresses of this machine, in the form of `socket.getaddrinfo`; IPv6 is last, since it may be missing."""
    stream = socket.SOCK_STREAM
    return [
        (socket.AF_INET, stream, 0, "", ("0.0.0.0", port)),
        (socket.AF_INET6, stream, 0, "", ("::", port)),
    ]


def _split(text: str) -> tuple[str, int]:
    if not text:
        raise AddressError("an empty text is no address to listen on; write HOST:PORT, a port, or a path")
    host, colon, port = text.rpartition(":")
    if text.startswith("[") and text.endswith("]"):
        host, colon, port = text, "", ""
    elif not colon:
        host, port = ("", text) if text.isdecimal() else (text, "")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise AddressError(f"{text!r}: write an IPv6 address in brackets, for example [::1]:{DEFAULT_PORT}")
    if port and not (port.isascii() and port.isdecimal() and int(port) < 1 << 16):
        raise AddressError(f"{text!r}: the port must be a number from 0 to 65535")
    return host, int(port) if port else DEFAULT_PORT


def _listen(family: int, kind: int, address: tuple[object, ...], text: str) -> socket.socket:
    listener = None
    try:
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if hasattr(socket, "TCP_DEFER_ACCEPT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFER_S)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        if listener is not None:
            listener.close()
        if error.errno == errno.EADDRINUSE:
            raise OSError(
                error.errno, f"{text} is in use: another relay? Choose another port with --listen"
            ) from None
        raise OSError(error.errno, f"cannot listen on {text}: {error.strerror}") from None
    return listener


def _listen_on_path(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        listener.bind(os.fspath(path))
        _bound[listener] = _file_id(path)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen on {path}: {error.strerror or error}") from None
    return listener


def _file_id(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _remove_stale(path: Path) -> None:
    """Remove a socket file that a killed relay left behind, and nothing else."""
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise OSError(errno.EEXIST, "the path exists and is not a socket; choose another")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError(errno.EADDRINUSE, "another relay listens there")
