"""A client for tests: `ClientConnection` over any transport, one call per thing that a test says.

It does nothing by itself: it answers no PING and leaves unread what the test does not ask for. So a test can
play every good or bad client. Waiting is bounded in (virtual) time: a test that waits in vain fails.
"""

from __future__ import annotations

from typing import Any, TypeVar

import trio

from awesomeconnect.identity import Identity
from awesomeconnect.server.transport import Transport
from awesomeconnect.wire.connection import ClientConnection
from awesomeconnect.wire.messages import (
    REVISION,
    Attributes,
    Close,
    Hello,
    Incarnation,
    Join,
    Joined,
    Message,
    Ping,
    PingKind,
    Pong,
    RoomIntent,
    Welcome,
)

Kind = TypeVar("Kind", bound=Message)

#: Longer than every deadline of a relay.
PATIENCE_S = 150.0


class Node:
    """A client's end of a connection.

    Attributes:
        connection: the state machine; tests may send through it what they like.
        transport: the client's end.
        key: its public key.
    """

    def __init__(self, transport: Transport, relay_key: bytes, identity: Identity | None = None) -> None:
        self.identity = identity or Identity.generate()
        self.key = self.identity.public_key
        self.connection = ClientConnection(self.identity, relay_key)
        self.transport = transport
        self._buffer = bytearray(1 << 16)
        self._flushes = 0

    async def handshake(self) -> None:
        """Prove who we are, and have the relay prove who it is."""
        await self.send_raw(self.connection.handshake_bytes())
        while not self.connection.is_established:
            await self._receive_some()
        await self.send_raw(self.connection.handshake_bytes())

    async def enter(
        self,
        *rooms: str | RoomIntent,
        attributes: Attributes | None = None,
        incarnation: Incarnation | None = None,
        number: int = 1,
    ) -> Welcome:
        """Handshake, HELLO, WELCOME, and JOINED for every room."""
        await self.handshake()
        intents = tuple(RoomIntent(room) if isinstance(room, str) else room for room in rooms)
        incarnation = incarnation or Incarnation(1, self.key[:8])
        await self.send(Hello(REVISION, incarnation, number, attributes or {}, intents))
        welcome = await self.expect(Welcome)
        for intent in intents:
            await self.expect(Joined, room=intent.room)
        return welcome

    async def send(self, *messages: Message) -> None:
        await self.send_raw(self.connection.send(*messages))

    async def send_raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        with trio.fail_after(PATIENCE_S):
            while data:
                try:
                    data = data[self.transport.send(data) :]
                except BlockingIOError:
                    await self.transport.wait_writable()

    async def receive(self) -> Message | None:
        """The next message; None when the stream has ended."""
        with trio.fail_after(PATIENCE_S):
            while (message := self.connection.next_message()) is None:
                if not await self._receive_some():
                    return None
        return message

    async def expect(self, kind: type[Kind], **fields: Any) -> Kind:
        """The next message, which must be of this kind and have these fields."""
        message = await self.receive()
        assert type(message) is kind, f"{message!r} instead of {kind.__name__} {fields}"
        found = {name: getattr(message, name) for name in fields}
        assert found == fields, f"{message!r} instead of {fields}"
        return message

    async def expect_end(self) -> None:
        """Nothing more, and the end of the stream."""
        message = await self.receive()
        assert message is None, f"{message!r} instead of the end"

    async def expect_close(self, code: int, **fields: Any) -> Close:
        """CLOSE with this code, then the end of the stream."""
        close = await self.expect(Close, code=code, **fields)
        await self.expect_end()
        return close

    async def flush(self) -> list[Message]:
        """Everything that arrives before the relay has judged all that was sent so far."""
        self._flushes += 1
        token = self._flushes.to_bytes(4, "big")
        await self.send(Ping(PingKind.FLUSH, token))
        arrived: list[Message] = []
        while (message := await self.receive()) != Pong(token):
            assert message is not None, f"the stream ended after {arrived}"
            arrived.append(message)
        return arrived

    async def join(self, room: str, flags: int = 0) -> Joined:
        await self.send(Join(room, flags))
        return await self.expect(Joined, room=room)

    def close(self) -> None:
        """Hang up without a word."""
        self.transport.close()

    async def _receive_some(self) -> int:
        while True:
            try:
                size = self.transport.recv_into(memoryview(self._buffer))
            except BlockingIOError:
                await self.transport.wait_readable()
                continue
            if size:
                self.connection.receive(bytes(self._buffer[:size]))
            return size
