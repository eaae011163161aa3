"""The rooms that a node wants to be in, and what it asks the relay about them.

What the application wants outlives connections: HELLO repeats it. Answers come by room, in the order of the
questions. `Watch` turns pages and PRESENCE into a list that is always right in the end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from awesomeconnect.client.events import PresenceChange
from awesomeconnect.client.waiting import Answer, Signal
from awesomeconnect.errors import ConnectionBroken, ErrorCode, Refused
from awesomeconnect.wire.messages import (
    Join,
    Joined,
    JoinFlags,
    Leave,
    Left,
    Member,
    Members,
    MembersPage,
    Message,
    Presence,
    RoomIntent,
)

#: Rooms in HELLO; what is above is joined one by one.
HELLO_ROOMS = 256
#: PRESENCE messages that a watch keeps for a slow application; beyond, it lists the room again.
KEPT_CHANGES = 1_024

T = TypeVar("T")


class Rooms:
    """Intents and open questions.

    Args:
        tell: queues a message to the relay; does nothing while there is no connection.
        connected: returns when there is a connection; raises when there will be none.
        lost: called with room and code when the relay takes the node out of a room.
    """

    def __init__(
        self,
        tell: Callable[[Message], None],
        connected: Callable[[], Awaitable[object]],
        lost: Callable[[str, int], None],
    ) -> None:
        self._tell = tell
        self._connected = connected
        self._lost = lost
        self._joined: dict[str, JoinFlags] = {}  # as the application joined
        self._watches: dict[str, list[Watch]] = {}
        self._announced: dict[str, JoinFlags] = {}  # in HELLO
        self._joins: dict[str, list[Answer[Joined]]] = {}
        self._leaves: dict[str, list[Answer[None]]] = {}
        self._pages: dict[str, deque[Answer[MembersPage]]] = {}

    # ---- the application -----------------------------------------------------------------------------

    def announce(self, rooms: Iterable[str]) -> list[Answer[Joined]]:
        """Join rooms with the first HELLO; the relay's answers."""
        for room in rooms:
            self._joined[room] = JoinFlags.NONE
            self._joins[room] = [Answer()]
        return [joins[0] for joins in self._joins.values()]

    async def join(self, room: str, flags: JoinFlags) -> Joined:
        """Join, or change how the node is in the room; see `Node.join`."""
        self._joined[room] = flags
        return await self._ask_join(room)

    async def leave(self, room: str) -> None:
        """Leave; see `Node.leave`."""
        self._joined.pop(room, None)
        answer: Answer[None] = Answer()
        self._leaves.setdefault(room, []).append(answer)
        self._tell(Leave(room))
        await self._connected()
        await answer.wait()

    async def members(self, room: str) -> tuple[int, list[Member]]:
        """All members in join order, and the room's version when the first page was made."""
        while True:
            await self._connected()
            try:
                return await self._list(room)
            except ConnectionBroken:
                continue

    @contextmanager
    def watching(self, room: str) -> Iterator[Watch]:
        """A watch of a room, until the block ends."""
        watch = Watch(room)
        self._watches.setdefault(room, []).append(watch)
        try:
            yield watch
        finally:
            watches = self._watches.get(room, [])
            if watch in watches:
                watches.remove(watch)
            if not watches:
                self._watches.pop(room, None)
                flags = self._flags(room)
                self._tell(Leave(room) if flags is None else Join(room, flags))

    async def changes(self, watch: Watch) -> AsyncIterator[PresenceChange]:
        """See `Node.watch`."""
        await self._ask_join(watch.room)
        first = True
        while not watch.ended:
            change = watch.next()
            if watch.is_stale:
                watch.begin()
                change = watch.replace(*await self.members(watch.room))
            elif change is None:
                await watch.changed.wait()
            if change is not None and (first or change.joined or change.left):
                first = False
                yield change

    def _flags(self, room: str) -> JoinFlags | None:
        """How to be in a room now; None: not at all."""
        flags = self._joined.get(room)
        if room not in self._watches:
            return flags
        return JoinFlags.WATCH | (JoinFlags.OBSERVE if flags is None else flags)

    async def _ask_join(self, room: str) -> Joined:
        answer: Answer[Joined] = Answer()
        self._joins.setdefault(room, []).append(answer)
        self._tell(Join(room, self._flags(room) or JoinFlags.NONE))
        return await answer.wait()

    async def _list(self, room: str) -> tuple[int, list[Member]]:
        version: int | None = None
        members: list[Member] = []
        after: int | None = 0
        while after is not None:
            answer: Answer[MembersPage] = Answer()
            self._pages.setdefault(room, deque()).append(answer)
            self._tell(Members(room, after))
            page = await answer.wait()
            if page.code:
                raise Refused.from_code(page.code, f"list members of room {room!r}")
            version = page.version if version is None else version
            members += page.page
            after = page.next
        return version or 0, members

    # ---- the connection ------------------------------------------------------------------------------

    def intents(self) -> tuple[RoomIntent, ...]:
        """For HELLO: where the node wants to be."""
        rooms = list(dict.fromkeys((*self._joined, *self._watches)))[:HELLO_ROOMS]
        self._announced = {room: self._flags(room) or JoinFlags.NONE for room in rooms}
        return tuple(RoomIntent(room, flags) for room, flags in self._announced.items())

    def up(self) -> None:
        """A connection is up: what has changed since its HELLO is told now."""
        for room in dict.fromkeys((*self._joined, *self._watches)):
            flags = self._flags(room)
            if flags is not None and self._announced.get(room) != flags:
                self._tell(Join(room, flags))
        for room in self._announced:
            if self._flags(room) is None:
                self._tell(Leave(room))
        for room, leaves in list(self._leaves.items()):
            if room not in self._announced:
                _give(leaves, None)
                del self._leaves[room]

    def down(self) -> None:
        """The connection is gone: lists begin again; joins are answered by the next connection."""
        error = ConnectionBroken("the connection ended before the list of members was complete")
        for pages in self._pages.values():
            _fail(pages, error)
        self._pages.clear()

    def end(self, error: Exception | None) -> None:
        """There will be no connection any more."""
        for joins in self._joins.values():
            _fail(joins, error or ConnectionBroken("the node was closed"))
        for leaves in self._leaves.values():
            _give(leaves, None)
        for watches in self._watches.values():
            for watch in watches:
                watch.end()
        self.down()

    def on_joined(self, message: Joined) -> None:
        """The relay let the node in."""
        _give(self._joins.pop(message.room, ()), message)
        for watch in self._watches.get(message.room, ()):
            watch.relist()

    def on_left(self, message: Left) -> None:
        """The node is not in the room (any more)."""
        room = message.room
        if message.code == ErrorCode.OK:
            _give(self._leaves.pop(room, ()), None)
            flags = self._flags(room)
            if flags is not None and room not in self._joins:
                self._tell(Join(room, flags))  # somebody still watches it
            return
        self._joined.pop(room, None)
        joins = self._joins.pop(room, ())
        _fail(joins, Refused.from_code(message.code, f"join room {room!r}"))
        for watch in self._watches.get(room, ()):
            watch.relist()  # which the relay refuses with the reason
        if not joins:
            self._lost(room, message.code)

    def on_page(self, message: MembersPage) -> None:
        """A page of members."""
        pages = self._pages.get(message.room)
        if pages:
            pages.popleft().give(message)
            if not pages:
                del self._pages[message.room]

    def on_presence(self, message: Presence) -> None:
        """Changes of a watched room."""
        for watch in self._watches.get(message.room, ()):
            watch.add(message)


class Watch:
    """What a watcher knows of a room, and what it has not looked at yet.

    PRESENCE is versioned. Applied to a list, which may be newer than some of it, it must change nothing twice:
    whoever left is unknown already, whoever joined is known already.
    """

    def __init__(self, room: str) -> None:
        self.room = room
        self.changed = Signal()
        self.is_stale = True
        self.ended = False
        self._members: dict[bytes, Member] = {}
        self._version = 0
        self._news: deque[Presence] = deque()

    def add(self, presence: Presence) -> None:
        """Keep a PRESENCE until the application looks."""
        if len(self._news) < KEPT_CHANGES:
            self._news.append(presence)
            self.changed.notify()
        else:
            self.relist()

    def relist(self) -> None:
        """What is known may be wrong: the room must be listed again."""
        self._news.clear()
        self.is_stale = True
        self.changed.notify()

    def end(self) -> None:
        """The node is closed."""
        self.ended = True
        self.changed.notify()

    def begin(self) -> None:
        """A list is asked for; PRESENCE from now on is applied to it."""
        self._news.clear()
        self.is_stale = False

    def replace(self, version: int, members: list[Member]) -> PresenceChange:
        """Take a whole list; what it changes."""
        listed = {member.key: member for member in members}
        left = tuple(key for key in self._members if key not in listed)
        joined = tuple(member for member in members if self._members.get(member.key) != member)
        self._members, self._version = listed, version
        return PresenceChange(self.room, version, joined, left)

    def next(self) -> PresenceChange | None:
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


def _give(answers: list[Answer[T]] | tuple[()], value: T) -> None:
    for answer in answers:
        answer.give(value)


def _fail(answers: list[Answer[T]] | deque[Answer[T]] | tuple[()], error: Exception) -> None:
    for answer in answers:
        answer.fail(error)
