"""Other systems' side of `awesomeconnect.bench.load.Client`, and a relay's node that is hardly ever heard of.

A member is a subscriber. Where a system has the choice, it is the one that costs it the least: NATS is asked for
no acknowledgements and no echo, Redis for no replies, MQTT sends with QoS 0 and without echo.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from awesomeconnect.bench.load import CONNECT_S, Client, Refused
from awesomeconnect.bench.relay_client import RelayClient
from awesomeconnect.identity import Identity, RelayAddress
from awesomeconnect.wire.connection import ClientConnection
from awesomeconnect.wire.messages import (
    Content,
    Hello,
    Incarnation,
    Ping,
    Pong,
    Publish,
    Resume,
    RoomIntent,
    TrafficClass,
    Welcome,
    encode_frame,
)

RECEIVE_BYTES = 65_536
TOGETHER = 64


def _connect(address: str) -> socket.socket:
    host, port = address.rsplit(":", 1)
    connected = socket.create_connection((host, int(port)), CONNECT_S)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected


class _PlainClient:
    """What is on the wire is what is meant: no encryption, and nothing but deliveries after the greeting."""

    def __init__(self, address: str) -> None:
        self.socket = _connect(address)
        self._heard = b""

    def settle(self) -> None:
        """Nothing but deliveries comes now."""

    def stir(self) -> None:
        """None of these systems minds silence."""

    def seal(self, plaintext: bytes) -> bytes:
        return plaintext

    def measure(self, data: memoryview) -> int:
        return len(data)

    def open(self, data: memoryview) -> bytes:
        return bytes(data)

    def hear(self, data: memoryview) -> None:
        raise Refused(bytes(data[:200]).decode(errors="replace"))

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


class RelayNode(RelayClient):
    """The relay's client, which can break its silence."""

    def stir(self) -> None:
        """Put off the relay's keepalive PING, by a message that has no answer."""
        # SPEC messages.md: A receiver MUST ignore a RESUME without a PAUSE.
        self.socket.sendall(self.seal(encode_frame(Resume(None, TrafficClass.DATA))))


class UrgentNode(RelayNode):
    """Its messages are of class URGENT."""

    def messages(self, room: str, payload: bytes, count: int) -> bytes:
        return encode_frame(Publish(room, TrafficClass.URGENT, Content.APPLICATION, payload)) * count


class IdleNode:
    """A node of the relay that only answers PINGs, through the sans-IO connection: made, `prove`, `enter`.

    In steps, so that many can be on their way together.
    """

    def __init__(self, address: str, room: str | None) -> None:
        relay = RelayAddress.parse(address)
        assert relay.host is not None, "benchmarks run over TCP"
        self.socket = _connect(f"{relay.host}:{relay.port}")
        self._rooms = (RoomIntent(room),) if room else ()
        self._connection = ClientConnection(Identity.generate(), relay.key)
        self.socket.sendall(self._connection.handshake_bytes())

    def prove(self) -> None:
        """Finish the handshake and send HELLO."""
        while not self._connection.is_established:
            self._connection.receive(self.socket.recv(RECEIVE_BYTES))
        incarnation = Incarnation(time.time_ns() // 1_000_000, os.urandom(8))
        hello = self._connection.send(Hello(1, incarnation, 1, rooms=self._rooms))
        self.socket.sendall(self._connection.handshake_bytes() + hello)

    def enter(self) -> None:
        """Wait for WELCOME."""
        while type(self._connection.next_message()) is not Welcome:
            data = self.socket.recv(RECEIVE_BYTES)
            if not data:
                raise Refused("the relay closed the connection instead of WELCOME")
            self._connection.receive(data)

    def hear(self, data: memoryview) -> None:
        """Answer PINGs."""
        self._connection.receive(data)
        while (message := self._connection.next_message()) is not None:
            if type(message) is Ping:
                self.socket.sendall(self._connection.send(Pong(message.token)))


def idle_nodes(address: str, room: str | None, count: int) -> Iterator[IdleNode]:
    """Nodes that are let in, 64 on their way at a time, as after the restart of a relay."""
    for start in range(0, count, TOGETHER):
        nodes = [IdleNode(address, room) for _ in range(min(TOGETHER, count - start))]
        for node in nodes:
            node.prove()
        for node in nodes:
            node.enter()
        yield from nodes


class BenchmarkClient(Client, Protocol):
    """What the generator needs beyond the closed loop."""

    def stir(self) -> None:
        """Say something that has no answer, if silence would make the server speak."""


#: system -> what connects to it
CLIENTS: dict[str, Callable[[str, str | None], BenchmarkClient]] = {
    "relay": RelayNode,
    "nats": NatsClient,
    "redis": RedisClient,
    "mosquitto": MosquittoClient,
}
#: systems that send a room's members their own messages
ECHOING = {"redis"}
