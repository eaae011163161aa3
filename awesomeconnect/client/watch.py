"""A list of a room's members that is always right in the end, and what changes in it.

PRESENCE is versioned. Applied to a list, which may be newer than some of it, it must change nothing twice: whoever
left is unknown already, whoever joined is known already. When some of it was missed, or the connection is another
one, the room is listed again, and the difference is told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable
from typing import Protocol

from awesomeconnect.client.events import PresenceChange
from awesomeconnect.client.waiting import Signal
from awesomeconnect.wire.messages import Member, Presence

#: PRESENCE messages kept for a slow application; beyond, the room is listed again.
KEPT_CHANGES = 1_024


class Lister(Protocol):
    """What a watch needs of `Rooms`."""

    def begin_watch(self, watch: Watch) -> Awaitable[None]: ...

    def end_watch(self, watch: Watch) -> None: ...

    def members(self, room: str) -> Awaitable[tuple[int, list[Member]]]: ...


class Watch:
    """An async iterator of changes; the first has all members. See `Node.watch`."""

    def __init__(self, lister: Lister, room: str) -> None:
        self.room = room
        self._lister = lister
        self._has_begun = False
        self._is_first = True
        self._is_stale = True
        self._is_over = False
        self._error: Exception | None = None
        self._members: dict[bytes, Member] = {}
        self._version = 0
        self._news: deque[Presence] = deque()
        self._changed = Signal()

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> PresenceChange:
        if not self._has_begun and not self._is_over:
            self._has_begun = True
            await self._lister.begin_watch(self)
        while not self._is_over:
            change = await self._list() if self._is_stale else self._next()
            if change is None and not self._is_stale:
                await self._changed.wait()
            if change is not None and (self._is_first or change.joined or change.left):
                self._is_first = False
                return change
        if self._error is not None:
            raise self._error.with_traceback(None)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Look away; the iterator ends. A watch that is dropped does the same a little later."""
        if not self._is_over:
            self.end(None)
            self._lister.end_watch(self)

    def add(self, presence: Presence) -> None:
        """Keep a PRESENCE until the application looks."""
        if len(self._news) < KEPT_CHANGES:
            self._news.append(presence)
            self._changed.notify()
        else:
            self.relist()

    def relist(self) -> None:
        """What is known may be wrong: the room must be listed again."""
        self._news.clear()
        self._is_stale = True
        self._changed.notify()

    def end(self, error: Exception | None) -> None:
        """There are no more changes; why, if it is an error."""
        self._is_over = True
        self._error = error
        self._changed.notify()

    async def _list(self) -> PresenceChange:
        """List the room; what has changed. PRESENCE from now on is applied to the new list."""
        self._news.clear()
        self._is_stale = False
        try:
            version, members = await self._lister.members(self.room)
        except BaseException:
            self._is_stale = True
            raise
        listed = {member.key: member for member in members}
        left = tuple(key for key in self._members if key not in listed)
        joined = tuple(member for member in members if self._members.get(member.key) != member)
        self._members, self._version = listed, version
        return PresenceChange(self.room, version, joined, left)

    def _next(self) -> PresenceChange | None:
        """What the next PRESENCE changes; None when there is none, or when the room must be listed again."""
        while self._news:
            presence = self._news.popleft()
            if presence.base > self._version:
                self.relist()
                break
            if presence.version > self._version:
                return self._apply(presence)
        return None

    def _apply(self, presence: Presence) -> PresenceChange:
        members = self._members
        left = tuple(key for key in presence.left if members.pop(key, None) is not None)
        joined = tuple(member for member in presence.joined if members.get(member.key) != member)
        members.update((member.key, member) for member in joined)
        self._version = presence.version
        return PresenceChange(self.room, presence.version, joined, left)
