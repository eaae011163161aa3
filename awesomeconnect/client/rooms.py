"""The rooms that a node wants to be in, and what it asks the relay about them.

What the application wants outlives connections: HELLO repeats it. Answers come by room, in the order of the
questions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar
from weakref import WeakSet

from awesomeconnect.client.waiting import Answer
from awesomeconnect.client.watch import Watch
from awesomeconnect.errors import ConnectionBroken, ConnectionEnded, ErrorCode, Refused
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
        # Weak, so that a watch that was dropped in the middle is not fed for ever.
        self._watches: dict[str, WeakSet[Watch]] = {}
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

    async def begin_watch(self, watch: Watch) -> None:
        """Have the relay tell changes of a room to a watch."""
        await self._connected()
        self._watches.setdefault(watch.room, WeakSet()).add(watch)
        try:
            await self._ask_join(watch.room)
        except BaseException:
            self.end_watch(watch)
            raise

    def end_watch(self, watch: Watch) -> None:
        """Nobody looks at a watch any more."""
        watches = self._watches.get(watch.room)
        if watches is not None:
            watches.discard(watch)
            self._look_away(watch.room)

    def _look_away(self, room: str) -> None:
        """Ask for no more changes of a room that nobody watches."""
        if not self._watches[room]:
            del self._watches[room]
            flags = self._flags(room)
            self._tell(Leave(room) if flags is None else Join(room, flags))

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
        """There will be no connection any more, because of an error or because the node was closed."""
        for joins in self._joins.values():
            _fail(joins, error or ConnectionEnded("the node is closed"))
        for leaves in self._leaves.values():
            _give(leaves, None)
        for watches in self._watches.values():
            for watch in watches:
                watch.end(error)
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
        if message.room in self._watches:
            for watch in self._watches[message.room]:
                watch.add(message)
            self._look_away(message.room)


def _give(answers: list[Answer[T]] | tuple[()], value: T) -> None:
    for answer in answers:
        answer.give(value)


def _fail(answers: list[Answer[T]] | deque[Answer[T]] | tuple[()], error: Exception) -> None:
    for answer in answers:
        answer.fail(error)
