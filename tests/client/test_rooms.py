"""Rooms across reconnects, evictions, and lists that stay right whatever is missed."""

from __future__ import annotations

import gc

import anyio
import pytest

from awesomeconnect.client import Connected, Disconnected, PresenceChange, RoomLost
from awesomeconnect.client.watch import KEPT_CHANGES
from awesomeconnect.errors import ErrorCode, RoomRefused
from awesomeconnect.wire.messages import (
    Join,
    Joined,
    JoinFlags,
    Leave,
    Left,
    Member,
    Members,
    MembersPage,
    Presence,
    Welcome,
)
from tests.client.conftest import Connect
from tests.support.scripted import ScriptedRelay

pytestmark = pytest.mark.anyio

ONE, TWO, THREE = (Member(bytes((number,)) * 32, number) for number in (1, 2, 3))
WATCH, OBSERVE = JoinFlags.WATCH, JoinFlags.OBSERVE


def rooms_of(script: ScriptedRelay) -> dict[str, int]:
    return {intent.room: intent.flags for intent in script.hellos[-1].rooms}


async def reconnect(script: ScriptedRelay) -> None:
    connections = len(script.hellos)
    script.hang_up()
    while len(script.hellos) == connections:
        await anyio.lowlevel.checkpoint()


async def test_rooms_and_watches_are_in_the_next_hello(script: ScriptedRelay, play: Connect) -> None:
    async with play("a", "b") as node, anyio.create_task_group() as tasks:
        for room, flags, options in (("c", WATCH, {"watch": True}), ("d", OBSERVE, {"observe": True})):

            async def join(room: str = room, options: dict[str, bool] = options) -> None:
                assert (await node.join(room, **options)).member_count == 7

            tasks.start_soon(join)
            assert await script.expect(Join) == Join(room, flags)
            script.say(Joined(room, 1, 7, 0))
        tasks.start_soon(node.leave, "b")
        await script.expect(Leave)
        script.say(Left("b"))
        await anyio.wait_all_tasks_blocked()
        await reconnect(script)
        assert rooms_of(script) == {"a": 0, "c": WATCH, "d": OBSERVE}


async def test_joins_and_leaves_without_a_connection(script: ScriptedRelay, play: Connect) -> None:
    async with play("a") as node, anyio.create_task_group() as tasks:
        script.refuses = OSError(111, "Connection refused")
        script.hang_up()
        async for event in node.events():
            if isinstance(event, Disconnected):
                break
        tasks.start_soon(node.join, "b")
        tasks.start_soon(node.leave, "a")
        await anyio.wait_all_tasks_blocked()
        script.refuses = None
    assert rooms_of(script) == {"b": 0}


async def test_what_changes_while_the_greeting_is_under_way(script: ScriptedRelay, play: Connect) -> None:
    async with play("a", "b") as node, anyio.create_task_group() as tasks:
        script.welcomes = False
        await reconnect(script)
        assert rooms_of(script) == {"a": 0, "b": 0}
        tasks.start_soon(node.join, "c")
        tasks.start_soon(node.leave, "a")
        await anyio.wait_all_tasks_blocked()
        script.say(Welcome(1, bytes(8)), Joined("a", 1, 1, 0), Joined("b", 1, 1, 0))
        assert await script.expect(Join) == Join("c")
        assert await script.expect(Leave) == Leave("a")
        script.say(Joined("c", 1, 1, 0), Left("a"))


async def test_more_rooms_than_hello_takes(script: ScriptedRelay, play: Connect) -> None:
    async with anyio.create_task_group() as tasks:

        async def answer() -> None:
            while not script.hellos:
                await anyio.lowlevel.checkpoint()
            for number in range(256, 300):
                assert await script.expect(Join) == Join(f"room {number}")
                script.say(Joined(f"room {number}", 1, 1, 0))

        tasks.start_soon(answer)
        async with play(*(f"room {number}" for number in range(300))):
            assert len(script.hellos[0].rooms) == 256


async def test_a_refused_join(script: ScriptedRelay, play: Connect) -> None:
    async with play() as node, anyio.create_task_group() as tasks:

        async def join() -> None:
            with pytest.raises(RoomRefused, match="join room 'full': the room has as many members") as refused:
                await node.join("full")
            assert refused.value.code == ErrorCode.ROOM_FULL

        tasks.start_soon(join)
        await script.expect(Join)
        script.say(Left("full", ErrorCode.ROOM_FULL))
        await anyio.wait_all_tasks_blocked()
        await reconnect(script)
        assert rooms_of(script) == {}


async def test_an_eviction_is_told(script: ScriptedRelay, play: Connect) -> None:
    async with play("room") as node:
        script.say(Left("room", ErrorCode.EVICTED))
        async for event in node.events():
            if not isinstance(event, Connected):
                assert event == RoomLost("room", ErrorCode.EVICTED)
                break
        await reconnect(script)
        assert rooms_of(script) == {}


async def test_members_are_asked_page_by_page(script: ScriptedRelay, play: Connect) -> None:
    async with play("room") as node, anyio.create_task_group() as tasks:
        listed: list[Member] = []

        async def members() -> None:
            listed.extend(await node.members("room"))

        tasks.start_soon(members)
        assert await script.expect(Members) == Members("room", 0)
        script.say(MembersPage("other", 0, 1, (), None))
        script.say(MembersPage("room", 0, 5, (ONE, TWO), 2))
        assert await script.expect(Members) == Members("room", 2)
        await reconnect(script)  # the list begins again
        assert await script.expect(Members) == Members("room", 0)
        script.say(MembersPage("room", 0, 7, (THREE,), None))
        await anyio.wait_all_tasks_blocked()
        assert listed == [THREE]


async def test_a_watch_lists_then_follows(script: ScriptedRelay, play: Connect) -> None:
    async with play() as node:
        seen: list[PresenceChange] = []
        changes = node.watch("room")

        async def watch() -> None:
            async for change in changes:
                seen.append(change)  # noqa: PERF401

        async def has(*expected: tuple[int, tuple[Member, ...], tuple[bytes, ...]]) -> None:
            await node.ping()
            await anyio.wait_all_tasks_blocked()
            assert seen == [PresenceChange("room", *one) for one in expected]
            seen.clear()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            assert await script.expect(Join) == Join("room", WATCH | OBSERVE)
            script.say(Joined("room", 5, 2, 0))
            await script.expect(Members)
            # Older than the list, overlapping it, and newer:
            script.say(Presence("room", 3, 4, (), (ONE,)), MembersPage("room", 0, 5, (ONE, TWO), None))
            await has((5, (ONE, TWO), ()))
            script.say(Presence("room", 4, 6, (THREE.key,), (TWO,)))
            await has()
            script.say(Presence("room", 6, 8, (ONE.key,), (THREE,)))
            await has((8, (THREE,), (ONE.key,)))
            # Something was missed: the room is listed again, and only the difference is told.
            script.say(Presence("room", 9, 10, (), (ONE,)))
            await script.expect(Members)
            script.say(MembersPage("room", 0, 11, (TWO, ONE), None))
            await has((11, (ONE,), (THREE.key,)))
            # After a reconnect too.
            await reconnect(script)
            assert rooms_of(script) == {"room": WATCH | OBSERVE}
            await script.expect(Members)
            script.say(MembersPage("room", 0, 1, (TWO,), None))
            await has((1, (), (ONE.key,)))
            await changes.aclose()
        assert await script.expect(Leave) == Leave("room")


async def test_a_watch_ends_when_the_relay_does_not_let_one_look(script: ScriptedRelay, play: Connect) -> None:
    async with play("room") as node, anyio.create_task_group() as tasks:

        async def watch() -> None:
            with pytest.raises(RoomRefused, match="only members"):
                async for _ in node.watch("room"):
                    pass

        tasks.start_soon(watch)
        assert await script.expect(Join) == Join("room", WATCH)
        script.say(Joined("room", 1, 1, 0))
        await script.expect(Members)
        script.say(MembersPage("room", 0, 1, (ONE,), None), Left("room", ErrorCode.EVICTED))
        await script.expect(Members)
        script.say(MembersPage("room", ErrorCode.NOT_A_MEMBER, 0))


async def test_who_stops_watching_stays_in_the_room(script: ScriptedRelay, play: Connect) -> None:
    async with play("room") as node, anyio.create_task_group() as tasks:

        async def watch() -> None:
            async for _ in node.watch("room"):
                pass

        tasks.start_soon(watch)
        assert await script.expect(Join) == Join("room", WATCH)
        tasks.cancel_scope.cancel()
    assert await script.expect(Join) == Join("room")


async def test_a_watcher_that_leaves_goes_on_looking(script: ScriptedRelay, play: Connect) -> None:
    async with play("room") as node, anyio.create_task_group() as tasks:

        async def watch() -> None:
            async for _ in node.watch("room"):
                pass

        tasks.start_soon(watch)
        await script.expect(Join)
        script.say(Joined("room", 1, 1, 0))
        tasks.start_soon(node.leave, "room")
        await script.expect(Leave)
        script.say(Left("room"))
        assert await script.expect(Join) == Join("room", WATCH | OBSERVE)
        tasks.cancel_scope.cancel()


async def test_a_slow_watcher_lists_again(script: ScriptedRelay, play: Connect) -> None:
    async with play("room") as node, anyio.create_task_group() as tasks:

        async def list_room(member: Member) -> None:
            await script.expect(Members)
            script.say(MembersPage("room", 0, 1, (member,), None))

        async def join() -> None:
            await script.expect(Join)
            script.say(Joined("room", 1, 1, 0))
            await list_room(ONE)

        watch = node.watch("room")
        tasks.start_soon(join)
        assert (await anext(watch)).joined == (ONE,)
        for version in range(1, KEPT_CHANGES + 2):
            script.say(Presence("room", version, version + 1, (), (TWO,)))
        await node.ping()
        tasks.start_soon(list_room, TWO)
        assert (await anext(watch)).joined == (TWO,)


async def test_a_watch_can_be_cancelled_and_gone_on_with(script: ScriptedRelay, play: Connect) -> None:
    async with play("room") as node:
        watch = node.watch("room")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch.__anext__)
            await script.expect(Join)
            script.say(Joined("room", 1, 1, 0))
            await script.expect(Members)
            tasks.cancel_scope.cancel()
        script.say(MembersPage("room", 0, 1, (ONE,), None))
        await node.ping()
        async with anyio.create_task_group() as tasks:

            async def look() -> None:
                assert (await anext(watch)).joined == (TWO,)

            tasks.start_soon(look)
            await script.expect(Members)
            script.say(MembersPage("room", 0, 2, (TWO,), None))


async def test_a_watch_that_was_dropped_ends_with_the_next_change(script: ScriptedRelay, play: Connect) -> None:
    async with play("room") as node, anyio.create_task_group() as tasks:

        async def watch() -> None:
            async for _ in node.watch("room"):
                break

        tasks.start_soon(watch)
        await script.expect(Join)
        script.say(Joined("room", 1, 1, 0))
        await script.expect(Members)
        script.say(MembersPage("room", 0, 1, (ONE,), None))
        await anyio.wait_all_tasks_blocked()
        gc.collect()
        script.say(Presence("room", 1, 2, (), (TWO,)), Presence("room", 2, 3, (), (THREE,)))
        assert await script.expect(Join) == Join("room")
        await node.ping()
        assert script.heard.count(Join("room")) == 1


async def test_a_watch_that_is_closed_ends(script: ScriptedRelay, play: Connect) -> None:
    async with play("room") as node:
        watch = node.watch("room")
        await watch.aclose()
        await watch.aclose()
        assert [change async for change in watch] == []
