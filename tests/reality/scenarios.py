"""What happens to real relays while nodes talk, and what must hold afterwards."""

from __future__ import annotations

import random
import signal
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from attrs import define, field

from awesomeconnect.identity import Identity
from tests.reality.nodes import Crowd
from tests.reality.relay import RelayProcess, free_port
from tests.simulation import checks, reliable_checks

#: Two nodes on one relay have repaired what they can after this.
REPAIR_S = 25.0
#: From the last fault until everything that was sent has arrived.
SETTLING_S = 30.0


@define
class Report:
    """What a scenario came to.

    Attributes:
        violations: what must not be, in words.
        figures: what was counted and measured.
    """

    violations: list[str] = field(factory=list)
    figures: dict[str, object] = field(factory=dict)


@asynccontextmanager
async def two_places() -> AsyncIterator[tuple[RelayProcess, RelayProcess]]:
    """A relay's key, and two ports at which processes with it may serve; none runs yet, nor afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        identity = Identity.generate()
        places = (
            RelayProcess(Path(folder), identity, free_port()),
            RelayProcess(Path(folder), identity, free_port()),
        )
        try:
            yield places
        finally:
            with trio.CancelScope(shield=True):
                for place in places:
                    await place.kill()


def random_faults(kills: int) -> Iterator[str]:
    """So many kills, at the same port and another, with stops and drains in between."""
    while kills:
        fault = random.choice(("kill", "kill", "kill and move", "kill and move", "stop", "drain"))
        kills -= fault.startswith("kill")
        yield fault


async def faults_under_load(plan: Iterable[str], *, nodes: int = 12, between_s: float = 0.1) -> Report:
    """Kill the relay, stop it and drain it; then check everything.

    Args:
        plan: as `random_faults`.
        between_s: mean time between a node's bursts.
    """
    report = Report()
    faults: Counter[str] = Counter()
    async with two_places() as (here, there), trio.open_nursery() as nursery:
        await here.start()
        crowd = Crowd([here.address, there.address], nodes, 3, between_s)
        await nursery.start(crowd.run)
        for fault in plan:
            await trio.sleep(random.random())
            faults[fault] += 1
            if fault == "stop":
                here.signal(signal.SIGSTOP)
                await trio.sleep(random.random())
                here.signal(signal.SIGCONT)
                continue
            if fault == "drain":  # the other one serves before this one ends
                await there.start()
                here.signal(signal.SIGTERM)
                await here.wait_ended()
            else:
                await here.kill()
                await trio.sleep(random.choice((0.0, 0.1, 1.0)) * random.random())
                if fault == "kill":
                    await here.start()
                    continue
                await there.start()
            here, there = there, here
        await _finish(crowd, report)
        report.violations += checks.plain(crowd.history, trio.current_time())
        report.violations += _reliable_problems(crowd)
        report.violations += _errors_in(here, there)
        report.figures.update(faults, **_counted(crowd))
        crowd.closing.set()
    return report


async def drain_to_an_alternate(*, nodes: int = 12, between_s: float = 0.05) -> Report:
    """SIGTERM while a second relay serves already: nothing that the first one accepted is lost."""
    report = Report()
    async with two_places() as (here, there), trio.open_nursery() as nursery:
        await here.start()
        crowd = Crowd([here.address, there.address], nodes, 3, between_s)
        await nursery.start(crowd.run)
        await trio.sleep(1)
        await there.start()
        here.signal(signal.SIGTERM)
        begun = trio.current_time()
        await here.wait_ended()
        report.figures["drain_s"] = round(trio.current_time() - begun, 2)
        await _finish(crowd, report)
        report.violations += checks.plain(crowd.history, trio.current_time(), is_gentle=True)
        report.violations += _reliable_problems(crowd)
        report.violations += _errors_in(here, there)
        report.figures.update(_counted(crowd))
        crowd.closing.set()
    return report


async def outage(outage_s: float, *, nodes: int = 100) -> Report:
    """How soon all are back in their rooms after the relay was away.

    Args:
        outage_s: from the relay's end to its return.
    """
    report = Report()
    async with two_places() as (here, _there), trio.open_nursery() as nursery:
        await here.start()
        crowd = Crowd([here.address], nodes, 10, 0)
        await nursery.start(crowd.run)
        await here.kill()
        await trio.sleep(outage_s)
        returned = trio.current_time()  # a little early
        await here.start()
        with trio.move_on_after(15):
            while not all(talker.connected_at > returned for talker in crowd.talkers):
                await crowd.changed.wait()
        times = sorted(talker.connected_at - returned for talker in crowd.talkers)
        at_95 = times[-(-len(times) * 95 // 100) - 1]
        report.figures.update(outage_s=outage_s, back_95_s=round(at_95, 2), back_all_s=round(times[-1], 2))
        if at_95 > 3 or times[-1] > 10 or times[0] < 0:
            report.violations.append(f"95 % are back after {at_95:.2f} s (3 s), all after {times[-1]:.2f} s (10 s)")
        for talker in crowd.talkers:
            assert talker.node is not None
            listed = {crowd.key_names[member.key] for member in await talker.node.members(talker.room)}
            meant = {other.name for other in crowd.talkers if other.room == talker.room}
            if listed != meant:
                report.violations.append(f"M1: {talker.room} lacks {sorted(meant - listed)}")
        crowd.closing.set()
    return report


async def _finish(crowd: Crowd, report: Report) -> None:
    """Wait until everybody has sent the last message, and everything has arrived."""
    crowd.is_talking = False
    crowd.history.healed_at = trio.current_time()
    with trio.move_on_after(SETTLING_S):
        while not all(talker.is_done for talker in crowd.talkers):
            await crowd.changed.wait()
        await trio.sleep(1)
    crowd.finish_record()
    late = [talker.name for talker in crowd.talkers if not talker.is_done]
    if late:
        report.violations.append(f"not done after {SETTLING_S:g} s: {late}")


def _reliable_problems(crowd: Crowd) -> list[str]:
    """What is wrong with reliable messages. Nobody ends here, and no outage is long: each must arrive."""
    lost = [sent for sent in crowd.history.sent.values() if sent.is_reliable and sent.mode == "peer"]
    lost = [sent for sent in lost if sent.outcome != "delivered"]
    return [
        *reliable_checks.reliable(crowd.history, trio.current_time(), REPAIR_S),
        *(f"not delivered: {sent}" for sent in lost),
    ]


def _errors_in(*relays: RelayProcess) -> list[str]:
    """Whatever a relay logs as an error is one."""
    words = ("ERROR", "Traceback", "please report")
    return [line for relay in relays for line in relay.log().splitlines() if any(word in line for word in words)]


def _counted(crowd: Crowd) -> Counter[str]:
    counted = Counter(type(event).__name__.lower() for event in crowd.history.events)
    counted["sent"] = len(crowd.history.sent)
    return counted
