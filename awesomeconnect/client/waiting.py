"""Two ways to wait inside one event loop: for something to change, and for one answer."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Generic, TypeVar

import anyio

T = TypeVar("T")


def loop_clock() -> Callable[[], float]:
    """The clock of the event loop that runs, in seconds: what `anyio.current_time` looks up at every call."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        clock: Callable[[], float] = trio.current_time
        return clock
    return asyncio.get_running_loop().time


class Signal:
    """Wakes all who wait now. They look again at what they wait for."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: anyio.Event | None = None

    def notify(self) -> None:
        """Wake everybody."""
        if self._event is not None:
            self._event.set()
            self._event = None

    async def wait(self) -> None:
        """Return at the next `notify`. Cancellation loses nothing."""
        if self._event is None:
            self._event = anyio.Event()
        await self._event.wait()


class Answer(Generic[T]):
    """One value or one error, which another task gives. The first counts."""

    __slots__ = ("_event", "_outcome")

    def __init__(self) -> None:
        self._event = anyio.Event()
        self._outcome: tuple[T | None, Exception | None] | None = None

    def give(self, value: T) -> None:
        """The value that `wait` returns."""
        self._settle((value, None))

    def fail(self, error: Exception) -> None:
        """The error that `wait` raises."""
        self._settle((None, error))

    async def wait(self) -> T:
        """The value, once it is there."""
        await self._event.wait()
        assert self._outcome is not None
        value, error = self._outcome
        if error is not None:
            raise error
        return value  # type: ignore[return-value]

    def _settle(self, outcome: tuple[T | None, Exception | None]) -> None:
        if self._outcome is None:
            self._outcome = outcome
            self._event.set()
