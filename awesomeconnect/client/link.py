"""One connection to a relay: the handshake, then a task that reads, one that writes, and one that watches silence.

The reader decodes and hands on, and never waits for the application. The writer alone seals and sends: it takes
from the outbox what leaves next when the socket is ready for it, all that is ready in one record. Where the path is
slow a record has one fragment: nothing passes a record that is sealed, and it is read when it is whole. A send that
failed or was cancelled leaves half a record behind, so the connection is over with it.

A link ends once, for one reason, and does not come back: `Node` makes another one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import anyio
from anyio.abc import TaskGroup
from attrs import fields, frozen

from awesomeconnect.client.outbox import Outbox
from awesomeconnect.client.reconnect import ended_text
from awesomeconnect.client.transport import Transport
from awesomeconnect.errors import (
    ConnectionBroken,
    ConnectionEnded,
    ErrorCode,
    HandshakeError,
    LinkError,
    RelayKeyMismatch,
    RemoteProtocolError,
)
from awesomeconnect.identity import Identity, RelayAddress
from awesomeconnect.wire.connection import DEFAULT_PAYLOAD_BYTES, ClientConnection
from awesomeconnect.wire.framing import FRAGMENT_ABOVE_BYTES, FRAME_OVERHEAD_BYTES
from awesomeconnect.wire.messages import (
    REVISION,
    Close,
    Goaway,
    Hello,
    Message,
    Ping,
    PingKind,
    Welcome,
    encode_frame,
)
from awesomeconnect.wire.records import MAX_PLAINTEXT
from awesomeconnect.wire.states import State

log = logging.getLogger("awesomeconnect.client")

FIRST_READ_BYTES = 8 << 10
MOST_READ_BYTES = 256 << 10
#: The writer lets others run after this much.
TURN_BYTES = 256 << 10


@frozen
class Limits:
    """What the relay allows, from WELCOME; the defaults are those of protocol-spec/limits.md."""

    payload_bytes: int = DEFAULT_PAYLOAD_BYTES
    frame_bytes: int = DEFAULT_PAYLOAD_BYTES + FRAME_OVERHEAD_BYTES
    rooms: int = 256
    room_members: int = 10_000
    page_bytes: int = 49_152
    keepalive_ms: int = 25_000
    drop_ms: int = 60_000

    @classmethod
    def from_welcome(cls, welcome: Welcome) -> Limits:
        """The limits that WELCOME names; names that are not known are ignored."""
        known = {attribute.name for attribute in fields(cls)}
        return cls(**{name: value for name, value in welcome.limits.items() if name in known})


class _Buffers(threading.local):
    """Nothing waits between receiving and opening: one buffer serves all links of a thread."""

    def __init__(self) -> None:
        self.received = memoryview(bytearray(MOST_READ_BYTES))


_buffers = _Buffers()


class Link:
    """An open connection, from WELCOME to its end. Make it with `open_link`.

    Attributes:
        address: the relay.
        number: of this connection among those of the process with this key.
        welcome: what the relay said first; ``limits`` from it.
        goaway: once the relay has asked this node to leave.
        error: why it ended; None while it runs.
    """

    def __init__(
        self,
        transport: Transport,
        connection: ClientConnection,
        address: RelayAddress,
        number: int,
        welcome: Welcome,
    ) -> None:
        self.address = address
        self.number = number
        self.welcome = welcome
        self.limits = Limits.from_welcome(welcome)
        self.goaway: Goaway | None = None
        self._transport = transport
        self._connection = connection
        self._outbox: Outbox | None = None
        self._handle: Callable[[Message], None] = lambda message: None
        self._heard = anyio.current_time()
        self.error: Exception | None = None
        self._tasks: TaskGroup | None = None
        self._pings = 0
        self._is_sending = False  # a record has left in part
        self._is_closing = False  # CLOSE is queued, nothing may follow it
        self._last_words: bytes | None = None  # instead of what the outbox has
        self._close_code = ErrorCode.OK

    def tell(self, message: Message) -> None:
        """Queue a control message, unless CLOSE was queued before it."""
        if self._outbox is not None and not self._is_closing:
            self._outbox.tell(message)

    def ping(self) -> bytes:
        """Ask the relay whether it is there; the token that its PONG will have. Tokens grow."""
        self._pings += 1
        token = b"k" + self._pings.to_bytes(8, "big")
        self.tell(Ping(PingKind.KEEPALIVE, token))
        return token

    def close(self) -> None:
        """Say CLOSE after everything that is queued. The link ends when the relay has answered."""
        self.tell(Close())
        self._is_closing = True

    def leave(self, last_words: bytes, most_s: float, handle: Callable[[Message], None]) -> None:
        """Take nothing more from the outbox, say CLOSE, and go on reading until the relay has answered.

        Args:
            last_words: frames that leave before CLOSE.
            most_s: how long the relay may take.
            handle: who is given its messages from now on.
        """
        self._last_words = last_words + encode_frame(Close())
        self._is_closing = True
        self._handle = handle
        if self._outbox is not None:
            self._outbox.filled.notify()
        if self._tasks is not None:
            self._tasks.start_soon(self._guard, partial(self._give_up, most_s))

    def attach(self, outbox: Outbox, handle: Callable[[Message], None]) -> None:
        """What to send, and who is given the relay's messages; ``handle`` must not wait."""
        self._outbox, self._handle = outbox, handle

    async def run(self) -> None:
        """Serve the connection until it ends; ``error`` says why it did."""
        try:
            async with anyio.create_task_group() as self._tasks:
                for job in (self._read, self._write, self._watch_silence):
                    self._tasks.start_soon(self._guard, job)
        finally:
            self._outbox = self._tasks = None
            self.drop()
        assert self.error is not None
        if self.goaway is not None and isinstance(self.error, ConnectionBroken):
            self.error = ConnectionEnded(ended_text(self.goaway.code, ""), self.goaway.code)

    def end(self, error: Exception) -> None:
        """End the link now."""
        if self.error is None:
            self.error = error
        if self._tasks is not None:
            self._tasks.cancel_scope.cancel()

    def drop(self) -> None:
        """Close the connection now; the relay is told if that takes no waiting."""
        if not self._is_sending:
            _farewell(self._transport, self._connection, self._close_code)
        self._transport.close()

    async def _guard(self, job: Callable[[], Awaitable[None]]) -> None:
        """The edge of a link: whatever goes wrong in its tasks is why it ended, and goes no further."""
        try:
            await job()
        except LinkError as error:
            self.end(error)
        except RemoteProtocolError as error:
            self._close_code = error.code
            self.end(error)
        except (OSError, anyio.ClosedResourceError) as error:
            self.end(ConnectionBroken(f"the connection to the relay broke: {_reason(error)}"))
        except Exception as error:
            log.exception("the connection to %s ends after an error in the library; please report it", self.address)
            self.end(error)

    async def _read(self) -> None:
        connection, transport = self._connection, self._transport
        recv_into, wait_readable = transport.recv_into, transport.wait_readable
        size = FIRST_READ_BYTES
        while True:
            while (message := connection.next_message()) is not None:
                if type(message) is Close:
                    raise ConnectionEnded(ended_text(message.code, message.detail), message.code)
                self._handle(message)
            try:
                received = recv_into(_buffers.received[:size])
            except BlockingIOError:
                await wait_readable()
                continue
            if not received:
                raise ConnectionBroken("the relay closed the connection without a word")
            self._heard = anyio.current_time()
            connection.receive(_buffers.received[:received])
            if received < size:
                size = max(received, FIRST_READ_BYTES)
            else:
                size = min(2 * size, MOST_READ_BYTES)
                await anyio.lowlevel.checkpoint()

    async def _write(self) -> None:
        outbox, connection = self._outbox, self._connection
        assert outbox is not None
        written = 0
        limit = MAX_PLAINTEXT
        while True:
            if self._last_words is not None:
                await self._send(connection.seal(self._last_words))
                connection.note_sent(Close())
                return
            plaintext = outbox.take(limit)
            if plaintext:
                has_waited = await self._send(connection.seal(plaintext))
                limit = FRAGMENT_ABOVE_BYTES if has_waited else MAX_PLAINTEXT
                written += len(plaintext)
                if written >= TURN_BYTES:
                    written = 0
                    await anyio.lowlevel.checkpoint()
            elif (due_s := outbox.due_s) is not None:
                with anyio.move_on_after(due_s):
                    await outbox.filled.wait()
            elif self._is_closing:
                connection.note_sent(Close())  # it was the last to leave
                return
            else:
                await outbox.filled.wait()

    async def _send(self, record: bytes) -> bool:
        """Send a record; whether the socket made it wait."""
        transport = self._transport
        has_waited = False
        rest = memoryview(record)
        self._is_sending = True
        while rest:
            try:
                rest = rest[transport.send(rest) :]
            except BlockingIOError:
                has_waited = True
                await transport.wait_writable()
        self._is_sending = False
        return has_waited

    async def _give_up(self, most_s: float) -> None:
        await anyio.sleep(most_s)
        raise ConnectionBroken("the relay did not answer CLOSE")

    async def _watch_silence(self) -> None:
        """Ask a silent relay whether it is there, and give it up."""
        drop_s = self.limits.drop_ms / 1000
        ask_s = min(self.limits.keepalive_ms / 1000, drop_s / 2)
        asked_at = 0.0
        while True:
            has_asked = asked_at > self._heard
            # SPEC sessions.md: A client that has received nothing for drop_ms MUST treat the connection as broken,
            #   but not before drop_ms - keepalive_ms have passed since it sent a PING in that silence.
            # A process that was stopped for a while gives the relay time to answer, too.
            due = max(self._heard, asked_at - ask_s) + drop_s if has_asked else self._heard + ask_s
            wait_s = due - anyio.current_time()
            if wait_s > 0:
                await anyio.sleep(min(wait_s, ask_s))
                await anyio.lowlevel.checkpoint()  # what has arrived meanwhile is read first
            elif has_asked:
                raise ConnectionBroken(f"nothing was heard from the relay for {drop_s - wait_s:.3g} s")
            else:
                asked_at = anyio.current_time()
                self.ping()


async def open_link(
    dial: Callable[[RelayAddress], Awaitable[Transport]],
    address: RelayAddress,
    identity: Identity,
    number: int,
    hello: Hello,
) -> Link:
    """Connect, prove both identities, and enter.

    Raises:
        OSError: the relay cannot be reached.
        RelayKeyMismatch: it proved another key than the address names.
        HandshakeError: it proved none: perhaps it is no relay.
        RemoteProtocolError: it broke the protocol later.
        ConnectionEnded: it did not let this node in.
        ConnectionBroken: the connection broke after the handshake.
    """
    connection = ClientConnection(identity, address.key)
    transport = await dial(address)
    try:
        welcome = await _greet(transport, connection, address, hello)
    except BaseException as error:
        code = error.code if isinstance(error, RemoteProtocolError) else ErrorCode.OK
        _farewell(transport, connection, code)
        transport.close()
        raise
    return Link(transport, connection, address, number, welcome)


async def _greet(
    transport: Transport, connection: ClientConnection, address: RelayAddress, hello: Hello
) -> Welcome:
    await _send_all(transport, connection.handshake_bytes())
    going_away: Goaway | None = None
    while True:
        try:
            received = transport.recv_into(_buffers.received[:FIRST_READ_BYTES])
        except BlockingIOError:
            await transport.wait_readable()
            continue
        except OSError as error:
            raise _no_relay(connection, address, _reason(error)) from error
        if not received:
            raise _no_relay(connection, address, "it closed the connection")
        try:
            connection.receive(_buffers.received[:received])
        except RelayKeyMismatch as error:
            raise RelayKeyMismatch(
                f"{error}: either the address is out of date, or somebody else answers at {_place(address)}; "
                "ask the relay's operator for its address"
            ) from None
        except HandshakeError as error:
            raise _no_relay(connection, address, str(error)) from error
        act = connection.handshake_bytes()
        if act:
            await _send_all(transport, act + connection.send(hello))
        while connection.is_established and (message := connection.next_message()) is not None:
            if isinstance(message, Welcome):
                if message.revision == REVISION:
                    return message
                _farewell(transport, connection, ErrorCode.UNSUPPORTED_REVISION)
                text = f"the relay speaks revision {message.revision} of the protocol, this library {REVISION}"
                raise ConnectionEnded(text, ErrorCode.UNSUPPORTED_REVISION)
            if isinstance(message, Goaway):
                going_away = message
            else:
                assert isinstance(message, Close)  # the state machine lets nothing else through
                code = going_away.code if going_away else message.code
                raise ConnectionEnded(ended_text(code, message.detail), code)


def _farewell(transport: Transport, connection: ClientConnection, code: ErrorCode) -> None:
    """Say CLOSE, if it has not been said and the socket takes it at once."""
    if connection.local_state is State.OPEN:
        with suppress(OSError):
            transport.send(connection.send(Close(code)))


def _no_relay(connection: ClientConnection, address: RelayAddress, reason: str) -> Exception:
    """The error of a relay that did not come as far as WELCOME."""
    if connection.is_established:
        return ConnectionBroken(f"{_place(address)} ended the connection before it let this node in: {reason}")
    return HandshakeError(f"handshake with {_place(address)} failed: {reason}; is this an AwesomeConnect relay?")


async def _send_all(transport: Transport, data: bytes) -> None:
    while data:
        try:
            data = data[transport.send(data) :]
        except BlockingIOError:
            await transport.wait_writable()


def _place(address: RelayAddress) -> str:
    return str(address).partition("@")[2]


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
