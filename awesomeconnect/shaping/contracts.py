"""The contracts that are in force on one connection: its own, and those of rooms that it sends to.

A message to a room with a contract passes two schedulers, the connection's and then the room's. Both sides keep
this book: the relay polices by it, the client shapes by it. A class without a contract is not limited.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator

from awesomeconnect.shaping.ats import NS_PER_MS, Scheduler, SchedulerGroup
from awesomeconnect.wire.messages import ClassContract


class Contracts:
    """Schedulers by room and class; the room None is the connection.

    Args:
        stall_ns: what buckets hold above their burst, see `ats.STALL_NS`.
        holds_for_ever: nothing is discarded for being early: of a contract, max_residence does not count.
    """

    __slots__ = ("_holds_for_ever", "_schedulers", "_stall_ns")

    def __init__(self, stall_ns: int = 0, *, holds_for_ever: bool = False) -> None:
        self._stall_ns = stall_ns
        self._holds_for_ever = holds_for_ever
        self._schedulers: dict[Hashable, dict[int, Scheduler]] = {}

    def __bool__(self) -> bool:
        return bool(self._schedulers)

    def set(self, contracts: Iterable[ClassContract], now_ns: int, room: Hashable = None) -> None:
        """Replace the contracts of the connection, or of a room; buckets go on from where they are."""
        # SPEC shaping.md: A relay MUST apply the contracts of a room to each connection by itself, with a scheduler
        #   for each class.
        old = self._schedulers.pop(room, {})
        new = {contract.traffic_class: self._scheduler(contract, old, now_ns) for contract in contracts}
        if new:
            self._schedulers[room] = new

    def knows(self, room: Hashable) -> bool:
        """Whether the room has a contract."""
        return room in self._schedulers

    def limited(self) -> Iterator[tuple[Hashable, int]]:
        """Room and class of each contract."""
        return ((room, number) for room, of in self._schedulers.items() for number in of)

    def schedulers(self, room: Hashable, traffic_class: int) -> tuple[Scheduler, ...]:
        """What a message passes, the connection's first."""
        rooms = (None,) if room is None else (None, room)
        found = (self._schedulers.get(one, {}).get(traffic_class) for one in rooms)
        return tuple(scheduler for scheduler in found if scheduler is not None)

    def are_full(self, now_ns: int) -> bool:
        """Whether all buckets are as new ones would be."""
        return all(one.is_full(now_ns) for of in self._schedulers.values() for one in of.values())

    def _scheduler(self, contract: ClassContract, old: dict[int, Scheduler], now_ns: int) -> Scheduler:
        """The scheduler of a contract: the one of this class, or a new one."""
        cir, cbs = contract.cir_bytes_per_s, contract.cbs_bytes
        scheduler = old.get(contract.traffic_class)
        if scheduler is None:
            scheduler = Scheduler(cir, cbs, SchedulerGroup(), now_ns=now_ns, stall_ns=self._stall_ns)
        else:
            scheduler.set_rate(now_ns, cir, cbs)
        if not self._holds_for_ever:
            scheduler.group.max_residence_ns = contract.max_residence_ms * NS_PER_MS
        return scheduler
