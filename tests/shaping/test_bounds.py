"""Delay bounds: the vectors of the specification, contract files, and a link that is simulated against the bound.

Two links are simulated. `LinkModel` is what the formula is about: strict priority, whole units, senders that
are shaped. The other one drains the real egress queue, record by record. Time is the number of byte times x 10^9,
so nothing is rounded; rates divide 10^9, so that eligibility times are exact as well.
"""

from __future__ import annotations

import json
from collections import deque
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from attrs import define, evolve, field
from hypothesis import given, settings
from hypothesis import strategies as st

from awesomeconnect.errors import ContractError
from awesomeconnect.shaping.ats import NS_PER_S, Scheduler, SchedulerGroup
from awesomeconnect.shaping.bounds import Bound, Flow, LinkContract, OverCommitted, delay_bounds
from awesomeconnect.shaping.egress import Egress, EgressLimits
from awesomeconnect.wire.fragments import OpenFrame, Reassembler
from awesomeconnect.wire.framing import FRAGMENT_ABOVE_BYTES, LENGTH_BYTES
from awesomeconnect.wire.messages import Deliver, Fragment, Mode, Role, decode_body, encode_frame
from awesomeconnect.wire.records import OVERHEAD_BYTES

VECTORS = Path(__file__).resolve().parents[2] / "protocol-spec" / "vectors" / "bounds.json"
CASES = json.loads(VECTORS.read_text())["cases"]

BARE = {"record_bytes": 0, "turn_ns": 0, "stall_ns": 0, "message_overhead_bytes": 0, "fragment_overhead_bytes": 0}
FILE = """
link_bytes_per_s = 1_250_000
turn_ms = 2.5

[[flows]]
class = "urgent"
count = 50
rate_bytes_per_s = 2_000
burst_bytes = 420
min_bytes = 210
max_bytes = 210

[[flows]]
class = 0
rate_bytes_per_s = 600_000
burst_bytes = 921_600
min_bytes = 1_000
max_bytes = 921_600
"""


# ---- vectors and contract files ----------------------------------------------------------------------


def described(bound: Bound | OverCommitted) -> dict[str, Any]:
    """A result as the vectors write it."""
    if isinstance(bound, OverCommitted):
        return {"over_committed": True, "rate_bytes_per_s": bound.rate_bytes_per_s}
    return {"queueing_ns": bound.queueing_ns, "record_ns": bound.record_ns, "turn_ns": bound.turn_ns}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_vectors(case: dict[str, Any]) -> None:
    found = delay_bounds(LinkContract.from_values(case["contract"]))
    assert {str(number): described(bound) for number, bound in found.items()} == case["bounds"]


def test_a_contract_file() -> None:
    contract = LinkContract.parse(FILE)
    assert contract == LinkContract(
        1_250_000,
        (Flow(5, 2_000, 420, 210, 210, 50), Flow(0, 600_000, 921_600, 1_000, 921_600)),
        fragment_bytes=17_408,
        record_bytes=17_472,
        turn_ns=2_500_000,
        stall_ns=2_000_000_000,
        message_overhead_bytes=64,
        fragment_overhead_bytes=29,
    )
    urgent, bulk = delay_bounds(contract).values()
    assert isinstance(urgent, Bound)
    assert isinstance(bulk, Bound)
    assert urgent.total_ns == urgent.queueing_ns + urgent.record_ns + urgent.turn_ns < bulk.total_ns


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (FILE, "", "no flows"),
        (FILE, "flows = 3", "no flows"),
        (FILE, "flows = [1]", "no flows"),
        ("[[flows]]", "[[flow]]", "unknown name 'flow'"),
        ("= 1_250_000", "1_250_000", "not TOML: .* line 2"),
        ("link_bytes_per_s", "link", "unknown name 'link'"),
        ("link_bytes_per_s = 1_250_000", "", "link_bytes_per_s is missing"),
        ("1_250_000", "0", "link_bytes_per_s must be a whole number from 1, not 0"),
        ("1_250_000", "true", "not True"),
        ("1_250_000", "1.5", "not 1.5"),
        ("turn_ms = 2.5", "turn_ns = 2", "unknown name 'turn_ns'"),
        ("turn_ms = 2.5", "turn_ms = -1", "turn_ms must be"),
        ("turn_ms = 2.5", "turn_ms = nan", "turn_ms must be"),
        ("turn_ms = 2.5", "turn_ms = 'a'", "turn_ms must be"),
        ("turn_ms = 2.5", "fragment_bytes = 0", "fragment_bytes must be a whole number from 1"),
        ("turn_ms = 2.5", "record_bytes = -1", "record_bytes must be a whole number from 0"),
        ('"urgent"', '"fast"', "flow 1: class must be bulk, .* not 'fast'"),
        ("class = 0", "class = 8", "flow 2: class must be .* not 8"),
        ("class = 0", "class = [0]", "flow 2: class must be"),
        ("class = 0", "class = false", "flow 2: class must be"),
        ("class = 0\n", "", "flow 2: class is missing"),
        ("count = 50", "number = 50", "flow 1: unknown name 'number'"),
        ("count = 50", "count = 0", "flow 1: count must be a whole number from 1"),
        ("rate_bytes_per_s = 2_000", "rate_bytes_per_s = 0", "flow 1: rate_bytes_per_s"),
        ("burst_bytes = 420\n", "", "flow 1: burst_bytes is missing"),
        ("burst_bytes = 420", "burst_bytes = 209", "flow 1: .* longer than the burst is refused"),
        ("max_bytes = 210", "max_bytes = 209", "flow 1: min_bytes, max_bytes and burst_bytes must not fall"),
    ],
)
def test_what_is_wrong_with_a_contract_file(old: str, new: str, told: str) -> None:
    assert old in FILE
    with pytest.raises(ContractError, match=told):
        LinkContract.parse(FILE.replace(old, new, 1))


def test_over_commitment_is_told_with_numbers() -> None:
    flows = (Flow(5, 400_000, 1_000, 100, 1_000), Flow(1, 350_000, 1_000, 100, 1_000, 2))
    bound = delay_bounds(LinkContract(1_000_000, flows, **BARE))[1]
    assert str(bound) == (
        "class 1 is over-committed: classes 1 to 7 may send 1,100,000 bytes/s, overhead included, "
        "and the link carries 1,000,000: 100,000 too many"
    )


# ---- a link that is simulated ------------------------------------------------------------------------

#: Time in byte times x 10^9 at a link of C bytes/s: a nanosecond has C of them, a byte takes 10^9.
Ticks: TypeAlias = int
Message: TypeAlias = tuple[int, int, int]
"""(eligible at, in ns; class; bytes)"""


@define
class LinkModel:
    """One link: strict priority, FIFO inside a class, nothing interrupts a unit of at most ``fragment_bytes``."""

    link_bytes_per_s: int
    fragment_bytes: int
    queues: list[deque[list[int]]] = field(factory=lambda: [deque() for _ in range(8)])

    def delays(self, messages: list[Message]) -> dict[int, Fraction]:
        """The longest delay of each class in ns, from eligibility to the last byte."""
        waiting = deque(sorted(messages))
        longest: dict[int, Fraction] = {}
        now: Ticks = 0
        while waiting or any(self.queues):
            if not any(self.queues):
                now = max(now, waiting[0][0] * self.link_bytes_per_s)
            while waiting and waiting[0][0] * self.link_bytes_per_s <= now:
                at_ns, traffic_class, size = waiting.popleft()
                self.queues[traffic_class].append([at_ns * self.link_bytes_per_s, size])
            traffic_class = max(number for number in range(8) if self.queues[number])
            head = self.queues[traffic_class][0]
            unit = min(head[1], self.fragment_bytes)
            now += unit * NS_PER_S
            head[1] -= unit
            if not head[1]:
                self.queues[traffic_class].popleft()
                delay_ns = Fraction(now - head[0], self.link_bytes_per_s)
                longest[traffic_class] = max(longest.get(traffic_class, delay_ns), delay_ns)
        return longest


def shaped(contract: LinkContract, wanted: list[tuple[int, int, int, int]]) -> list[Message]:
    """What the senders of a contract may send when they want to send (ns, flow, sender, bytes)."""
    schedulers: dict[tuple[int, int], Scheduler] = {}
    released = []
    for arrival_ns, number, sender, size in sorted(wanted):
        flow = contract.flows[number]
        key = number, sender % flow.count
        if key not in schedulers:
            schedulers[key] = Scheduler(
                flow.rate_bytes_per_s, flow.burst_bytes, SchedulerGroup(), now_ns=0, stall_ns=contract.stall_ns
            )
        eligible_ns = schedulers[key].process(arrival_ns, min(max(size, flow.min_bytes), flow.max_bytes))
        assert isinstance(eligible_ns, int)
        released.append((eligible_ns, flow.traffic_class, min(max(size, flow.min_bytes), flow.max_bytes)))
    return released


RATES = [1_000, 2_000, 5_000, 10_000, 40_000, 50_000, 100_000]


@st.composite
def flows(draw: st.DrawFn) -> Flow:
    low, middle, high = sorted(draw(st.lists(st.integers(1, 3_000), min_size=3, max_size=3)))
    return Flow(
        draw(st.sampled_from([0, 1, 4, 5])),
        draw(st.sampled_from(RATES)),
        high,
        low,
        middle,
        draw(st.integers(1, 3)),
    )


link_contracts = st.builds(
    lambda link, several, fragment: LinkContract(link, tuple(several), **{**BARE, "fragment_bytes": fragment}),
    st.integers(50_000, 600_000),
    st.lists(flows(), min_size=1, max_size=4),
    st.integers(100, 3_000),
)
wishes = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 1, 1]) | st.integers(0, 60_000_000),
        st.integers(0, 3),
        st.integers(0, 2),
        st.sampled_from([1, 5_000]) | st.integers(1, 3_000),
    ),
    max_size=60,
)


def check(contract: LinkContract, messages: list[Message], delays_ns: dict[int, Fraction]) -> None:
    bounds = delay_bounds(contract)
    for traffic_class, delay_ns in delays_ns.items():
        bound = bounds[traffic_class]
        if isinstance(bound, Bound):
            assert delay_ns <= bound.total_ns, (traffic_class, messages)


@settings(max_examples=150, deadline=None)
@given(link_contracts, wishes, st.sampled_from([0, 50_000_000]))
def test_no_message_waits_longer_than_the_bound(
    contract: LinkContract, wanted: list[tuple[int, int, int, int]], stall_ns: int
) -> None:
    """Properties 4 and 12: random senders that are shaped; every class that is not over-committed progresses."""
    contract = evolve(contract, stall_ns=stall_ns)
    messages = shaped(
        contract, [(at, number % len(contract.flows), sender, size) for at, number, sender, size in wanted]
    )
    check(contract, messages, LinkModel(contract.link_bytes_per_s, contract.fragment_bytes).delays(messages))


def greedy(contract: LinkContract, traffic_class: int) -> list[Message]:
    """The worst that can happen to a class: a unit of a lower class has just begun, every sender spends its burst,
    the higher ones go on at their rate in small messages, and the last message of the class is its shortest."""
    start_ns = 10**9
    messages = []
    for flow in contract.flows:
        if flow.traffic_class < traffic_class:
            messages.append((start_ns - 1, flow.traffic_class, flow.max_bytes))
            continue
        wanted = [(start_ns, 0, sender, flow.min_bytes) for sender in range(flow.count) for _ in range(300)]
        alone = evolve(contract, flows=(flow,))
        mine = shaped(alone, wanted)
        messages += mine if flow.traffic_class > traffic_class else [m for m in mine if m[0] == start_ns]
    return messages


@settings(max_examples=50, deadline=None)
@given(link_contracts)
def test_adversaries_do_not_exceed_the_bound(contract: LinkContract) -> None:
    """Property 4."""
    for traffic_class in {flow.traffic_class for flow in contract.flows}:
        messages = greedy(contract, traffic_class)
        check(contract, messages, LinkModel(contract.link_bytes_per_s, contract.fragment_bytes).delays(messages))


def test_the_bound_is_nearly_reached() -> None:
    """Else it would promise too little: 20 senders between bulk in fragments and 5 more urgent ones."""
    contract = LinkContract(
        1_000_000,
        (Flow(6, 40_000, 500, 50, 50, 5), Flow(5, 2_000, 420, 210, 210, 20), Flow(0, 500_000, 65_536, 1, 65_536)),
        **{**BARE, "fragment_bytes": 16_384},
    )
    bound = delay_bounds(contract)[5]
    assert isinstance(bound, Bound)
    delay_ns = LinkModel(1_000_000, 16_384).delays(greedy(contract, 5))[5]
    assert 0.97 * bound.total_ns < delay_ns <= bound.total_ns


def test_the_last_fragment_of_a_message_may_be_tiny() -> None:
    """With u = min(shortest message, fragment) the bound would be 23.002 ms, and wrong."""
    contract = LinkContract(
        1_000_000,
        (
            Flow(5, 500_000, 10_000, 100, 100),
            Flow(1, 1_000, 1_001, 1_001, 1_001),
            Flow(0, 1_000, 1_000, 1_000, 1_000),
        ),
        **{**BARE, "fragment_bytes": 1_000},
    )
    delay_ns = LinkModel(1_000_000, 1_000).delays(greedy(contract, 1))[1]
    bound = delay_bounds(contract)[1]
    assert isinstance(bound, Bound)
    assert 23_002_000 < delay_ns <= bound.total_ns


# ---- the real egress queue ---------------------------------------------------------------------------


@define
class Sent:
    """A DELIVER frame that waits for the end of its record."""

    at_ns: int
    traffic_class: int
    frame: bytes


def drained(link_bytes_per_s: int, messages: list[Message]) -> tuple[dict[int, Fraction], dict[int, int]]:
    """Drain a real egress queue, one record of at most one unit at a time.

    Returns:
        The longest delay of each class in ns, and the most bytes of lower classes that a message saw leave.
    """
    egress = Egress(EgressLimits())
    open_classes: dict[int, OpenFrame] = {}
    reassembler = Reassembler(1 << 21, open_classes)
    waiting = deque(sorted(messages))
    queued: list[deque[tuple[Sent, int]]] = [deque() for _ in range(8)]
    left_bytes = [0] * 8
    longest: dict[int, Fraction] = {}
    overtaken: dict[int, int] = {}
    now: Ticks = 0
    while waiting or egress.ready:
        if not egress.ready:
            now = max(now, waiting[0][0] * link_bytes_per_s)
        while waiting and waiting[0][0] * link_bytes_per_s <= now:
            at_ns, traffic_class, size = waiting.popleft()
            payload = len(queued[traffic_class]).to_bytes(2, "big") + bytes(size)
            sent = Sent(
                at_ns,
                traffic_class,
                encode_frame(Deliver(Mode.BROADCAST, bytes(32), "r", traffic_class, 0, payload)),
            )
            assert egress.push(traffic_class, sent.frame)
            queued[traffic_class].append((sent, sum(left_bytes[:traffic_class])))
        record = egress.take(FRAGMENT_ABOVE_BYTES)
        now += (len(record) + OVERHEAD_BYTES) * NS_PER_S
        while record:
            end = LENGTH_BYTES + int.from_bytes(record[:LENGTH_BYTES], "big")
            frame, record = record[:end], record[end:]
            message = decode_body(frame[LENGTH_BYTES:], Role.RELAY)
            assert isinstance(message, Deliver | Fragment)
            left_bytes[message.traffic_class] += len(frame)
            if isinstance(message, Fragment):
                body = reassembler.add(message)
                if body is None:
                    continue
                frame = len(body).to_bytes(LENGTH_BYTES, "big") + body
            sent, lower_bytes = queued[message.traffic_class].popleft()
            assert frame == sent.frame
            delay_ns = Fraction(now, link_bytes_per_s) - sent.at_ns
            c = sent.traffic_class
            longest[c] = max(longest.get(c, delay_ns), delay_ns)
            overtaken[c] = max(overtaken.get(c, 0), sum(left_bytes[:c]) - lower_bytes)
    assert not any(queued)
    return longest, overtaken


EGRESS_FLOWS = (
    Flow(5, 10_000, 1_000, 100, 1_000, 4),
    Flow(1, 50_000, 20_000, 500, 20_000, 2),
    Flow(0, 400_000, 200_000, 1_000, 200_000),
)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 1]) | st.integers(0, 200_000_000),
            st.integers(0, 2),
            st.integers(0, 3),
            st.sampled_from([1, 500_000]) | st.integers(1, 60_000),
        ),
        max_size=40,
    )
)
def test_the_real_queue_keeps_the_bound(wanted: list[tuple[int, int, int, int]]) -> None:
    """Properties 4, 9, 10 and 12: with fragments as they are, heads and seals included."""
    contract = LinkContract(1_250_000, EGRESS_FLOWS, turn_ns=0, stall_ns=0)
    # The contract speaks of whole frames; `drained` takes payloads, and its heads have at most 60 bytes.
    messages = [(at, c, max(size - 60, 1)) for at, c, size in shaped(contract, wanted)]
    delays_ns, overtaken = drained(contract.link_bytes_per_s, messages)
    check(contract, messages, delays_ns)
    # A record that had begun, and its own, which may be filled up.
    assert overtaken.get(5, 0) <= FRAGMENT_ABOVE_BYTES
