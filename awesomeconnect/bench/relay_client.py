"""The relay's side of `load.Client`: the wire modules directly on a socket, without the client library.

Every record is sealed for real. What arrives is either opened (`open`) or only measured (`measure`): the
lengths of records alone say how many bytes of frames they carry, so counting deliveries needs no decryption. That
holds as long as nothing but whole deliveries comes; where the relay may say something else, or cuts long messages
into pieces of its choice, `OpeningRelayClient` opens everything.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Iterator

from awesomeconnect import errors
from awesomeconnect.bench.load import CONNECT_S, Closed, Refused, TooFast
from awesomeconnect.identity import Identity, RelayAddress
from awesomeconnect.wire.fragments import is_fragmented, piece
from awesomeconnect.wire.messages import (
    Close,
    Content,
    Deliver,
    Fragment,
    Gap,
    Goaway,
    Hello,
    Incarnation,
    Joined,
    Left,
    Message,
    Mode,
    Ping,
    Pong,
    Publish,
    Reject,
    Resume,
    Role,
    RoomIntent,
    TrafficClass,
    Welcome,
    decode_body,
    encode_frame,
)
from awesomeconnect.wire.noise import ClientHandshake
from awesomeconnect.wire.records import LENGTH_BYTES, MAX_PLAINTEXT, TAG_BYTES, Opener, Sealer

ACT2_BYTES = 128
FRAME_LENGTH_BYTES = 4
_DELIVER, _FRAGMENT = bytes([Deliver.KIND]), bytes([Fragment.KIND])
#: Head of a byte string by the low bits of its first byte, for those that say the length in bytes of their own.
_HEAD_BYTES = {24: 2, 25: 3, 26: 5}


class RelayClient:
    """A node with an identity of its own. Messages are application bytes.

    Args:
        address: ``ac://KEY@HOST:PORT`` or ``ac://KEY@/PATH``.
        room: where to be a member; None: nowhere.
        traffic_class: of what it publishes, and of what it receives.
        timeout_s: for connecting, and for each answer until it may send.

    Attributes:
        welcome: what the relay announced: its limits and contracts.

    Raises:
        OSError: the relay cannot be reached.
        AwesomeConnectError: the handshake failed, or this is not the relay of this address.
        Refused, Closed: the relay does not let it in.
    """

    def __init__(
        self,
        address: str,
        room: str | None,
        traffic_class: int = TrafficClass.DATA,
        timeout_s: float = CONNECT_S,
    ) -> None:
        relay = RelayAddress.parse(address)
        identity = Identity.generate()
        self.socket = _connected(relay, timeout_s)
        handshake = ClientHandshake(identity, relay.key)
        try:
            self.socket.sendall(handshake.act1())
            act2 = self.socket.recv(ACT2_BYTES, socket.MSG_WAITALL)
        except ConnectionError:
            act2 = b""
        if not act2:
            raise Refused("the relay closed a new connection at once: it may have as many as it allows")
        handshake.read_act2(act2)
        act3 = handshake.act3()
        self._key = identity.public_key
        self._class = traffic_class
        self._sealer = Sealer(handshake.result.send_key)
        self._opener = Opener(handshake.result.receive_key)
        self._frames = b""
        self._heard: deque[Message | None] = deque()
        self._meter = RecordMeter()

        rooms = (RoomIntent(room),) if room else ()
        incarnation = Incarnation(time.time_ns() // 1_000_000, os.urandom(8))
        self.socket.sendall(act3 + self.seal(encode_frame(Hello(1, incarnation, 1, rooms=rooms))))
        welcome = self._await(Welcome)
        assert isinstance(welcome, Welcome)
        self.welcome = welcome
        if room:
            self._await(Joined)

    def settle(self) -> None:
        """Nothing but deliveries comes now; keepalive begins after 25 s without a word from this client."""

    def messages(self, room: str, payload: bytes, count: int) -> bytes:
        return encode_frame(Publish(room, self._class, Content.APPLICATION, payload)) * count

    def delivery(self, room: str, payload: bytes) -> bytes:
        message = Deliver(Mode.BROADCAST, self._key, room, self._class, Content.APPLICATION, payload)
        return encode_frame(message)

    def seal(self, plaintext: bytes) -> bytes:
        """One record, or as many as it takes."""
        if len(plaintext) <= MAX_PLAINTEXT:
            return self._sealer.seal(plaintext)
        view = memoryview(plaintext)
        return b"".join(
            self._sealer.seal(view[at : at + MAX_PLAINTEXT]) for at in range(0, len(plaintext), MAX_PLAINTEXT)
        )

    def measure(self, data: memoryview) -> int:
        return self._meter.measure(data)

    def open(self, data: memoryview) -> bytes:
        return b"".join(self._opener.open(data))

    def hear(self, data: memoryview) -> bytes:
        """PAUSE and CONTRACT are harmless: the window bounds what is under way."""
        self._read(data)
        answers = [encode_frame(Pong(heard.token)) for heard in self._heard if isinstance(heard, Ping)]
        self._heard.clear()
        return self.seal(b"".join(answers)) if answers else b""

    def sign_of_life(self) -> bytes:
        """A RESUME that ends no PAUSE, which the relay ignores."""
        return self.seal(encode_frame(Resume(None, self._class)))

    def _await(self, kind: type[Message]) -> Message:
        while True:
            while self._heard:
                message = self._heard.popleft()
                if isinstance(message, kind):
                    return message
            data = self.socket.recv(65_536)
            if not data:
                raise Closed(f"the relay closed the connection instead of {kind.__name__}")
            self._read(data)

    def _read(self, data: bytes | memoryview) -> None:
        self._heard += map(self._decoded, self._bodies(data))

    def _bodies(self, data: bytes | memoryview) -> Iterator[bytes]:
        """The frames that `data` completes, without their lengths."""
        frames = self._frames + b"".join(self._opener.open(data))
        at = 0
        while len(frames) - at >= FRAME_LENGTH_BYTES:
            following = at + FRAME_LENGTH_BYTES + int.from_bytes(frames[at : at + FRAME_LENGTH_BYTES], "big")
            if following > len(frames):
                break
            yield frames[at + FRAME_LENGTH_BYTES : following]
            at = following
        self._frames = frames[at:]

    def _decoded(self, body: bytes) -> Message | None:
        message = decode_body(body, Role.RELAY)
        if isinstance(message, Reject):
            about = f"the relay refused {message.count} messages"
            kind = TooFast if message.code == errors.ErrorCode.RATE_EXCEEDED else Refused
            raise kind(str(errors.Refused.from_code(message.code, about)))
        if isinstance(message, Gap):
            about = f"the relay dropped {message.count} messages to a member"
            raise Refused(str(errors.Refused.from_code(message.code, about)))
        if isinstance(message, Left):
            raise Refused(str(errors.Refused.from_code(message.code, f"not in room {message.room!r}")))
        if isinstance(message, Goaway | Close):
            raise Closed(f"the relay ended the connection: {errors.code_label(message.code)}")
        return message


class RecordMeter:
    """How many bytes of plaintext are in a stream of records, by their lengths alone."""

    def __init__(self) -> None:
        self._to_come = 0  # of the record under way
        self._plaintext_bytes = 0  # of that record
        self._half_length = b""  # the first byte of a length whose other one has not come

    def measure(self, data: memoryview) -> int:
        """The plaintext of the records that `data`, the next bytes of the stream, completes."""
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


class OpeningRelayClient(RelayClient):
    """Opens every record, so that pieces of messages and words of the relay may come between deliveries.

    A delivery is its frame without the length, which pieces do not carry. Long messages are sent in pieces too.
    """

    def messages(self, room: str, payload: bytes, count: int) -> bytes:
        frame = super().messages(room, payload, 1)
        if not is_fragmented(frame):
            return frame * count
        pieces, offset = [], FRAME_LENGTH_BYTES
        while offset < len(frame):
            part, offset = piece(frame, offset, self._class, MAX_PLAINTEXT)
            pieces.append(part)
        return b"".join(pieces) * count

    def delivery(self, room: str, payload: bytes) -> bytes:
        return super().delivery(room, payload)[FRAME_LENGTH_BYTES:]

    def measure(self, data: memoryview) -> int:
        return len(self.open(data))

    def open(self, data: memoryview) -> bytes:
        parts = []
        for body in self._bodies(data):
            kind = body[1:2]
            if kind == _DELIVER:
                parts.append(body)
            elif kind == _FRAGMENT:
                # array, kind, class, end: a byte each; then the chunk, a byte string
                parts.append(body[4 + _HEAD_BYTES.get(body[4] & 31, 1) :])
            else:
                self._decoded(body)  # a PING needs no answer: signs of life are sent
        return b"".join(parts)


def _connected(relay: RelayAddress, timeout_s: float) -> socket.socket:
    if relay.path:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout_s)
        connection.connect(relay.path)
    else:
        connection = socket.create_connection((relay.host, relay.port), timeout_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection
