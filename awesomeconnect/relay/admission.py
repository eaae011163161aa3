"""Who may do what in a room: one place for every rule, asked on a flow's first frame and on JOIN.

Rules fail closed. A self-certifying room (``@KEY/rest``) is open to its owner only, until capabilities
are part of the protocol.
"""

from __future__ import annotations

from awesomeconnect.errors import ErrorCode
from awesomeconnect.wire.rooms import owner_of, room_name_problem


def judge_room(key: bytes, room: str) -> ErrorCode:
    """Whether the node with this key may join, list or publish to a room: OK, or why not."""
    if room_name_problem(room) is not None:
        return ErrorCode.BAD_ROOM
    owner = owner_of(room)
    if owner is not None and owner != key:
        return ErrorCode.CAPABILITY_REQUIRED
    return ErrorCode.OK
