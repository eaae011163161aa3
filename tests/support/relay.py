"""A real relay on a real socket, in a thread of its own: for tests of clients under any event loop."""

from __future__ import annotations

import threading
from typing import Any

import trio

from awesomeconnect.config import RelaySettings
from awesomeconnect.identity import Identity
from awesomeconnect.server import Relay
from awesomeconnect.server.listeners import bound_address, close_listener, open_listeners

#: Within this every step of a test is done; one that is not hangs.
PATIENCE_S = 20.0


class ThreadedRelay:
    """Starts, drains, kills and starts again, always at the same place.

    Attributes:
        identity: the relay's.
        place: where it listens: ``host:port``, or a path.
    """

    def __init__(self, listen: str = "127.0.0.1:0", identity: Identity | None = None, **settings: Any) -> None:
        self.identity = identity or Identity.generate()
        self.place = listen
        self._settings = RelaySettings(**settings)
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        """What nodes connect to."""
        return f"ac://{self.identity.public_key.hex()}@{self.place}"

    def start(self) -> None:
        """Serve; returns once connections are accepted."""
        ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._serve, ready), daemon=True)
        self._thread.start()
        assert ready.wait(PATIENCE_S), "the relay did not start"

    def kill(self) -> None:
        """End without a word to anybody."""
        if self._thread is not None:
            self._token.run_sync_soon(self._scope.cancel)
            self._join()

    def drain(self) -> None:
        """End as after SIGTERM. Not for the thread of its clients, which must go on meanwhile."""
        self._token.run_sync_soon(lambda: self._nursery.start_soon(self._relay.drain))
        self._join()

    def _join(self) -> None:
        assert self._thread is not None
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the relay did not end"
        self._thread = None

    async def _serve(self, ready: threading.Event) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._relay = Relay(self.identity, self._settings)
        listeners = open_listeners(self.place)
        self.place = bound_address(listeners[0])
        try:
            with trio.CancelScope() as self._scope:
                async with trio.open_nursery() as self._nursery:
                    await self._nursery.start(self._relay.serve, listeners)
                    ready.set()
        finally:
            for listener in listeners:
                close_listener(listener)
