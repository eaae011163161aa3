"""The relay's side of `load.Client`: the wire modules directly on a socket, without the client library.

Every record is sealed for real. What arrives is either opened (`open`) or only measured (`measure`): the
lengths of records alone say how many bytes of frames they carry, so counting deliveries needs no decryption.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque

from awesomeconnect.bench.load import CONNECT_S, Refused
from awesomeconnect.identity import Identity, RelayAddress
from awesomeconnect.wire.messages import (
    Close,
    Content,
    Deliver,
    Goaway,
    Hello,
    Incarnation,
    Joined,
    Left,
    Message,
    Mode,
    Publish,
    Reject,
    Role,
    RoomIntent,
    TrafficClass,
    Welcome,
    decode_body,
    encode_frame,
)
from awesomeconnect.wire.noise import ClientHandshake
from awesomeconnect.wire.records import LENGTH_BYTES, TAG_BYTES, Opener, Sealer

ACT2_BYTES = 128
FRAME_LENGTH_BYTES = 4


class RelayClient:
    """A node with an identity of its own. Messages are application bytes in class DATA."""

    def __init__(self, address: str, room: str | None) -> None:
        relay = RelayAddress.parse(address)
        assert relay.host is not None, "benchmarks run over TCP"
        identity = Identity.generate()
        self.socket = socket.create_connection((relay.host, relay.port), CONNECT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        handshake = ClientHandshake(identity, relay.key)
        self.socket.sendall(handshake.act1())
        handshake.read_act2(self.socket.recv(ACT2_BYTES, socket.MSG_WAITALL))
        act3 = handshake.act3()
        self._key = identity.public_key
        self.seal = Sealer(handshake.result.send_key).seal
        self._opener = Opener(handshake.result.receive_key)
        self._frames = b""
        self._heard: deque[Message | None] = deque()
        # measure(): bytes to come of the record under way, its plaintext's length, the first byte of a length
        self._to_come, self._plaintext_bytes, self._half_length = 0, 0, b""

        rooms = (RoomIntent(room),) if room else ()
        incarnation = Incarnation(time.time_ns() // 1_000_000, os.urandom(8))
        self.socket.sendall(act3 + self.seal(encode_frame(Hello(1, incarnation, 1, rooms=rooms))))
        self._await(Welcome)
        if room:
            self._await(Joined)

    def settle(self) -> None:
        """Nothing but deliveries comes now; keepalive begins after 25 s without a word from this client."""

    def messages(self, room: str, payload: bytes, count: int) -> bytes:
        return encode_frame(Publish(room, TrafficClass.DATA, Content.APPLICATION, payload)) * count

    def delivery(self, room: str, payload: bytes) -> bytes:
        message = Deliver(Mode.BROADCAST, self._key, room, TrafficClass.DATA, Content.APPLICATION, payload)
        return encode_frame(message)

    def measure(self, data: memoryview) -> int:
        if self._half_length:
            data = memoryview(self._half_length + data)
            self._half_length = b""
        # `at` is where the record under way ends and the next length stands.
        at, end, plaintext_bytes, total = self._to_come, len(data), self._plaintext_bytes, 0
        while at <= end:
            total += plaintext_bytes
            plaintext_bytes = 0
            if end - at < LENGTH_BYTES:
                self._half_length = bytes(data[at:])
                at = end
                break
            length = data[at] << 8 | data[at + 1]
            plaintext_bytes = length - TAG_BYTES
            at += LENGTH_BYTES + length
        self._to_come, self._plaintext_bytes = at - end, plaintext_bytes
        return total

    def open(self, data: memoryview) -> bytes:
        return b"".join(self._opener.open(data))

    def hear(self, data: memoryview) -> None:
        """PAUSE and CONTRACT are harmless: the window bounds what is under way."""
        self._read(data)
        self._heard.clear()

    def _await(self, kind: type[Message]) -> None:
        while True:
            while self._heard:
                if isinstance(self._heard.popleft(), kind):
                    return
            data = self.socket.recv(65_536)
            if not data:
                raise Refused(f"the relay closed the connection instead of {kind.__name__}")
            self._read(data)

    def _read(self, data: bytes | memoryview) -> None:
        self._frames += b"".join(self._opener.open(data))
        while len(self._frames) >= FRAME_LENGTH_BYTES:
            end = FRAME_LENGTH_BYTES + int.from_bytes(self._frames[:FRAME_LENGTH_BYTES], "big")
            if len(self._frames) < end:
                break
            message = decode_body(self._frames[FRAME_LENGTH_BYTES:end], Role.RELAY)
            self._frames = self._frames[end:]
            if isinstance(message, Reject | Left | Goaway | Close):
                raise Refused(str(message))
            self._heard.append(message)
