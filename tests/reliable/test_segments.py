"""Payloads of contents 1 and 2: the CDDL, the encoding, and everything that must be ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from awesomeconnect.reliable.segments import (
    Ack,
    BadPayload,
    Control,
    Mark,
    Refusal,
    Repair,
    Request,
    Segment,
    StreamMark,
    decode_control,
    decode_segment,
    encode_control,
    encode_segment,
    incarnation_bytes,
    ranges_of,
)
from awesomeconnect.wire import cbor
from awesomeconnect.wire.parts import Incarnation
from tests import cddl

SCHEMA = cddl.Schema((Path(__file__).parents[2] / "protocol-spec" / "reliable.cddl").read_text())

incarnations = st.binary(min_size=16, max_size=16)
sequences = st.one_of(st.integers(1, 30), st.integers(1, (1 << 64) - 1))
classes = st.integers(0, 6)
rooms = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
segments = st.builds(
    lambda incarnation, numbers, expires_ms, content, payload: Segment(
        incarnation, max(numbers), min(numbers), expires_ms, content, payload
    ),
    incarnations,
    st.tuples(sequences, sequences),
    st.integers(1, 86_400_000),
    st.sampled_from((0, 3, 4, 5)),
    st.binary(max_size=300),
)
ranges = st.lists(st.integers(1, 200), max_size=60).map(lambda values: ranges_of(sorted(set(values))))
marks = st.lists(
    st.tuples(classes, sequences, sequences).map(lambda m: StreamMark(m[0], min(m[1:]), max(m[1:]))),
    min_size=1,
    max_size=7,
).map(tuple)
controls: st.SearchStrategy[Control] = st.one_of(
    st.builds(Ack, incarnations, incarnations, classes, sequences, ranges, ranges),
    st.builds(Refusal, incarnations, classes, st.integers(0, 1 << 32)),
    st.builds(Mark, st.none() | rooms, incarnations, marks),
    st.builds(Request, rooms, incarnations, classes, ranges),
    st.builds(Repair, rooms, segments),
)
nearly = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 1 << 64) | st.binary(max_size=17) | incarnations | rooms,
    lambda item: st.lists(item, max_size=8),
    max_leaves=12,
)


@given(segments)
def test_segments_are_what_the_cddl_says(segment: Segment) -> None:
    data = encode_segment(segment)
    assert data == cbor.encode(list(segment))
    assert SCHEMA.accepts("segment", cbor.decode(data))
    assert decode_segment(data) == segment
    for size in range(len(data)):
        with pytest.raises(BadPayload):
            decode_segment(data[:size])
    with pytest.raises(BadPayload):
        decode_segment(data + b"\0")


@given(controls)
def test_control_payloads_are_what_the_cddl_says(control: Control) -> None:
    data = encode_control(control)
    assert SCHEMA.accepts("control", cbor.decode(data))
    assert decode_control(data) == control
    with pytest.raises(BadPayload):
        decode_control(data + b"\0")


@given(segments, st.integers(0, 5), nearly)
def test_a_segment_with_a_wrong_field_is_ignored(segment: Segment, at: int, value: Any) -> None:
    fields: list[Any] = list(segment)
    fields[at] = value
    _agree("segment", fields, lambda data: decode_segment(data))


@given(controls, st.integers(0, 7), nearly)
def test_a_control_payload_with_a_wrong_field_is_ignored(control: Control, at: int, value: Any) -> None:
    fields: Any = cbor.decode(encode_control(control))
    fields[at % len(fields)] = value
    _agree("control", fields, decode_control)


@given(st.lists(nearly, max_size=8))
def test_arrays_of_anything_are_ignored_or_decoded(value: list[Any]) -> None:
    _agree("control", value, decode_control)


def _agree(rule: str, value: Any, decoder: Any) -> None:
    """What the CDDL refuses, the decoder does; it may refuse more, as the text says."""
    try:
        data = cbor.encode(value)
        cbor.decode(data)
    except Exception:
        return
    try:
        decoded = decoder(data)
    except BadPayload:
        return
    assert decoded is None or SCHEMA.accepts(rule, value)


@pytest.mark.parametrize("kind", [5, 23, 1 << 40])
def test_a_kind_that_is_not_known_is_none(kind: int) -> None:
    assert decode_control(cbor.encode([kind, 1, "x"])) is None


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        7,
        [None],
        [0],
        [0, bytes(16), bytes(16), 1, 5, [[7, 6]], []],
        [0, bytes(16), bytes(16), 1, 5, [[6, 7], [8, 9]], []],
        [0, bytes(16), bytes(16), 1, 5, [[n, n] for n in range(6, 80, 2)], []],
        [0, bytes(16), bytes(15), 1, 5, [], []],
        [0, bytes(16), bytes(16), 7, 5, [], []],
        [0, bytes(16), bytes(16), True, 5, [], []],
        [2, None, bytes(16), []],
        [2, None, bytes(16), [[1, 3, 2]]],
        [2, "", bytes(16), [[1, 1, 2]]],
        [4, "room", bytes(16), 1, 2, 1, 0, b""],
    ],
)
def test_bad_control_payloads(value: Any) -> None:
    with pytest.raises(BadPayload):
        decode_control(cbor.encode(value))


def test_ranges_stop_at_the_thirty_second() -> None:
    assert ranges_of([1, 2, 3, 7, 9, 10]) == ((1, 3), (7, 7), (9, 10))
    assert len(ranges_of(range(1, 200, 2))) == 32


def test_incarnations_are_ordered_by_their_start() -> None:
    first, second = Incarnation(255, bytes(8)), Incarnation(256, bytes(8))
    assert incarnation_bytes(first) < incarnation_bytes(second) < incarnation_bytes(Incarnation(256, b"\1" * 8))
