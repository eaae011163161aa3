"""A relay that does what a test says, in the client's own event loop and without any I/O.

What the client sends is decoded in the very call that sends it; what the relay says is there to be read at once.
Greetings are answered by themselves, everything else is the test's to say.
"""

from __future__ import annotations

from typing import Any, TypeVar

import anyio

from awesomeconnect.client.waiting import Signal
from awesomeconnect.identity import Identity, RelayAddress
from awesomeconnect.wire.connection import RelayConnection
from awesomeconnect.wire.messages import Close, Hello, Joined, Message, Ping, PingKind, Pong, Welcome
from awesomeconnect.wire.states import State

Kind = TypeVar("Kind", bound=Message)

#: A message that has not come after this never will.
PATIENCE_S = 5.0


class ScriptedTransport:
    """The client's end of a connection: the names of `awesomeconnect.client.Transport`.

    Attributes:
        room_bytes: what the next sends take in all; None: everything.
        is_closed: by the client.
    """

    def __init__(self, relay: ScriptedRelay) -> None:
        self.room_bytes: int | None = None
        self.is_closed = False
        self.is_ended = False  # by the relay
        self.error: OSError | None = None  # of every call
        self._relay = relay
        self._arrived = bytearray()
        self._changed = Signal()

    def recv_into(self, buffer: Any) -> int:
        if self.error is not None:
            raise self.error
        size = min(len(buffer), len(self._arrived))
        if not size:
            if self.is_ended:
                return 0
            raise BlockingIOError
        buffer[:size] = self._arrived[:size]
        del self._arrived[:size]
        return size

    def send(self, data: Any) -> int:
        if self.error is not None:
            raise self.error
        if self.is_closed or self.is_ended:
            raise BrokenPipeError(32, "Broken pipe")
        data = bytes(data[: self.room_bytes])
        if not data:
            raise BlockingIOError
        if self.room_bytes is not None:
            self.room_bytes -= len(data)
        self._relay.receive(data)
        return len(data)

    async def wait_readable(self) -> None:
        while not (self._arrived or self.is_ended or self.is_closed or self.error):
            await self._changed.wait()
        if self.is_closed:
            raise anyio.ClosedResourceError

    async def wait_writable(self) -> None:
        while self.room_bytes == 0 and not (self.is_ended or self.is_closed or self.error):
            await self._changed.wait()

    def close(self) -> None:
        self.is_closed = True
        self._changed.notify()
        self._relay.changed.notify()

    def arrive(self, data: bytes) -> None:
        """Bytes that the client can read now."""
        self._arrived += data
        self._changed.notify()

    def change(self, **values: Any) -> None:
        """Set attributes, and wake the client."""
        for name, value in values.items():
            setattr(self, name, value)
        self._changed.notify()


class ScriptedRelay:
    """See the module's docstring. ``ClientSettings(dial=relay.dial)`` leads here.

    Attributes:
        heard: messages of the current connection, the newest last; flushes are not among them.
        transports: of all connections, the newest last.
        hellos: all there were.
        answers_pings: PONG comes by itself.
        answers_close: so does CLOSE.
        welcomes: so do WELCOME and JOINED, as if by `welcome`.
        refuses: what `dial` raises.
    """

    def __init__(self, **limits: int) -> None:
        self.identity = Identity.from_seed(bytes(range(32)))
        self.address = RelayAddress(self.identity.public_key, "relay.invalid")
        self.limits = limits
        self.epoch = 0
        self.heard: list[Message] = []
        self.hellos: list[Hello] = []
        self.transports: list[ScriptedTransport] = []
        self.answers_pings = True
        self.answers_close = True
        self.welcomes = True
        self.refuses: OSError | None = None
        self.changed = Signal()
        self._taken = 0

    @property
    def transport(self) -> ScriptedTransport:
        return self.transports[-1]

    async def dial(self, address: RelayAddress) -> ScriptedTransport:
        await anyio.lowlevel.checkpoint()
        if self.refuses is not None:
            raise self.refuses
        self.connection = RelayConnection(self.identity)
        self.transports.append(ScriptedTransport(self))
        self.heard = []
        self._taken = 0
        return self.transport

    def receive(self, data: bytes) -> None:
        connection = self.connection
        connection.receive(data)
        act = connection.handshake_bytes()
        if act:
            self.transport.arrive(act)
        while (message := connection.next_message()) is not None:
            self._on(message)

    def say(self, *messages: Message) -> None:
        """Send these to the client."""
        self.transport.arrive(self.connection.send(*messages))

    def welcome(self, hello: Hello) -> None:
        """Let the client in, and into its rooms."""
        self.epoch += 1
        self.say(Welcome(1, self.epoch.to_bytes(8, "big"), self.limits))
        self.say(*(Joined(intent.room, 1, 1, 0) for intent in hello.rooms))

    def hang_up(self) -> None:
        """The end of the stream, without CLOSE."""
        self.transport.change(is_ended=True)

    async def expect(self, kind: type[Kind], /, **fields: Any) -> Kind:
        """The next message of this kind, and with these fields, that was not expected before."""
        with anyio.fail_after(PATIENCE_S):
            while True:
                while self._taken < len(self.heard):
                    message = self.heard[self._taken]
                    self._taken += 1
                    if type(message) is kind and all(
                        getattr(message, name) == value for name, value in fields.items()
                    ):
                        return message
                await self.changed.wait()

    async def closed(self) -> None:
        """Return when the client has closed the connection."""
        with anyio.fail_after(PATIENCE_S):
            while not self.transport.is_closed:
                await self.changed.wait()

    def _on(self, message: Message) -> None:
        if type(message) is Hello:
            self.hellos.append(message)
            if self.welcomes:
                self.welcome(message)
        elif type(message) is Ping and self.answers_pings:
            self.say(Pong(message.token))
            if message.kind == PingKind.FLUSH:
                return
        elif type(message) is Close and self.answers_close:
            if self.connection.local_state is not State.CLOSED:
                self.say(Close())
            self.hang_up()
        self.heard.append(message)
        self.changed.notify()
