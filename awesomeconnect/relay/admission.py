"""Who may do what in a room: one place for every rule, asked on a flow's first frame and on JOIN.

Rules fail closed. A self-certifying room (``@KEY/rest``) is open to its owner only, until capabilities
are part of the protocol.
"""

from __future__ import annotations

from awesomeconnect.errors import ErrorCode
from awesomeconnect.wire.rooms import owner_of, room_name_problem


def judge_room(key: bytes, room: str) -> ErrorCode:
    """Whether the node with this key may join, list or publish to a room: OK, or why not."""
    # SPEC rooms.md: A relay MUST refuse a name that is not valid with code bad_room in LEFT for JOIN, in REJECT for
    #   PUBLISH and ANYCAST, in MEMBERS_PAGE for MEMBERS, and in CONTRACT for PRESENT.
    if room_name_problem(room) is not None:
        return ErrorCode.BAD_ROOM
    # SPEC rooms.md: A relay MUST let a connection join, publish and anycast to an owned room when the key in the
    #   room's name is the connection's own.
    # SPEC rooms.md: A relay MUST refuse every other JOIN, PUBLISH, ANYCAST and PRESENT for an owned room with code
    #   capability_required.
    # SPEC rooms.md: A relay MUST compare the key in the room's name byte for byte with the identity that the
    #   connection proved.
    owner = owner_of(room)
    if owner is not None and owner != key:
        return ErrorCode.CAPABILITY_REQUIRED
    return ErrorCode.OK
