"""Garbage collection of a daemon, so that no pause grows with the number of connections.

A full collection visits every object: 110 ms with 4,000 connections, and it finds nothing, since sessions have no
cycles. Here what survives a collection of young objects is frozen and never visited again, so that a pause is as
long as visiting the objects made since the last one. Whatever becomes garbage with cycles later is found by a full
collection, for which the relay must have nothing to do.

For a program that is a relay and nothing else: a library has no business with its process's collector.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import trio

#: Objects made, and not freed, until they are collected: a pause of 1 to 2 ms.
YOUNG_OBJECTS = 5_000
#: The older generations are never collected by themselves.
_NEVER = 1 << 30
#: How often a full collection is considered.
FULL_INTERVAL_S = 600
#: None is begun when it would visit more than this: a pause of about 50 ms.
MOST_OBJECTS = 80_000


class Collector:
    """Decides for the process when garbage is collected.

    Attributes:
        longest_pause_s: the longest collection so far, but for the one at the start.
    """

    def __init__(self) -> None:
        self.longest_pause_s = 0.0
        self._began = 0.0

    async def run(self, work_done: Callable[[], int]) -> None:
        """Be in charge until cancelled; then the collector is as it was.

        Args:
            work_done: a number that stands still while there is nothing to do.
        """
        thresholds = gc.get_threshold()
        gc.callbacks.append(self._note)
        gc.set_threshold(YOUNG_OBJECTS, _NEVER, _NEVER)
        try:
            self._collect()
            self.longest_pause_s = 0.0
            while True:
                await trio.sleep(FULL_INTERVAL_S)
                done = -1
                while done != (done := work_done()):  # noqa: ASYNC110 (nobody tells when there is nothing to do)
                    await trio.sleep(1)
                if gc.get_freeze_count() < MOST_OBJECTS:
                    self._collect()
        finally:
            gc.set_threshold(*thresholds)
            gc.callbacks.remove(self._note)
            gc.unfreeze()

    @staticmethod
    def _collect() -> None:
        gc.unfreeze()
        gc.collect()

    def _note(self, phase: str, _info: dict[str, Any]) -> None:
        now = time.perf_counter()
        if phase == "start":
            self._began = now
        else:
            self.longest_pause_s = max(self.longest_pause_s, now - self._began)
            gc.freeze()
