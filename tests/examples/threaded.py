"""A node on threads and blocking sockets: `awesomeconnect.wire` without an event loop.

    python -m tests.examples.threaded ac://KEY@host:port ROOM       lines of stdin go to the room, and back out

The five steps that any other event loop needs as well are marked. README.md tells about them.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
import time

from awesomeconnect.errors import RemoteProtocolError
from awesomeconnect.identity import Identity, RelayAddress
from awesomeconnect.wire import messages as wire
from awesomeconnect.wire.connection import ClientConnection

CONNECT_S = 10


class ThreadedNode:
    """One connection. A thread reads; any thread may `send`.

    Attributes:
        messages: what the relay says, PING aside; None at the end.
    """

    def __init__(self, address: RelayAddress, identity: Identity, rooms: list[str]) -> None:
        self.messages: queue.SimpleQueue[wire.Message | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # records leave in the order in which they are sealed
        # Step 1: a transport, and the connection's state machine over it.
        self._socket = socket.create_connection((address.host, address.port), CONNECT_S)
        self._connection = ClientConnection(identity, address.key)
        # Step 2: the handshake. Send what is due, feed what arrives.
        self._socket.sendall(self._connection.handshake_bytes())
        while not self._connection.is_established:
            self._connection.receive(self._read())
        self._socket.sendall(self._connection.handshake_bytes())
        # Step 3: HELLO, with the rooms to be in. The start of this process and random bytes tell it from others.
        incarnation = wire.Incarnation(time.time_ns() // 1_000_000, os.urandom(8))
        self.send(wire.Hello(wire.REVISION, incarnation, 1, {}, tuple(map(wire.RoomIntent, rooms))))
        self._socket.settimeout(None)
        self._reader = threading.Thread(target=self._receive)
        self._reader.start()

    def send(self, *messages: wire.Message) -> None:
        """Step 5: messages to bytes. Long ones are cut into fragments, all are sealed."""
        with self._lock:
            self._socket.sendall(self._connection.send(*messages))

    def close(self) -> None:
        """Say CLOSE, and wait until the relay has sent what it still had."""
        self.send(wire.Close())
        self._reader.join()
        self._socket.close()

    def _receive(self) -> None:
        """Step 4: bytes to messages. PING is answered; a CLOSE or the end of the stream ends it."""
        try:
            while not isinstance(message := self._connection.next_message(), wire.Close):
                if message is None:
                    self._connection.receive(self._read())
                elif isinstance(message, wire.Ping):
                    self.send(wire.Pong(message.token))
                else:
                    self.messages.put(message)
        except (OSError, EOFError, RemoteProtocolError) as error:
            print(f"the connection ended: {error}", file=sys.stderr)
        self.messages.put(None)

    def _read(self) -> bytes:
        if data := self._socket.recv(65_536):
            return data
        raise EOFError("the relay closed the connection")


def main(address: str, room: str) -> None:
    """wire.Publish the lines of stdin, and print what others publish."""
    node = ThreadedNode(RelayAddress.parse(address), Identity.generate(), [room])

    def show() -> None:
        while (message := node.messages.get()) is not None:
            if isinstance(message, wire.Welcome):
                print(f"connected, epoch {message.epoch.hex()}", file=sys.stderr)
            elif isinstance(message, wire.Deliver):
                print(message.payload.decode(errors="replace"), flush=True)

    threading.Thread(target=show).start()
    for line in sys.stdin:
        node.send(wire.Publish(room, wire.TrafficClass.DATA, 0, line.rstrip("\n").encode()))
    node.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
