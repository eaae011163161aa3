"""Other systems' side of `awesomeconnect.bench.load.Client`."""

from __future__ import annotations

import json
import socket

from awesomeconnect.bench.load import CONNECT_S, Refused


class NatsClient:
    """A member is a subscriber. `echo: false`, so that nobody gets its own messages, as in the relay."""

    def __init__(self, address: str, room: str | None) -> None:
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), CONNECT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        options = json.dumps({"verbose": False, "pedantic": False, "echo": False, "protocol": 1})
        subscribe = f"SUB {room} 1\r\n" if room else ""
        self.socket.sendall(f"CONNECT {options}\r\n{subscribe}PING\r\n".encode())
        self._heard = b""
        self._read_until(b"PONG\r\n")

    def settle(self) -> None:
        """The server measures every new connection's round trip once, 2.0 to 2.4 s after it was accepted."""
        self._read_until(b"PING\r\n")
        self.socket.sendall(b"PONG\r\n")

    def messages(self, room: str, payload: bytes, count: int) -> bytes:
        return b"PUB %b %d\r\n%b\r\n" % (room.encode(), len(payload), payload) * count

    def delivery(self, room: str, payload: bytes) -> bytes:
        return b"MSG %b 1 %d\r\n%b\r\n" % (room.encode(), len(payload), payload)

    def seal(self, plaintext: bytes) -> bytes:
        return plaintext

    def measure(self, data: memoryview) -> int:
        return len(data)

    def open(self, data: memoryview) -> bytes:
        return bytes(data)

    def hear(self, data: memoryview) -> bytes:
        raise Refused(bytes(data[:200]).decode(errors="replace"))

    def sign_of_life(self) -> bytes:
        return b""  # the server asks after 2 minutes

    def _read_until(self, line: bytes) -> None:
        while line not in self._heard:
            data = self.socket.recv(65_536)
            if not data or b"-ERR" in data:
                raise Refused(data.decode(errors="replace") or "nats-server closed the connection")
            self._heard += data
        self._heard = self._heard.partition(line)[2]
