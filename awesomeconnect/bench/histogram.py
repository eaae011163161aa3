"""Latencies by how often they occurred, in the manner of Gil Tene's HdrHistogram: any range, a fixed precision.

A value is kept with its first 8 significant bits, so a percentile is at most 0.8 % too high and recording costs the
same for ever. (The package of that name needs a C compiler on 64-bit ARM, which many nodes run on.)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

_BITS = 8
_HALF = 1 << (_BITS - 1)

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99_9": 99.9}


class Histogram:
    """Non-negative integers, here always nanoseconds.

    Attributes:
        count: how many were recorded.
        most: the greatest of them, exactly; 0 if there is none.
    """

    def __init__(self) -> None:
        self.count = 0
        self.most = 0
        self._counts: Counter[int] = Counter()  # bucket -> values in it

    def record(self, value: int, count: int = 1) -> None:
        """Add a value, as if `count` times; a clock that went back counts as 0."""
        value = max(value, 0)
        shift = max(value.bit_length() - _BITS, 0)
        self._counts[shift * _HALF + (value >> shift)] += count
        self.count += count
        if value > self.most:
            self.most = value

    def percentile(self, percent: float) -> int:
        """The least recorded value that so many percent of all do not exceed; 0 if there is none."""
        rank = max(math.ceil(self.count * percent / 100), 1)
        seen = 0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            if seen >= rank:
                return min(_greatest(bucket), self.most)
        return 0

    def summary_us(self) -> dict[str, float]:
        """`PERCENTILES` and `max`, in microseconds; empty if nothing was recorded."""
        if not self.count:
            return {}
        found = {name: self.percentile(percent) / 1e3 for name, percent in PERCENTILES.items()}
        return {**found, "max": self.most / 1e3}

    def dump(self) -> tuple[int, list[tuple[int, int]]]:
        """What `add` takes, as JSON or a pipe between processes can carry it."""
        return self.most, list(self._counts.items())

    def add(self, most: int, counts: Mapping[int, int] | Iterable[tuple[int, int]]) -> None:
        """Add what another histogram has dumped."""
        self.most = max(self.most, most)
        for bucket, count in dict(counts).items():
            self._counts[bucket] += count
            self.count += count


def _greatest(bucket: int) -> int:
    """The greatest value that falls into a bucket."""
    shift = max(bucket // _HALF - 1, 0)
    return ((bucket - shift * _HALF + 1) << shift) - 1
