"""Ingress shaping: when a connection's message becomes eligible, before it is copied to any receiver.

A `Gate` is a group of schedulers after IEEE 802.1Qcr, and the messages that it holds until they are eligible: one
for each class in which the connection has a contract, and one for each class and room with a contract, which lets
pass what both contracts let pass. A message gets one eligibility time, whoever receives it. What conforms, with
nothing held before it, passes at once, a whole chunk in one step.

`Ingress` belongs to one connection. It decides; it neither sleeps nor sends. Time is an argument, in integer
nanoseconds. What a destination is, and what forwarding means, is the router's business.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable

from awesomeconnect.shaping.ats import NS_PER_MS, STALL_NS, Discard, Scheduler, process_all, take_chunk_all
from awesomeconnect.shaping.contracts import Contracts
from awesomeconnect.wire.messages import ClassContract

#: Routes a message, given the time; returns the work done, in deliveries.
Forward = Callable[[int], int]
#: (when it is eligible, ordinal, destination, what forwards it)
Held = tuple[int, int, Hashable, Forward]

#: Messages that a gate holds. Bytes are bounded by the contract; this bounds what small messages cost besides.
MAX_HELD = 16_384
#: Destinations whose retry times are remembered; beyond, the whole class is closed.
MAX_CLOSED = 64


class Gate:
    """One scheduler group of a connection.

    Attributes:
        schedulers: the connection's contract, then the room's, as far as there are any.
        held: messages that wait, in order.
        is_ending: its contract is no more; it keeps the order of what it still holds.
    """

    __slots__ = ("held", "is_ending", "schedulers")

    def __init__(self) -> None:
        self.schedulers: tuple[Scheduler, ...] = ()
        self.held: deque[Held] = deque()
        self.is_ending = False

    def passes(self, now_ns: int, total_bytes: int, longest_bytes: int) -> bool:
        """Whether messages that arrived together may all pass at once; if so they are charged."""
        return not self.held and take_chunk_all(self.schedulers, now_ns, total_bytes, longest_bytes)

    def admit(self, now_ns: int, size_bytes: int) -> int | Discard:
        """When one message may pass; or why it is discarded, and then nothing has changed."""
        held = self.held
        if len(held) >= MAX_HELD:
            return Discard(max(held[0][0] - now_ns, NS_PER_MS))
        verdict = process_all(self.schedulers, now_ns, size_bytes)
        if held and not isinstance(verdict, Discard):
            # SPEC shaping.md: A relay MUST NOT let a later message of a destination and class overtake one that it
            #   holds under an earlier contract.
            return max(verdict, held[-1][0])
        return verdict


class Ingress:
    """What one connection may send.

    Args:
        contracts: of the connection, for the classes that are limited; the others pass freely.

    Attributes:
        waiting: messages held now.
        held_messages: messages held so far.
        is_limiting: whether anything may be held or refused; while not, nobody needs to ask.
    """

    __slots__ = ("_closed", "_contracts", "_gates", "held_messages", "is_limiting", "waiting")

    def __init__(self, contracts: Iterable[ClassContract], now_ns: int) -> None:
        self.waiting = 0
        self.held_messages = 0
        # SPEC shaping.md: A relay MUST keep a group of its own for each connection, class and contract.
        self._gates: dict[tuple[Hashable, int], Gate] = {}  # (room or None, class)
        # SPEC shaping.md: A relay MUST police each contract with a bucket of CBS + CIR × 2 s, that is with a
        #   stall_ns of 2,000,000,000.
        self._contracts = Contracts(STALL_NS)
        # (destination or None for all, class) -> (closed until, behind this ordinal)
        self._closed: dict[tuple[Hashable, int], tuple[int, int]] = {}
        self.set_contracts(contracts, now_ns)

    # ---- contracts -----------------------------------------------------------------------------------

    def set_contracts(self, contracts: Iterable[ClassContract], now_ns: int, room: Hashable = None) -> None:
        """Replace the contracts of the connection, or of a room. What is held keeps its time."""
        # SPEC shaping.md: A relay MUST leave the eligibility times of messages that it holds unchanged when a
        #   contract changes.
        self._contracts.set(contracts, now_ns, room)
        self._arrange()

    def knows(self, room: Hashable) -> bool:
        """Whether contracts of this room are in force."""
        return self._contracts.knows(room)

    def gate(self, target: Hashable, traffic_class: int) -> Gate | None:
        """What a message must pass."""
        gates = self._gates
        return gates.get((target, traffic_class)) or gates.get((None, traffic_class))

    # ---- messages ------------------------------------------------------------------------------------

    def hold(self, gate: Gate, held: Held) -> None:
        """Keep a message that `Gate.admit` let pass later than now."""
        gate.held.append(held)
        self.waiting += 1
        self.held_messages += 1

    def release(self, now_ns: int, most: int) -> None:
        """Forward what has become eligible, the most urgent first, until ``most`` work is done."""
        # SPEC shaping.md: A relay MUST process a held message behind all earlier ones of its group.
        work = 0
        for key, gate in sorted(self._gates.items(), key=_urgency):
            held = gate.held
            while held and held[0][0] <= now_ns:
                if work >= most:
                    return
                self.waiting -= 1
                work += held.popleft()[3](now_ns)
            if gate.is_ending and not held:
                del self._gates[key]
        self._note()

    @property
    def next_ns(self) -> int:
        """When the next held message becomes eligible; ask only while some wait."""
        return min(gate.held[0][0] for gate in self._gates.values() if gate.held)

    @property
    def oldest_held(self) -> int | None:
        """The lowest ordinal that is held: verdicts up to the one before it are given."""
        if not self.waiting:
            return None
        return min(gate.held[0][1] for gate in self._gates.values() if gate.held)

    # ---- destinations that are closed ----------------------------------------------------------------

    def close(self, target: Hashable, traffic_class: int, behind: int, until_ns: int) -> None:
        """Message ``behind`` was refused for its rate: none behind it may pass before its retry time."""
        closed = self._closed
        key = (target, traffic_class)
        if key not in closed and len(closed) >= MAX_CLOSED:
            # SPEC shaping.md: A relay MAY refuse other messages of the class as well when it cannot remember more
            #   retry times.
            key = (None, traffic_class)
        until, first = closed.get(key, (0, behind))
        closed[key] = max(until, until_ns), min(first, behind)
        self.is_limiting = True

    def closed_ns(self, target: Hashable, traffic_class: int, ordinal: int, now_ns: int) -> int:
        """How long a destination is still closed for this message; 0: it is open."""
        remaining = 0
        for key in ((target, traffic_class), (None, traffic_class)) if self._closed else ():
            until_ns, behind = self._closed.get(key, (0, 0))
            if until_ns > now_ns:
                if ordinal > behind:
                    remaining = max(remaining, until_ns - now_ns)
            elif until_ns:
                del self._closed[key]
                self._note()
        return remaining

    def is_idle(self, now_ns: int) -> bool:
        """Whether nothing would change if everything but the contracts were forgotten."""
        return (
            not self.waiting
            and all(until_ns <= now_ns for until_ns, _behind in self._closed.values())
            and self._contracts.are_full(now_ns)
        )

    def _arrange(self) -> None:
        """Make the gates fit the contracts."""
        limited = list(self._contracts.limited())
        for room, traffic_class in limited:
            if (room, traffic_class) not in self._gates:
                gate = self._gates[room, traffic_class] = Gate()
                plain = self._gates.get((None, traffic_class), gate)
                if plain is not gate:  # what goes to the room keeps its time, and its place before later messages
                    gate.held.extend(held for held in plain.held if held[2] == room)
                    plain.held = deque(held for held in plain.held if held[2] != room)
        for key, gate in list(self._gates.items()):
            gate.schedulers = self._contracts.schedulers(*key)
            gate.is_ending = key not in limited
            if gate.is_ending and not gate.held:
                del self._gates[key]
        self._note()

    def _note(self) -> None:
        self.is_limiting = bool(self._gates or self._closed)


def _urgency(item: tuple[tuple[Hashable, int], Gate]) -> int:
    return -item[0][1]
