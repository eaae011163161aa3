"""What must hold of a `History`, whatever happened. Pure functions: each returns what is wrong, in words."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import TypeVar

from attrs import define

from tests.simulation.history import (
    Asked,
    AskedToLeave,
    Down,
    Entered,
    Gap,
    History,
    Leaving,
    Name,
    Refused,
    Sent,
    Taken,
    Up,
)

Kind = TypeVar("Kind")

#: So late may a timer be.
SLACK_S = 0.01


def plain(history: History, now: float, *, is_gentle: bool = False) -> list[str]:
    """Everything that is promised of messages without ``reliable=True``; ``is_gentle`` as in `accounted_for`."""
    return [
        *at_most_once(history),
        *in_order(history),
        *refused_or_taken(history),
        *accounted_for(history, now, is_gentle=is_gentle),
        *requests_end(history),
    ]


def at_most_once(history: History) -> list[str]:
    """Nobody takes a message twice, nor one that was not meant for it."""
    wrong: list[str] = []
    takers: dict[tuple[Name, str], str] = {}
    for taken in of_kind(history, Taken):
        sent = history.sent.get(taken.message)
        if sent is None:
            wrong.append(f"{taken.process} took {taken.message}, which nobody sent")
            continue
        key = history.keys[taken.process]
        where = taken.room if sent.mode in ("room", "any") else key
        if (where, taken.traffic_class) != (sent.target, sent.traffic_class):
            wrong.append(f"{taken.process} took {taken}, which was sent as {sent}")
        # A broadcast has one taker for each key, what is reliable one for each process, all else has one taker.
        place = (taken.message, taken.process if sent.is_reliable else key if sent.mode == "room" else "")
        if place in takers:
            wrong.append(f"{taken.message} was taken by {takers[place]} and by {taken.process}: {sent}")
        takers[place] = taken.process
    return wrong


def in_order(history: History) -> list[str]:
    """Within a connection of the sender, a destination and a class, a process takes messages in their order."""
    wrong: list[str] = []
    last: dict[tuple[object, ...], Sent] = {}
    for taken in of_kind(history, Taken):
        sent = history.sent.get(taken.message)
        if sent is None or not sent.ordinal or sent.is_reliable:
            continue
        stream = (taken.process, sent.process, sent.connection, sent.target, sent.mode == "any", sent.traffic_class)
        before = last.get(stream)
        if before is not None and before.ordinal > sent.ordinal:
            wrong.append(f"{taken.process} took {sent} after {before}")
        last[stream] = sent
    return wrong


def refused_or_taken(history: History) -> list[str]:
    """What the relay refused, nobody takes."""
    refused = _refused(history)
    taken = [history.sent[taken.message] for taken in of_kind(history, Taken) if taken.message in history.sent]
    return [
        f"refused, and taken: {sent}"
        for sent in taken
        if sent.ordinal and not sent.is_reliable and (sent.connection, sent.ordinal) in refused[sent.process]
    ]


@define
class _Stay:
    """A time in which a process was without interruption where messages to ``target`` go."""

    process: str
    begin: float
    end: float = math.inf
    asked_to_leave: float = math.inf


def accounted_for(history: History, now: float, *, is_gentle: bool = False) -> list[str]:
    """What was accepted for a receiver that stayed is taken, or in a gap that it was told.

    A message must have come to a receiver if one that followed it in its stream did, and both found it there; or if
    the relay accepted it and the receiver stayed to the end. What must have come and was not taken is covered by
    gaps of its class; and gaps cover nothing that was taken, or was never sent.

    Args:
        is_gentle: relays were drained and nothing worse: also what the relay accepted before it asked a receiver to
            leave must have come.
    """
    streams: dict[tuple[str, int, str, int], list[Sent]] = defaultdict(list)
    refused = _refused(history)
    for sent in history.sent.values():
        if (
            sent.mode in ("room", "peer")
            and sent.ordinal
            and not sent.is_reliable
            and (sent.connection, sent.ordinal) not in refused[sent.process]
        ):
            streams[sent.process, sent.connection, sent.target, sent.traffic_class].append(sent)
    stays = _stays(history)
    epochs = {(up.process, up.connection): up.epoch for up in of_kind(history, Up)}
    taken_at = {(taken.process, taken.message): taken.at for taken in of_kind(history, Taken)}
    missing: dict[tuple[str, int], list[Sent]] = defaultdict(list)
    for (sender, connection, target, traffic_class), stream in streams.items():
        stream.sort(key=lambda sent: sent.ordinal)
        for stay in stays.get((target, epochs.get((sender, connection), b"")), ()):
            is_own = history.keys[stay.process] == history.keys[sender]
            if stay.process == sender or (stream[0].mode == "room" and is_own):
                continue
            found = [sent for sent in stream if stay.begin <= sent.at <= stay.end]
            times = [taken_at.get((stay.process, sent.name), math.inf) for sent in found]
            last = max([at for at, time in enumerate(times) if time < math.inf and time <= stay.end], default=-1)
            until = now if stay.end == math.inf else stay.asked_to_leave if is_gentle else -math.inf
            missing[stay.process, traffic_class] += [
                sent
                for at, (sent, time) in enumerate(zip(found, times, strict=True))
                if time == math.inf and (at < last or sent.settled_at <= until)
            ]
    told: dict[tuple[str, int], int] = defaultdict(int)
    for gap in of_kind(history, Gap):
        told[gap.process, gap.traffic_class] += gap.count
    wrong = []
    for (process, traffic_class), lost in missing.items():
        if len(lost) > told[process, traffic_class]:
            wrong.append(
                f"{process} misses {len(lost)} messages of class {traffic_class} and was told of "
                f"{told[process, traffic_class]}, for example {lost[0]}"
            )
    if any(sent.is_reliable for sent in history.sent.values()):
        return wrong  # gaps count what is repaired, and what the application never sees
    for (process, traffic_class), count in told.items():
        possible = sum(
            1
            for sent in history.sent.values()
            if sent.traffic_class == traffic_class
            and (process, sent.name) not in taken_at
            and sent.process != process
        )
        if count > possible:
            wrong.append(f"{process} was told of {count} lost messages of class {traffic_class}, of {possible}")
    return wrong


def requests_end(history: History) -> list[str]:
    """A request has an outcome in time, unless its process ended first."""
    wrong = [
        f"a request took too long: {asked}" for asked in of_kind(history, Asked) if asked.at > asked.until + SLACK_S
    ]
    ended = defaultdict(int)
    for asked in of_kind(history, Asked):
        ended[asked.process] += 1
    for sent in history.sent.values():
        if sent.mode == "request" and sent.process not in history.ended:
            ended[sent.process] -= 1
    return wrong + [
        f"{-count} requests of {process} have no outcome" for process, count in ended.items() if count < 0
    ]


def of_kind(history: History, kind: type[Kind]) -> Iterable[Kind]:
    """The events of one kind, in order."""
    return (event for event in history.events if type(event) is kind)


def _refused(history: History) -> dict[str, set[tuple[int, int]]]:
    """Of each process, (connection, ordinal) of what the relay refused."""
    found: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for refused in of_kind(history, Refused):
        found[refused.process].update(
            (refused.connection, ordinal) for ordinal in range(refused.first, refused.stop)
        )
    return found


def _stays(history: History) -> dict[tuple[str, bytes], list[_Stay]]:
    """When processes were in a room, or reachable by their key, in each epoch."""
    found: dict[tuple[str, bytes], list[_Stay]] = defaultdict(list)
    here: dict[str, dict[str, _Stay]] = defaultdict(dict)  # of each process, by target
    epochs: dict[str, bytes] = {}  # of the processes that are connected

    def begin(process: str, target: str, at: float) -> None:
        end(process, at, target)
        here[process][target] = _Stay(process, at)
        found[target, epochs[process]].append(here[process][target])

    def end(process: str, at: float, *targets: str) -> None:
        stays = here[process]
        for target in targets or [*stays]:
            if target in stays:
                stays.pop(target).end = at

    for event in history.events:
        match event:
            case Up():
                epochs[event.process] = event.epoch
                for target in (history.keys[event.process], *event.rooms):
                    begin(event.process, target, event.at)
            case Down():
                epochs.pop(event.process, None)
                end(event.process, event.at)
            case AskedToLeave():
                for stay in here[event.process].values():
                    stay.asked_to_leave = min(stay.asked_to_leave, event.at)
            case Entered() if event.process in epochs:
                begin(event.process, event.room, event.at)
            case Leaving():
                end(event.process, event.at, event.room)
    for process, at in history.ended.items():
        end(process, at)
    return found
