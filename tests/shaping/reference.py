"""A second scheduler, made differently: tokens that are counted, in fractions, instead of times in scaled integers.

The vectors were computed with it, and hypothesis compares `awesomeconnect.shaping.ats` with it.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil

from attrs import define, field

from awesomeconnect.shaping.ats import Discard

NS_PER_S = 1_000_000_000


@define
class ReferenceGroup:
    """When the latest message of a group was, or will be, released."""

    max_residence_ns: int | None
    released_ns: int = 0


@define
class ReferenceScheduler:
    """A bucket with ``tokens`` at the time ``at_ns``."""

    cir_bytes_per_s: int
    cbs_bytes: int
    group: ReferenceGroup
    stall_ns: int = 0
    at_ns: Fraction = Fraction(0)
    tokens: Fraction = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.tokens = self.capacity

    @property
    def capacity(self) -> Fraction:
        return self.cbs_bytes + Fraction(self.cir_bytes_per_s * self.stall_ns, NS_PER_S)

    def eligible(self, arrival_ns: int, size_bytes: int) -> tuple[Fraction, Fraction]:
        """When the bucket holds enough, and what it holds then."""
        start = Fraction(max(arrival_ns, self.group.released_ns))
        rate = Fraction(self.cir_bytes_per_s, NS_PER_S)
        tokens = min(self.capacity, self.tokens + rate * (start - self.at_ns))
        wait = max((size_bytes - tokens) / rate, Fraction(0))
        return start + wait, tokens + rate * wait

    def charge(self, eligible: Fraction, tokens: Fraction) -> None:
        self.at_ns, self.tokens = eligible, tokens
        self.group.released_ns = ceil(eligible)


def process(schedulers: list[ReferenceScheduler], arrival_ns: int, size_bytes: int) -> int | Discard:
    """What `ats.process_all` says."""
    if any(size_bytes > scheduler.cbs_bytes for scheduler in schedulers):
        return Discard(None)
    released_ns = arrival_ns
    late = [0]
    charges = []
    for scheduler in schedulers:
        eligible, tokens = scheduler.eligible(released_ns, size_bytes)
        released_ns = ceil(eligible)
        if scheduler.group.max_residence_ns is not None:
            late.append(released_ns - arrival_ns - scheduler.group.max_residence_ns)
        charges.append((scheduler, eligible, tokens - size_bytes))
    if max(late) > 0:
        return Discard(max(late))
    for scheduler, eligible, tokens in charges:
        scheduler.charge(eligible, tokens)
    return released_ns


def set_rate(scheduler: ReferenceScheduler, now_ns: int, cir_bytes_per_s: int, cbs_bytes: int) -> None:
    """What `Scheduler.set_rate` does."""
    at_ns, tokens = scheduler.eligible(now_ns, 0)
    scheduler.cir_bytes_per_s, scheduler.cbs_bytes = cir_bytes_per_s, cbs_bytes
    scheduler.at_ns, scheduler.tokens = at_ns, min(tokens, scheduler.capacity)
