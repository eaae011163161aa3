"""A thousand nodes in one room of one relay: everybody hears everybody's hello, and nobody is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from awesomeconnect import Node, connect

NODES = 1_000
ROOM = "assembly"


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[str]:
    command = ["serve", "--json", "--listen", "127.0.0.1:0", "--key", str(tmp_path / "relay.key")]
    with subprocess.Popen(
        [sys.executable, "-m", "awesomeconnect", *command], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["addresses"][0]
        process.terminate()


def test_everybody_hears_everybody(relay: str) -> None:
    heard: dict[bytes, set[bytes]] = {}
    everybody_is_here = anyio.Event()
    everybody_has_heard = anyio.Event()

    async def live(address: str, entering: anyio.Semaphore) -> None:
        # The relay is one core, and so is this process: a thousand handshakes at once would only queue up.
        async with entering:
            entrance = connect(address, rooms=[ROOM], timeout_s=60)
            node = await entrance.__aenter__()
        try:
            await take_part(node)
        finally:
            await entrance.__aexit__(None, None, None)

    async def take_part(node: Node) -> None:
        others = heard[node.key] = set()
        if len(heard) == NODES:
            everybody_is_here.set()
        await everybody_is_here.wait()
        await node.publish(ROOM, b"hello from " + node.key)
        async for message in node:
            assert message.payload == b"hello from " + message.sender
            assert message.sender not in others, "heard twice"
            others.add(message.sender)
            if len(others) == NODES - 1:
                break
        if all(len(others) == NODES - 1 for others in heard.values()):
            everybody_has_heard.set()
        await everybody_has_heard.wait()

    async def assemble() -> None:
        entering = anyio.Semaphore(50)
        with anyio.fail_after(120):
            async with anyio.create_task_group() as nodes:
                for _ in range(NODES):
                    nodes.start_soon(live, relay, entering)

    anyio.run(assemble, backend="trio")
    assert len(heard) == NODES
    everybody = set(heard)
    assert all(others == everybody - {key} for key, others in heard.items())
