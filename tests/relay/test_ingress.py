"""What a connection may send: gates, what they hold, and destinations that are closed."""

from __future__ import annotations

import random
from functools import partial

import pytest
from attrs import evolve

from awesomeconnect.errors import ErrorCode
from awesomeconnect.relay import ingress as module
from awesomeconnect.relay.ingress import MAX_CLOSED, Ingress
from awesomeconnect.shaping.ats import NS_PER_MS, NS_PER_S, Discard, Scheduler, SchedulerGroup
from awesomeconnect.shaping.egress import EgressLimits
from awesomeconnect.wire.messages import ClassContract, Publish, Send
from tests.relay.test_flows import Verdict, World, publish

#: 2,200 bytes at once, then 1,000 a second, held for half a second.
CONTRACT = ClassContract(1, 1_000, 200, 500)
WIDE = ClassContract(1, 1_000_000, 100_000, 500)
MS = NS_PER_MS


class Line:
    """An ingress with messages of 100 bytes that are numbers.

    Attributes:
        left: (time in ms, number).
        refused: (number, retry after in ms).
    """

    def __init__(self, *contracts: ClassContract) -> None:
        self.now_ns = 0
        self.ingress = Ingress(contracts, 0)
        self.left: list[tuple[int, int]] = []
        self.refused: list[tuple[int, int]] = []
        self.numbers = 0

    def send(self, count: int, target: str = "x", traffic_class: int = 1) -> None:
        for _ in range(count):
            self.numbers += 1
            gate = self.ingress.gate(target, traffic_class)
            verdict = self.now_ns if gate is None else gate.admit(self.now_ns, 100)
            forward = partial(self._forward, self.numbers)
            if isinstance(verdict, Discard):
                assert verdict.retry_after_ns is not None
                self.refused.append((self.numbers, verdict.retry_after_ns // MS))
            elif gate is not None and (verdict > self.now_ns or gate.held):
                self.ingress.hold(gate, (verdict, self.numbers, target, forward))
            else:
                forward(self.now_ns)

    def wait(self, for_ms: int) -> None:
        until_ns = self.now_ns + for_ms * MS
        while self.ingress.waiting and self.ingress.next_ns <= until_ns:
            self.now_ns = self.ingress.next_ns
            self.ingress.release(self.now_ns, 1_000)
        self.now_ns = until_ns

    def _forward(self, number: int, now_ns: int) -> int:
        self.left.append((now_ns // MS, number))
        return 1


def test_held_then_refused() -> None:
    line = Line(CONTRACT)
    line.send(30)
    assert line.left == [(0, number) for number in range(1, 23)]
    assert line.refused == [(28, 100), (29, 100), (30, 100)]
    assert (line.ingress.waiting, line.ingress.oldest_held) == (5, 23)
    line.wait(1_000)
    assert line.left[22:] == [(100, 23), (200, 24), (300, 25), (400, 26), (500, 27)]
    assert line.ingress.oldest_held is None
    assert line.ingress.held_messages == 5


def test_what_is_released_is_bounded_and_urgent_first() -> None:
    line = Line(CONTRACT, evolve(CONTRACT, traffic_class=5))
    line.send(27)
    line.send(27, traffic_class=5)
    line.now_ns = NS_PER_S
    line.ingress.release(line.now_ns, 7)
    assert [number for _, number in line.left[44:]] == [50, 51, 52, 53, 54, 23, 24]
    assert line.ingress.next_ns == 300 * MS, "the rest is due"


def test_held_bytes_are_bounded_by_the_contract() -> None:
    choose = random.Random(1)
    line = Line(CONTRACT)
    for _ in range(300):
        line.send(choose.choice([0, 1, 10]))
        assert line.ingress.waiting * 100 <= 1_000 * 0.5 + 100
        line.wait(choose.choice([0, 1, 130]))
    assert len(line.left) + len(line.refused) + line.ingress.waiting == line.numbers
    assert line.left == sorted(line.left)


def test_tiny_messages_are_bounded_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_HELD", 3)
    line = Line(CONTRACT)
    line.send(27)
    assert line.refused == [(26, 100), (27, 100)]


def test_a_room_with_a_contract_has_a_line_of_its_own() -> None:
    line = Line(WIDE)
    line.ingress.set_contracts((CONTRACT,), 0, "tiny")
    line.send(24, "tiny")
    line.send(5)
    assert [number for _, number in line.left] == [*range(1, 23), *range(25, 30)]
    line.wait(300)
    assert line.left[-2:] == [(100, 23), (200, 24)]


def test_a_new_contract_of_a_room_takes_over_what_is_held_for_it() -> None:
    line = Line(CONTRACT)
    line.send(22)
    for target in "xyxy":
        line.send(1, target)
    line.ingress.set_contracts((WIDE,), 0, "x")
    line.ingress.set_contracts((), 0)
    line.send(1, "x")
    line.send(1, "y")
    line.wait(1_000)
    assert line.left[22:] == [(100, 23), (200, 24), (300, 25), (300, 27), (400, 26), (400, 28)]
    line.send(1, "y")
    assert line.left[-1] == (1_000, 29)
    line.ingress.set_contracts((), line.now_ns, "x")
    assert not line.ingress.is_limiting


def test_a_retry_time_closes_a_destination_for_what_is_behind() -> None:
    ingress = Ingress((), 0)
    assert not ingress.is_limiting
    ingress.close("x", 1, 7, 50)
    assert ingress.is_limiting
    assert [ingress.closed_ns("x", 1, ordinal, 20) for ordinal in (6, 7, 8)] == [0, 0, 30]
    assert ingress.closed_ns("x", 2, 8, 20) == ingress.closed_ns("y", 1, 8, 20) == 0
    assert not ingress.is_idle(20)
    assert ingress.closed_ns("x", 1, 8, 50) == 0, "the retry itself"
    assert not ingress.is_limiting


def test_more_retry_times_than_are_remembered_close_the_class() -> None:
    ingress = Ingress((), 0)
    for number in range(MAX_CLOSED + 1):
        ingress.close(number, 1, number, 50)
    assert ingress.closed_ns("another", 1, MAX_CLOSED + 2, 20) == 30
    assert ingress.closed_ns("another", 2, MAX_CLOSED + 2, 20) == 0


def test_idle_means_that_nothing_is_lost_by_forgetting() -> None:
    line = Line(CONTRACT)
    assert line.ingress.is_idle(0)
    line.send(23)
    assert not line.ingress.is_idle(0)
    line.wait(2_250)
    assert not line.ingress.is_idle(2_250 * MS), "the bucket is not full"
    assert line.ingress.is_idle(2_300 * MS)


# ---- the router with contracts -----------------------------------------------------------------------


def test_chunks_are_judged_in_the_order_of_arrival() -> None:
    """Two destinations of a class: gathered apart, charged as they came."""
    world = World(contracts=(evolve(CONTRACT, max_residence_ms=0),))
    a, b, c = world.sender(1), world.sender(2, "x"), world.sender(3, "y")
    a.send(publish(bytes(88)), publish(bytes(88), "y"))
    a.send(*(publish(bytes(88), "xy"[n % 2]) for n in range(22)))
    assert len(b.payloads()) == len(c.payloads()) == 11
    assert [(one.first, one.count, one.retry_after_ms) for one in a.refused] == [(23, 1, 100), (24, 1, 100)]


def test_a_long_chunk_within_the_contract_is_taken_in_one_step() -> None:
    world = World(contracts=(ClassContract(1, 1_000_000, 20_000, 0),))
    a, b = world.sender(1), world.sender(2, "x")
    b.egress.limits = EgressLimits()
    a.send(publish("first"))
    a.send(*(publish(bytes(88)) for _ in range(300)))
    assert len(list(b.egress.entries())) == 2
    assert len(b.payloads()) == 301


def test_beyond_the_fan_out_budget_nobody_gets_it_and_order_is_kept() -> None:
    world = World()
    world.fan_out = Scheduler(100_000, 20_000, SchedulerGroup(0), now_ns=0)
    a, b, c, d = world.sender(1), world.sender(2, "x"), world.sender(3, "x"), world.sender(4, "y")
    a.send(publish(bytes(4_900)))
    a.send(publish(bytes(4_900)))
    a.send(publish(bytes(4_900)))
    a.send(publish("small"), publish("elsewhere", "y"), Send(b.key, 1, 0, b"alone"))
    assert [(one.first, one.code) for one in a.refused] == [
        (3, ErrorCode.RATE_EXCEEDED),
        (4, ErrorCode.RATE_EXCEEDED),
    ]
    retry_ms = a.refused[0].retry_after_ms
    assert retry_ms == a.refused[1].retry_after_ms == 97
    assert [len(payload) for payload in b.payloads()] == [4_900, 4_900, 5]
    assert [len(payload) for payload in c.payloads()] == [4_900, 4_900]
    assert d.payloads() == [b"elsewhere"]
    world.now_ns = retry_ms * MS
    a.send(publish(bytes(4_900)))
    assert a.refused[2:] == []
    assert len(b.payloads()) == len(c.payloads()) == 1


def test_a_flow_of_large_messages_stays_closed_too() -> None:
    world = World(contracts=(ClassContract(0, 1_000, 40_000, 0),))
    a, b = world.sender(1), world.sender(2, "x")
    b.egress.limits = EgressLimits()
    large = Publish("x", 0, 0, bytes(30_000))
    a.send(large, large)
    world.now_ns = 10 * MS
    a.send(publish("small", traffic_class=0))
    assert [one.code for one in a.refused] == [ErrorCode.RATE_EXCEEDED] * 2
    assert a.refused[1].retry_after_ms == a.refused[0].retry_after_ms - 10
    world.now_ns = a.refused[0].retry_after_ms * MS
    a.send(large, publish("small", traffic_class=0))
    assert [len(payload) for payload in b.payloads()] == [30_000, 30_000]
    assert a.refused[2:] == [Verdict(5, 1, ErrorCode.RATE_EXCEEDED, 16)]
