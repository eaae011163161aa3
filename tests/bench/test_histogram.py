"""Percentiles of the histogram beside those of all values in a list."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from awesomeconnect.bench.histogram import PERCENTILES, Histogram

values = st.lists(st.integers(0, 1 << 50) | st.integers(0, 1000), min_size=1)


def histogram_of(values: list[int]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


@given(values, st.floats(0, 100))
def test_a_percentile_is_at_most_a_128th_too_high(values: list[int], percent: float) -> None:
    exact = sorted(values)[max(math.ceil(len(values) * percent / 100), 1) - 1]
    found = histogram_of(values).percentile(percent)
    assert exact <= found <= exact + exact // 128


@given(values)
def test_the_greatest_and_the_count_are_exact(values: list[int]) -> None:
    histogram = histogram_of(values)
    assert (histogram.most, histogram.count) == (max(values), len(values))
    assert histogram.percentile(100) == max(values)


@given(values, values)
def test_a_sum_is_as_if_one_had_recorded_all(one: list[int], other: list[int]) -> None:
    most, counts = histogram_of(other).dump()
    total = histogram_of(one)
    total.add(*json.loads(json.dumps([most, counts])))
    assert total.dump() == (max(one + other), total.dump()[1])
    assert dict(total.dump()[1]) == dict(histogram_of(one + other).dump()[1])
    assert total.count == len(one) + len(other)


def test_summary_in_microseconds() -> None:
    histogram = Histogram()
    histogram.record(1_000, count=98)
    histogram.record(50_000)
    histogram.record(-5)
    assert histogram.summary_us() == {
        "p50": pytest.approx(1.0, rel=1 / 128),
        "p90": pytest.approx(1.0, rel=1 / 128),
        "p99": pytest.approx(1.0, rel=1 / 128),
        "p99_9": 50.0,
        "max": 50.0,
    }
    assert list(histogram.summary_us()) == [*PERCENTILES, "max"]


def test_nothing_recorded() -> None:
    assert Histogram().summary_us() == {}
    assert Histogram().percentile(50) == 0
