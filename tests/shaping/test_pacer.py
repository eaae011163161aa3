"""The pacer against a simulated bottleneck: one queue, one rate, one propagation delay, and late timers."""

from __future__ import annotations

import random
from collections import deque

import pytest
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st

from awesomeconnect.shaping.pacer import (
    FAST_LOOK_BYTES,
    LEAST_PIECE_BYTES,
    LEAST_WINDOW_BYTES,
    MOST_WAIT_NS,
    START_WINDOW_BYTES,
    TARGET_NS,
    TARGET_PART_OF_RTT,
    TIMER_NS,
    Pacer,
)

MS = 1_000_000
SECOND = 1_000 * MS
MBIT = 125_000
SEGMENT_BYTES = 1_448


@define
class Path:
    """A bottleneck and what TCP would know of it."""

    rate_bytes_per_s: int
    rtt_ns: int
    written: int = 0
    acked: int = 0
    free_ns: int = 0  # when the bottleneck has sent all it was given
    is_stalled: bool = False
    _srtt_ns: int = field(init=False)
    _min_rtt_ns: int = field(init=False)
    _under_way: deque[tuple[int, int, int]] = field(factory=deque)  # acknowledged at, bytes, sent at

    def __attrs_post_init__(self) -> None:
        self._srtt_ns = self._min_rtt_ns = self.rtt_ns  # from the handshake

    def write(self, now_ns: int, size: int) -> None:
        self.written += size
        while size > 0:
            segment = min(size, SEGMENT_BYTES)
            self.free_ns = max(now_ns, self.free_ns) + segment * SECOND // self.rate_bytes_per_s
            self._under_way.append((self.free_ns + self.rtt_ns, segment, now_ns))
            size -= segment

    def queueing_ns(self, now_ns: int) -> int:
        """What an urgent message sent now would wait."""
        return max(0, self.free_ns - now_ns)

    def look(self, pacer: Pacer, now_ns: int) -> int:
        while self._under_way and self._under_way[0][0] <= now_ns and not self.is_stalled:
            at_ns, size, sent_ns = self._under_way.popleft()
            self.acked += size
            rtt_ns = at_ns - sent_ns
            self._srtt_ns += (rtt_ns - self._srtt_ns) // 8
            self._min_rtt_ns = min(self._min_rtt_ns, rtt_ns)
        rtt_us, min_rtt_us = self._srtt_ns // 1_000, self._min_rtt_ns // 1_000
        return pacer.look(now_ns, self.written, self.acked, rtt_us, min_rtt_us, 0)


@define
class Transfer:
    """A sender that always has something to send, as the relay's shaper sends it."""

    path: Path
    pacer: Pacer = field(factory=Pacer)
    now_ns: int = 0
    waits: list[int] = field(factory=list)
    queueing: list[int] = field(factory=list)
    _random: random.Random = field(factory=lambda: random.Random(0))

    def run(self, seconds: float) -> int:
        """Go on for a while; returns the bytes that were acknowledged in it."""
        end_ns, before = self.now_ns + round(seconds * SECOND), self.path.acked
        self.waits.clear()
        self.queueing.clear()
        while self.now_ns < end_ns:
            while (room := self.path.look(self.pacer, self.now_ns)) and self.now_ns < end_ns:
                assert room >= LEAST_PIECE_BYTES
                size = min(room, 65_537 if self.pacer.is_fast else 16_360)
                self.path.write(self.now_ns, size)
                if self.pacer.is_fast:  # the socket limits: as if its buffer took one record at a time
                    self.now_ns = max(self.now_ns + 10_000, self.path.free_ns)
            wait_ns = self.pacer.wait_ns()
            self.waits.append(wait_ns)
            # An urgent message comes at any time of the wait.
            self.queueing.append(self.path.queueing_ns(self.now_ns + self._random.randrange(wait_ns)))
            self.now_ns += -(-wait_ns // MS) * MS + self._random.randrange(TIMER_NS - MS)
        return self.path.acked - before

    def queueing_percentile_ns(self, percent: int) -> int:
        return sorted(self.queueing)[len(self.queueing) * percent // 100]


RATES = [2 * MBIT, 10 * MBIT, 50 * MBIT]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("rtt_ms", [0.1, 5, 40, 150])
def test_converges_to_little_queueing_and_a_full_link(rate: int, rtt_ms: float) -> None:
    transfer = Transfer(Path(rate, round(rtt_ms * MS)))
    transfer.run(8)
    carried = transfer.run(5)
    target_ns = max(TARGET_NS, round(rtt_ms * MS) // TARGET_PART_OF_RTT, LEAST_WINDOW_BYTES * SECOND // rate)
    assert transfer.queueing_percentile_ns(50) <= 1.3 * target_ns
    assert transfer.queueing_percentile_ns(99) <= 2 * target_ns
    assert carried >= 0.9 * rate * 5


def test_the_first_second() -> None:
    transfer = Transfer(Path(10 * MBIT, MS))
    carried = transfer.run(1)
    assert max(transfer.queueing) <= 16 * MS  # the start window is 13 ms
    assert carried >= 0.85 * 10 * MBIT


def test_follows_a_rate_that_changes() -> None:
    transfer = Transfer(Path(8 * MBIT, MS))
    for mbit in (8, 4, 16):
        transfer.path.rate_bytes_per_s = mbit * MBIT
        carried = transfer.run(3)
        assert transfer.queueing_percentile_ns(99) <= 12 * MS
        assert carried >= 0.9 * mbit * MBIT * 3


@pytest.mark.parametrize("rtt_ms", [30, 60])
def test_a_round_trip_that_becomes_longer_is_no_queue(rtt_ms: int) -> None:
    transfer = Transfer(Path(10 * MBIT, 20 * MS))
    transfer.run(3)
    transfer.path.rtt_ns = rtt_ms * MS
    transfer.run(4)
    assert transfer.run(3) >= 0.9 * 10 * MBIT * 3
    assert transfer.queueing_percentile_ns(99) <= 25 * MS


def test_a_fast_path_is_not_paced() -> None:
    path = Path(1_000 * MBIT, MS // 10)
    transfer = Transfer(path)
    transfer.run(0.1)
    assert transfer.pacer.is_fast
    assert transfer.path.look(transfer.pacer, transfer.now_ns) == FAST_LOOK_BYTES


def test_a_fast_path_that_becomes_slow_is_paced_again() -> None:
    transfer = Transfer(Path(1_000 * MBIT, MS // 10))
    transfer.run(0.1)
    transfer.path.rate_bytes_per_s = 10 * MBIT
    transfer.run(2)
    assert not transfer.pacer.is_fast
    transfer.run(1)
    assert transfer.queueing_percentile_ns(99) <= 8 * MS


def test_a_quiet_connection_proves_nothing() -> None:
    pacer, path = Pacer(), Path(10 * MBIT, 20 * MS)
    for second in range(100):
        path.write(second * SECOND, 20_000)
        path.look(pacer, second * SECOND)
    assert pacer.window_bytes <= 2 * START_WINDOW_BYTES


def test_a_quiet_connection_keeps_its_window() -> None:
    """Delayed acknowledgements look like queueing, but nothing was held back."""
    pacer = Pacer()
    for number in range(100):
        pacer.look(number * SECOND, number * 2_000, max(0, number - 1) * 2_000, 40_000, 1_000, 0)
    assert pacer.window_bytes >= START_WINDOW_BYTES


def test_unsent_bytes_are_a_queue_too() -> None:
    """Where TCP itself lets less out than the window, the difference would wait in the kernel."""
    pacer = Pacer()
    for number in range(300):
        now_ns, acked = number * 10 * MS, number * 12_500
        pacer.look(now_ns, acked + pacer.window_bytes, acked, 10_000, 10_000, max(0, pacer.window_bytes - 14_000))
    assert 12_000 <= pacer.window_bytes <= 18_000


def test_looks_get_rare_when_nothing_is_acknowledged() -> None:
    transfer = Transfer(Path(10 * MBIT, MS))
    transfer.run(1)
    transfer.path.is_stalled = True
    transfer.run(10)
    assert len(transfer.waits) < 200
    assert transfer.waits[-1] == MOST_WAIT_NS
    transfer.path.is_stalled = False
    transfer.run(0.5)
    assert max(transfer.waits[5:]) < 10 * MS


def test_an_unknown_least_round_trip_is_the_present_one() -> None:
    pacer = Pacer()
    pacer.look(0, 16_384, 0, 30_000, 0xFFFFFFFF, 0)
    assert pacer.look(30 * MS, 16_384, 16_384, 30_000, 0xFFFFFFFF, 0) <= 2 * START_WINDOW_BYTES


@given(
    st.lists(st.tuples(st.sampled_from([1, 3, 10, 40]), st.sampled_from([0.1, 1, 10, 60])), min_size=1, max_size=6)
)
def test_bulk_progresses_on_any_path(steps: list[tuple[int, float]]) -> None:
    """Property 12: whatever the path turns into, nothing starves."""
    transfer = Transfer(Path(10 * MBIT, MS))
    for mbit, rtt_ms in steps:
        transfer.path.rate_bytes_per_s = mbit * MBIT
        transfer.path.rtt_ns = round(rtt_ms * MS)
        carried = transfer.run(1.5)
        assert carried >= LEAST_WINDOW_BYTES * 1.5 / 0.1
        assert transfer.pacer.window_bytes >= LEAST_WINDOW_BYTES
