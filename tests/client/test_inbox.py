"""What has arrived: order, pauses, losses; and the events that tell of them."""

from __future__ import annotations

import anyio
import pytest

from awesomeconnect.client import Connected, GapReport, GoingAway, Message, Refusal
from awesomeconnect.client.events import Event, EventLog
from awesomeconnect.client.inbox import OVERHEAD_BYTES, Inbox
from awesomeconnect.errors import ErrorCode
from awesomeconnect.wire.messages import Deliver, Gap, Pause, Resume
from tests.client.conftest import Connect
from tests.support.scripted import ScriptedRelay

pytestmark = pytest.mark.anyio

PEER, OTHER = bytes(range(32)), bytes(32)
CONGESTED = ErrorCode.RECEIVER_CONGESTED


def message(payload: bytes, traffic_class: int = 1, sender: bytes = PEER) -> Message:
    return Message(sender, None, 1, traffic_class, 0, payload)


class Told:
    """An inbox, and what it said."""

    def __init__(self, high_bytes: int = 250, cap_bytes: int = 500) -> None:
        self.said: list[object] = []
        self.inbox = Inbox(
            high_bytes,
            cap_bytes,
            lambda traffic_class: self.said.append(("pause", traffic_class)),
            lambda traffic_class: self.said.append(("resume", traffic_class)),
            self.said.append,
        )


async def test_the_most_urgent_class_comes_first() -> None:
    inbox = Told().inbox
    for number, traffic_class in enumerate((0, 5, 1, 5, 0)):
        inbox.put(message(b"%d" % number, traffic_class))
    taken = [inbox.take() for _ in range(6)]
    assert [item.payload if item else None for item in taken] == [b"1", b"3", b"2", b"0", b"4", None]
    assert inbox.queued_bytes == 0


async def test_a_class_is_paused_above_the_high_mark_and_resumed_at_half() -> None:
    told = Told()
    for _ in range(4):
        told.inbox.put(message(b"", 3))
    assert told.said == [("pause", 3)]
    told.inbox.put(message(b"", 3))
    for _ in range(3):
        told.inbox.take()
    assert told.said == [("pause", 3)]
    told.inbox.take()
    assert told.said == [("pause", 3), ("resume", 3)]
    assert not told.inbox.paused


async def test_beyond_the_cap_messages_are_lost_and_told_in_their_place() -> None:
    told = Told()
    for number in range(10):
        told.inbox.put(message(b"%d" % number))
    assert told.inbox.lost == 3
    for _ in range(7):
        assert told.inbox.take() is not None
    assert not any(isinstance(said, GapReport) for said in told.said)
    told.inbox.put(message(b"later"))
    later = told.inbox.take()
    assert later is not None
    assert later.payload == b"later"
    assert told.said[-1] == GapReport(None, PEER, 1, 3, 3, CONGESTED, local=True)


async def test_gaps_of_several_origins_are_one_of_none() -> None:
    told = Told(cap_bytes=OVERHEAD_BYTES)
    told.inbox.put(message(b""))
    told.inbox.put(message(b"1"))
    told.inbox.put(message(b"23", sender=OTHER))
    told.inbox.put_gap(GapReport("room", None, 1, 5, 500, CONGESTED))
    told.inbox.take()
    assert told.inbox.take() is None
    assert told.said == [
        GapReport(None, None, 1, 2, 3, CONGESTED, local=True),
        GapReport("room", None, 1, 5, 500, CONGESTED),
    ]


async def test_a_slow_application_pauses_the_relay(script: ScriptedRelay, play: Connect) -> None:
    async with play(settings={"inbox_high_bytes": 500, "inbox_bytes": 1_000}) as node:
        for number in range(12):
            script.say(Deliver(1, PEER, None, 1, 0, b"%d" % number))
        assert await script.expect(Pause) == Pause(None, 1)
        await anyio.wait_all_tasks_blocked()
        assert script.heard.count(Pause(None, 1)) == 1
        for number in range(12):
            assert (await anext(node)).payload == b"%d" % number
        assert await script.expect(Resume) == Resume(None, 1)


async def test_a_pause_is_said_again_to_the_next_connection(script: ScriptedRelay, play: Connect) -> None:
    async with play(settings={"inbox_high_bytes": 500, "inbox_bytes": 1_000}) as node:
        for _ in range(12):
            script.say(Deliver(1, PEER, None, 1, 0, b""))
        await script.expect(Pause)
        script.hang_up()
        while node.statistics().connections < 2:
            await anyio.lowlevel.checkpoint()
        assert await script.expect(Pause) == Pause(None, 1)


async def test_losses_here_and_there_are_events(script: ScriptedRelay, play: Connect) -> None:
    async with play(settings={"inbox_high_bytes": 125, "inbox_bytes": 250}) as node:
        for _ in range(10):
            script.say(Deliver(1, PEER, None, 1, 0, b"12345"))
        script.say(Gap("room", None, 5, 2, 100, CONGESTED), Deliver(1, PEER, None, 5, 0, b"after"))
        await node.ping()
        assert node.statistics().lost_messages == 7
        assert (await anext(node)).payload == b"after"
        for _ in range(3):
            await anext(node)
        script.say(Deliver(1, PEER, None, 1, 0, b"last"))
        assert (await anext(node)).payload == b"last"
        events = node.events()
        assert isinstance(await anext(events), Connected)
        assert await anext(events) == GapReport("room", None, 5, 2, 100, CONGESTED)
        assert await anext(events) == GapReport(None, PEER, 1, 7, 35, CONGESTED, local=True)


async def test_an_iterator_lets_others_run(script: ScriptedRelay, play: Connect) -> None:
    async with play() as node, anyio.create_task_group() as tasks:
        script.say(*(Deliver(1, PEER, None, 1, 0, b"") for _ in range(2_000)))
        await node.ping()
        others = 0

        async def other() -> None:
            nonlocal others
            others += 1

        tasks.start_soon(other)
        for _ in range(2_000):
            await anext(node)
        assert others == 1


# ---- the log of events ---------------------------------------------------------------------------------

LEAVE = GoingAway(ErrorCode.DRAINING, 0, 0, ())


async def read(log: EventLog, count: int) -> list[Event]:
    events = log.read()
    return [await anext(events) for _ in range(count)]


async def test_every_reader_has_all_events() -> None:
    log = EventLog(10)
    log.add(LEAVE)
    events = log.read()
    assert await anext(events) == LEAVE
    log.add(Refusal(range(1, 2), 32, 1))
    assert await read(log, 2) == [LEAVE, Refusal(range(1, 2), 32, 1)]
    assert await anext(events) == Refusal(range(1, 2), 32, 1)
    log.close()
    assert [event async for event in events] == []
    assert len([event async for event in log.read()]) == 2


async def test_the_oldest_events_go() -> None:
    log = EventLog(2)
    slow = log.read()
    for code in (1, 2, 3, 4):
        log.add(GoingAway(code, 0, 0, ()))
    assert [await anext(slow), await anext(slow)] == [GoingAway(3, 0, 0, ()), GoingAway(4, 0, 0, ())]


async def test_events_that_nobody_has_read_are_joined() -> None:
    log = EventLog(10)
    for start in (1, 2, 3, 5):
        log.add(Refusal(range(start, start + 1), 32, 1))
    log.add(Refusal(range(6, 7), 33, 1))
    log.add(Refusal(range(7, 8), 33, 2))
    for _ in range(2):
        log.add(GapReport("room", None, 1, 2, 10, 36))
    log.add(GapReport("other", None, 1, 2, 10, 36))
    expected = [
        Refusal(range(1, 4), 32, 1),
        Refusal(range(5, 6), 32, 1),
        Refusal(range(6, 7), 33, 1),
        Refusal(range(7, 8), 33, 2),
        GapReport("room", None, 1, 4, 20, 36),
        GapReport("other", None, 1, 2, 10, 36),
    ]
    assert await read(log, 6) == expected
    log.add(GapReport("other", None, 1, 1, 1, 36))
    assert await read(log, 7) == [*expected, GapReport("other", None, 1, 1, 1, 36)]
