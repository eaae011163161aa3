"""What must hold of reliable messages, whatever happened: U1, U2 and U3. Pure functions over a `History`.

U1   while the sender's process lives, a message ends as delivered, expired, unknown, or refused by its receiver
U2   a process takes a message at most once, and in the order of each sender's process and class
U3   a message does not fail while both sides are connected to one relay for long enough
"""

from __future__ import annotations

from collections import defaultdict

from tests.simulation.checks import SLACK_S, of_kind
from tests.simulation.history import Down, History, Name, Sent, Taken, Up

DELIVERED, EXPIRED, UNKNOWN = "delivered", "expired", "unknown"
#: The receiver's library, or the relay, has refused the message: it is told, and final.
REFUSED = ("declined", "refused")


def reliable(history: History, now: float, repair_s: float) -> list[str]:
    """Everything that is promised of unicast messages with ``reliable=True``.

    Args:
        repair_s: how long both must be connected to one relay before a failure is one of the library.
    """
    return [*no_silent_loss(history, now), *once_and_in_order(history), *alive(history, now, repair_s)]


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
        if sent is None or not sent.is_reliable:
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
                    together_s = min(end, other_end, sent.expires_at) - max(begin, other_begin, ready)
                    if epoch == other_epoch and together_s > repair_s:
                        wrong.append(f"{sent.outcome} after {together_s:.1f} s together with {process}: {sent}")
    return wrong


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
