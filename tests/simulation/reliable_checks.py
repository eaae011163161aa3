"""What must hold of reliable messages, whatever happened: U1 to U3, R1, R2. Pure functions over a `History`.

U1   while the sender's process lives, a message ends as delivered, expired, unknown, or refused by its receiver
U2   a process takes a message at most once, and in the order of each sender's process and class
U3   a message does not fail while both sides are connected to one relay for long enough
R1   in a room, from the first message of a stream on, each is taken once and in order, or is in one gap report
R2   what the sender still holds is repaired
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TypeAlias

from tests.simulation.checks import SLACK_S, of_kind
from tests.simulation.history import Down, History, Name, RoomGap, Sent, Taken, Up

DELIVERED, EXPIRED, UNKNOWN = "delivered", "expired", "unknown"
#: The receiver's library, or the relay, has refused the message: it is told, and final.
REFUSED = ("declined", "refused")


def reliable(history: History, now: float, repair_s: float) -> list[str]:
    """Everything that is promised of messages with ``reliable=True``.

    Args:
        repair_s: how long both must be connected to one relay before a failure is one of the library.
    """
    return [
        *no_silent_loss(history, now),
        *once_and_in_order(history),
        *alive(history, now, repair_s),
        *rooms_complete(history, now, repair_s),
    ]


def no_silent_loss(history: History, now: float) -> list[str]:
    """U1: every message has an outcome in time, and the outcome is true."""
    wrong: list[str] = []
    takers: dict[Name, list[str]] = defaultdict(list)
    for taken in of_kind(history, Taken):
        takers[taken.message].append(taken.process)
    for sent in _reliable(history):
        if not sent.outcome:
            if sent.process not in history.ended and now > sent.expires_at + SLACK_S:
                wrong.append(f"nothing was told about {sent}")
            continue
        if sent.outcome_at > sent.expires_at + SLACK_S:
            wrong.append(f"the outcome came late: {sent}")
        if sent.outcome not in (DELIVERED, EXPIRED, UNKNOWN, *REFUSED):
            wrong.append(f"that is no outcome: {sent}")
        if sent.outcome == DELIVERED and not takers[sent.name]:
            wrong.append(f"delivered, and nobody took it: {sent}")
        if sent.outcome in (EXPIRED, *REFUSED) and takers[sent.name]:
            wrong.append(f"{sent.outcome}, and {takers[sent.name][0]} took it: {sent}")
    return wrong


def once_and_in_order(history: History) -> list[str]:
    """U2, by process: another process with the same key may take a message again."""
    wrong: list[str] = []
    seen: set[tuple[str, Name]] = set()
    last: dict[tuple[str, str, int], int] = {}
    for taken in of_kind(history, Taken):
        sent = history.sent.get(taken.message)
        if sent is None or not sent.is_reliable or sent.mode == "room":
            continue
        if (taken.process, sent.name) in seen:
            wrong.append(f"{taken.process} took twice: {sent}")
        seen.add((taken.process, sent.name))
        if history.keys[taken.process] != sent.target:
            wrong.append(f"{taken.process} took what was for {sent.target}: {sent}")
        stream = (taken.process, sent.process, sent.traffic_class)
        if sent.mode != "peer":  # requests are sent by tasks of their own
            continue
        if last.get(stream, -1) > sent.number:
            wrong.append(f"{taken.process} took number {last[stream]} before {sent}")
        last[stream] = sent.number
    return wrong


def alive(history: History, now: float, repair_s: float) -> list[str]:
    """U3: what expired, or is unknown, had no time of ``repair_s`` in which both were on one relay."""
    connected = _connections(history, now)
    keys: dict[str, list[str]] = defaultdict(list)
    for process, key in history.keys.items():
        keys[key].append(process)
    wrong = []
    for sent in _reliable(history):
        if sent.outcome not in (EXPIRED, UNKNOWN):
            continue
        for begin, end, epoch in connected[sent.process]:
            for process in keys[sent.target]:
                ready = max(sent.at, history.slow_until.get(process, 0.0))
                for other_begin, other_end, other_epoch in connected[process]:
                    together_s = min(end, other_end, sent.outcome_at) - max(begin, other_begin, ready)
                    if epoch == other_epoch and together_s > repair_s:
                        wrong.append(f"{sent.outcome} after {together_s:.1f} s together with {process}: {sent}")
    return wrong


def rooms_complete(history: History, now: float, repair_s: float) -> list[str]:
    """R1 and R2, for processes that are in the room from beginning to end.

    The last message counts when both were together for ``repair_s`` after it, and a gap is wrong where both were
    together for as long before it, in both cases with no more faults around.
    """
    wrong: list[str] = []
    published: dict[Stream, dict[int, Sent]] = defaultdict(dict)
    for sent in history.sent.values():
        if sent.is_reliable and sent.mode == "room":
            published[sent.process, sent.target, sent.traffic_class][sent.sequence] = sent
    taken: dict[tuple[str, Stream], list[int]] = defaultdict(list)
    for event in of_kind(history, Taken):
        sent = history.sent[event.message]
        if sent.is_reliable and sent.mode == "room":
            taken[event.process, (sent.process, sent.target, sent.traffic_class)].append(sent.sequence)
    gaps: dict[tuple[str, str, str, int], list[RoomGap]] = defaultdict(list)
    for gap in of_kind(history, RoomGap):
        gaps[gap.process, gap.sender, gap.room, gap.traffic_class].append(gap)
    connected = _connections(history, now)
    for (process, stream), sequences in taken.items():
        sender, room, traffic_class = stream
        if sequences != sorted(set(sequences)):
            wrong.append(f"{process} took {sequences} of {stream}: twice, or out of order")
        if room not in history.homes.get(process, ()) or room not in history.homes.get(sender, ()):
            continue
        if not _has_one_run(history, sender):  # gaps do not say which run of the sender they are about
            continue
        of_key = gaps[process, history.keys[sender], room, traffic_class]
        lost = [(gap, sequence) for gap in of_key for sequence in range(gap.first, gap.last + 1)]
        missing = [sequence for _gap, sequence in lost]
        if len(set(missing)) < len(missing) or set(missing) & set(sequences):
            wrong.append(f"{process} took {sequences} of {stream}, and was told of {of_key}")
        known = {*sequences, *missing}
        holes = [sequence for sequence in range(min(known), max(known)) if sequence not in known]
        if holes:
            wrong.append(f"{process} was told nothing about {holes} of {stream}")
        for begin, end in _together(connected, sender, process):
            begin = max(begin, history.healed_at, history.slow_until.get(process, 0.0))
            wrong += [
                f"R2: {process} gave {sequence} of {stream} up after {gap.at - begin:.1f} s together"
                for gap, sequence in lost
                if begin + repair_s < gap.at <= end
            ]
            tail = [
                sent
                for sequence, sent in published[stream].items()
                if sequence > max(known) and end == now and max(begin, sent.at) + repair_s < now
            ]
            wrong += [f"R1: {process} was told nothing about {sent}" for sent in tail]
    return wrong


Stream: TypeAlias = tuple[str, str, int]
"""The process that publishes, the room, and the class."""


def _has_one_run(history: History, process: str) -> bool:
    """Whether no other process had the same key."""
    return list(history.keys.values()).count(history.keys[process]) == 1


def _together(
    connected: dict[str, list[tuple[float, float, bytes]]], one: str, other: str
) -> Iterator[tuple[float, float]]:
    """When two processes were connected to the same relay."""
    for begin, end, epoch in connected[one]:
        for other_begin, other_end, other_epoch in connected[other]:
            if epoch == other_epoch and max(begin, other_begin) < min(end, other_end):
                yield max(begin, other_begin), min(end, other_end)


def _reliable(history: History) -> list[Sent]:
    return [sent for sent in history.sent.values() if sent.is_reliable and sent.mode == "peer"]


def _connections(history: History, now: float) -> dict[str, list[tuple[float, float, bytes]]]:
    """Of each process, from when to when it was connected, and to which epoch."""
    found: dict[str, list[tuple[float, float, bytes]]] = defaultdict(list)
    here: dict[str, Up] = {}

    def end(process: str, at: float) -> None:
        up = here.pop(process, None)
        if up is not None:
            found[process].append((up.at, at, up.epoch))

    for event in history.events:
        if isinstance(event, Up):
            end(event.process, event.at)
            here[event.process] = event
        elif isinstance(event, Down):
            end(event.process, event.at)
    for process in [*here]:
        end(process, history.ended.get(process, now))
    return found
