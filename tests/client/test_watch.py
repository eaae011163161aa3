"""A watch without a connection: whatever comes while its list is stale, it ends up with the right members."""

from __future__ import annotations

import pytest

from awesomeconnect.client.watch import Watch
from awesomeconnect.wire.messages import Member, Presence

pytestmark = pytest.mark.anyio

ONE, TWO = (Member(bytes((number,)) * 32, number) for number in (1, 2))


class Lister:
    """Gives the lists that a test prepares."""

    def __init__(self, *lists: tuple[int, list[Member]]) -> None:
        self._lists = iter(lists)

    async def begin_watch(self, watch: Watch) -> None:
        pass

    def end_watch(self, watch: Watch) -> None:
        pass

    async def members(self, room: str) -> tuple[int, list[Member]]:
        return next(self._lists)


async def test_a_change_that_comes_before_a_new_list_is_not_lost() -> None:
    watch = Watch(Lister((1, [ONE]), (2, [ONE, TWO])), "room")
    assert (await anext(watch)).joined == (ONE,)
    watch.relist()
    watch.add(Presence("room", 1, 2, (), (TWO,)))
    change = await anext(watch)
    assert (change.version, change.joined, change.left) == (2, (TWO,), ())
