"""The egress pacer: how many bytes towards one receiver may be in flight, so that an urgent message finds no queue.

Priority alone does little on a slow path: the standing queue is in the kernel and in the path, where nothing
can overtake. So classes below URGENT leave only while

    inflight = bytes written - bytes acknowledged  <  window

This is not part of IEEE 802.1Qcr. It regulates bytes and not a rate: a wrong estimate of the path makes the queue
a little longer or shorter, and never lets it grow.

Three things move the window, once an interval. Queueing is what the round trip takes longer than it ever did, and
what waits in the sender's kernel: above a target for it the window shrinks in proportion. Below, it grows. And at
a rate that the path has carried, a window of rate x (least round trip + target) queues for no longer than the
target, whatever else was measured: it is allowed at once, and never taken away. Nothing grows beyond what the path
has carried, so a quiet connection proves nothing.

A path on which the window has become large is fast: its receiver is not paced, only looked at once in a while.

Time is an argument, in nanoseconds. This module knows neither sockets nor queues.
"""

from __future__ import annotations

from awesomeconnect.wire.fragments import CHUNK_BYTES

#: Eleven segments: about what TCP's own initial window lets out at once.
START_WINDOW_BYTES = 16_384
#: Two segments: fewer would wait for delayed acknowledgements.
LEAST_WINDOW_BYTES = 2_896
#: A path on which a whole record queues for no longer than the target is fast.
FAST_BYTES = 65_536
#: How often a fast path is looked at.
FAST_LOOK_BYTES = 262_144
#: More is never in flight while a path is paced: 1 s of the fastest.
MOST_WINDOW_BYTES = 1 << 25
#: Queueing that is aimed at. A long path's jitter is a part of its round trip; a slow path takes longer for the
#: least window.
TARGET_NS = 2_500_000
TARGET_PART_OF_RTT = 6
#: How long the path takes for one piece of a message. Halving it nearly doubles what pacing costs in CPU time.
PIECE_NS = 3_000_000
#: FRAGMENT allows no smaller chunk.
LEAST_PIECE_BYTES = 1_024
#: Timers are late by up to this, and then a path runs dry that is not at its limit.
TIMER_NS = 2_000_000
#: The window is corrected at this interval, or every two round trips where that is longer.
INTERVAL_NS = 100_000_000
#: Growth in one interval: careful, or quick after a few intervals that stayed far below the target.
GROWTH_PERCENT = 108
QUICK_GROWTH_PERCENT = 150
CLEAN_INTERVALS = 3
#: A round trip that stays long while the window shrinks is no queue of ours: the path has changed, or others
#: fill it.
VAIN_INTERVALS = 8
#: Between looks while something is held back. Twice as long after every 16 looks at which nothing was new.
LEAST_WAIT_NS = 1_000_000
MOST_WAIT_NS = 100_000_000
FRUITLESS_LOOKS = 16

_SECOND_NS = 1_000_000_000


class Pacer:
    """The window of one receiver.

    Attributes:
        window_bytes: what may be in flight.
        piece_bytes: less does not leave at once, so that few looks are needed.
        is_fast: nothing is held back.
        rate_bytes_per_s: what the path carried while something was held back; 0 until that is known.
        inflight_bytes: at the last look.
    """

    __slots__ = (
        "_acked",
        "_base_ns",
        "_began_acked",
        "_began_ns",
        "_clean",
        "_fruitless",
        "_last_rtt_ns",
        "_limited",
        "_round_ends",
        "_starting",
        "_unsent",
        "_vain",
        "inflight_bytes",
        "is_fast",
        "piece_bytes",
        "rate_bytes_per_s",
        "window_bytes",
    )

    def __init__(self) -> None:
        self.window_bytes = START_WINDOW_BYTES
        self.piece_bytes = CHUNK_BYTES
        self.is_fast = False
        self.rate_bytes_per_s = 0
        self.inflight_bytes = 0
        self._starting = True  # the window doubles every round trip until queueing sets in
        self._clean = 0  # intervals without too much queueing
        self._vain = 0  # intervals in which a smaller window did not shorten the round trip
        self._last_rtt_ns = 0
        self._base_ns = 0  # a round trip that is not of our making, where it is longer than the least one
        self._acked = 0
        self._fruitless = 0  # looks since anything was acknowledged
        # Of the interval under way:
        self._began_ns = -1
        self._began_acked = 0
        self._round_ends = 0  # what must be acknowledged before it ends
        self._limited = False  # something was held back
        self._unsent = 0  # the least that waited in the kernel

    def look(self, now_ns: int, written: int, acked: int, rtt_us: int, min_rtt_us: int, notsent: int) -> int:
        """Take a sample of the path.

        Args:
            written: bytes given to the socket so far.
            acked: bytes that the receiver's system has acknowledged so far.
            rtt_us, min_rtt_us: TCP's smoothed round trip time, and the least it has seen.
            notsent: bytes that wait in the sender's system.

        Returns:
            How much may be written before the next look: 0, or at least `LEAST_PIECE_BYTES`.
        """
        self.inflight_bytes = written - acked
        self._unsent = min(self._unsent, notsent)
        self._fruitless = 0 if acked > self._acked else self._fruitless + 1
        self._acked = acked
        if self._began_ns < 0:
            self._begin(now_ns, written)
        elif acked >= self._round_ends:
            elapsed_ns = now_ns - self._began_ns
            if self._starting or self.is_fast or elapsed_ns >= max(INTERVAL_NS, 2_000 * rtt_us):
                self._correct(max(elapsed_ns, 1), 1_000 * rtt_us, 1_000 * min(min_rtt_us, rtt_us))
                self._begin(now_ns, written)
        if self.is_fast:
            return FAST_LOOK_BYTES
        may_send = self.window_bytes - self.inflight_bytes
        if may_send < max(LEAST_PIECE_BYTES, self.piece_bytes * 3 // 4):
            self._limited = True
            return 0
        return may_send

    def wait_ns(self) -> int:
        """How long until enough is acknowledged for a piece to leave, as far as can be told."""
        excess = self.inflight_bytes - self.window_bytes + self.piece_bytes
        expected_ns = excess * _SECOND_NS // self.rate_bytes_per_s if self.rate_bytes_per_s else LEAST_WAIT_NS
        # Not longer than a piece takes: what follows each acknowledgement soon leaves as evenly as those arrive.
        wait_ns = min(PIECE_NS, max(LEAST_WAIT_NS, expected_ns))
        return min(MOST_WAIT_NS, wait_ns << min(self._fruitless // FRUITLESS_LOOKS, 10))

    def _begin(self, now_ns: int, written: int) -> None:
        self._began_ns = now_ns
        self._began_acked = self._acked
        self._round_ends = written
        self._limited = False
        self._unsent = written

    def _correct(self, elapsed_ns: int, rtt_ns: int, least_ns: int) -> None:
        """Set the window by how an interval went."""
        carried = self._acked - self._began_acked
        rate = carried * _SECOND_NS // elapsed_ns
        if self._limited or rate > self.rate_bytes_per_s:
            self.rate_bytes_per_s = rate
            self.piece_bytes = min(CHUNK_BYTES, max(LEAST_PIECE_BYTES, rate * PIECE_NS // _SECOND_NS))
        window = self.window_bytes
        self._base_ns = min(self._base_ns, rtt_ns)
        least_ns = max(least_ns, self._base_ns)
        unavoidable_ns = LEAST_WINDOW_BYTES * _SECOND_NS // max(self.rate_bytes_per_s, 1)
        target_ns = max(TARGET_NS, least_ns // TARGET_PART_OF_RTT, unavoidable_ns)
        queueing_ns = rtt_ns - least_ns + self._unsent * elapsed_ns // max(carried, 1)
        allowed = rate * (least_ns + target_ns) // _SECOND_NS
        if allowed >= window:
            self._clean += 1
            self._vain = 0
            window = min(2 * window, allowed)
        elif queueing_ns <= target_ns:
            self._clean += 1
            self._vain = 0
            quick = self._clean >= CLEAN_INTERVALS and queueing_ns < target_ns // 2
            percent = 200 if self._starting else QUICK_GROWTH_PERCENT if quick else GROWTH_PERCENT
            used = rate * (least_ns + target_ns + TIMER_NS) // _SECOND_NS
            window = max(window, min(window * percent // 100, 2 * used))
        elif self._limited or self.is_fast:
            self._clean = 0
            self._starting = self.is_fast = False
            window = max(LEAST_WINDOW_BYTES, allowed, window * target_ns // queueing_ns)
            is_shorter = rtt_ns - least_ns <= target_ns or rtt_ns < self._last_rtt_ns - queueing_ns // 8
            self._vain = 0 if is_shorter else self._vain + (window < self.window_bytes)
            if self._vain == VAIN_INTERVALS:
                self._vain = 0
                self._base_ns = rtt_ns
        self._last_rtt_ns = rtt_ns
        self.window_bytes = min(window, MOST_WINDOW_BYTES)
        if self._clean and window >= FAST_BYTES:
            # What the window lets queue: known from the rate if that was the path's, else what is not under way.
            queued = rate * TARGET_NS // _SECOND_NS if self._limited else window - rate * least_ns // _SECOND_NS
            self.is_fast = self.is_fast or queued >= FAST_BYTES
