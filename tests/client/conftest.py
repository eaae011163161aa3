"""Every test of the client runs under trio and under asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import pytest

from awesomeconnect.client import ClientSettings, Node, connect
from tests.support.relay import PATIENCE_S, ThreadedRelay
from tests.support.scripted import ScriptedRelay

#: No waiting between attempts.
AT_ONCE: dict[str, Any] = {"backoff_s": 0.001, "first_cap_s": 0.01, "later_cap_s": 0.01}

Connect = Callable[..., AbstractAsyncContextManager[Node]]


@asynccontextmanager
async def patiently(connecting: AbstractAsyncContextManager[Node]) -> AsyncIterator[Node]:
    """A node of a test that fails rather than hangs."""
    with anyio.fail_after(PATIENCE_S):
        async with connecting as node:
            yield node


@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    backend: str = request.param
    return backend


@pytest.fixture
def relay() -> Iterator[ThreadedRelay]:
    """A running relay."""
    relay = ThreadedRelay(drain_s=0.05, spread_s=0.05, presence_s=0.005)
    relay.start()
    yield relay
    relay.kill()


@pytest.fixture
def enter(relay: ThreadedRelay) -> Connect:
    """Connects to the running relay; reconnects without waiting."""

    def enter(*rooms: str, **options: Any) -> AbstractAsyncContextManager[Node]:
        options.setdefault("settings", ClientSettings(**AT_ONCE))
        return patiently(connect(relay.address, rooms=rooms, **options))

    return enter


@pytest.fixture
def script() -> ScriptedRelay:
    """A relay that says what the test says."""
    return ScriptedRelay()


@pytest.fixture
def play(script: ScriptedRelay) -> Connect:
    """Connects to the scripted relay."""

    def play(
        *rooms: str, settings: dict[str, Any] | None = None, **options: Any
    ) -> AbstractAsyncContextManager[Node]:
        every = ClientSettings(dial=script.dial, **{**AT_ONCE, **(settings or {})})
        return patiently(connect(script.address, rooms=rooms, settings=every, **options))

    return play
