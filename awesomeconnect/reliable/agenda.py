"""Who has to be looked at when: a heap whose entries may be stale.

An item that is due earlier than noted is noted again; one that is due later is looked at once too often.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Due(Protocol):
    """What can be on an agenda."""

    woken_at_ms: int | None


Item = TypeVar("Item", bound=Due)


class Agenda(Generic[Item]):
    """Items and their times."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Item]] = []
        self._count = 0  # equal times keep the order in which they were noted

    @property
    def next_ms(self) -> int | None:
        """When to look again; None: there is nothing to wait for."""
        return self._heap[0][0] if self._heap else None

    def note(self, item: Item, at_ms: int | None) -> None:
        """Look at an item at this time, or earlier."""
        if at_ms is not None and (item.woken_at_ms is None or at_ms < item.woken_at_ms):
            item.woken_at_ms = at_ms
            self._count += 1
            heapq.heappush(self._heap, (at_ms, self._count, item))

    def due(self, now_ms: int) -> Iterator[Item]:
        """The items whose time has come; they are no longer on the agenda."""
        while self._heap and self._heap[0][0] <= now_ms:
            at_ms, _count, item = heapq.heappop(self._heap)
            if item.woken_at_ms == at_ms:
                item.woken_at_ms = None
                yield item
