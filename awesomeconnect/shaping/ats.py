"""Asynchronous traffic shaping after IEEE 802.1Qcr: when may this message leave?

A scheduler is a token bucket that answers with a time. A message of L bytes is eligible as soon as the bucket
(committed burst size CBS, filled at the committed information rate CIR) holds L bytes, but not before it has
arrived, and not before anything that its group released earlier:

    length_recovery = L / CIR            empty_to_full = CBS / CIR
    recovered = bucket_empty + length_recovery
    full      = bucket_empty + empty_to_full
    eligible  = max(arrival, group_eligibility, recovered)
    if eligible <= arrival + max_residence:
        group_eligibility = eligible
        bucket_empty = recovered if eligible < full else recovered + eligible - full
    else: discard; nothing changes

`bucket_empty` is the time at which the bucket was, or would have been, empty. Times are integer nanoseconds, and
the bucket's own are kept multiplied by its CIR, where L / CIR is the integer L x 10^9: nothing is rounded, and
nothing drifts. Only the eligibility time that is handed out is rounded, up to the next nanosecond; a group
remembers what was handed out.

The specification is protocol-spec/shaping.md. This module knows neither messages nor sockets nor a clock: whoever
asks says what time it is, and holds what is not eligible yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attrs import frozen

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000

#: How long a stall of the transport may be whose backlog a relay forgives. A stall bunches what a conformant client
#: sent at its rate: after 1 s without this allowance, 387 messages of one client were refused.
STALL_NS = 2 * NS_PER_S


@frozen
class Discard:
    """The message is over its contract by more than the relay may hold it.

    Attributes:
        retry_after_ns: the same message, arriving this much later, is eligible in time if nothing came between;
            None when it is longer than the burst, so that no wait helps.
    """

    retry_after_ns: int | None


TOO_LARGE = Discard(None)


class SchedulerGroup:
    """Schedulers whose messages leave in the order in which they came: one connection, class and contract.

    Attributes:
        max_residence_ns: a message is eligible within this from its arrival, or discarded; None: held for ever.
        eligibility_ns: the latest eligibility time handed out.
    """

    __slots__ = ("eligibility_ns", "max_residence_ns")

    def __init__(self, max_residence_ns: int | None = None) -> None:
        if max_residence_ns is not None and max_residence_ns < 0:
            raise ValueError(f"max_residence_ns must not be negative, not {max_residence_ns}")
        self.max_residence_ns = max_residence_ns
        self.eligibility_ns = 0


class Scheduler:
    """One contract's token bucket.

    Args:
        cir_bytes_per_s: committed information rate, above 0.
        cbs_bytes: committed burst size, above 0; no message may be longer.
        group: shared by the schedulers whose messages keep their order.
        now_ns: when the bucket is full for the first time.
        stall_ns: the bucket holds CIR x this above CBS. `STALL_NS` where a relay polices what a client shaped.

    Raises:
        ValueError: a rate or burst of 0, which would let nothing pass for ever, or a negative stall.
    """

    __slots__ = ("_capacity", "_empty", "cbs_bytes", "cir_bytes_per_s", "group", "stall_ns")

    def __init__(
        self, cir_bytes_per_s: int, cbs_bytes: int, group: SchedulerGroup, *, now_ns: int, stall_ns: int = 0
    ) -> None:
        self.group = group
        self.stall_ns = stall_ns
        self._set(cir_bytes_per_s, cbs_bytes)
        self._empty = now_ns * self.cir_bytes_per_s - self._capacity

    def process(self, arrival_ns: int, size_bytes: int) -> int | Discard:
        """Charge one message and say when it may leave.

        Args:
            arrival_ns: when its last byte arrived.
            size_bytes: its frame as sent whole, with the length prefix.

        Returns:
            Its eligibility time, or a `Discard`, which changed nothing.
        """
        # SPEC shaping.md: A relay MUST refuse a message that is longer than the cbs_bytes of its contract
        if size_bytes > self.cbs_bytes:
            return TOO_LARGE
        group = self.group
        eligible_ns = group.eligibility_ns if group.eligibility_ns > arrival_ns else arrival_ns
        exact = eligible_ns * self.cir_bytes_per_s
        recovered = self._empty + size_bytes * NS_PER_S
        if recovered > exact:
            exact = recovered
            eligible_ns = -(-recovered // self.cir_bytes_per_s)
        if group.max_residence_ns is not None and eligible_ns > arrival_ns + group.max_residence_ns:
            # SPEC shaping.md: A relay MUST NOT charge a message that it refuses because of a contract to any
            #   bucket.
            return Discard(eligible_ns - arrival_ns - group.max_residence_ns)
        overflow = exact - self._empty - self._capacity
        self._empty = recovered + overflow if overflow > 0 else recovered
        group.eligibility_ns = eligible_ns
        return eligible_ns

    def process_chunk(self, arrival_ns: int, sizes: Sequence[int]) -> list[int | Discard]:
        """What `process` answers to each of these messages, which arrived together."""
        if self.take_chunk(arrival_ns, sum(sizes), max(sizes, default=0)):
            return [arrival_ns] * len(sizes)
        return [self.process(arrival_ns, size) for size in sizes]

    def take_chunk(self, arrival_ns: int, total_bytes: int, longest_bytes: int | None = None) -> bool:
        """Charge messages that arrived together, in one step, if all of them may leave at once.

        Args:
            total_bytes: all of them.
            longest_bytes: at least as long as each; by default as long as all of them together.

        Returns:
            Whether each was eligible on arrival, and is charged exactly as if it had been processed by itself.
            If not, nothing has changed, and each wants a `process` of its own.
        """
        # SPEC shaping.md: A relay MAY decide about messages that arrived together in one step if the result is the
        #   same.
        if not self.conforms(arrival_ns, total_bytes, longest_bytes):
            return False
        self._charge(arrival_ns, total_bytes)
        return True

    def set_rate(self, now_ns: int, cir_bytes_per_s: int, cbs_bytes: int) -> None:
        """Change the contract while it is in use.

        What has its eligibility time keeps it. The new contract holds from then on: the bucket carries over what
        is left in it when the last of these leaves, at most the new burst.

        Raises:
            ValueError: a rate or burst of 0; nothing has changed.
        """
        since_ns = max(now_ns, self.group.eligibility_ns)
        level = min(since_ns * self.cir_bytes_per_s - self._empty, self._capacity)
        self._set(cir_bytes_per_s, cbs_bytes)
        # SPEC shaping.md: A relay MUST NOT let a change of a contract grant more than the new burst.
        self._empty = since_ns * self.cir_bytes_per_s - min(level, self._capacity)

    def is_full(self, now_ns: int) -> bool:
        """Whether the bucket is as a new one would be."""
        return self._empty + self._capacity <= now_ns * self.cir_bytes_per_s

    def conforms(self, arrival_ns: int, total_bytes: int, longest_bytes: int | None = None) -> bool:
        """Whether `take_chunk` would charge them; nothing changes."""
        needed = total_bytes * NS_PER_S
        return (
            (total_bytes if longest_bytes is None else longest_bytes) <= self.cbs_bytes
            and self.group.eligibility_ns <= arrival_ns
            # A bucket that has been idle for long seems to hold more than fits:
            and needed <= self._capacity
            and self._empty + needed <= arrival_ns * self.cir_bytes_per_s
        )

    def _set(self, cir_bytes_per_s: int, cbs_bytes: int) -> None:
        if cir_bytes_per_s <= 0 or cbs_bytes <= 0 or self.stall_ns < 0:
            raise ValueError(
                "rate and burst must be above 0, and a stall not below: "
                f"{cir_bytes_per_s=}, {cbs_bytes=}, stall_ns={self.stall_ns}"
            )
        self.cir_bytes_per_s = cir_bytes_per_s
        self.cbs_bytes = cbs_bytes
        self._capacity = cbs_bytes * NS_PER_S + cir_bytes_per_s * self.stall_ns

    def _eligible(self, arrival_ns: int, size_bytes: int) -> int:
        """The eligibility time of a message, which is not charged."""
        recovered_ns = -(-(self._empty + size_bytes * NS_PER_S) // self.cir_bytes_per_s)
        return max(arrival_ns, self.group.eligibility_ns, recovered_ns)

    def _charge(self, arrival_ns: int, size_bytes: int) -> None:
        """Charge messages that `conforms` or `_eligible` let pass."""
        group = self.group
        recovered = self._empty + size_bytes * NS_PER_S
        start = max(arrival_ns, group.eligibility_ns) * self.cir_bytes_per_s
        exact = max(start, recovered)
        self._empty = recovered + max(exact - self._empty - self._capacity, 0)
        group.eligibility_ns = -(-exact // self.cir_bytes_per_s)


def process_all(schedulers: Iterable[Scheduler], arrival_ns: int, size_bytes: int) -> int | Discard:
    """Charge one message to several contracts, the connection's first and then the room's.

    Each scheduler takes what the one before it makes eligible, so the answer is the latest of their times, and a
    room with a tiny contract holds up nothing that its sender sends elsewhere.

    Returns:
        The eligibility time, within the max_residence of each; or a `Discard`, and none of them has changed.
    """
    stages = []
    eligible_ns = arrival_ns
    late_ns = 0
    for scheduler in schedulers:
        if size_bytes > scheduler.cbs_bytes:
            return TOO_LARGE
        stages.append((scheduler, eligible_ns))
        eligible_ns = scheduler._eligible(eligible_ns, size_bytes)
        residence_ns = scheduler.group.max_residence_ns
        if residence_ns is not None:
            late_ns = max(late_ns, eligible_ns - arrival_ns - residence_ns)
    # SPEC shaping.md: A relay MUST NOT change any bucket or group when one of the two schedulers discards the
    #   message.
    if late_ns:
        return Discard(late_ns)
    # SPEC shaping.md: A relay MUST charge a message to the connection's bucket at the eligibility time that the
    #   connection's scheduler gave it, not at the later one of the room's.
    for scheduler, start_ns in stages:
        scheduler._charge(start_ns, size_bytes)
    return eligible_ns


def take_chunk_all(
    schedulers: Sequence[Scheduler], arrival_ns: int, total_bytes: int, longest_bytes: int | None = None
) -> bool:
    """`Scheduler.take_chunk` for several contracts: all of them are charged, or none."""
    if not all(scheduler.conforms(arrival_ns, total_bytes, longest_bytes) for scheduler in schedulers):
        return False
    for scheduler in schedulers:
        scheduler._charge(arrival_ns, total_bytes)
    return True
