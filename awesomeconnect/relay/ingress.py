"""Ingress shaping: when a connection's message becomes eligible, before it is copied to any receiver.

A `Gate` is the contract of one connection in one traffic class: a scheduler after IEEE 802.1Qcr, and the messages
that it holds until they are eligible. A message gets one eligibility time, whoever receives it. What conforms and
has nothing held before it passes at once, a whole chunk in one step.

This module decides; it neither sleeps nor sends. Time is an argument, in integer nanoseconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from awesomeconnect.shaping.ats import NS_PER_MS, STALL_NS, Discard, Scheduler, SchedulerGroup
from awesomeconnect.wire.messages import ClassContract

#: Routes a message; called once, with the time.
Forward = Callable[[int], object]


class Gate:
    """One class of one connection.

    Attributes:
        scheduler: the connection's contract; polices with an allowance for stalls of the transport.
        held: ``(eligible_ns, ordinal, forward)`` of messages that wait, in order.
    """

    __slots__ = ("held", "scheduler")

    def __init__(self, contract: ClassContract, now_ns: int) -> None:
        group = SchedulerGroup(contract.max_residence_ms * NS_PER_MS)
        self.scheduler = Scheduler(
            contract.cir_bytes_per_s, contract.cbs_bytes, group, now_ns=now_ns, stall_ns=STALL_NS
        )
        self.held: deque[tuple[int, int, Forward]] = deque()

    def passes(self, now_ns: int, total_bytes: int) -> bool:
        """Whether messages that arrived together may all pass at once; if so they are charged."""
        return not self.held and self.scheduler.take_chunk(now_ns, total_bytes)

    def admit(self, now_ns: int, size_bytes: int, ordinal: int, forward: Forward) -> Discard | None:
        """Forward a message now, hold it until it is eligible, or discard it.

        Args:
            size_bytes: its frame as received, with the length prefix.
            forward: called once, now or from `release`.

        Returns:
            None, or why it was discarded; then nothing has changed.
        """
        verdict = self.scheduler.process(now_ns, size_bytes)
        if isinstance(verdict, Discard):
            return verdict
        if verdict <= now_ns and not self.held:
            forward(now_ns)
        else:
            self.held.append((verdict, ordinal, forward))
        return None

    def release(self, now_ns: int) -> None:
        """Forward what has become eligible."""
        held = self.held
        while held and held[0][0] <= now_ns:
            held.popleft()[2](now_ns)

    def change(self, contract: ClassContract, now_ns: int) -> None:
        """Another contract from now on; what is held keeps its time."""
        self.scheduler.set_rate(now_ns, contract.cir_bytes_per_s, contract.cbs_bytes)
        self.scheduler.group.max_residence_ns = contract.max_residence_ms * NS_PER_MS


class Ingress:
    """The gates of one connection.

    Args:
        contracts: of the classes that are limited; the others pass freely.
    """

    __slots__ = ("gates",)

    def __init__(self, contracts: Iterable[ClassContract], now_ns: int) -> None:
        self.gates = {contract.traffic_class: Gate(contract, now_ns) for contract in contracts}

    def change(self, contracts: Iterable[ClassContract], now_ns: int) -> list[Forward]:
        """Replace the contracts.

        Returns:
            What was held by a gate that is no more, to be forwarded now.
        """
        old, self.gates = self.gates, {}
        for contract in contracts:
            gate = old.pop(contract.traffic_class, None)
            if gate is None:
                gate = Gate(contract, now_ns)
            else:
                gate.change(contract, now_ns)
            self.gates[contract.traffic_class] = gate
        return [forward for gate in old.values() for _eligible, _ordinal, forward in gate.held]

    def release(self, now_ns: int) -> int | None:
        """Forward what has become eligible; when to call again, None when nothing is held."""
        for gate in self.gates.values():
            gate.release(now_ns)
        return self.next_ns

    @property
    def next_ns(self) -> int | None:
        """When the next held message becomes eligible."""
        return min((gate.held[0][0] for gate in self.gates.values() if gate.held), default=None)

    @property
    def oldest_held(self) -> int | None:
        """The lowest ordinal that is held: verdicts up to the one before it are given."""
        return min((gate.held[0][1] for gate in self.gates.values() if gate.held), default=None)
