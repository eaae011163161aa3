"""Sealed messages open at their place, for their receiver, and nowhere else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from awesomeconnect.identity import Identity
from awesomeconnect.wire import cbor
from awesomeconnect.wire.sealing import (
    BY_SEND,
    IN_SEGMENT,
    Place,
    ReplayGuard,
    SealBroken,
    Sealer,
    decode_sealed,
    encode_sealed,
)

ALICE, BOB, EVE = (Identity.from_seed(bytes((n,)) * 32) for n in (1, 2, 3))
PLACE = Place(BY_SEND, 1, bytes(range(16)), 7)


@given(st.binary(max_size=300), st.sampled_from((0, 4, 5)))
def test_what_is_sealed_is_opened(payload: bytes, content: int) -> None:
    box = Sealer(ALICE).seal(BOB.public_key, PLACE, content, payload)
    assert Sealer(BOB).open(ALICE.public_key, PLACE, box) == (content, payload)
    assert len(box) == len(payload) + 17


@pytest.mark.parametrize(
    "place",
    [
        PLACE._replace(form=IN_SEGMENT),
        PLACE._replace(traffic_class=2),
        PLACE._replace(incarnation=bytes(16)),
        PLACE._replace(sequence=8),
    ],
)
def test_it_opens_at_no_other_place(place: Place) -> None:
    box = Sealer(ALICE).seal(BOB.public_key, PLACE, 0, b"hello")
    with pytest.raises(SealBroken):
        Sealer(BOB).open(ALICE.public_key, place, box)


def test_it_opens_for_nobody_else() -> None:
    box = Sealer(ALICE).seal(BOB.public_key, PLACE, 0, b"hello")
    with pytest.raises(SealBroken):
        Sealer(EVE).open(ALICE.public_key, PLACE, box)
    with pytest.raises(SealBroken):
        Sealer(BOB).open(EVE.public_key, PLACE, box)
    with pytest.raises(SealBroken, match="does not open"):
        Sealer(ALICE).open(BOB.public_key, PLACE, box)  # sent back to its sender


def test_a_changed_box_does_not_open() -> None:
    box = Sealer(ALICE).seal(BOB.public_key, PLACE, 0, b"hello")
    for at in range(len(box)):
        with pytest.raises(SealBroken):
            Sealer(BOB).open(ALICE.public_key, PLACE, box[:at] + bytes((box[at] ^ 1,)) + box[at + 1 :])
        with pytest.raises(SealBroken):
            Sealer(BOB).open(ALICE.public_key, PLACE, box[:at])


@pytest.mark.parametrize("content", [1, 2, 3, 6, 255])
def test_other_contents_inside_are_refused(content: int) -> None:
    box = Sealer(ALICE).seal(BOB.public_key, PLACE, content, b"")
    with pytest.raises(SealBroken, match="content"):
        Sealer(BOB).open(ALICE.public_key, PLACE, box)


def test_an_empty_box_is_refused() -> None:
    with pytest.raises(SealBroken, match="nothing"):
        Sealer(BOB).open(ALICE.public_key, PLACE, bytes(16))


def test_keys_that_are_none_are_refused() -> None:
    for key in (bytes(32), b"\1" + bytes(31), bytes(31)):
        with pytest.raises(ValueError, match="prime order"):
            Sealer(ALICE).check(key)
        with pytest.raises(SealBroken):
            Sealer(ALICE).open(key, PLACE, bytes(40))


def test_shared_keys_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awesomeconnect.wire.sealing._MAX_PEERS", 3)
    sealer = Sealer(ALICE)
    for number in range(10):
        sealer.check(Identity.from_seed(bytes((number,)) * 32).public_key)
        assert len(sealer._shared) <= 3


@given(st.binary(min_size=16, max_size=16), st.integers(1, (1 << 64) - 1), st.binary(max_size=100))
def test_payloads(incarnation: bytes, sequence: int, box: bytes) -> None:
    data = encode_sealed(incarnation, sequence, box)
    assert decode_sealed(data) == (incarnation, sequence, box)
    for size in range(len(data)):
        with pytest.raises(SealBroken):
            decode_sealed(data[:size])


@pytest.mark.parametrize(
    "value",
    [[], 7, [bytes(16), 1], [bytes(15), 1, b""], [bytes(16), 0, b""], [bytes(16), True, b""], [bytes(16), 1, ""]],
)
def test_bad_payloads(value: object) -> None:
    with pytest.raises(SealBroken):
        decode_sealed(cbor.encode(value))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3_000)), max_size=200))
def test_nothing_is_opened_twice(messages: list[tuple[int, int]]) -> None:
    guard = ReplayGuard()
    opened: set[tuple[int, int]] = set()
    newest, highest = -1, 0
    for incarnation, sequence in messages:
        admitted = guard.admits(bytes((incarnation,)) * 16, sequence)
        if incarnation > newest:
            assert admitted or incarnation == 0  # the lowest of all is that of a new guard
            newest, highest = (incarnation, 0) if admitted else (newest, highest)
        if admitted:
            assert (incarnation, sequence) not in opened
            assert incarnation == newest
            guard.note(bytes((incarnation,)) * 16, sequence)
            opened.add((incarnation, sequence))
            highest = max(highest, sequence)
        elif incarnation == newest:
            assert (incarnation, sequence) in opened or sequence <= highest - 1_024
