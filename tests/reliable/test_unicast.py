"""Unicast streams of two nodes over a network that loses, repeats, cuts and restarts."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from awesomeconnect.errors import ErrorCode
from awesomeconnect.reliable.receiver import Arrival, IncomingStream
from awesomeconnect.reliable.segments import Ack, Segment
from awesomeconnect.reliable.sender import Outcome
from awesomeconnect.reliable.settings import ReliableSettings
from awesomeconnect.reliable.unicast import BUSY, NOT_OFFERED, STALE
from awesomeconnect.wire.parts import Content
from tests.reliable.world import KEYS, World

nodes = st.integers(0, 1)
classes = st.sampled_from((0, 1, 6))
ACTIONS = st.one_of(
    st.tuples(st.just("post"), nodes, st.sampled_from((0, 1)), st.sampled_from((0, 0, 0, 400)),
              st.sampled_from((500, 3_000, 60_000, 60_000))),
    st.tuples(st.just("deliver"), nodes, classes),
    st.tuples(st.just("deliver"), nodes, classes),
    st.tuples(st.just("deliver"), nodes, classes, st.just(True)),
    st.tuples(st.just("take"), nodes, st.sampled_from((0, 1))),
    st.tuples(st.just("take"), nodes, st.sampled_from((0, 1))),
    st.tuples(st.just("lose"), nodes, classes),
    st.tuples(st.just("wait"), st.sampled_from((0, 1, 60, 120, 450, 1_100, 6_000))),
    st.tuples(st.just("cut"), nodes),
    st.tuples(st.just("connect"), nodes),
    st.tuples(st.just("restart"), nodes),
)  # fmt: skip
TIGHT = ReliableSettings(
    window_bytes=1_200, window_messages=4, outbox_bytes=4_000, ahead_messages=3, buffer_bytes=600
)


@pytest.mark.parametrize("bounds", [ReliableSettings(), TIGHT])
@settings(max_examples=400, deadline=None)
@given(actions=st.lists(ACTIONS, max_size=120))
def test_whatever_happens_each_message_ends_once(bounds: ReliableSettings, actions: list[tuple]) -> None:  # type: ignore[type-arg]
    world = World(bounds)
    for name, *arguments in actions:
        getattr(world, name)(*arguments)
        world.check()
    fresh = [world.post(at, 1) for at in (0, 1)]
    world.settle(20_000)
    world.check()
    for message in fresh:
        assert message is None or message.outcome is Outcome.DELIVERED
    assert not world.open_messages()
    assert all(party.streams.held_bytes == 0 for party in world.parties)
    assert all(party.streams._buffered_bytes == 0 for party in world.parties)


@settings(max_examples=200, deadline=None)
@given(actions=st.lists(ACTIONS.filter(lambda action: action[0] != "restart"), max_size=100))
def test_without_restarts_nothing_is_handed_over_twice_and_nothing_young_is_lost(actions: list[tuple]) -> None:  # type: ignore[type-arg]
    world = World()
    for action in actions:
        name, *arguments = (*action[:4], 600_000) if action[0] == "post" else action
        getattr(world, name)(*arguments)
    world.settle(20_000)
    world.check()
    assert all(message.outcome is Outcome.DELIVERED for _at, _run, _class, message in world.sent)
    taken = [arrival.payload for _run, arrival in world.taken]
    assert len(taken) == len(set(taken)) == len(world.sent)


def test_a_message_is_delivered_when_the_application_takes_it() -> None:
    world = World()
    message = world.post(0)
    world.deliver(0, 1)
    assert message is not None
    world.wait(100)
    world.deliver(1, 6)  # held
    assert (message.outcome, message.times_held) == (None, 1)
    world.take(1, 1)
    world.deliver(1, 6)
    assert message.outcome is Outcome.DELIVERED


def test_one_ack_stands_for_all_that_was_taken_in_a_turn() -> None:
    world = World()
    messages = [world.post(0) for _ in range(100)]
    for _ in messages:
        world.deliver(0, 1)
    party = world.parties[1]
    for arrival in party.inbox[1]:
        party.streams.taken(arrival, world.now_ms)
    world.poll(1)
    assert len(world.wires[1, 6]) == 1
    world.deliver(1, 6)
    assert all(message is not None and message.outcome is Outcome.DELIVERED for message in messages)


def test_a_peer_that_is_absent_is_asked_with_one_message_at_a_time() -> None:
    world = World()
    world.cut(1)
    messages = [world.post(0) for _ in range(50)]
    frames = 0
    for _ in range(100):
        while world.wires.get((0, 1)):
            frames += 1
            world.deliver(0, 1)
        world.wait(100)
    assert 52 < frames < 60
    world.settle(5_000)
    assert all(message is not None and message.outcome is Outcome.DELIVERED for message in messages)


def test_what_certainly_did_not_arrive_expires() -> None:
    world = World()
    world.cut(1)
    message = world.post(0, expires_ms=5_000)
    for _ in range(60):
        world.deliver(0, 1)
        world.wait(100)
    assert message is not None
    assert message.outcome is Outcome.EXPIRED


def test_what_may_have_arrived_ends_as_unknown() -> None:
    world = World()
    message = world.post(0, expires_ms=5_000)
    world.cut(1)
    world.wait(6_000)
    assert message is not None
    assert message.outcome is Outcome.UNKNOWN


def test_what_was_taken_before_the_connection_broke_does_not_expire() -> None:
    world = World()
    message = world.post(0, expires_ms=2_000)
    world.deliver(0, 1)
    world.take(1, 1)
    world.cut(0)  # and the acknowledgement is lost
    world.wait(3_000)
    assert message is not None
    assert message.outcome is Outcome.UNKNOWN
    world.check()


def test_a_base_below_what_has_arrived_brings_nothing_twice() -> None:
    stream = IncomingStream(KEYS[0], 1, bytes(16), 1, ReliableSettings())
    for sequence in (1, 2, 3):
        assert len(stream.on_segment(Segment(bytes(16), sequence, 1, 1_000, 0, b""), 0, 0)) == 1
    assert stream.on_mark(2, 0) == []
    assert stream.on_segment(Segment(bytes(16), 3, 2, 1_000, 0, b""), 0, 0) == []
    assert stream.ack(bytes(16))[3:] == (2, (), ((2, 3),))


def test_a_message_that_expired_in_the_inbox_is_not_handed_over() -> None:
    world = World()
    late, lasting = world.post(0, expires_ms=2_000), world.post(0)
    world.deliver(0, 1)
    world.deliver(0, 1)
    world.wait(3_000)
    world.settle(10_000)
    assert late is not None
    assert lasting is not None
    assert (late.outcome, lasting.outcome) == (Outcome.UNKNOWN, Outcome.DELIVERED)
    assert [arrival.payload for _run, arrival in world.taken] == [lasting.name]


def test_a_receiver_that_restarts_gets_what_was_not_acknowledged() -> None:
    world = World()
    messages = [world.post(0) for _ in range(5)]
    for _ in messages:
        world.deliver(0, 1)
    world.take(1, 1)
    world.deliver(1, 6)
    world.restart(1)
    world.settle(10_000)
    world.check()
    assert all(message is not None and message.outcome is Outcome.DELIVERED for message in messages)
    last_run = [arrival.sequence for run, arrival in world.taken if run == world.parties[1].run]
    assert last_run == [2, 3, 4, 5]


def test_what_is_lost_is_sent_again_as_soon_as_a_later_one_is_there() -> None:
    world = World()
    first, second, third = (world.post(0) for _ in range(3))
    world.deliver(0, 1)
    world.lose(0, 1)
    world.deliver(0, 1)
    world.deliver(1, 6)
    assert len(world.wires[0, 1]) == 1  # the second, before any timeout
    world.settle(1)
    assert [message is not None and message.outcome for message in (first, second, third)] == [
        Outcome.DELIVERED
    ] * 3


def test_a_node_that_does_not_offer_the_mode_says_so() -> None:
    world = World()
    world.parties[1].streams._settings = ReliableSettings(is_offered=False)
    messages = [world.post(0) for _ in range(3)]
    for _ in messages:
        world.deliver(0, 1)
    assert len(world.wires[1, 6]) == 1
    world.deliver(1, 6)
    for message in messages:
        assert message is not None
        assert (message.outcome, message.code) == (Outcome.DECLINED, NOT_OFFERED)


def test_a_lower_incarnation_is_refused_until_it_is_forgotten() -> None:
    world = World()
    old = world.parties[0]
    world.cut(0)
    world.restart(0)
    world.post(0, expires_ms=1_000)
    world.settle(1_000)
    old.run, world.parties[0] = world.parties[0].run, old
    world.connect(0)
    message = world.post(0)
    world.settle(500)
    assert message is not None
    assert (message.outcome, message.code) == (Outcome.DECLINED, STALE)
    world.settle(3_000)
    message = world.post(0)
    world.settle(3_000)
    assert message is not None
    assert message.outcome is Outcome.DELIVERED


def test_a_receiver_remembers_so_many_streams_and_refuses_more() -> None:
    world = World(ReliableSettings(streams=2))
    for traffic_class in (0, 1):
        world.post(0, traffic_class, expires_ms=10_000)
    world.settle(1_000)
    refused = world.post(0, 4)
    world.settle(500)
    assert refused is not None
    assert (refused.outcome, refused.code) == (Outcome.DECLINED, BUSY)
    world.settle(20_000)
    later = world.post(0, 4)
    world.settle(500)
    assert later is not None
    assert later.outcome is Outcome.DELIVERED


def test_a_stream_that_was_forgotten_by_its_sender_begins_above_all_others() -> None:
    world = World(ReliableSettings(streams=2))
    for traffic_class in (0, 1, 0, 4):
        assert world.post(0, traffic_class) is not None
        world.settle(100)
    streams = world.parties[0].streams._outgoing
    assert len(streams) == 2
    assert streams[KEYS[1], 4].base > 1


def test_a_refusal_for_good_ends_a_message() -> None:
    world = World()
    message = world.post(0)
    streams = world.parties[0].streams
    streams.on_reject(None, range(1, 2), ErrorCode.PAYLOAD_TOO_LARGE, 0, 0)
    assert message is not None
    assert (message.outcome, message.code) == (Outcome.REFUSED, ErrorCode.PAYLOAD_TOO_LARGE)


def test_a_slow_connection_is_not_a_loss() -> None:
    world = World()
    message = world.post(0)
    flight = world.wires[0, 1][0]
    flight.ordinal = None
    world.wait(20_000)
    assert len(world.wires[0, 1]) == 1
    flight.ordinal = 1
    world.wait(6_000)
    assert len(world.wires[0, 1]) > 1
    world.settle(1_000)
    assert message is not None
    assert message.outcome is Outcome.DELIVERED


def test_bogus_acks_are_ignored() -> None:
    world = World()
    message = world.post(0)
    streams = world.parties[0].streams
    incarnation = streams.incarnation
    for ack in (
        Ack(bytes(16), incarnation, 1, 3, (), ()),
        Ack(bytes(16), incarnation, 1, 1, ((1, 9),), ()),
        Ack(bytes(16), incarnation, 1, 1, (), ((1 << 60, 1 << 63),)),
        Ack(bytes(16), bytes(16), 1, 2, (), ()),
        Ack(bytes(16), incarnation, 0, 2, (), ()),
    ):
        streams.on_ack(KEYS[1], ack, 0)
    assert message is not None
    assert message.outcome is None


def test_a_pause_that_is_over_does_not_wake_a_stream_without_a_connection() -> None:
    world = World()
    world.cut(1)
    world.post(0, expires_ms=10)
    world.deliver(0, 1)  # refused: nobody is there
    world.wait(20)  # expired: the stream is idle
    world.cut(0)
    world.wait(5_000)
    world.post(0)
    world.wait(5_000)
    assert world.parties[0].streams.next_ms > world.now_ms


def test_an_older_process_is_not_heard_again_soon_after_a_newer_one() -> None:
    world = World()
    receiver = world.parties[1].streams

    def bring(incarnation: bytes, expires_ms: int) -> list[Arrival]:
        segment = Segment(incarnation, 1, 1, expires_ms, Content.APPLICATION, b"")
        return receiver.on_segment(KEYS[0], 1, segment, world.now_ms)

    old, new = bytes(16), bytes([1] * 16)
    assert bring(old, 10_000)
    assert bring(new, 100)
    world.wait(15_000)  # the newer one alone could be forgotten
    assert not bring(old, 10_000)
    world.wait(10_000)
    assert bring(old, 10_000)
