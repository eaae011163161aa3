"""Counting without opening."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from awesomeconnect.bench.relay_client import RecordMeter
from awesomeconnect.wire.records import Sealer


@given(st.lists(st.integers(1, 2_000), min_size=1, max_size=20), st.data())
def test_lengths_of_records_tell_the_plaintext_wherever_they_are_cut(sizes: list[int], data: st.DataObject) -> None:
    sealer = Sealer(bytes(32))
    stream = b"".join(sealer.seal(bytes(size)) for size in sizes)
    cuts = sorted({0, len(stream), *data.draw(st.lists(st.integers(0, len(stream)), max_size=10))})
    meter = RecordMeter()
    counted = [meter.measure(memoryview(stream)[a:b]) for a, b in pairwise(cuts)]
    assert sum(counted) == sum(sizes)


def test_a_record_counts_when_it_is_complete() -> None:
    stream = Sealer(bytes(32)).seal(b"hello")
    meter = RecordMeter()
    assert [meter.measure(memoryview(stream)[at : at + 1]) for at in range(len(stream))] == [
        *[0] * (len(stream) - 1),
        5,
    ]
