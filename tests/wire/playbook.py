"""Scripted conversations with one side of a connection, in the manner of mitmproxy's Playbook.

``>>`` is what the other side sends: a message, or the plaintext bytes of frames. ``<<`` is what must come of it: a
message, a `Counted` message, or a `Refused` connection::

    assert (
        Playbook(Role.RELAY)
        >> Publish("r", 1, 0, b"x")
        << Counted(1, Publish("r", 1, 0, b"x"))
    )

Every script is played with and without the flow cache, and in several chunkings; all must give the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from difflib import ndiff
from itertools import product
from typing import Any

import pytest
from attrs import fields, frozen, has

from awesomeconnect.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from awesomeconnect.identity import Identity
from awesomeconnect.wire.connection import ClientConnection, Connection, RelayConnection
from awesomeconnect.wire.fragments import Reassembler
from awesomeconnect.wire.framing import LENGTH_BYTES, FrameReader
from awesomeconnect.wire.messages import (
    Anycast,
    Hello,
    Incarnation,
    Message,
    Publish,
    Role,
    Send,
    Welcome,
    decode_body,
    encode_frame,
    publish_prefix,
    send_prefix,
)
from awesomeconnect.wire.records import MAX_PLAINTEXT

CLIENT_IDENTITY = Identity.from_seed(b"c" * 32)
RELAY_IDENTITY = Identity.from_seed(b"r" * 32)
HELLO = Hello(1, Incarnation(1_700_000_000_000, b"8 bytes."), 1)


class ForgetfulReader(FrameReader):
    """A reader without a flow cache: every frame is decoded."""

    __slots__ = ()

    def bind(self, prefix: bytes, stream: Any, out_prefix: bytes = b"") -> None:
        """Nothing is remembered."""


class GatheredStream:
    """What `FrameReader.gather` needs of a stream."""

    def __init__(self, traffic_class: int = 1) -> None:
        self.traffic_class = traffic_class
        self.parts: list[bytes] = []
        self.frames = 0
        self.received_bytes = 0


def without_flow_cache(connection: Connection) -> None:
    connection.reader = ForgetfulReader()
    connection.fragments = Reassembler(connection.fragments.limit, connection.reader.open_classes)


def established(payload_bytes: int = 1 << 20) -> tuple[ClientConnection, RelayConnection]:
    """Both sides, right after the handshake."""
    client = ClientConnection(CLIENT_IDENTITY, RELAY_IDENTITY.public_key)
    relay = RelayConnection(RELAY_IDENTITY, payload_bytes)
    relay.receive(client.handshake_bytes())
    client.receive(relay.handshake_bytes())
    relay.receive(client.handshake_bytes())
    assert client.is_established
    assert relay.is_established
    return client, relay


def frames_of(data: bytes) -> Iterator[bytes]:
    """The frames of a byte string, without their lengths."""
    at = 0
    while at < len(data):
        end = at + LENGTH_BYTES + int.from_bytes(data[at : at + LENGTH_BYTES], "big")
        assert end <= len(data)
        yield data[at + LENGTH_BYTES : end]
        at = end


@frozen
class Counted:
    """A message with its ordinal."""

    ordinal: int
    message: Message


@frozen
class Refused:
    """The connection fails with this code."""

    code: ErrorCode


def _whole(data: bytes, seal: Callable[[bytes], bytes]) -> Iterator[bytes]:
    """As few records as possible, in one piece."""
    yield b"".join(seal(data[at : at + MAX_PLAINTEXT]) for at in range(0, len(data), MAX_PLAINTEXT))


def _torn_records(data: bytes, seal: Callable[[bytes], bytes]) -> Iterator[bytes]:
    """As few records as possible, byte by byte (long ones in 500 pieces)."""
    (record,) = _whole(data, seal)
    step = 1 + len(record) // 500
    for at in range(0, len(record), step):
        yield record[at : at + step]


def _small_records(data: bytes, seal: Callable[[bytes], bytes]) -> Iterator[bytes]:
    """A record for each byte (for each five-hundredth of long ones)."""
    step = 1 + len(data) // 500
    for at in range(0, len(data), step):
        yield seal(data[at : at + step])


CHUNKINGS = (_whole, _torn_records, _small_records)


class Playbook:
    """A script for the side ``role``, to be asserted.

    Args:
        greeted: HELLO and WELCOME are exchanged before the script begins.
    """

    def __init__(self, role: Role, *, greeted: bool = True, payload_bytes: int = 1 << 20) -> None:
        self._role = role
        self._greeted = greeted
        self._payload_bytes = payload_bytes
        self._script: list[tuple[str, Any]] = []

    def __rshift__(self, incoming: Message | bytes) -> Playbook:
        self._script.append((">>", incoming))
        return self

    def __lshift__(self, outcome: Message | Counted | Refused) -> Playbook:
        self._script.append(("<<", outcome))
        return self

    def __bool__(self) -> bool:
        for cached, chunking in product((True, False), CHUNKINGS):
            played = list(self._play(cached, chunking))
            if played != self._script:
                how = f"{'with' if cached else 'without'} the flow cache, {chunking.__name__.strip('_')}"
                diff = ndiff(list(map(_line, self._script)), list(map(_line, played)))
                pytest.fail("\n".join((how, *diff)), pytrace=False)
        return True

    def _play(self, cached: bool, chunking: Callable[..., Iterator[bytes]]) -> Iterator[tuple[str, Any]]:
        client, relay = established(self._payload_bytes)
        here, there = (client, relay) if self._role is Role.CLIENT else (relay, client)
        if not cached:
            without_flow_cache(here)
        if self._greeted:
            here.receive(there.send(HELLO if self._role is Role.RELAY else self._welcome()))
            assert here.next_message() is not None
        for direction, step in self._script:
            if direction == ">>":
                yield direction, step
                data = step if isinstance(step, bytes) else encode_frame(step)
                for chunk in chunking(data, there.seal):
                    for outcome in _outcomes(here, chunk):
                        yield "<<", outcome
                        if isinstance(outcome, Refused):
                            return

    def _welcome(self) -> Welcome:
        return Welcome(1, b"8 bytes.", {"payload_bytes": self._payload_bytes})


def _outcomes(connection: Connection, chunk: bytes) -> Iterator[Any]:
    try:
        connection.receive(chunk)
        while True:
            try:
                message = connection.next_message()
            finally:
                yield from _gathered(connection.reader)
            if message is None:
                return
            if isinstance(message, Publish | Send | Anycast):
                yield Counted(connection.reader.ordinal, message)
                _bind(connection.reader, message)
            else:
                yield message
    except RemoteProtocolError as error:
        yield Refused(error.code)
        for call in (connection.next_message, lambda: connection.receive(b"")):
            with pytest.raises(LocalProtocolError, match="failed before"):
                call()


def _bind(reader: FrameReader, message: Message) -> None:
    """Remember a flow as the relay does, but so that what is gathered is what was sent."""
    if isinstance(message, Publish):
        prefix = publish_prefix(message.room, message.traffic_class, message.content)
    elif isinstance(message, Send):
        prefix = send_prefix(message.peer, message.traffic_class, message.content)
    else:
        return
    reader.bind(prefix, GatheredStream(message.traffic_class), prefix)


def _gathered(reader: FrameReader) -> Iterator[Counted]:
    """The messages that the reader has put into streams, in the order in which they came."""
    parts = {id(stream): iter(stream.parts) for stream in reader.touched}
    for stream, first, count, size in reader.runs:
        bodies = list(frames_of(next(parts[id(stream)])))
        assert len(bodies) == count
        assert {LENGTH_BYTES + len(body) for body in bodies} == {size}
        for ordinal, body in enumerate(bodies, first):
            message = decode_body(body, Role.CLIENT)
            assert message is not None
            yield Counted(ordinal, message)
    for stream in reader.touched:
        stream.parts = []
    reader.touched, reader.runs = [], []


def _line(step: tuple[str, Any]) -> str:
    direction, what = step
    return f"{direction} {_text(what)}"


def _text(what: Any) -> str:
    """A step for people: a message is its name and fields, and long bytes are their beginning."""
    if isinstance(what, bytes):
        return f"h'{what[:24].hex(' ')}'" + (f"... ({len(what)} bytes)" if len(what) > 24 else "")
    if has(type(what)):
        values = (_text(getattr(what, field.name)) for field in fields(type(what)))
        return f"{type(what).__name__}({', '.join(values)})"
    return str(what)
