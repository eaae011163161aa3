"""A system without a server: what a client seals is with the members of the room at once."""

from __future__ import annotations

import socket
from collections import defaultdict

from awesomeconnect.bench.load import Refused


class FakeSystem:
    """Its clients, by the room that they are in; `connect` is a `load.Connect`."""

    def __init__(self) -> None:
        self.rooms: dict[str | None, list[FakeClient]] = defaultdict(list)

    def connect(self, _address: str, room: str | None) -> FakeClient:
        client = FakeClient(self)
        self.rooms[room].append(client)
        return client

    def close(self) -> None:
        for clients in self.rooms.values():
            for client in clients:
                client.socket.close()
                client.far.close()


class FakeClient:
    """A `load.Client`; what is sent to `far` arrives at it."""

    def __init__(self, system: FakeSystem) -> None:
        self._system = system
        self.socket, self.far = socket.socketpair()
        self.is_deaf = False

    def settle(self) -> None:
        pass

    def messages(self, room: str, payload: bytes, count: int) -> bytes:
        return f"{room}:".encode() + self.delivery(room, payload) * count

    def delivery(self, _room: str, payload: bytes) -> bytes:
        return b"<%b>" % payload

    def seal(self, plaintext: bytes) -> bytes:
        room, _, deliveries = plaintext.partition(b":")
        for member in self._system.rooms[room.decode()]:
            if member is not self and not member.is_deaf:
                member.far.sendall(deliveries)
        return b"."

    def measure(self, data: memoryview) -> int:
        return len(data)

    def open(self, data: memoryview) -> bytes:
        return bytes(data)

    def hear(self, data: memoryview) -> bytes:
        if bytes(data) == b"ping":
            return b"pong"
        raise Refused(bytes(data).decode())

    def sign_of_life(self) -> bytes:
        return b""
