"""What is handed to the connection."""

from __future__ import annotations

from typing import NamedTuple

from awesomeconnect.reliable.sender import Entry


class Outgoing(NamedTuple):
    """A payload to be sent now.

    Attributes:
        target: a key for SEND, a room for PUBLISH.
        entry: the message that it carries, whose `transmissions` the caller adds to; None: nobody waits for it.
    """

    target: bytes | str
    traffic_class: int
    content: int
    payload: bytes
    entry: Entry | None = None
