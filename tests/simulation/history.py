"""What happened, as the programs saw it: a record that checkers read when everything is over.

A *process* is one run of a program, ``"node-3/2"`` the second run of node-3; two programs may share a key. A
*message* is named by the process that sent it and a number, which is in its payload. Times are those of one clock.
"""

from __future__ import annotations

import math
import struct
from typing import TypeAlias

from attrs import define, field, frozen

_HEAD = struct.Struct(">HI")

Name: TypeAlias = tuple[str, int]
"""A message: the process that sent it, and its number there."""


@define
class Sent:
    """A message that was handed to the library.

    Attributes:
        target: a room, or the key's name of the receiver; see ``mode``.
        mode: ``room``, ``peer``, ``any`` or ``request``.
        connection, ordinal: where it left; 0 where it did not.
        settled_at: when a flush that came after it has returned, and nothing was unknown; for ever where none did.
        is_reliable: sent with ``reliable=True``, and tried until ``expires_at``.
        sequence: of a reliable one to a room: its place among those of the process, room and class, from 1.
        outcome: of a reliable one: ``delivered``, ``expired``, ``unknown``, ``declined`` or ``refused``; and when.
    """

    at: float
    process: str
    number: int
    target: str
    mode: str
    traffic_class: int
    connection: int = 0
    ordinal: int = 0
    settled_at: float = math.inf
    is_reliable: bool = False
    expires_at: float = 0.0
    sequence: int = 0
    outcome: str = ""
    outcome_at: float = 0.0

    @property
    def name(self) -> Name:
        """What names the message."""
        return self.process, self.number


@frozen
class Refused:
    """The relay refused messages of a connection."""

    at: float
    process: str
    connection: int
    first: int
    stop: int
    code: int


@frozen
class Taken:
    """The application took a message."""

    at: float
    process: str
    message: Name
    room: str | None
    traffic_class: int


@frozen
class Gap:
    """The application was told that messages are missing."""

    at: float
    process: str
    room: str | None
    sender: str | None
    traffic_class: int
    count: int


@frozen
class RoomGap:
    """The application was told which reliable messages to a room it will not get; ``sender`` is a key's name."""

    at: float
    process: str
    room: str
    sender: str
    traffic_class: int
    first: int
    last: int


@frozen
class Up:
    """The process is connected, and in these rooms."""

    at: float
    process: str
    epoch: bytes
    connection: int
    rooms: tuple[str, ...]


@frozen
class Down:
    """It is not any more."""

    at: float
    process: str


@frozen
class AskedToLeave:
    """The relay said that it goes away, or that another connection takes over."""

    at: float
    process: str


@frozen
class Entered:
    """A room let the process in, while it was connected."""

    at: float
    process: str
    room: str


@frozen
class Leaving:
    """The process asked to leave a room."""

    at: float
    process: str
    room: str


@frozen
class Asked:
    """A request, with what came of it: ``answered``, or the name of an exception."""

    at: float
    process: str
    until: float
    outcome: str


Event: TypeAlias = Refused | Taken | Gap | RoomGap | Up | Down | AskedToLeave | Entered | Leaving | Asked


@define
class History:
    """Everything that was recorded, in order.

    Attributes:
        keys: the name of each process's key.
        ended: when each process ended; those that live to the end are missing.
        homes: the rooms that each process is in from beginning to end.
        healed_at: when the last fault was over that does not end by itself.
        slow_until: until when the application of a process took its time with messages, where it did.
    """

    sent: dict[Name, Sent] = field(factory=dict)
    events: list[Event] = field(factory=list)
    keys: dict[str, str] = field(factory=dict)
    ended: dict[str, float] = field(factory=dict)
    homes: dict[str, tuple[str, ...]] = field(factory=dict)
    healed_at: float = 0.0
    slow_until: dict[str, float] = field(factory=dict)
    _numbers: dict[str, int] = field(factory=dict)
    _processes: list[str] = field(factory=list)

    def begin(self, process: str, key: str) -> None:
        """A process starts."""
        self._numbers[process] = len(self._processes)
        self._processes.append(process)
        self.keys[process] = key

    def payload(self, name: Name, size: int) -> bytes:
        """The payload that carries a message's name."""
        head = _HEAD.pack(self._numbers[name[0]], name[1])
        return head + bytes(max(0, size - len(head)))

    def name_in(self, payload: bytes) -> Name:
        """The name of the message that a payload carries."""
        process, number = _HEAD.unpack_from(payload)
        return self._processes[process], number
