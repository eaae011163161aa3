"""What the daemon does with the garbage collector of its process, and that it gives it back."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from awesomeconnect.server import garbage
from awesomeconnect.server.garbage import FULL_INTERVAL_S, Collector
from tests.server.conftest import in_virtual_time

pytestmark = in_virtual_time


class Ring:
    """Refers to itself, so that only a collection frees it."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def _given_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(garbage, "MOST_OBJECTS", 1 << 30)  # the process of the tests has many
    before = gc.get_threshold(), list(gc.callbacks)
    yield
    assert (gc.get_threshold(), gc.callbacks) == before
    assert not gc.get_freeze_count()


async def test_what_survives_is_not_visited_again(nursery: trio.Nursery) -> None:
    collector = Collector()
    nursery.start_soon(collector.run, lambda: 0)
    await trio.testing.wait_all_tasks_blocked()
    assert collector.longest_pause_s == 0
    ring = Ring()
    gc.collect(0)
    assert collector.longest_pause_s > 0
    assert ring not in gc.get_objects()
    seen = weakref.ref(ring)
    del ring
    gc.collect()
    assert seen() is not None
    await trio.sleep(FULL_INTERVAL_S + 2)
    assert seen() is None


async def test_a_full_collection_waits_for_a_second_without_work(nursery: trio.Nursery) -> None:
    done = 0

    def work_done() -> int:
        nonlocal done
        if trio.current_time() - began < FULL_INTERVAL_S + 10.5:
            done += 1
        return done

    began = trio.current_time()
    nursery.start_soon(Collector().run, work_done)
    await trio.testing.wait_all_tasks_blocked()
    ring = Ring()
    gc.collect(0)
    seen = weakref.ref(ring)
    del ring
    await trio.sleep(FULL_INTERVAL_S + 10)
    assert seen() is not None
    await trio.sleep(3)
    assert seen() is None


async def test_no_full_collection_of_very_many_objects(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    nursery.start_soon(Collector().run, lambda: 0)
    await trio.testing.wait_all_tasks_blocked()
    monkeypatch.setattr(garbage, "MOST_OBJECTS", 1)
    ring = Ring()
    gc.collect(0)
    seen = weakref.ref(ring)
    del ring
    await trio.sleep(FULL_INTERVAL_S + 2)
    assert seen() is not None
