"""The scheduler against the vectors of the specification, a reference in fractions, and what it promises.

Time is simulated: an arrival is a number. Nothing sleeps.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from awesomeconnect.shaping.ats import (
    NS_PER_S,
    STALL_NS,
    TOO_LARGE,
    Discard,
    Scheduler,
    SchedulerGroup,
    process_all,
    take_chunk_all,
)
from tests.shaping import reference
from tests.shaping.reference import ReferenceGroup, ReferenceScheduler

VECTORS = Path(__file__).resolve().parents[2] / "protocol-spec" / "vectors" / "ats.json"
CASES = json.loads(VECTORS.read_text())["cases"]

Contract: TypeAlias = tuple[int, int]
Arrival: TypeAlias = tuple[int, int]


# ---- vectors -----------------------------------------------------------------------------------------


def answer(verdict: int | Discard) -> Any:
    """A verdict as the vectors write it."""
    if isinstance(verdict, int):
        return verdict
    return "too_large" if verdict is TOO_LARGE else {"retry_after_ns": verdict.retry_after_ns}


def ours(case: dict[str, Any]) -> list[Any]:
    """The answers of the implementation, chunks taken as chunks."""
    groups = {name: SchedulerGroup(group["max_residence_ns"]) for name, group in case["groups"].items()}
    schedulers = {
        name: Scheduler(c["cir_bytes_per_s"], c["cbs_bytes"], groups[c["group"]], now_ns=0, stall_ns=c["stall_ns"])
        for name, c in case["schedulers"].items()
    }
    answers: list[Any] = []
    for event in case["events"]:
        if "set_rate" in event:
            schedulers[event["set_rate"]].set_rate(event["now_ns"], event["cir_bytes_per_s"], event["cbs_bytes"])
            continue
        through = [schedulers[name] for name in event["through"]]
        if len(through) == 1:
            verdicts = through[0].process_chunk(event["arrival_ns"], event["sizes"])
        else:
            verdicts = [process_all(through, event["arrival_ns"], size) for size in event["sizes"]]
        answers.append([answer(verdict) for verdict in verdicts])
    return answers


def references(case: dict[str, Any]) -> list[Any]:
    """The answers of the reference, message by message."""
    groups = {name: ReferenceGroup(group["max_residence_ns"]) for name, group in case["groups"].items()}
    schedulers = {
        name: ReferenceScheduler(c["cir_bytes_per_s"], c["cbs_bytes"], groups[c["group"]], c["stall_ns"])
        for name, c in case["schedulers"].items()
    }
    answers: list[Any] = []
    for event in case["events"]:
        if "set_rate" in event:
            changed = schedulers[event["set_rate"]]
            reference.set_rate(changed, event["now_ns"], event["cir_bytes_per_s"], event["cbs_bytes"])
            continue
        through = [schedulers[name] for name in event["through"]]
        verdicts = [reference.process(through, event["arrival_ns"], size) for size in event["sizes"]]
        answers.append(["too_large" if v == TOO_LARGE else answer(v) for v in verdicts])
    return answers


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_vectors(case: dict[str, Any]) -> None:
    expected = [event["answers"] for event in case["events"] if "answers" in event]
    assert ours(case) == expected
    assert references(case) == expected


# ---- single facts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cir", "cbs"), [(0, 1_000), (1_000, 0), (-1, 1_000), (1_000, -1)])
def test_a_contract_that_lets_nothing_pass_is_refused(cir: int, cbs: int) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Scheduler(cir, cbs, SchedulerGroup(), now_ns=0)
    scheduler = Scheduler(1_000, 1_000, SchedulerGroup(), now_ns=0)
    with pytest.raises(ValueError, match="above 0"):
        scheduler.set_rate(0, cir, cbs)
    assert (scheduler.cir_bytes_per_s, scheduler.cbs_bytes) == (1_000, 1_000)
    assert scheduler.process(0, 1_000) == 0


def test_negative_times_are_refused() -> None:
    with pytest.raises(ValueError, match="max_residence_ns"):
        SchedulerGroup(-1)
    with pytest.raises(ValueError, match="stall"):
        Scheduler(1, 1, SchedulerGroup(), now_ns=0, stall_ns=-1)


def test_it_does_not_drift() -> None:
    """At 3 bytes/s a byte takes a third of a second: ten million years of them stay exact."""
    scheduler = Scheduler(3, 1, SchedulerGroup(), now_ns=0)
    for _ in range(1_000):
        scheduler.process(0, 1)
    assert scheduler.process(0, 1) == 333_333_333_334
    later_ns = 10_000_000 * 365 * 86_400 * NS_PER_S
    after_ns = [0, 333_333_334, 666_666_667, NS_PER_S]
    assert scheduler.process_chunk(later_ns, [1] * 4) == [later_ns + ns for ns in after_ns]


def test_the_sum_of_a_chunk_must_fit_the_bucket() -> None:
    """After idling the bucket is full, not more than full."""
    scheduler = Scheduler(1_000_000, 3_000, SchedulerGroup(), now_ns=0)
    assert not scheduler.take_chunk(NS_PER_S, 4_000, 1_000)
    assert scheduler.process_chunk(NS_PER_S, [1_000] * 4) == [NS_PER_S] * 3 + [NS_PER_S + 1_000_000]


def test_a_message_in_a_chunk_must_not_be_longer_than_the_burst() -> None:
    scheduler = Scheduler(1_000_000, 1_000, SchedulerGroup(), now_ns=0, stall_ns=STALL_NS)
    assert not scheduler.take_chunk(0, 1_500)
    assert not scheduler.take_chunk(0, 1_500, 1_001)
    assert scheduler.take_chunk(0, 1_500, 1_000)
    assert scheduler.process_chunk(0, [500, 1_001, 500]) == [0, TOO_LARGE, 0]
    assert scheduler.process_chunk(0, []) == []


def test_a_tiny_room_delays_only_its_own() -> None:
    connection = Scheduler(1_000_000, 10_000, SchedulerGroup(NS_PER_S), now_ns=0)
    room = Scheduler(1_000, 1_000, SchedulerGroup(NS_PER_S), now_ns=0)
    assert process_all([connection, room], 0, 1_000) == 0
    assert process_all([connection, room], 0, 1_000) == NS_PER_S
    assert process_all([connection, room], 0, 1) == Discard(1_000_000)
    assert connection.process(0, 1_000) == 0
    assert connection.process_chunk(0, [7_000]) == [0]
    assert connection.process(0, 1) == 1_000


# ---- properties --------------------------------------------------------------------------------------

rates = st.integers(1, 5_000) | st.sampled_from([999_983, 1_000_000, 1_250_000, 10**9, 3 * 10**9 + 7])
bursts = st.integers(1, 5_000) | st.sampled_from([17_408, 1_048_576])
contracts: st.SearchStrategy[Contract] = st.tuples(rates, bursts)
residences = st.integers(0, 10**10) | st.sampled_from([0, 50_000_000, NS_PER_S])
stalls = st.sampled_from([0, 1, STALL_NS])
gaps_ns = st.integers(0, 3) | st.integers(0, 10**7) | st.integers(0, 10**11)
sizes = st.integers(1, 6_000) | st.integers(1, 3) | st.sampled_from([17_408, 1_048_576])


@st.composite
def arrivals(draw: st.DrawFn, most: int = 30) -> list[Arrival]:
    """(time, size) in the order of time."""
    now_ns = draw(st.integers(0, 10**18))
    found = []
    for gap_ns, size in draw(st.lists(st.tuples(gaps_ns, sizes), min_size=1, max_size=most)):
        now_ns += gap_ns
        found.append((now_ns, size))
    return found


def conforms(released: list[Arrival], cir: int, bucket: int, slack_ns: int = 0) -> bool:
    """Whether no window of a stream has more than a token bucket allows (sizes and bucket in bytes x 10^9).

    An eligibility time that is rounded up may be almost 1 ns late, and the next one not: ``slack_ns`` is 1 then.
    """
    for first, (start_ns, _) in enumerate(released):
        total = 0
        for at_ns, size in released[first:]:
            total += size * NS_PER_S
            excess = total - bucket - cir * (at_ns - start_ns)
            if excess > 0 and excess >= cir * slack_ns:
                return False
    return True


@given(contracts, residences | st.none(), stalls, arrivals())
def test_it_agrees_with_the_reference(
    contract: Contract, residence_ns: int | None, stall_ns: int, stream: list[Arrival]
) -> None:
    scheduler = Scheduler(*contract, SchedulerGroup(residence_ns), now_ns=0, stall_ns=stall_ns)
    other = ReferenceScheduler(*contract, ReferenceGroup(residence_ns), stall_ns)
    for arrival in stream:
        assert scheduler.process(*arrival) == reference.process([other], *arrival)


@given(st.lists(contracts, min_size=1, max_size=3), residences, st.data())
def test_eligibility_lies_within_the_residence_and_is_in_order(
    several: list[Contract], residence_ns: int, data: st.DataObject
) -> None:
    """Property 1, for several schedulers of one group, which agree with the reference too."""
    group, other = SchedulerGroup(residence_ns), ReferenceGroup(residence_ns)
    pairs = [(Scheduler(*c, group, now_ns=0), ReferenceScheduler(*c, other)) for c in several]
    last_ns = 0
    for arrival_ns, size in data.draw(arrivals()):
        scheduler, expected = data.draw(st.sampled_from(pairs))
        verdict = scheduler.process(arrival_ns, size)
        assert verdict == reference.process([expected], arrival_ns, size)
        if isinstance(verdict, int):
            assert max(arrival_ns, last_ns) <= verdict <= arrival_ns + residence_ns
            last_ns = verdict
        else:
            assert group.eligibility_ns == last_ns


@given(contracts, residences | st.none(), stalls, arrivals())
def test_what_is_released_conforms(
    contract: Contract, residence_ns: int | None, stall_ns: int, stream: list[Arrival]
) -> None:
    """Property 2."""
    cir, cbs = contract
    scheduler = Scheduler(cir, cbs, SchedulerGroup(residence_ns), now_ns=0, stall_ns=stall_ns)
    verdicts = [(scheduler.process(*arrival), arrival[1]) for arrival in stream]
    released = [(at_ns, size) for at_ns, size in verdicts if isinstance(at_ns, int)]
    assert conforms(released, cir, cbs * NS_PER_S + cir * stall_ns, slack_ns=1)


@given(contracts, residences, arrivals())
def test_a_discard_changes_nothing(contract: Contract, residence_ns: int, stream: list[Arrival]) -> None:
    """Property 3: without the messages that were discarded the others get the same answers."""
    scheduler = Scheduler(*contract, SchedulerGroup(residence_ns), now_ns=0)
    verdicts = [(arrival, scheduler.process(*arrival)) for arrival in stream]
    again = Scheduler(*contract, SchedulerGroup(residence_ns), now_ns=0)
    for arrival, verdict in verdicts:
        if isinstance(verdict, int):
            assert again.process(*arrival) == verdict


@given(contracts, residences, arrivals())
def test_a_retry_at_the_time_that_was_named_is_accepted(
    contract: Contract, residence_ns: int, stream: list[Arrival]
) -> None:
    """Property 5, and that a nanosecond less is not."""
    scheduler = Scheduler(*contract, SchedulerGroup(residence_ns), now_ns=0)
    later_ns = 0
    for arrival_ns, size in stream:
        arrival_ns = max(arrival_ns, later_ns)
        verdict = scheduler.process(arrival_ns, size)
        if isinstance(verdict, int):
            continue
        assert (verdict.retry_after_ns is None) == (size > contract[1])
        if verdict.retry_after_ns is not None:
            later_ns = arrival_ns + verdict.retry_after_ns
            assert scheduler.process(later_ns - 1, size) == Discard(1)
            assert scheduler.process(later_ns, size) == later_ns + residence_ns


@given(contracts, arrivals(most=15))
def test_a_conformant_stream_alone_is_never_delayed(contract: Contract, wanted: list[Arrival]) -> None:
    """Property 6: "conformant" by the definition of the token bucket, not by this code."""
    cir, cbs = contract
    stream: list[Arrival] = []
    for at_ns, size in wanted:
        size = min(size, cbs)
        at_ns = max(at_ns, stream[-1][0] if stream else 0)
        total = size
        for earlier_ns, earlier_size in reversed(stream):
            total += earlier_size
            at_ns = max(at_ns, earlier_ns - (cbs - total) * NS_PER_S // cir)
        stream.append((at_ns, size))
    assert conforms(stream, cir, cbs * NS_PER_S)
    scheduler = Scheduler(cir, cbs, SchedulerGroup(0), now_ns=0)
    assert [scheduler.process(*arrival) for arrival in stream] == [at_ns for at_ns, _ in stream]


@given(contracts, arrivals(), st.lists(st.integers(0, STALL_NS - 1), min_size=30, max_size=30))
def test_a_shaped_stream_is_never_delayed_by_the_relay_after_a_stall(
    contract: Contract, wanted: list[Arrival], delays_ns: list[int]
) -> None:
    """A client shapes, the path bunches what it sent by less than the allowance, the relay polices."""
    client = Scheduler(*contract, SchedulerGroup(), now_ns=0)
    relay = Scheduler(*contract, SchedulerGroup(0), now_ns=0, stall_ns=STALL_NS)
    arrived_ns = 0
    for (wanted_ns, size), delay_ns in zip(wanted, delays_ns, strict=False):
        sent_ns = client.process(wanted_ns, min(size, contract[1]))
        assert isinstance(sent_ns, int)
        arrived_ns = max(arrived_ns, sent_ns + delay_ns)
        assert relay.process(arrived_ns, min(size, contract[1])) == arrived_ns


@given(contracts, residences, stalls, st.lists(st.tuples(gaps_ns, st.lists(sizes, max_size=8)), max_size=10))
def test_a_chunk_gets_the_answers_of_its_messages(
    contract: Contract, residence_ns: int, stall_ns: int, chunks: list[tuple[int, list[int]]]
) -> None:
    whole, single = (
        Scheduler(*contract, SchedulerGroup(residence_ns), now_ns=0, stall_ns=stall_ns) for _ in range(2)
    )
    now_ns = 0
    for gap_ns, chunk in chunks:
        now_ns += gap_ns
        assert whole.process_chunk(now_ns, chunk) == [single.process(now_ns, size) for size in chunk]


@given(st.lists(st.tuples(contracts, residences), min_size=1, max_size=3), arrivals())
def test_several_contracts_agree_with_the_reference(
    several: list[tuple[Contract, int]], stream: list[Arrival]
) -> None:
    """The answer is the latest time, within every residence; a retry at the time that was named is accepted."""
    schedulers = [Scheduler(*c, SchedulerGroup(residence_ns), now_ns=0) for c, residence_ns in several]
    others = [ReferenceScheduler(*c, ReferenceGroup(residence_ns)) for c, residence_ns in several]
    alone = Scheduler(*several[0][0], SchedulerGroup(several[0][1]), now_ns=0)
    later_ns = 0
    for arrival_ns, size in stream:
        arrival_ns = max(arrival_ns, later_ns)
        verdict = process_all(schedulers, arrival_ns, size)
        assert verdict == reference.process(others, arrival_ns, size)
        if isinstance(verdict, Discard) and verdict.retry_after_ns:
            later_ns = arrival_ns + verdict.retry_after_ns
            retried = process_all(schedulers, later_ns, size)
            assert isinstance(retried, int)
            assert retried == reference.process(others, later_ns, size)
        if len(several) == 1:
            assert verdict == alone.process(arrival_ns, size)
            if later_ns > arrival_ns:
                alone.process(later_ns, size)


@given(
    st.lists(contracts, min_size=1, max_size=2),
    st.lists(st.tuples(gaps_ns, st.lists(sizes, max_size=8)), max_size=8),
)
def test_a_chunk_through_several_contracts(several: list[Contract], chunks: list[tuple[int, list[int]]]) -> None:
    whole, single = ([Scheduler(*c, SchedulerGroup(NS_PER_S), now_ns=0) for c in several] for _ in range(2))
    now_ns = 0
    for gap_ns, chunk in chunks:
        now_ns += gap_ns
        expected = [process_all(single, now_ns, size) for size in chunk]
        if take_chunk_all(whole, now_ns, sum(chunk), max(chunk, default=0)):
            assert expected == [now_ns] * len(chunk)
        else:
            assert [process_all(whole, now_ns, size) for size in chunk] == expected


@given(contracts, contracts, st.integers(0, 10**10) | st.none(), arrivals(), arrivals())
def test_a_new_rate_never_grants_more_than_the_new_burst(
    old: Contract, new: Contract, residence_ns: int | None, before: list[Arrival], after: list[Arrival]
) -> None:
    scheduler = Scheduler(*old, SchedulerGroup(residence_ns), now_ns=0)
    other = ReferenceScheduler(*old, ReferenceGroup(residence_ns))
    for arrival in before:
        assert scheduler.process(*arrival) == reference.process([other], *arrival)
    now_ns = before[-1][0]
    scheduler.set_rate(now_ns, *new)
    reference.set_rate(other, now_ns, *new)
    released = []
    for gap_ns, size in after:
        arrival_ns = now_ns + gap_ns - after[0][0]
        verdict = scheduler.process(arrival_ns, size)
        assert verdict == reference.process([other], arrival_ns, size)
        if isinstance(verdict, int):
            released.append((verdict, size))
    cir, cbs = new
    assert conforms(released, cir, cbs * NS_PER_S, slack_ns=1)


@given(contracts, st.integers(0, 10**12), arrivals())
def test_a_rate_that_stays_changes_nothing(contract: Contract, now_ns: int, stream: list[Arrival]) -> None:
    changed, other = (Scheduler(*contract, SchedulerGroup(), now_ns=0) for _ in range(2))
    for arrival_ns, size in stream:
        changed.set_rate(arrival_ns, *contract)
        assert changed.process(arrival_ns, size) == other.process(arrival_ns, size)
