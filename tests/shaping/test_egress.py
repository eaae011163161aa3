"""The egress queue against a model: what may leave when, what is counted, and where losses are told.

`EgressMachine` drives a queue at random and takes every record apart again. The tests after it pin single
properties with numbers that one can check by hand.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from awesomeconnect.errors import ErrorCode
from awesomeconnect.shaping.egress import CLASSES, CONTROL, Egress, EgressLimits
from awesomeconnect.wire.fragments import CHUNK_BYTES, FRAGMENT_HEAD_BYTES, OpenFrame, Reassembler
from awesomeconnect.wire.framing import FRAGMENT_ABOVE_BYTES, LENGTH_BYTES
from awesomeconnect.wire.messages import (
    Deliver,
    Fragment,
    Gap,
    Left,
    Mode,
    Pong,
    Role,
    class_of,
    decode_body,
    encode_frame,
)
from awesomeconnect.wire.records import MAX_PLAINTEXT

SENDER = bytes(range(32))
ROOMS = ("a", "b")
LARGE = FRAGMENT_ABOVE_BYTES + 1
PIECE = CHUNK_BYTES + FRAGMENT_HEAD_BYTES


def deliver(number: int, traffic_class: int, size: int, room: str = "a") -> bytes:
    """A DELIVER frame of about ``size`` bytes that carries a number."""
    payload = number.to_bytes(8, "big") + bytes(max(size - 60, 0))
    return encode_frame(Deliver(Mode.BROADCAST, SENDER, room, traffic_class, 0, payload))


def pong(number: int) -> bytes:
    return encode_frame(Pong(number.to_bytes(8, "big")))


def left(number: int) -> bytes:
    return encode_frame(Left(str(number)))


def frames_of(record: bytes) -> Iterator[bytes]:
    """The bodies of a record's frames."""
    while record:
        end = LENGTH_BYTES + int.from_bytes(record[:LENGTH_BYTES], "big")
        assert end <= len(record), "a frame is cut in two"
        yield record[LENGTH_BYTES:end]
        record = record[end:]


Item = tuple[str, int] | Gap


class Receiver:
    """Reads records as the other side does: whole messages, each with its class, in order of completion."""

    def __init__(self) -> None:
        self._open: dict[int, OpenFrame] = {}
        self._reassembler = Reassembler(1 << 30, self._open)

    def read(self, record: bytes) -> Iterator[tuple[int, int, Item | None]]:
        """For each frame its class, its bytes as the queue counts them, and the message that it completes."""
        for body in frames_of(record):
            message = decode_body(body, Role.RELAY)
            assert message is not None
            traffic_class, counted = class_of(message), LENGTH_BYTES + len(body)
            if isinstance(message, Fragment):
                is_first = traffic_class not in self._open
                whole = self._reassembler.add(message)
                # Of a fragmented frame the queue counts the frame, not the heads of its pieces.
                counted = len(message.chunk) + (LENGTH_BYTES if is_first else 0)
                if whole is None:
                    yield traffic_class, counted, None
                    continue
                message = decode_body(whole, Role.RELAY)
            elif isinstance(message, Deliver | Gap):
                assert traffic_class not in self._open, "a frame inside a fragmented one"
            yield traffic_class, counted, identify(message)


def identify(message: object) -> Item:
    if isinstance(message, Deliver):
        return f"deliver {message.room}", int.from_bytes(message.payload[:8], "big")
    if isinstance(message, Left):
        return "barrier", int(message.room)
    if isinstance(message, Gap):
        return message
    assert isinstance(message, Pong)
    return "control", int.from_bytes(message.token, "big")


def gap(room: str, traffic_class: int, messages: int, size: int) -> Gap:
    return Gap(room, None, traffic_class, messages, size, ErrorCode.RECEIVER_CONGESTED)


@define
class Barrier:
    """A barrier that waits: what was queued before it, by class, and the classes that were paused meanwhile."""

    item: Item
    before: list[set[Item]]
    excused: set[int] = field(factory=set)


LIMITS = EgressLimits(high_water_bytes=20_000, class_bytes=100_000, total_bytes=160_000)

classes = st.integers(0, CONTROL - 1)
sizes = st.sampled_from([60, 61, 300, 4_000, FRAGMENT_ABOVE_BYTES - 60, FRAGMENT_ABOVE_BYTES, 40_000, 70_000])


class EgressMachine(RuleBasedStateMachine):
    """An `Egress`, and beside it everything that should be in it."""

    def __init__(self) -> None:
        super().__init__()
        self.egress = Egress(LIMITS)
        self.receiver = Receiver()
        self.numbers = 0
        self.waiting: list[deque[Item]] = [deque() for _ in range(CLASSES)]
        self.bytes = [0] * CLASSES
        self.pushed_bytes = [0] * CLASSES
        self.closed: set[int] = set()  # classes that overflowed and have not recovered
        self.untold: dict[tuple[int, str], list[int]] = {}
        self.barriers: deque[Barrier] = deque()
        self.held: set[int] = set()
        self.pushed = dict.fromkeys(ROOMS, 0)
        self.arrived = dict.fromkeys(ROOMS, 0)
        self.told_lost = dict.fromkeys(ROOMS, 0)

    @initialize(held=st.sets(classes, max_size=1))
    def begin(self, held: set[int]) -> None:
        for traffic_class in held:
            self.pause(traffic_class)

    # ---- what is put in

    def number(self) -> int:
        self.numbers += 1
        return self.numbers

    def append(self, traffic_class: int, item: Item, size: int) -> None:
        self.waiting[traffic_class].append(item)
        self.bytes[traffic_class] += size
        self.pushed_bytes[traffic_class] += size

    def place_gaps(self, *of: int) -> None:
        """The model's GAPs of these classes go where the losses were: behind what is queued."""
        for traffic_class, room in [key for key in self.untold if key[0] in of]:
            told = gap(room, traffic_class, *self.untold.pop((traffic_class, room)))
            self.append(traffic_class, told, len(encode_frame(told)))

    def fits(self, traffic_class: int, size: int) -> bool:
        """The rules of the caps, and what follows from asking them."""
        queued = self.bytes[traffic_class]
        if queued + size > LIMITS.class_bytes or sum(self.bytes) + size > LIMITS.total_bytes:
            self.closed.add(traffic_class)
            return False
        if traffic_class in self.closed and queued > LIMITS.class_bytes // 2:
            return False
        self.closed.discard(traffic_class)
        self.place_gaps(traffic_class)
        if self.bytes[traffic_class] + size > LIMITS.class_bytes or sum(self.bytes) + size > LIMITS.total_bytes:
            self.closed.add(traffic_class)
            return False
        return True

    @rule(traffic_class=classes, size=sizes, count=st.sampled_from([1, 1, 2, 7]), room=st.sampled_from(ROOMS))
    def push(self, traffic_class: int, size: int, count: int, room: str) -> None:
        """A room's message, or several in a blob."""
        count = max(1, min(count, MAX_PLAINTEXT // size)) if size <= FRAGMENT_ABOVE_BYTES else 1
        numbers = [self.number() for _ in range(count)]
        frames = [deliver(number, traffic_class, size, room) for number in numbers]
        entry = b"".join(frames)
        fits = self.fits(traffic_class, len(entry))
        assert self.egress.push(traffic_class, entry) == fits
        self.pushed[room] += count
        if fits:
            for number, frame in zip(numbers, frames, strict=True):
                self.append(traffic_class, (f"deliver {room}", number), len(frame))
            return
        self.egress.lose(traffic_class, room, count, len(entry))
        lost = self.untold.setdefault((traffic_class, room), [0, 0])
        lost[0] += count
        lost[1] += len(entry)
        if not self.waiting[traffic_class]:
            self.place_gaps(traffic_class)

    @rule(traffic_class=classes, size=st.integers(1, LIMITS.class_bytes + 1))
    def ask_for_room(self, traffic_class: int, size: int) -> None:
        assert self.egress.has_room(traffic_class, size) == self.fits(traffic_class, size)

    @rule()
    def push_control(self) -> None:
        number = self.number()
        self.egress.push_control(pong(number))
        self.append(CONTROL, ("control", number), len(pong(number)))

    @rule()
    def push_barrier(self) -> None:
        self.place_gaps(*range(CLASSES))
        number = self.number()
        self.egress.push_barrier(left(number))
        self.waits_as_barrier(("barrier", number), len(left(number)))

    @rule()
    def push_in_order(self) -> None:
        number = self.number()
        if self.barriers:
            self.place_gaps(*range(CLASSES))
        self.egress.push_in_order(pong(number))
        if self.barriers:
            self.waits_as_barrier(("control", number), len(pong(number)))
        else:
            self.append(CONTROL, ("control", number), len(pong(number)))

    def waits_as_barrier(self, item: Item, size: int) -> None:
        before = [set(items) for items in self.waiting]
        if self.barriers or any(before):
            self.barriers.append(Barrier(item, before, set(self.held)))
        else:
            self.append(CONTROL, item, size)

    # ---- what comes out

    @rule(traffic_class=classes)
    def pause(self, traffic_class: int) -> None:
        self.egress.pause(traffic_class)
        self.held.add(traffic_class)
        for barrier in self.barriers:
            barrier.excused.add(traffic_class)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        traffic_class = data.draw(st.sampled_from(sorted(self.held)))
        self.egress.resume(traffic_class)
        self.held.remove(traffic_class)

    @rule(limit=st.sampled_from([FRAGMENT_ABOVE_BYTES, 20_000, 40_000, MAX_PLAINTEXT]))
    def take(self, limit: int) -> None:
        self.take_record(limit)

    def take_record(self, limit: int) -> bytes:
        record = self.egress.take(limit)
        assert len(record) <= limit
        if not record:
            assert not self.may_leave(), "something could have left"
            assert not self.barriers
        for traffic_class, size, item in self.receiver.read(record):
            self.check_priority(traffic_class, item)
            if item is None:
                self.bytes[traffic_class] -= size
            else:
                self.leaves(traffic_class, item, size)
        return record

    def may_leave(self) -> list[int]:
        return [c for c in range(CLASSES) if c not in self.held and self.waiting[c]]

    def check_priority(self, traffic_class: int, item: Item | None) -> None:
        assert traffic_class not in self.held, "a paused class moves"
        more_urgent = [c for c in self.may_leave() if c > traffic_class]
        assert not more_urgent, f"{item} of class {traffic_class} leaves before class {more_urgent}"

    def leaves(self, traffic_class: int, item: Item, size: int) -> None:
        if self.barriers and item == self.barriers[0].item:
            barrier = self.barriers.popleft()
            for c, before in enumerate(barrier.before):
                assert c in barrier.excused or not before & set(self.waiting[c]), f"{item} overtakes class {c}"
            self.pushed_bytes[CONTROL] += size
            return
        assert item not in [barrier.item for barrier in self.barriers], "barriers change places"
        if not self.waiting[traffic_class]:
            self.place_gaps(traffic_class)
        assert item == self.waiting[traffic_class].popleft(), "not first in, first out"
        self.bytes[traffic_class] -= size
        if isinstance(item, Gap):
            assert item.room is not None
            self.told_lost[item.room] += item.count
        elif item[0].startswith("deliver"):
            self.arrived[item[0].removeprefix("deliver ")] += 1

    @rule()
    def clear(self) -> None:
        if self.numbers % 4:  # seldom enough that queues fill
            return
        self.egress.clear()
        self.receiver = Receiver()
        self.waiting = [deque() for _ in range(CLASSES)]
        self.bytes = [0] * CLASSES
        self.closed.clear()
        self.untold.clear()
        self.barriers.clear()
        self.pushed = dict.fromkeys(ROOMS, 0)
        self.arrived = dict.fromkeys(ROOMS, 0)
        self.told_lost = dict.fromkeys(ROOMS, 0)
        assert not self.egress.ready
        assert not self.egress.take()
        self.pushed_bytes = list(self.egress.departed)

    # ---- what always holds

    @invariant()
    def the_account_is_exact(self) -> None:
        # A frame that only the queue can have made is counted by the queue: GAPs and barriers that have
        # just taken their place in it while a record was filled to the brim.
        egress = self.egress
        assert egress.total == sum(egress.queued)
        for c in range(CLASSES):
            assert bool(egress.ready >> c & 1) == bool(egress.queued[c])
            if not self.untold and not self.barriers:
                assert egress.queued[c] == self.bytes[c]
                assert egress.departed[c] + egress.queued[c] == self.pushed_bytes[c]
        assert egress.is_drained == (not [c for c in range(CLASSES) if egress.queued[c] and c not in self.held])

    @invariant()
    def waiting_barriers_are_counted(self) -> None:
        assert bool(self.egress.barrier_bytes) == bool(self.egress._barriers)

    @invariant()
    def what_waits_is_listed(self) -> None:
        assert sum(map(len, self.egress.entries())) >= self.egress.total

    @invariant()
    def nothing_is_lost_in_silence(self) -> None:
        for room in ROOMS:
            waiting = untold = 0
            for item in (item for items in self.waiting for item in items):
                if isinstance(item, Gap):
                    untold += item.count if item.room == room else 0
                else:
                    waiting += item[0] == f"deliver {room}"
            untold += sum(lost[0] for (_, name), lost in self.untold.items() if name == room)
            assert self.arrived[room] + self.told_lost[room] + waiting + untold == self.pushed[room]

    def teardown(self) -> None:
        """At last everything leaves, and every loss is told."""
        for traffic_class in list(self.held):
            self.egress.resume(traffic_class)
        self.held.clear()
        while self.take_record(MAX_PLAINTEXT):
            pass
        assert not any(self.waiting)
        assert not self.untold
        assert not self.barriers
        assert self.egress.total == 0
        assert {r: self.arrived[r] + self.told_lost[r] for r in ROOMS} == self.pushed


def test_against_the_model() -> None:
    run_state_machine_as_test(
        EgressMachine, settings=settings(max_examples=150, stateful_step_count=50, deadline=None)
    )


# ---- single properties -------------------------------------------------------------------------------


def read(egress: Egress, limit: int = MAX_PLAINTEXT) -> list[tuple[int, Item]]:
    """Everything that leaves until nothing may, as (class, message)."""
    receiver, arrived = Receiver(), []
    while record := egress.take(limit):
        arrived += [(c, item) for c, _, item in receiver.read(record) if item is not None]
    return arrived


@pytest.fixture
def egress() -> Egress:
    return Egress(LIMITS)


def test_an_idle_queue_gives_nothing(egress: Egress) -> None:
    assert egress.take() == b""
    assert egress.is_drained
    assert list(egress.entries()) == []


def test_defaults() -> None:
    limits = EgressLimits()
    assert (limits.low_water_bytes, limits.high_water_bytes) == (524_288, 1_048_576)
    assert (limits.class_bytes, limits.total_bytes) == (8_388_608, 16_777_216)


def test_strict_priority_and_first_in_first_out(egress: Egress) -> None:
    for number, traffic_class in enumerate([1, 5, 0, 1, 5, 6]):
        egress.push(traffic_class, deliver(number, traffic_class, 100))
    egress.push_control(pong(6))
    order = [(c, item[1]) for c, item in read(egress) if isinstance(item, tuple)]
    assert order == [(7, 6), (6, 5), (5, 1), (5, 4), (1, 0), (1, 3), (0, 2)]


@given(
    st.lists(st.tuples(classes, st.sampled_from([100, LARGE, 40_000, 70_000])), min_size=1, max_size=12),
    st.lists(st.integers(0, 3), max_size=12),
)
def test_fragments_reassemble_under_any_interleaving(
    pushes: list[tuple[int, int]], takes_between: list[int]
) -> None:
    egress = Egress(EgressLimits())
    receiver, arrived = Receiver(), []
    waits = iter(takes_between)
    for number, (traffic_class, size) in enumerate(pushes):
        assert egress.push(traffic_class, deliver(number, traffic_class, size))
        for _ in range(next(waits, 0)):
            record = egress.take(FRAGMENT_ABOVE_BYTES)
            arrived += [item for *_, item in receiver.read(record) if item]
    while record := egress.take(FRAGMENT_ABOVE_BYTES):
        arrived += [item for *_, item in receiver.read(record) if item]
    for traffic_class in range(CONTROL):
        of_class = [n for n, (c, _) in enumerate(pushes) if c == traffic_class]
        assert [number for _, number in arrived if number in of_class] == of_class  # type: ignore[misc]
    assert egress.total == 0


@pytest.mark.parametrize("urgent", [1, 5, CONTROL])
def test_a_higher_class_waits_for_one_piece_at_most(egress: Egress, urgent: int) -> None:
    egress.push(0, deliver(1, 0, 70_000))
    assert len(egress.take(FRAGMENT_ABOVE_BYTES)) == PIECE
    if urgent == CONTROL:
        egress.push_control(pong(2))
    else:
        egress.push(urgent, deliver(2, urgent, 100))
    first = next(Receiver().read(egress.take(FRAGMENT_ABOVE_BYTES)))
    assert first[0] == urgent


def test_four_pieces_and_a_control_frame_fill_a_record(egress: Egress) -> None:
    egress.push_control(pong(1))
    egress.push(0, deliver(2, 0, 90_000))
    record = egress.take()
    assert [len(body) + LENGTH_BYTES for body in frames_of(record)] == [len(pong(1)), *[PIECE] * 4]


@given(st.integers(FRAGMENT_ABOVE_BYTES, MAX_PLAINTEXT), st.lists(st.integers(60, 9_000), min_size=2, max_size=9))
def test_a_blob_longer_than_the_limit_leaves_in_whole_frames(limit: int, sizes: list[int]) -> None:
    egress = Egress(EgressLimits())
    blob = b"".join(deliver(number, 1, size) for number, size in enumerate(sizes))[:MAX_PLAINTEXT]
    numbers = list(range(len(sizes)))
    egress.push(1, b"".join(deliver(number, 1, size) for number, size in enumerate(sizes)))
    records = []
    while record := egress.take(limit):
        assert len(record) <= limit
        records.append(record)
        assert egress.queued[1] == egress.total == len(blob) - sum(map(len, records))
    assert [item[1] for r in records for *_, item in Receiver().read(r) if isinstance(item, tuple)] == numbers


def test_a_full_class_refuses_and_stays_closed_until_half_empty(egress: Egress) -> None:
    entry = deliver(0, 1, 10_000)
    while egress.push(1, entry):
        pass
    assert egress.queued[1] == LIMITS.class_bytes // len(entry) * len(entry)
    assert not egress.has_room(1, 1)
    assert egress.has_room(2, 1), "other classes are not affected"
    while egress.queued[1] > LIMITS.class_bytes // 2:
        assert not egress.push(1, b"small")
        egress.take(FRAGMENT_ABOVE_BYTES)
    assert egress.push(1, deliver(1, 1, 100))


def test_all_classes_together_are_bounded(egress: Egress) -> None:
    egress.push(1, deliver(0, 1, 99_000))
    egress.push(2, deliver(0, 2, 60_000))
    assert not egress.push(5, deliver(0, 5, 2_000))
    assert egress.push(5, deliver(0, 5, 100)), "its own queue is empty, so it is open again at once"


def test_an_entry_of_more_than_half_the_cap_fits_again_after_an_overflow(egress: Egress) -> None:
    entry = deliver(0, 1, 60_000)
    assert egress.push(1, entry)
    assert not egress.push(1, entry)
    while egress.take():
        pass
    assert egress.push(1, entry)


def test_what_it_says_it_has_room_for_it_takes() -> None:
    """The GAP that tells of a loss needs room itself."""
    egress = Egress(EgressLimits(1_000, 1_000, 1_500))
    assert egress.push(1, deliver(0, 1, 400))
    assert not egress.push(1, deliver(1, 1, 700))
    egress.lose(1, "a", 1, 700)
    assert egress.push(0, deliver(2, 0, 900))
    entry = bytes(1_500 - egress.total)
    assert egress.has_room(1, len(entry)) == egress.push(1, entry)


def test_losses_of_several_rooms_are_told_one_by_one_at_their_place(egress: Egress) -> None:
    egress.push(1, deliver(1, 1, 99_000))
    for number, room in enumerate("abab"):
        entry = deliver(number, 1, 10_000 + number, room)
        assert not egress.push(1, entry)
        egress.lose(1, room, 1, len(entry))
    egress.push(2, deliver(2, 2, 100))
    while egress.queued[1] > LIMITS.class_bytes // 2:
        egress.take(FRAGMENT_ABOVE_BYTES)
    assert egress.push(1, deliver(3, 1, 100))
    sizes = [len(deliver(n, 1, 10_000 + n, room)) for n, room in enumerate("abab")]
    rest = list(egress.entries())[1:]
    assert [decode_body(entry[LENGTH_BYTES:], Role.RELAY) for entry in rest[:2]] == [
        gap("a", 1, 2, sizes[0] + sizes[2]),
        gap("b", 1, 2, sizes[1] + sizes[3]),
    ]
    assert rest[2] == deliver(3, 1, 100)


def test_a_loss_in_an_empty_class_is_told_at_once(egress: Egress) -> None:
    egress.lose(4, "a", 3, 500)
    assert read(egress) == [(4, gap("a", 4, 3, 500))]


def test_a_loss_is_told_when_the_class_has_drained(egress: Egress) -> None:
    egress.push(1, deliver(1, 1, 100))
    egress.push(0, deliver(2, 0, 100))
    egress.lose(1, "a", 1, 100)
    assert read(egress) == [(1, ("deliver a", 1)), (0, ("deliver a", 2)), (1, gap("a", 1, 1, 100))]


def test_a_barrier_follows_everything_before_it(egress: Egress) -> None:
    egress.push(0, deliver(1, 0, 70_000))
    egress.push(5, deliver(2, 5, 100))
    egress.push_barrier(left(3))
    egress.push_barrier(left(4))
    egress.push(5, deliver(5, 5, 100))
    egress.push_control(pong(6))
    numbers = [item[1] for _, item in read(egress) if isinstance(item, tuple)]
    assert numbers == [6, 2, 5, 1, 3, 4]


def test_a_barrier_in_an_empty_queue_leaves_at_once(egress: Egress) -> None:
    egress.push_barrier(left(1))
    assert egress.take() == left(1)


def test_a_barrier_does_not_wait_for_a_paused_class(egress: Egress) -> None:
    egress.push(0, deliver(1, 0, 100))
    egress.push(1, deliver(2, 1, 100))
    egress.pause(0)
    egress.push_barrier(left(3))
    assert [item for _, item in read(egress)] == [("deliver a", 2), ("barrier", 3)]
    egress.resume(0)
    assert [item for _, item in read(egress)] == [("deliver a", 1)]


def test_a_barrier_stops_to_wait_for_a_class_that_is_paused_later(egress: Egress) -> None:
    egress.push(0, deliver(1, 0, 70_000))
    egress.push_barrier(left(2))
    egress.take()
    egress.pause(0)
    assert [item for _, item in read(egress)] == [("barrier", 2)]


def test_a_loss_before_a_barrier_is_told_before_it(egress: Egress) -> None:
    egress.push(1, deliver(1, 1, 100))
    egress.lose(1, "a", 1, 100)
    egress.push_barrier(left(2))
    assert [item for _, item in read(egress)] == [("deliver a", 1), gap("a", 1, 1, 100), ("barrier", 2)]


def test_an_ordered_control_frame_does_not_overtake_a_barrier(egress: Egress) -> None:
    egress.push_in_order(pong(0))
    egress.push(0, deliver(1, 0, 70_000))
    egress.push_barrier(left(2))
    egress.push_in_order(pong(3))
    egress.push_control(pong(4))
    assert [item[1] for _, item in read(egress) if isinstance(item, tuple)] == [0, 4, 1, 2, 3]


def test_barriers_keep_their_order_when_a_record_left_no_room_for_the_first(egress: Egress) -> None:
    egress.push(1, deliver(1, 1, 60) * (MAX_PLAINTEXT // len(deliver(1, 1, 60))))
    egress.push_barrier(left(2))
    assert MAX_PLAINTEXT - len(egress.take()) < 1_024
    egress.push_barrier(left(3))
    assert [item for _, item in read(egress)] == [("barrier", 2), ("barrier", 3)]


def test_paused_classes_wait_and_others_do_not(egress: Egress) -> None:
    egress.push(1, deliver(1, 1, 100))
    egress.pause(1)
    assert egress.is_drained
    assert egress.take() == b""
    egress.push(0, deliver(2, 0, 100))
    assert [item for _, item in read(egress)] == [("deliver a", 2)]
    egress.resume(1)
    assert not egress.is_drained
    assert [item for _, item in read(egress)] == [("deliver a", 1)]


def test_clear_forgets_everything_but_pauses(egress: Egress) -> None:
    egress.pause(2)
    egress.push(0, deliver(1, 0, 70_000))
    egress.take()
    egress.push(1, deliver(1, 1, 99_000))
    egress.lose(1, "a", 1, 100)
    egress.push_barrier(left(2))
    egress.clear()
    assert (egress.queued, egress.total, egress.ready) == ([0] * CLASSES, 0, 0)
    assert egress.take() == b""
    assert egress.held == 1 << 2
    egress.push_barrier(left(3))
    assert egress.take() == left(3)
