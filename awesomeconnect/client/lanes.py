"""What the relay's contracts hold back: messages that wait before the node's egress queue until they may leave.

A lane is what shares contracts: a class, or a class and a room with a contract of its own, so that such a room
holds up nothing else. First in, first out inside a lane. The head of a lane is charged when it could begin to
leave; so a message that waits behind more urgent ones does not leave in a bunch with others, which the relay would
see as a burst.

This module knows neither queues nor a clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator

from attrs import evolve

from awesomeconnect.client.receipts import Flow, Receipt
from awesomeconnect.shaping.ats import Discard, Scheduler, process_all
from awesomeconnect.shaping.contracts import Contracts
from awesomeconnect.wire.messages import ClassContract

#: One part in so many is left of each rate: if the relay's clock is slower than ours, its bucket would run dry.
MARGIN = 5_000


class Lane:
    """Messages that share their contracts.

    Attributes:
        schedulers: what they pass.
        waiting: ``(number in the order of putting, receipt, frame)``.
        queued_bytes: the frames' lengths.
        due_ns: when the head, which is charged, may leave; None: it is not charged yet.
        is_ending: the contract is no more; the lane keeps the order until it is empty.
    """

    __slots__ = ("due_ns", "is_ending", "queued_bytes", "schedulers", "waiting")

    def __init__(self) -> None:
        self.schedulers: tuple[Scheduler, ...] = ()
        self.waiting: deque[tuple[int, Receipt, bytes]] = deque()
        self.queued_bytes = 0
        self.due_ns: int | None = None
        self.is_ending = False

    @property
    def most_bytes(self) -> int:
        """What waits at most before publishers do: a second's worth, or a burst."""
        return min([max(one.cir_bytes_per_s, one.cbs_bytes) for one in self.schedulers], default=0)

    @property
    def longest_bytes(self) -> int | None:
        """The longest frame that can ever leave."""
        return min([one.cbs_bytes for one in self.schedulers], default=None)

    def add(self, number: int, receipt: Receipt, frame: bytes) -> None:
        """Queue a message."""
        self.waiting.append((number, receipt, frame))
        self.queued_bytes += len(frame)

    def conforms(self, now_ns: int, size_bytes: int) -> bool:
        """Whether a message could leave now, behind all that waits."""
        return self.due_ns is None and all(
            one.conforms(now_ns, self.queued_bytes + size_bytes, size_bytes) for one in self.schedulers
        )

    def judge(self, now_ns: int) -> bool | None:
        """Whether the head may leave now; None: never, since it is longer than the burst."""
        if self.due_ns is None:
            verdict = process_all(self.schedulers, now_ns, len(self.waiting[0][2]))
            if isinstance(verdict, Discard):
                return None
            self.due_ns = verdict
        return self.due_ns <= now_ns

    def pop(self) -> tuple[Receipt, bytes]:
        """Take the head."""
        _number, receipt, frame = self.waiting.popleft()
        self.queued_bytes -= len(frame)
        self.due_ns = None
        return receipt, frame


class Lanes:
    """All lanes of a connection.

    Attributes:
        refused: messages that can never leave, because a contract has changed; the caller empties it.
    """

    __slots__ = ("_contracts", "_lanes", "_numbered", "refused")

    def __init__(self) -> None:
        # SPEC shaping.md: A client MUST NOT take an allowance for stalls into account when it shapes.
        self._contracts = Contracts(holds_for_ever=True)
        self._lanes: dict[tuple[Hashable, int], Lane] = {}  # (room or None, class)
        self._numbered = 0
        self.refused: list[Receipt] = []

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._lanes.values())

    def of(self, flow: Flow) -> Lane | None:
        """The lane of a flow; None: nothing holds it back."""
        lanes = self._lanes
        return lanes.get((flow.target, flow.traffic_class)) or lanes.get((None, flow.traffic_class))

    def knows(self, room: str) -> bool:
        """Whether contracts of this room are in force."""
        return self._contracts.knows(room)

    def set_contracts(self, contracts: Iterable[ClassContract], now_ns: int, room: str | None = None) -> set[int]:
        """Replace the contracts of the connection, or of a room.

        Returns:
            The classes that have a new lane: what was queued in them before is to be put again.
        """
        self._contracts.set(map(_with_margin, contracts), now_ns, room)
        limited = list(self._contracts.limited())
        new = [key for key in limited if key not in self._lanes]
        for key in new:
            self._lanes[key] = Lane()
        for key in new:
            self._divert(*key)
        for key, lane in list(self._lanes.items()):
            lane.schedulers = self._contracts.schedulers(*key)
            lane.is_ending = key not in limited
            if lane.is_ending and not lane.waiting:
                del self._lanes[key]
        return {traffic_class for _room, traffic_class in new}

    def add(self, lane: Lane, receipt: Receipt, frame: bytes) -> None:
        """Queue a message in its lane."""
        self._numbered += 1
        lane.add(self._numbered, receipt, frame)

    def take(self, now_ns: int, has_room: Callable[[int], bool]) -> tuple[Receipt, bytes] | None:
        """Remove a message that may leave now, from the lanes in turn; None when there is none.

        Args:
            has_room: whether a message of a class could begin to leave now.
        """
        for key, lane in self._lanes.items():
            while lane.waiting and has_room(key[1]):
                verdict = lane.judge(now_ns)
                if verdict is None:
                    self.refused.append(lane.pop()[0])
                elif not verdict:
                    break
                else:
                    message = lane.pop()
                    del self._lanes[key]
                    if lane.waiting or not lane.is_ending:
                        self._lanes[key] = lane
                    return message
        return None

    @property
    def next_ns(self) -> int | None:
        """When the next message that was held back may leave; None: nothing is."""
        return min([lane.due_ns for lane in self if lane.due_ns is not None], default=None)

    @property
    def mark(self) -> int:
        """The number of the last message that was put."""
        return self._numbered

    def has_left(self, mark: int) -> bool:
        """Whether everything up to this number was taken."""
        return all(not lane.waiting or lane.waiting[0][0] > mark for lane in self)

    def _divert(self, room: Hashable, traffic_class: int) -> None:
        """Move what waits for a room from the lane of the class to its own."""
        plain, own = self._lanes.get((None, traffic_class)), self._lanes[room, traffic_class]
        if plain is None or plain is own:
            return
        if plain.waiting and plain.waiting[0][1].flow.target == room:
            plain.due_ns = None
        waiting, plain.waiting, plain.queued_bytes = plain.waiting, deque(), 0
        for number, receipt, frame in waiting:
            (own if receipt.flow.target == room else plain).add(number, receipt, frame)


def _with_margin(contract: ClassContract) -> ClassContract:
    rate = contract.cir_bytes_per_s
    return evolve(contract, cir_bytes_per_s=max(rate - -(-rate // MARGIN), 1))
