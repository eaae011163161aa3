"""Many nodes in one room of one relay: everybody hears everybody's hello, and nobody is missing.

    python -m tests.assembly ac://KEY@HOST:PORT [NODES]

A program of its own, so that it runs at full speed beside a test run that measures coverage.
"""

from __future__ import annotations

import sys
import time

import anyio

from awesomeconnect import Node, connect

ROOM = "assembly"
#: Handshakes under way: the relay is one core and so is this process, so more would only queue up.
ENTERING = 50


class Assembly:
    """The nodes, and whom each has heard.

    Args:
        address: of the relay.
        size: how many nodes.
    """

    def __init__(self, address: str, size: int) -> None:
        self.heard: dict[bytes, set[bytes]] = {}
        self._address = address
        self._size = size
        self._entering = anyio.Semaphore(ENTERING)
        self._complete = 0
        self._everybody_is_here = anyio.Event()
        self._everybody_has_heard = anyio.Event()

    async def run(self) -> None:
        """Returns when every node has heard every other one exactly once."""
        async with anyio.create_task_group() as nodes:
            for _ in range(self._size):
                nodes.start_soon(self._live)
        everybody = set(self.heard)
        assert len(everybody) == self._size
        assert all(others == everybody - {key} for key, others in self.heard.items())

    async def _live(self) -> None:
        async with self._entering:
            entrance = connect(self._address, rooms=[ROOM], timeout_s=60)
            node = await entrance.__aenter__()
        try:
            await self._take_part(node)
        finally:
            await entrance.__aexit__(None, None, None)

    async def _take_part(self, node: Node) -> None:
        others = self.heard[node.key] = set()
        if len(self.heard) == self._size:
            self._everybody_is_here.set()
        await self._everybody_is_here.wait()
        await node.publish(ROOM, b"hello from " + node.key)
        async for message in node:
            assert message.payload == b"hello from " + message.sender
            assert message.sender not in others, "heard twice"
            others.add(message.sender)
            if len(others) == self._size - 1:
                break
        self._complete += 1
        if self._complete == self._size:
            self._everybody_has_heard.set()
        await self._everybody_has_heard.wait()


def main(address: str, size: str = "1000") -> None:
    """Run an assembly and say how long it took."""
    started = time.monotonic()
    anyio.run(Assembly(address, int(size)).run, backend="trio")
    print(f"{size} nodes heard each other in {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
