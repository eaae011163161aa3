"""Clients that others wrote from protocol-spec/ alone talk to each other, and to ours, through a relay."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from awesomeconnect.client import ClientSettings, Node, connect
from awesomeconnect.wire.messages import Mode, TrafficClass
from tests.support.relay import ThreadedRelay

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(240)]

PATIENCE_S = 20.0
MOST_LINE_BYTES = 8 << 20
LONG = bytes(range(256)) * 3_600  # 900 kB and more


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


@pytest.fixture(scope="module")
def relay() -> Iterator[ThreadedRelay]:
    relay = ThreadedRelay()
    relay.start()
    yield relay
    relay.kill()


class Driven:
    """A client that is a process of its own, steered by lines of JSON.

    Attributes:
        key: its public key.
    """

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.key = b""
        self._stdin = process.stdin
        self._lines = BufferedByteReceiveStream(process.stdout)
        self._events: list[dict[str, Any]] = []

    async def do(self, op: str, **fields: Any) -> None:
        """Say what to do."""
        await self._stdin.send(json.dumps({"op": op, **fields}).encode() + b"\n")

    async def expect(self, event: str, **fields: Any) -> dict[str, Any]:
        """The next event of this name and with these fields; others are kept for later."""

        def matches(one: dict[str, Any]) -> bool:
            return one["event"] == event and all(one.get(name) == value for name, value in fields.items())

        with anyio.fail_after(PATIENCE_S):
            while not (found := [one for one in self._events if matches(one)]):
                line = await self._lines.receive_until(b"\n", MOST_LINE_BYTES)
                self._events.append(json.loads(line))
        self._events.remove(found[0])
        return found[0]

    async def message(self) -> tuple[bytes, bytes, dict[str, Any]]:
        """Sender and payload of the next message, and all that is said of it."""
        event = await self.expect("message")
        return bytes.fromhex(event["sender"]), base64.b64decode(event["payload"]), event


@asynccontextmanager
async def driven(command: list[str], relay: ThreadedRelay) -> AsyncIterator[Driven]:
    async with await anyio.open_process(command, stderr=None) as process:
        client = Driven(process)
        try:
            await client.do("connect", relay=relay.address)
            client.key = bytes.fromhex((await client.expect("connected"))["key"])
            await client.do("join", room="room")
            await client.expect("joined", room="room")
            yield client
            await client.do("close")
            await client.expect("closed")
        finally:
            process.kill()


def text(payload: bytes) -> str:
    return base64.b64encode(payload).decode()


async def talk(one: Driven, other: Driven) -> None:
    """Everything that two clients say to each other."""
    for payload in (b"", b"short", LONG):
        await one.do("publish", room="room", payload=text(payload))
        assert (await other.message())[:2] == (one.key, payload)
    await one.do("publish", room="room", payload=text(LONG), **{"class": 0})
    await one.do("publish", room="room", payload=text(b"vote"), **{"class": 5})
    assert sorted([len((await other.message())[1]) for _ in range(2)]) == [4, len(LONG)]
    await one.do("send", peer=other.key.hex(), payload=text(b"for you"))
    assert (await other.message())[:2] == (one.key, b"for you")
    await one.do("anycast", room="room", payload=text(b"for any"))
    assert (await other.message())[:2] == (one.key, b"for any")
    for payload in (b"surely", LONG):
        await one.do("send", peer=other.key.hex(), payload=text(payload), reliable=True, id=len(payload))
        sender, received, event = await other.message()
        assert (sender, received, event["reliable"]) == (one.key, payload, True)
        await one.expect("delivered", id=len(payload))
    await one.do("publish", room="nobody", payload=text(b"?"), id=1)
    await one.do("flush", id=2)
    assert (await one.expect("rejected", id=1))["name"] == "no_members"


async def test_typescript_and_go(node_driver: list[str], go_driver: list[str], relay: ThreadedRelay) -> None:
    async with driven(node_driver, relay) as one, driven(go_driver, relay) as other:
        await talk(one, other)
        await talk(other, one)


@pytest.mark.parametrize("driver", ["node_driver", "go_driver"])
async def test_with_our_client(driver: str, relay: ThreadedRelay, request: pytest.FixtureRequest) -> None:
    command: list[str] = request.getfixturevalue(driver)
    async with (
        driven(command, relay) as theirs,
        connect(relay.address, rooms=["room"], settings=ClientSettings()) as ours,
    ):
        await _from_ours(ours, theirs)
        await _from_theirs(theirs, ours)


async def _from_ours(ours: Node, theirs: Driven) -> None:
    for payload in (b"short", LONG):
        await ours.publish("room", payload)
        assert (await theirs.message())[:2] == (ours.key, payload)
        await ours.send(theirs.key, payload)
        assert (await theirs.message())[:2] == (ours.key, payload)
        with anyio.fail_after(PATIENCE_S):
            await ours.send(theirs.key, payload, reliable=True)
        assert (await theirs.message())[:2] == (ours.key, payload)
    await ours.flush()


async def _from_theirs(theirs: Driven, ours: Node) -> None:
    with anyio.fail_after(PATIENCE_S):
        for payload in (b"short", LONG):
            await theirs.do("publish", room="room", payload=text(payload), **{"class": 4})
            message = await anext(ours)
            assert (message.sender, message.payload) == (theirs.key, payload)
            assert (message.mode, message.traffic_class) == (Mode.BROADCAST, TrafficClass.INTERACTIVE)
            await theirs.do("send", peer=ours.key.hex(), payload=text(payload), reliable=True, id=1)
            message = await anext(ours)
            assert (message.sender, message.payload) == (theirs.key, payload)
            await _acknowledge(ours)
            await theirs.expect("delivered", id=1)


async def _acknowledge(ours: Node) -> None:
    """A message counts as taken when the next one is asked for; there is none."""
    with anyio.move_on_after(0.05):
        await anext(ours)
