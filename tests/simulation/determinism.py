"""One seed, one run: the clock, the order of tasks and all randomness come from the seed."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import trio
import trio.testing

T = TypeVar("T")


def source(seed: int, name: str) -> random.Random:
    """A generator of its own for everything that draws, so that one does not shift the numbers of another."""
    return random.Random(f"{seed}/{name}")


def run(seed: int, main: Callable[[], Awaitable[T]]) -> T:
    """Run ``main`` under trio in virtual time, which jumps whenever everybody waits."""
    with _seeded(seed):
        return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Replace what is random in trio, in the handshake, and in when garbage is collected."""
    core: Any = trio._core._run
    replaced = [
        (core, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
        (core, "_r", source(seed, "scheduler")),
        (os, "urandom", source(seed, "urandom").randbytes),  # ephemeral keys
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _value in replaced]
    gc.collect()
    gc.disable()  # a weak reference dies at the same moment in every run
    try:
        for owner, name, value in replaced:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
        gc.enable()
