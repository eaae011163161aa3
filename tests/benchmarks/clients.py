"""Other systems' side of `awesomeconnect.bench.load.Client`.

A member is a subscriber. Where a system has the choice, it is the one that costs it the least: NATS is asked for
no acknowledgements and no echo, Redis for no replies, MQTT sends with QoS 0 and without echo.
"""

from __future__ import annotations

import json
import os
import socket

from awesomeconnect.bench.load import CONNECT_S, Connect, Refused
from awesomeconnect.bench.relay_client import RelayClient

RECEIVE_BYTES = 65_536


class _PlainClient:
    """What is on the wire is what is meant: no encryption, and nothing but deliveries after the greeting."""

    def __init__(self, address: str) -> None:
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), CONNECT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._heard = b""

    def settle(self) -> None:
        """Nothing but deliveries comes now."""

    def seal(self, plaintext: bytes) -> bytes:
        return plaintext

    def measure(self, data: memoryview) -> int:
        return len(data)

    def open(self, data: memoryview) -> bytes:
        return bytes(data)

    def hear(self, data: memoryview) -> bytes:
        raise Refused(bytes(data[:200]).decode(errors="replace"))

    def sign_of_life(self) -> bytes:
        return b""  # none of them minds silence, for as long as a comparison takes

    def _read_until(self, end: bytes) -> None:
        while end not in self._heard:
            data = self.socket.recv(RECEIVE_BYTES)
            if not data or data.startswith(b"-"):
                raise Refused(data.decode(errors="replace") or "the server closed the connection")
            self._heard += data
        self._heard = self._heard.partition(end)[2]


class NatsClient(_PlainClient):
    """`echo: false`, so that nobody gets its own messages, as in the relay."""

    def __init__(self, address: str, room: str | None) -> None:
        super().__init__(address)
        options = json.dumps({"verbose": False, "pedantic": False, "echo": False, "protocol": 1})
        subscribe = f"SUB {room} 1\r\n" if room else ""
        self.socket.sendall(f"CONNECT {options}\r\n{subscribe}PING\r\n".encode())
        self._read_until(b"PONG\r\n")

    def settle(self) -> None:
        """The server measures every new connection's round trip once, 2.0 to 2.4 s after it was accepted."""
        self._read_until(b"PING\r\n")
        self.socket.sendall(b"PONG\r\n")

    def messages(self, room: str, payload: bytes, count: int) -> bytes:
        return b"PUB %b %d\r\n%b\r\n" % (room.encode(), len(payload), payload) * count

    def delivery(self, room: str, payload: bytes) -> bytes:
        return b"MSG %b 1 %d\r\n%b\r\n" % (room.encode(), len(payload), payload)


class RedisClient(_PlainClient):
    """RESP3, which lets a subscriber publish.

    Redis sends a subscriber its own messages as well. A message is as long when it is published as when it is
    delivered, and all of a workload are the same, so the echo is taken out of what arrives by its length.
    """

    def __init__(self, address: str, room: str | None) -> None:
        super().__init__(address)
        self._echo_bytes = 0
        self._echoed = _resp("PUBLISH", room or "", b"").removesuffix(_resp_word(b""))
        subscribe = _resp("SUBSCRIBE", room) if room else b""
        self.socket.sendall(_resp("HELLO", "3") + subscribe + _resp("PING") + _resp("CLIENT", "REPLY", "OFF"))
        self._read_until(b"+PONG\r\n")

    def messages(self, room: str, payload: bytes, count: int) -> bytes:
        return _resp("PUBLISH", room, payload) * count

    def delivery(self, room: str, payload: bytes) -> bytes:
        return b">" + _resp("message", room, payload)[1:]

    def seal(self, plaintext: bytes) -> bytes:
        if plaintext.startswith(self._echoed):
            self._echo_bytes += len(plaintext)
        return plaintext

    def measure(self, data: memoryview) -> int:
        return len(data) - self._echo(data)

    def open(self, data: memoryview) -> bytes:
        return bytes(data[self._echo(data) :])

    def _echo(self, data: memoryview) -> int:
        echo_bytes = min(len(data), self._echo_bytes)
        self._echo_bytes -= echo_bytes
        return echo_bytes


def _resp(*words: str | bytes) -> bytes:
    encoded = [word.encode() if isinstance(word, str) else word for word in words]
    return b"*%d\r\n" % len(encoded) + b"".join(map(_resp_word, encoded))


def _resp_word(word: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(word), word)


class MosquittoClient(_PlainClient):
    """MQTT 5 with QoS 0 and No Local, so that nobody gets its own messages."""

    def __init__(self, address: str, room: str | None) -> None:
        super().__init__(address)
        name = os.urandom(8).hex()
        keepalive_s = 0xFFFF
        no_properties, no_local = b"\0", b"\4"
        greeting = _mqtt_text("MQTT") + b"\5\2" + keepalive_s.to_bytes(2, "big") + no_properties
        self._ask(b"\x10", greeting + _mqtt_text(name))
        if room:
            self._ask(b"\x82", b"\0\1" + no_properties + _mqtt_text(room) + no_local)

    def messages(self, room: str, payload: bytes, count: int) -> bytes:
        return _mqtt(b"\x30", _mqtt_text(room) + b"\0" + payload) * count

    def delivery(self, room: str, payload: bytes) -> bytes:
        return self.messages(room, payload, 1)

    def _ask(self, kind: bytes, body: bytes) -> None:
        """Send a packet and read its answer, whose last byte but for properties is a reason code below 0x80."""
        self.socket.sendall(_mqtt(kind, body))
        answer = self.socket.recv(2, socket.MSG_WAITALL)
        if len(answer) < 2 or answer[1] & 0x80:
            raise Refused("mosquitto closed the connection, or said more than was expected")
        answer += self.socket.recv(answer[1], socket.MSG_WAITALL)
        # CONNACK: flags, reason, properties. SUBACK: identifier, properties, reason.
        reason = answer[3] if answer[0] == 0x20 else answer[-1]
        if reason & 0x80:
            raise Refused(f"mosquitto refused with reason {reason:#x}")


def _mqtt_text(text: str) -> bytes:
    return len(text.encode()).to_bytes(2, "big") + text.encode()


def _mqtt(kind: bytes, body: bytes) -> bytes:
    length, rest = b"", len(body)
    while rest >= 0x80:
        length += bytes([rest & 0x7F | 0x80])
        rest >>= 7
    return kind + length + bytes([rest]) + body


#: system -> what connects to it
CLIENTS: dict[str, Connect] = {
    "relay": RelayClient,
    "nats": NatsClient,
    "redis": RedisClient,
    "mosquitto": MosquittoClient,
}
#: systems that send a room's members their own messages
ECHOING = {"redis"}
