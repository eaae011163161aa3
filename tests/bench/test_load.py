"""The loops over connections, with a system that delivers at once."""

from __future__ import annotations

import os
from collections.abc import Iterator

import attrs
import pytest

from awesomeconnect.bench import load
from awesomeconnect.bench.connections import Idle
from awesomeconnect.bench.load import (
    Clock,
    Closed,
    Limits,
    LoadError,
    Loop,
    Lost,
    Refused,
    Stopped,
    Stream,
    describe,
)
from awesomeconnect.bench.rtt import RoundTrips
from awesomeconnect.bench.workloads import ROOM, WORKLOADS, Kind, Workload
from tests.bench.fake import FakeSystem

FANOUT = Workload("fanout", payload_bytes=5, publishers=2, members=3, pack=4, window=10)
CROWD = Workload("room", payload_bytes=5, publishers=0, members=3, pack=2, window=8)
PAIRS = Workload("rtt", payload_bytes=5, publishers=0, members=2, pack=1, window=3, kind=Kind.RTT)
QUIET = Workload("idle", payload_bytes=0, publishers=0, members=4, pack=1, window=1, kind=Kind.IDLE)


@pytest.fixture
def system() -> Iterator[FakeSystem]:
    system = FakeSystem()
    yield system
    system.close()


@pytest.fixture
def control() -> Iterator[tuple[int, int]]:
    """The end that a loop looks at, and the one that stops it."""
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "STALL_S", 0.01)


class TestStream:
    @pytest.mark.parametrize(("workload", "deliveries"), [(FANOUT, 36), (CROWD, 20)], ids=lambda value: str(value))
    def test_messages_leave_in_whole_batches(self, system: FakeSystem, workload: Workload, deliveries: int) -> None:
        stream = Stream(Loop(), system.connect, "", workload)
        result = stream.run(Limits(60, messages=9))
        messages = 12 if workload is FANOUT else 10
        assert result == {"messages": messages, "deliveries": deliveries, "latency_us": {}}

    def test_a_measurement_counts_only_its_own(self, system: FakeSystem) -> None:
        stream = Stream(Loop(), system.connect, "", FANOUT)
        assert stream.run(Limits(60, messages=4))["messages"] == 4
        assert stream.run(Limits(60, messages=8))["messages"] == 8

    def test_publishers_take_turns(self, system: FakeSystem) -> None:
        Stream(Loop(), system.connect, "", FANOUT).run(Limits(60, messages=16))
        assert [publisher.far.recv(100) for publisher in system.rooms[None]] == [b"..", b".."]

    def test_at_a_rate_every_batch_of_a_single_publisher_has_a_latency_at_every_member(
        self, system: FakeSystem
    ) -> None:
        workload = attrs.evolve(FANOUT, publishers=1, pack=1)
        stream = Stream(Loop(), system.connect, "", workload)
        result = stream.run(Limits(60, messages=5, rate=2_000))
        assert stream._latencies is not None
        assert stream._latencies.histogram.count == result["deliveries"] == 15
        assert set(result["latency_us"]) == {"p50", "p90", "p99", "p99_9", "max"}

    def test_with_several_publishers_the_order_does_not_tell_when_a_message_was_due(
        self, system: FakeSystem
    ) -> None:
        stream = Stream(Loop(), system.connect, "", FANOUT)
        assert stream.run(Limits(60, messages=8, rate=10_000))["latency_us"] == {}

    @pytest.mark.usefixtures("_impatient")
    def test_what_does_not_arrive_is_lost(self, system: FakeSystem) -> None:
        stream = Stream(Loop(), system.connect, "", FANOUT)
        system.rooms[ROOM][2].is_deaf = True
        with pytest.raises(
            Lost, match="8 messages of 7 bytes published; members are between 0 and 56 bytes behind"
        ):
            stream.run(Limits(60, messages=8))

    def test_something_else_than_deliveries(self, system: FakeSystem) -> None:
        stream = Stream(Loop(), system.connect, "", FANOUT)
        system.rooms[ROOM][0].far.sendall(b"<hello>")
        with pytest.raises(Lost, match="something else than deliveries arrived: b'<hello>"):
            stream.run(Limits(60, messages=4))

    def test_a_closed_connection(self, system: FakeSystem) -> None:
        stream = Stream(Loop(), system.connect, "", FANOUT)
        member = system.rooms[ROOM][1]
        member.is_deaf = True
        member.far.close()
        with pytest.raises(Closed):
            stream.run(Limits(60, messages=4))

    def test_a_publisher_hears_that_it_is_refused(self, system: FakeSystem) -> None:
        stream = Stream(Loop(), system.connect, "", FANOUT)
        system.rooms[None][0].far.sendall(b"too much")
        with pytest.raises(Refused, match="too much"):
            stream.run(Limits(60, messages=400))

    def test_stopped_it_ends_in_good_order(self, system: FakeSystem, control: tuple[int, int]) -> None:
        reader, writer = control
        stream = Stream(Loop(reader), system.connect, "", FANOUT)
        os.write(writer, b"stop\n")
        result = stream.run(Limits(60))
        assert result["deliveries"] == 3 * result["messages"]

    def test_stopped_before_it_was_connected(self, system: FakeSystem, control: tuple[int, int]) -> None:
        reader, writer = control
        os.write(writer, b"stop\n")
        with pytest.raises(Stopped):
            Stream(Loop(reader), system.connect, "", FANOUT)


class TestLoop:
    def test_what_a_socket_does_not_take_follows_in_order(self, system: FakeSystem) -> None:
        loop = Loop()
        client = system.connect("", None)
        loop.listen(client)
        first, second = b"a" * 3_000_000, b"b" * 10
        loop.send(client, first)
        loop.send(client, second)
        assert loop.unsent
        received = b""
        client.far.setblocking(False)
        while len(received) < len(first + second):
            loop.turn(0)
            received += client.far.recv(1 << 20)
        assert received == first + second
        assert not loop.unsent

    def test_questions_of_the_server_are_answered(self, system: FakeSystem) -> None:
        loop = Loop()
        client = system.connect("", None)
        loop.listen(client)
        client.far.sendall(b"ping")
        assert loop.turn(1)
        assert client.far.recv(100) == b"pong"

    def test_progress_is_told_from_time_to_time(self) -> None:
        told: list[tuple[str, dict[str, int]]] = []
        loop = Loop(tell=lambda event, **fields: told.append((event, fields)))
        for now in (1e9, 1e9 + load.PROGRESS_S / 2, 1e9 + load.PROGRESS_S):
            loop.tick(now, done=7)
        assert told == [("progress", {"done": 7})] * 2

    def test_signs_of_life(self, system: FakeSystem, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = Loop()
        client = system.connect("", None)
        monkeypatch.setattr(client, "sign_of_life", lambda: b"here")
        loop.listen(client)
        loop.tick(0, 0)
        loop.tick(1e12, 0)
        loop.tick(1e12 + load.ALIVE_S, 0)
        assert client.far.recv(100) == b"herehere"


class TestRoundTrips:
    def test_every_question_is_answered(self, system: FakeSystem) -> None:
        result = RoundTrips(Loop(), system.connect, "", PAIRS).run(Limits(60, messages=50))
        assert (result["messages"], result["deliveries"]) == (50, 100)
        assert set(result["latency_us"]) == {"p50", "p90", "p99", "p99_9", "max"}

    def test_pairs_take_turns(self, system: FakeSystem) -> None:
        RoundTrips(Loop(), system.connect, "", PAIRS).run(Limits(60, messages=6))
        askers = [system.rooms[f"{ROOM}-{number}-answer"][0] for number in range(2)]
        assert [asker.far.recv(100) for asker in askers] == [b"...", b"..."]

    def test_at_a_rate(self, system: FakeSystem) -> None:
        trips = RoundTrips(Loop(), system.connect, "", PAIRS)
        assert trips.run(Limits(60, messages=6, rate=2_000))["messages"] == 6

    def test_no_answer(self, system: FakeSystem, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("awesomeconnect.bench.rtt.STALL_S", 0.01)
        trips = RoundTrips(Loop(), system.connect, "", PAIRS)
        system.rooms[f"{ROOM}-1-ask"][0].is_deaf = True
        with pytest.raises(Lost, match="3 of 6 questions were not answered"):
            trips.run(Limits(60, messages=6))

    def test_a_wrong_answer(self, system: FakeSystem) -> None:
        trips = RoundTrips(Loop(), system.connect, "", PAIRS)
        system.rooms[f"{ROOM}-0-answer"][0].far.sendall(b"<what?>")
        with pytest.raises(Lost, match="what"):
            trips.run(Limits(60, messages=6))


class TestIdle:
    def test_it_tells_when_all_are_connected(self, system: FakeSystem) -> None:
        told: list[str] = []
        idle = Idle(Loop(tell=lambda event, **_fields: told.append(event)), system.connect, "", QUIET)
        before = len(system.rooms[None])
        assert idle.run(Limits(0)) == {"connections": 4}
        assert (before, len(system.rooms[None])) == (4, 8)
        assert told[-1] == "opened"

    def test_stopped_while_connecting(self, system: FakeSystem, control: tuple[int, int]) -> None:
        reader, writer = control
        idle = Idle(Loop(reader), system.connect, "", QUIET)
        os.write(writer, b"stop\n")
        with pytest.raises(Stopped):
            idle.run(Limits(60))


def test_a_clock_catches_up_without_skipping_anything() -> None:
    clock = Clock(100.0, rate=10)
    assert [round(clock.wait_s(now), 3) for now in (100.0, 100.02, 100.25, 100.25, 100.25)] == [
        0.0,
        0.08,
        -0.15,
        -0.05,
        0.05,
    ]
    assert [clock.due(number) for number in (0, 5)] == [100.0, 100.5]


def test_errors_cross_processes() -> None:
    assert describe(LoadError("x")) == {"error": "LoadError", "reason": "x"}
    assert describe(LoadError(**describe(Lost("x")))) == {"error": "Lost", "reason": "x"}
    assert describe(OSError(111, "Connection refused"))["reason"] == "Connection refused"
    assert "ulimit" in describe(OSError(24, "Too many open files"))["reason"]
    assert describe(TimeoutError("timed out")) == {"error": "TimeoutError", "reason": "timed out"}


def test_a_window_holds_a_batch() -> None:
    with pytest.raises(ValueError, match="a window of 3 messages never lets 4 at once leave"):
        attrs.evolve(FANOUT, window=3)


def test_what_a_message_comes_to() -> None:
    per_message = {name: workload.deliveries_per_message for name, workload in WORKLOADS.items()}
    assert per_message == {
        "fanout": 100, "pair": 1, "room": 19, "pair16k": 1, "rtt": 2, "connect": 1, "idle": 1,
    }  # fmt: skip
