"""What the kernel knows of a TCP connection's path, where it tells: TCP_INFO of Linux 4.6 and later.

The fields of struct tcp_info (linux/tcp.h) that the pacer needs, at offsets that never change: the structure
only grows, and getsockopt says how much of it there is.
"""

from __future__ import annotations

import socket
import struct
import sys

#: tcpi_rtt (µs) at 68, tcpi_bytes_acked at 120, tcpi_notsent_bytes at 144, tcpi_min_rtt (µs) at 148.
FIELDS = struct.Struct("=68xI48xQ16xII")
#: tcpi_snd_mss.
_SEGMENT_OFFSET = 16
#: Segments of a network; those of the loopback device have 32 KiB and more.
MOST_SEGMENT_BYTES = 9_000

Path = tuple[int, int, int, int]
"""Smoothed round trip time in µs, bytes acknowledged, bytes not sent yet, least round trip time in µs."""


def read_path(connected: socket.socket) -> Path:
    """What the kernel knows of the path now.

    Raises:
        OSError: the socket is closed, or no TCP socket.
    """
    return FIELDS.unpack(connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, FIELDS.size))


def has_path(connected: socket.socket) -> bool:
    """Whether there is a path, and `read_path` works.

    Not for Unix sockets, nor on other systems or with old kernels. Nor within this machine: there is no queue, and
    its large segments are acknowledged when the receiver happens to read, which looks like one.
    """
    if sys.platform != "linux" or connected.family == socket.AF_UNIX:
        return False
    try:
        info = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, FIELDS.size)
    except OSError:
        return False
    segment_bytes = int.from_bytes(info[_SEGMENT_OFFSET : _SEGMENT_OFFSET + 4], sys.byteorder)
    return len(info) == FIELDS.size and segment_bytes <= MOST_SEGMENT_BYTES
