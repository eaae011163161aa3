"""What makes a room's name valid, and who owns it.

A message carries any text of 1 to 128 bytes as a room; whether it names one is decided here, so that a bad
name is refused by code (``bad_room``) and does not end the connection. This module knows nothing of messages.
"""

from __future__ import annotations

import re
from typing import Final

MAX_ROOM_BYTES: Final = 128

_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f]")  # Unicode category Cc, whole and fixed for ever
_OWNED: Final = re.compile("@([0-9a-f]{64})/.+", re.DOTALL)


def room_name_problem(name: str) -> str | None:
    """What is wrong with a room's name, as text for people; None when it is valid."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "a room name must be encodable as UTF-8"
    if not 1 <= size <= MAX_ROOM_BYTES:
        return f"a room name has 1 to {MAX_ROOM_BYTES} bytes of UTF-8, not {size}"
    if _CONTROL.search(name):
        return "a room name must not contain control characters"
    # SPEC rooms.md: A relay MUST treat every name that begins with @ and is not the name of an owned room as not
    #   valid.
    if name[0] == "@" and not _OWNED.fullmatch(name):
        return "a room name that starts with @ must be @KEY/REST, KEY the owner's 64 lower-case hex digits"
    return None


def owner_of(room: str) -> bytes | None:
    """The key of an owned room's owner; None for a room that nobody owns."""
    owned = _OWNED.fullmatch(room)
    return bytes.fromhex(owned[1]) if owned else None
