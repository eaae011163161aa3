"""Who is connected, and who is in which room.

All methods are synchronous and therefore atomic. Rooms and peers are slots that are found by name and live as
long as somebody refers to them: a member, or a cached route of a sender. So a room that was emptied and filled
again is the same slot, a route never dangles, and nothing has to be swept.

Members are kept in join order: applications rely on it (the first full node in a chain's room acts as genesis).
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import Any, Protocol
from weakref import WeakValueDictionary

from attrs import define

from awesomeconnect.errors import ErrorCode
from awesomeconnect.wire import cbor
from awesomeconnect.wire.messages import (
    Attributes,
    JoinFlags,
    Member,
    MembersPage,
    Presence,
)

_total = attrgetter("total")


class Node(Protocol):
    """What the registry needs of a connection."""

    key: bytes
    attributes: Attributes
    rooms: dict[Room, Place]


@define(eq=False, slots=True)
class Place:
    """A connection's place in a room.

    Attributes:
        joined: its number in the join order, from 1; 0 for an observer.
        watches: whether it wants PRESENCE.
    """

    joined: int
    watches: bool


class Room:
    """A room: members in join order, observers, and the changes that watchers have not been told.

    Attributes:
        members: the egress queue of each member, in join order, and the connection behind it.
        version: changes of membership so far.
        messages: messages relayed so far.
        audience: watching connections, members or observers.
    """

    __slots__ = (
        "__weakref__",
        "_changes",
        "_queues",
        "_told",
        "_turn",
        "audience",
        "last_joined",
        "members",
        "messages",
        "name",
        "version",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        # SPEC rooms.md: A relay MUST keep the members of a room in the order in which they joined.
        self.members: dict[Any, Node] = {}
        self.audience: dict[Node, None] = {}
        self.version = 0
        self.messages = 0
        self.last_joined = 0
        self._turn = -1
        self._queues: list[Any] | None = None  # the members' queues in join order, for anycast
        self._changes: list[Member | bytes] = []  # a Member joined, a key left
        self._told = 0  # version of the last PRESENCE

    def page(self, after: int, page_bytes: int) -> MembersPage:
        """The members that joined after number ``after``, as many as fit a frame of ``page_bytes``."""
        # SPEC messages.md: A relay MUST list in a page only members whose joined number is greater than after, in
        #   ascending order and without leaving one out.
        page: list[Member] = []
        size = _PAGE_HEAD_BYTES + len(self.name.encode())
        for node in self.members.values():
            joined = node.rooms[self].joined
            if joined <= after:
                continue
            member = Member(node.key, joined, node.attributes)
            size += _member_bytes(member)
            # SPEC messages.md: A relay MUST keep a MEMBERS_PAGE within page_bytes.
            # SPEC messages.md: A relay MUST put at least one member into a page whose next is not null.
            # SPEC messages.md: A relay MUST set next to null when no member follows the page, and otherwise to the
            #   joined number of the last member of the page.
            if page and size > page_bytes:
                return MembersPage(self.name, ErrorCode.OK, self.version, tuple(page), page[-1].joined)
            page.append(member)
        return MembersPage(self.name, ErrorCode.OK, self.version, tuple(page), None)

    def anycast_order(self, but: object) -> list[Any]:
        """Whom an anycast message goes to: the egress queue with the fewest bytes, in turn among equals.

        Args:
            but: the sender's queue, which is left out.

        Returns:
            The first choice, and where it may be full the others in order; empty without other members.
        """
        # SPEC rooms.md: A relay MUST choose for each ANYCAST the member with the fewest bytes queued in all classes
        #   together.
        # SPEC rooms.md: A relay MUST choose among members with equally few bytes in turn (round robin in join
        #   order).
        # SPEC messages.md: A relay MUST NOT choose the sending connection or an observer.
        queues = self._queues
        if queues is None:
            queues = self._queues = list(self.members)
        first = self._turn + 1
        for _ in queues[:2]:  # the next one may be the sender's
            self._turn = (self._turn + 1) % len(queues)
            egress = queues[self._turn]
            if egress is not but and not egress.total:
                return [egress]
        others = [egress for egress in queues[first:] + queues[:first] if egress is not but]
        others.sort(key=_total)  # stable: those in turn stay in turn
        if others:
            self._turn = queues.index(others[0])
        return others

    def note_change(self, change: Member | bytes) -> None:
        """One member joined (a `Member`) or left (its key)."""
        # SPEC messages.md: A relay MUST raise the version of a room by 1 for every join and every leave of a
        #   member.
        self.version += 1
        self._queues = None
        # SPEC messages.md: A relay MUST send every change of the membership of a room to all connections that watch
        #   it.
        if self.audience:
            self._changes.append(change)
        else:
            self._changes.clear()
            self._told = self.version

    def take_changes(self, page_bytes: int) -> list[Presence]:
        """What the audience has not been told, as PRESENCE messages of at most ``page_bytes``."""
        # SPEC messages.md: A relay MUST send the PRESENCE of a room in the order of their versions.
        # SPEC messages.md: A relay MUST NOT send a base that is greater than the version that it last told this
        #   connection for this room in JOINED or PRESENCE.
        told: list[Presence] = []
        left: dict[bytes, None] = {}
        joined: dict[bytes, Member] = {}
        base = version = self._told
        head = size = _PAGE_HEAD_BYTES + len(self.name.encode())
        for change in self._changes:
            size += _KEY_BYTES if isinstance(change, bytes) else _member_bytes(change)
            # SPEC messages.md: A relay MUST keep a PRESENCE within page_bytes and MUST cut a larger change into
            #   several PRESENCE with consecutive base and version.
            if size > page_bytes:
                told.append(Presence(self.name, base, version, tuple(left), tuple(joined.values())))
                left, joined, base = {}, {}, version
                size = head + _MAX_MEMBER_BYTES
            version += 1
            # SPEC messages.md: A relay MUST list a member that left and joined again in both lists.
            if not isinstance(change, bytes):
                joined[change.key] = change
            else:
                # Also one that joined since: a newcomer may have listed it in between.
                joined.pop(change, None)
                left[change] = None
        if version > base:
            told.append(Presence(self.name, base, version, tuple(left), tuple(joined.values())))
        self._changes = []
        self._told = version
        return told

    @property
    def has_news(self) -> bool:
        """Whether the audience has something to be told."""
        return bool(self._changes)


class Peer:
    """The slot of a public key: the connection that holds it now, if any."""

    __slots__ = ("__weakref__", "egress", "key", "node")

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.node: Any = None
        self.egress: Any = None


# SPEC rooms.md: A relay MUST process each JOIN and LEAVE as one step, so that no message sees half of it.
class Registry:
    """All rooms and peers of a relay."""

    def __init__(self) -> None:
        # SPEC rooms.md: A side MUST compare room names byte by byte, without normalisation and without regard to
        #   letters that look alike.
        # SPEC rooms.md: A relay MUST NOT give any character of a room name the meaning of a wildcard.
        # SPEC rooms.md: A relay MAY forget a room that has neither members nor observers, and with it version,
        #   joined numbers and message_count.
        # SPEC rooms.md: A relay MUST NOT forget a room that has a member or an observer.
        self._rooms: WeakValueDictionary[str, Room] = WeakValueDictionary()
        self._peers: WeakValueDictionary[bytes, Peer] = WeakValueDictionary()

    def room(self, name: str) -> Room:
        """The slot of a room. It goes when nobody holds it any more."""
        room = self._rooms.get(name)
        if room is None:
            room = self._rooms[name] = Room(name)
        return room

    def find_room(self, name: str) -> Room | None:
        """The slot of a room that somebody holds."""
        return self._rooms.get(name)

    def peer(self, key: bytes) -> Peer:
        """The slot of a public key. It goes when nobody holds it any more."""
        peer = self._peers.get(key)
        if peer is None:
            peer = self._peers[key] = Peer(key)
        return peer

    def find_peer(self, key: bytes) -> Peer | None:
        """The slot of a public key that somebody holds."""
        return self._peers.get(key)

    def rooms(self) -> Iterator[Room]:
        """Rooms with members."""
        return (room for room in self._rooms.values() if room.members)

    def join(self, node: Node, egress: object, name: str, flags: int) -> Room:
        """Put a connection into a room, or change its flags there; a member keeps its place."""
        # SPEC messages.md: A relay MUST treat a JOIN of a room that the connection is in as a change of its flags.
        # SPEC messages.md: A relay MUST keep a member's place in the join order when a JOIN changes only its WATCH
        #   flag.
        # SPEC messages.md: A relay MUST treat a member that becomes an observer as leaving, and an observer that
        #   becomes a member as joining at the end of the join order.
        room = self.room(name)
        place = node.rooms.get(room)
        if place is None:
            place = node.rooms[room] = Place(0, watches=False)
        if flags & JoinFlags.OBSERVE:
            self._retire(node, egress, room, place)
        elif not place.joined:
            # SPEC messages.md: A relay MUST give every join of a room a joined number that is greater than 0 and
            #   greater than those of all earlier joins of that room.
            room.last_joined += 1
            place.joined = room.last_joined
            room.members[egress] = node
            room.note_change(Member(node.key, place.joined, node.attributes))
        place.watches = bool(flags & JoinFlags.WATCH)
        if place.watches:
            room.audience[node] = None
        else:
            room.audience.pop(node, None)
        return room

    def leave(self, node: Node, egress: object, name: str) -> bool:
        """Take a connection out of a room; whether it was in."""
        room = self._rooms.get(name)
        place = None if room is None else node.rooms.pop(room, None)
        if room is None or place is None:
            return False
        # SPEC messages.md: A relay MUST NOT queue a message of the room for the connection after it has processed
        #   LEAVE.
        room.audience.pop(node, None)
        self._retire(node, egress, room, place)
        return True

    def leave_all(self, node: Node, egress: object) -> list[Room]:
        """Take a connection out of all its rooms; those that it was in."""
        # SPEC rooms.md: A relay MUST remove a connection from all rooms when it ends, however it ends.
        rooms = list(node.rooms)
        for room in rooms:
            self.leave(node, egress, room.name)
        return rooms

    def _retire(self, node: Node, egress: object, room: Room, place: Place) -> None:
        """A member is one no more; it may still watch."""
        if place.joined:
            place.joined = 0
            del room.members[egress]
            room.note_change(node.key)


#: Array head, kind, room head, code, two versions, two list heads, at their longest.
_PAGE_HEAD_BYTES = 40
_KEY_BYTES = 34
#: Array head, key, number, and attributes of 1,024 bytes.
_MAX_MEMBER_BYTES = 1_068


def _member_bytes(member: Member) -> int:
    """Upper bound of a member's encoding: array head, key, number, attributes."""
    return 1 + 34 + 9 + len(cbor.encode(member.attributes))
