"""Destinations whose receivers are behind, and when a publisher that chose to wait may go on.

A PAUSE ends with RESUME, or lapses: the receiver that caused it may be gone, and then nobody says RESUME. So after
it has lapsed one message goes out as a probe. If the relay has judged the probe and said PAUSE again, the wait
doubles; if it has said nothing, the pause is over. So a slow receiver's full queue takes a message now and then,
and not one window of them a second.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import anyio
from attrs import define

from awesomeconnect.client.waiting import Signal

#: Destinations that are remembered.
MAX_PAUSES = 1_024
#: A pause that is renewed again and again lapses after this at the latest.
MOST_LAPSE_S = 30.0

Where: TypeAlias = tuple[str | bytes, int]
"""A room or a key, and a class."""


@define
class _Pause:
    until: float
    lapse_s: float
    is_probed: bool = False


class Pauses:
    """What the relay has paused, and not resumed.

    Args:
        flush: returns when the relay has judged everything that was queued before.
    """

    def __init__(self, flush: Callable[[], Awaitable[object]]) -> None:
        self._flush = flush
        self._pauses: dict[Where, _Pause] = {}
        self._changed = Signal()

    def __len__(self) -> int:
        return len(self._pauses)

    def __contains__(self, where: Where) -> bool:
        return where in self._pauses

    def pause(self, where: Where, for_s: float) -> bool:
        """The relay said PAUSE; whether that is news."""
        now = anyio.current_time()
        pause = self._pauses.get(where)
        if pause is None:
            if len(self._pauses) >= MAX_PAUSES:
                self.clear()
            self._pauses[where] = _Pause(now + for_s, for_s)
            return True
        if now >= pause.until:
            pause.lapse_s = min(2 * pause.lapse_s, MOST_LAPSE_S)
        pause.until = now + max(for_s, pause.lapse_s)
        pause.is_probed = False
        return False

    def resume(self, where: Where) -> bool:
        """The relay said RESUME; whether there was a pause."""
        self._changed.notify()
        return self._pauses.pop(where, None) is not None

    def clear(self) -> None:
        """The connection is gone, and with it every pause."""
        self._pauses.clear()
        self._changed.notify()

    async def passed(self, where: Where) -> None:
        """Return when a publisher that waits may put one message."""
        while (pause := self._pauses.get(where)) is not None:
            wait_s = pause.until - anyio.current_time()
            if wait_s > 0:
                with anyio.move_on_after(wait_s):
                    await self._changed.wait()
            elif not pause.is_probed:
                pause.is_probed = True
                return
            else:
                await self._flush()
                if pause.is_probed and self._pauses.get(where) is pause:
                    del self._pauses[where]
