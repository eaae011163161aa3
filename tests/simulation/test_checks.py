"""The checkers themselves: good histories pass, and each thing that can go wrong is found."""

from __future__ import annotations

import math

import pytest

from tests.simulation import checks, reliable_checks
from tests.simulation.history import (
    Asked,
    AskedToLeave,
    Down,
    Entered,
    Event,
    Gap,
    History,
    Leaving,
    Refused,
    RoomGap,
    Sent,
    Taken,
    Up,
)

NOW = 100.0
REPAIR_S = 20.0
#: A room, its two members, and a node that is somewhere else; b1 and b2 are two runs of one program.
A, B, C = "a1", "b1", "c1"


def world(*sent: Sent, events: list[Event]) -> History:
    history = History()
    for process in (A, B, C, "b2"):
        history.begin(process, process[0])
    history.ended["b2"] = 0.0
    history.homes.update({A: ("room",), B: ("room",)})
    for one in sent:
        history.sent[one.name] = one
    history.events += [up(A), up(B), up(C, "hall"), *events]
    return history


def up(process: str, *rooms: str, at: float = 1, epoch: bytes = b"1", connection: int = 1) -> Up:
    return Up(at, process, epoch, connection, rooms or ("room",))


def publish(number: int, at: float = 10, **fields: object) -> Sent:
    options: dict[str, object] = {"connection": 1, "ordinal": number, "settled_at": at + 1, **fields}
    return Sent(at, A, number, "room", "room", 3, **options)  # type: ignore[arg-type]


def send(number: int, at: float = 10, **fields: object) -> Sent:
    return Sent(at, A, number, "b", "peer", 3, **{"connection": 1, "ordinal": number, **fields})  # type: ignore[arg-type]


def reliable(number: int, outcome: str, at: float = 10, outcome_at: float = 12, **fields: object) -> Sent:
    options = {"is_reliable": True, "expires_at": at + 50, "outcome": outcome, "outcome_at": outcome_at, **fields}
    return Sent(at, A, number, "b", "peer", 3, **options)  # type: ignore[arg-type]


def to_room(number: int, at: float = 10) -> Sent:
    return Sent(at, A, number, "room", "room", 3, is_reliable=True, sequence=number)


def take(number: int, at: float = 11, process: str = B, room: str | None = "room", sender: str = A) -> Taken:
    return Taken(at, process, (sender, number), room, 3)


def plain(*sent: Sent, events: list[Event], is_gentle: bool = False) -> list[str]:
    return checks.plain(world(*sent, events=events), NOW, is_gentle=is_gentle)


def repaired(*sent: Sent, events: list[Event]) -> list[str]:
    return reliable_checks.reliable(world(*sent, events=events), NOW, REPAIR_S)


DOWN = Down(20, B)
AGAIN = up(B, at=30, connection=2)


@pytest.mark.parametrize(
    ("sent", "events"),
    [
        ([publish(1), publish(2)], [take(1), take(2)]),
        ([publish(1), publish(2)], [take(2), Gap(11, B, "room", None, 3, 1)]),  # told of
        ([publish(1), publish(2)], [Refused(11, A, 1, 1, 2, 32), take(2)]),  # refused
        ([publish(1), publish(2)], [take(1), DOWN, AGAIN]),  # the last one of a connection that broke
        ([publish(1, settled_at=math.inf), publish(2, connection=0, ordinal=0)], []),  # no verdict; never left
        ([publish(1), publish(2)], [Leaving(5, B, "room"), Entered(10.5, B, "room"), take(2)]),  # was not there
        ([publish(1, 25), publish(2, 25)], [DOWN, up(B, at=30, epoch=b"2", connection=2)]),  # on another relay
        ([publish(2), publish(1, connection=2)], [take(2), up(A, at=5, connection=2), take(1)]),  # two connections
        ([send(1)], [take(1, room=None)]),
        ([Sent(10, C, 1, "room", "any", 3, 1, 1)], [take(1, sender=C)]),
        ([Sent(10, A, 1, "b", "request", 3)], [Asked(12, A, 20, "answered")]),
    ],
)
def test_good_plain_histories(sent: list[Sent], events: list[Event]) -> None:
    assert plain(*sent, events=events) == []


@pytest.mark.parametrize(
    ("sent", "events", "wrong"),
    [
        ([publish(1)], [take(1), take(1)], "taken by"),
        ([publish(1)], [take(1), DOWN, AGAIN, take(1, 31)], "taken by"),
        ([publish(1)], [take(1), take(1, process="b2")], "taken by"),
        ([send(1)], [take(1, process=C, room=None)], "sent as"),
        ([publish(1)], [take(1, room="hall")], "sent as"),
        ([], [take(1)], "nobody sent"),
        ([publish(1), publish(2)], [take(2), take(1)], "after"),
        ([publish(1), publish(2)], [take(2)], "misses 1"),
        ([publish(1)], [], "misses 1"),  # accepted, and never came
        ([publish(1), publish(2), publish(3)], [take(3), Gap(11, B, "room", None, 3, 1)], "misses 2"),
        ([publish(1), publish(2)], [take(2), DOWN, AGAIN], "misses 1"),
        ([publish(1)], [take(1), Gap(11, B, "room", None, 3, 1)], "was told of 1"),
        ([publish(1)], [Refused(11, A, 1, 1, 2, 32), take(1)], "refused, and taken"),
        ([Sent(10, A, 1, "b", "request", 3)], [], "no outcome"),
        ([Sent(10, A, 1, "b", "request", 3)], [Asked(21, A, 20, "answered")], "too long"),
    ],
)
def test_bad_plain_histories(sent: list[Sent], events: list[Event], wrong: str) -> None:
    assert wrong in " ".join(plain(*sent, events=events))


def test_what_a_draining_relay_had_accepted_must_come() -> None:
    drained: list[Event] = [AskedToLeave(15, B), DOWN, AGAIN]
    assert plain(publish(1), events=drained) == []
    assert "misses 1" in plain(publish(1), events=drained, is_gentle=True)[0]
    assert plain(publish(1, 16), events=drained, is_gentle=True) == []
    assert plain(publish(1), events=[*drained, take(1, 40)], is_gentle=True) == []


@pytest.mark.parametrize(
    ("sent", "events"),
    [
        ([reliable(1, "delivered"), reliable(2, "delivered")], [take(1, room=None), take(2, room=None)]),
        ([reliable(1, "expired", outcome_at=60)], [Down(15, B)]),
        ([reliable(1, "unknown", outcome_at=60)], [Down(15, B)]),
        ([reliable(1, "unknown", outcome_at=60)], [take(1, room=None), Down(15, B)]),
        ([reliable(1, "delivered")], [take(1, room=None), take(1, room=None, process="b2")]),  # another process
        ([reliable(1, "declined")], []),
        ([reliable(1, "", at=80)], []),  # under way
        ([reliable(1, "expired", outcome_at=60)], [DOWN, AGAIN, Down(35, B), up(B, at=59, epoch=b"2")]),
        ([to_room(1), to_room(2)], [take(1), take(2)]),
        ([to_room(1), to_room(2)], [take(2)]),  # begins with the first that is heard
        ([to_room(1), to_room(2), to_room(3)], [take(1), RoomGap(12, B, "room", "a", 3, 2, 2), take(3)]),
        ([to_room(1), to_room(2, 90)], [take(1)]),  # there is still time
    ],
)
def test_good_reliable_histories(sent: list[Sent], events: list[Event]) -> None:
    assert repaired(*sent, events=events) == []


@pytest.mark.parametrize(
    ("sent", "events", "wrong"),
    [
        ([reliable(1, "")], [], "nothing was told"),
        ([reliable(1, "expired", outcome_at=61)], [Down(15, B)], "late"),
        ([reliable(1, "lost")], [], "no outcome"),
        ([reliable(1, "delivered")], [], "nobody took it"),
        ([reliable(1, "expired", outcome_at=60)], [take(1, room=None), Down(15, B)], "expired, and"),
        ([reliable(1, "declined")], [take(1, room=None)], "declined, and"),
        ([reliable(1, "delivered")], [take(1, room=None), take(1, room=None)], "twice"),
        ([reliable(n, "delivered") for n in (1, 2)], [take(2, room=None), take(1, room=None)], "took number 2"),
        ([reliable(1, "delivered")], [take(1, room=None, process=C)], "was for b"),
        ([reliable(1, "unknown", outcome_at=60)], [], "50.0 s together"),
        ([reliable(1, "expired", outcome_at=60)], [DOWN, AGAIN], "30.0 s together"),
        ([to_room(1), to_room(2)], [take(2), take(1)], "out of order"),
        ([to_room(1)], [take(1), take(1)], "twice"),
        ([to_room(n) for n in (1, 2, 3)], [take(1), take(3)], "told nothing about [2]"),
        ([to_room(1), to_room(2)], [take(1), take(2), RoomGap(12, B, "room", "a", 3, 2, 2)], "was told of"),
        ([to_room(1), to_room(2)], [take(1), *[RoomGap(12, B, "room", "a", 3, 2, 2)] * 2], "was told of"),
        ([to_room(1), to_room(2)], [take(1), RoomGap(30, B, "room", "a", 3, 2, 2)], "R2"),
        ([to_room(1), to_room(2)], [take(1)], "R1"),
    ],
)
def test_bad_reliable_histories(sent: list[Sent], events: list[Event], wrong: str) -> None:
    assert wrong in " ".join(repaired(*sent, events=events))


def test_messages_are_named_in_their_payloads() -> None:
    history = world(events=[])
    payload = history.payload((B, 77), 20)
    assert len(payload) == 20
    assert history.name_in(payload) == (B, 77)
    assert history.name_in(history.payload((A, 1), 0)) == (A, 1)
