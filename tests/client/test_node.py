"""Every method of a node, against a real relay, under both event loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from awesomeconnect.client import ClientSettings, Connected, Message, Node, Refusal
from awesomeconnect.errors import (
    AddressError,
    ConnectionEnded,
    KeyFileError,
    LocalProtocolError,
    NoMembers,
    NoSuchPeer,
    OutcomeUnknown,
    PayloadTooLarge,
    Refused,
    RequestFailed,
    RequestTimeout,
    RoomRefused,
)
from awesomeconnect.identity import Identity
from awesomeconnect.wire.messages import Mode, TrafficClass
from tests.client.conftest import Connect
from tests.support.relay import ThreadedRelay

pytestmark = pytest.mark.anyio

STRANGER = Identity.from_seed(bytes(32)).public_key


async def test_publish_reaches_the_other_members(enter: Connect) -> None:
    async with enter("weather") as one, enter("weather") as two, enter("weather") as three:
        await one.publish("weather", b"sunny")
        expected = Message(one.key, "weather", Mode.BROADCAST, TrafficClass.DATA, 0, b"sunny")
        assert await anext(two) == expected
        assert await anext(three) == expected
        assert not expected.is_request


async def test_one_who_is_not_in_the_room_may_publish(enter: Connect) -> None:
    async with enter("weather") as member, enter() as guest:
        await guest.publish("weather", bytearray(b"rain"), traffic_class=TrafficClass.URGENT)
        message = await anext(member)
        assert (message.sender, message.payload, message.traffic_class) == (guest.key, b"rain", 5)


async def test_send_reaches_one_peer(enter: Connect) -> None:
    async with enter() as one, enter() as two:
        await one.send(two.key, memoryview(b"hello"))
        assert await anext(two) == Message(one.key, None, Mode.UNICAST, 1, 0, b"hello")
        await two.send(two.key, b"note to self")
        assert (await anext(two)).sender == two.key


async def test_reliable_messages_under_both_event_loops(enter: Connect, relay: ThreadedRelay) -> None:
    async with enter("room") as one, enter("room") as two, anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: one.send(two.key, b"certain", reliable=True, sealed=True))
        message = await anext(two)
        assert (message.payload, message.is_reliable, message.is_sealed) == (b"certain", True, True)
        delivery = await one.post(two.key, b"later")
        relay.kill()
        relay.start()
        assert (await anext(two)).payload == b"later"
        await delivery.wait()
        await one.publish("room", b"to all", reliable=True)
        assert (await anext(two)).payload == b"to all"


async def test_send_any_reaches_one_member(enter: Connect) -> None:
    async with enter("workers") as one, enter("workers") as two, enter() as boss:
        for number in range(4):
            await boss.send_any("workers", b"%d" % number)
        await boss.flush()
        done = []
        for worker in (one, two):
            for _ in range(2):
                message = await anext(worker)
                assert message.mode == Mode.ANYCAST
                assert message.room == "workers"
                done.append(message.payload)
        assert sorted(done) == [b"0", b"1", b"2", b"3"]


@pytest.mark.parametrize("size", [0, 23, 24, 255, 256, 17_000, 20_000, 65_536, 1_048_576])
async def test_payloads_of_all_sizes_arrive_whole(enter: Connect, size: int) -> None:
    payload = bytes(range(256)) * (size // 256) + bytes(size % 256)
    async with enter() as one, enter() as two:
        await one.send(two.key, payload, wait=True)
        assert (await anext(two)).payload == payload


async def test_many_messages_keep_their_order(enter: Connect) -> None:
    count = 5_000
    async with enter("room") as one, enter("room") as two:
        async with anyio.create_task_group() as tasks:

            async def publish() -> None:
                for number in range(count):
                    await one.publish("room", b"%d" % number, wait=True)
                await one.flush()

            tasks.start_soon(publish)
            for number in range(count):
                assert (await anext(two)).payload == b"%d" % number
        assert two.statistics().received_messages == count
        assert two.statistics().inbox_bytes == 0
        assert one.statistics().queued_messages == one.statistics().queued_bytes == 0


async def test_publish_nowait(enter: Connect) -> None:
    async with enter("room") as one, enter("room") as two:
        receipt = one.publish_nowait("room", b"now")
        assert receipt.ordinal is None
        assert (await anext(two)).payload == b"now"
        assert receipt.ordinal == 1
        assert repr(receipt) == f"Receipt(ordinal=1, connection={receipt.connection})"
        with pytest.raises(PayloadTooLarge):
            one.publish_nowait("room", bytes(one.limits.payload_bytes + 1))


async def test_flush_raises_a_refusal(enter: Connect) -> None:
    async with enter("empty") as node:
        receipt = await node.publish("empty", b"is anybody here?")
        with pytest.raises(NoMembers, match="publish to room 'empty': nobody else is in the room") as refused:
            await node.flush()
        assert refused.value.ordinals == range(receipt.ordinal or 0, (receipt.ordinal or 0) + 1)
        await node.flush()  # it was told once
        events = node.events()
        assert isinstance(await anext(events), Connected)
        refusal = await anext(events)
        assert refusal == Refusal(range(1, 2), refused.value.code, 1)
        assert str(refusal) == "messages 1 to 1 refused: no_members"


async def test_flush_raises_all_refusals(enter: Connect) -> None:
    async with enter() as node:
        for _ in range(300):
            await node.publish("empty", b"?")
        await node.send(STRANGER, b"?")
        await node.send_any("empty", b"?")
        with pytest.raises(ExceptionGroup) as group:
            await node.flush()
        problems = [problem for problem in group.value.exceptions if isinstance(problem, Refused)]
        assert [type(problem) for problem in problems] == [NoMembers, NoSuchPeer, NoMembers]
        assert [problem.ordinals for problem in problems] == [range(1, 301), range(301, 302), range(302, 303)]
        assert "send to " + STRANGER.hex()[:8] in str(problems[1])
        assert "send to any member of room 'empty'" in str(problems[2])


async def test_flush_says_how_many_refusals_it_does_not_name(enter: Connect) -> None:
    settings = ClientSettings(kept_problems=2)
    async with enter(settings=settings) as node:
        for number in range(5):
            await node.publish(f"empty {number}", b"?")
        with pytest.raises(ExceptionGroup, match="not all accepted, and 3 more problems") as group:
            await node.flush()
        assert len(group.value.exceptions) == 2


async def test_request_and_reply(enter: Connect) -> None:
    async with enter("service") as server, enter() as client:

        async def serve() -> None:
            async for message in server:
                assert message.is_request
                if message.payload == b"bad":
                    await server.reply_error(message, "cannot do that")
                elif message.payload != b"hard":
                    await server.reply(message, message.payload.upper())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve)
            assert await client.request(server.key, b"abc") == b"ABC"
            assert await client.request_any("service", b"any") == b"ANY"
            with pytest.raises(RequestFailed, match="cannot do that"):
                await client.request(server.key, b"bad")
            with pytest.raises(RequestTimeout, match=r"send to .*: no answer in 0\.01 s"):
                await client.request(server.key, b"hard", timeout_s=0.01)
            answers: dict[int, bytes] = {}

            async def ask(number: int) -> None:
                answers[number] = await client.request(server.key, b"n%d" % number)

            async with anyio.create_task_group() as asking:
                for number in range(100):
                    asking.start_soon(ask, number)
            assert answers == {number: b"N%d" % number for number in range(100)}
            tasks.cancel_scope.cancel()


async def test_a_refused_request_fails_at_once(enter: Connect) -> None:
    async with enter() as node:
        with pytest.raises(NoSuchPeer):
            await node.request(STRANGER, b"?", timeout_s=60)
        with pytest.raises(NoMembers):
            await node.request_any("empty", b"?", timeout_s=60)
        await node.flush()  # says nothing of them


async def test_only_requests_can_be_answered(enter: Connect) -> None:
    async with enter() as node:
        with pytest.raises(ValueError, match="only a request can be answered"):
            await node.reply(Message(STRANGER, None, 1, 1, 0, b""), b"")


async def test_join_leave_and_members(enter: Connect) -> None:
    async with enter("room", attributes={"name": "one"}) as one, enter() as two:
        joined = await two.join("room")
        assert (joined.room, joined.member_count) == ("room", 2)
        members = await two.members("room")
        assert [member.key for member in members] == [one.key, two.key]
        assert members[0].attributes == {"name": "one", "ac:reliable": 1}
        await two.leave("room")
        assert [member.key for member in await one.members("room")] == [one.key]
        with pytest.raises(RoomRefused, match="list members of room 'room': only members"):
            await two.members("room")
        await two.join("room", observe=True)
        assert [member.key for member in await two.members("room")] == [one.key]
        await two.leave("nowhere")


async def test_a_join_said_after_a_leave_comes_after_it(enter: Connect) -> None:
    async with enter("room", "other") as one, enter("other") as two:
        async with anyio.create_task_group() as tasks:
            await one.publish("other", bytes(100_000))
            tasks.start_soon(one.leave, "room")
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(one.join, "room")
        assert len(await one.members("room")) == 1
        assert len((await anext(two)).payload) == 100_000


async def test_many_members_come_in_pages(relay: ThreadedRelay, enter: Connect) -> None:
    attributes = {"name": "x" * 900}
    async with anyio.create_task_group() as tasks:
        stop, joined = anyio.Event(), []

        async def live() -> None:
            async with enter("crowd", attributes=attributes) as node:
                joined.append(node.key)
                await stop.wait()

        for _ in range(60):
            tasks.start_soon(live)
        async with enter() as looker:
            async for change in looker.watch("crowd"):
                assert change.room == "crowd"
                members = await looker.members("crowd")
                if len(members) == 60:
                    assert {member.key for member in members} == set(joined)
                    break
        stop.set()


async def test_watch_begins_with_the_members_and_tells_changes(enter: Connect) -> None:
    async with enter("room") as one, enter() as watcher:
        changes = watcher.watch("room")
        first = await anext(changes)
        assert [member.key for member in first.joined] == [one.key]
        assert first.left == ()
        async with enter("room") as two:
            second = await anext(changes)
            assert [member.key for member in second.joined] == [two.key]
            assert second.version > first.version
        third = await anext(changes)
        assert third.left == (two.key,)
        await changes.aclose()
        with pytest.raises(RoomRefused):  # it no longer observes the room
            await watcher.members("room")


async def test_two_watches_of_a_room_one_is_in(enter: Connect) -> None:
    async with enter("room") as node:
        first, second = node.watch("room"), node.watch("room")
        for changes in (first, second):
            assert [member.key for member in (await anext(changes)).joined] == [node.key]
        await first.aclose()
        async with enter("room") as other:
            assert [member.key for member in (await anext(second)).joined] == [other.key]
        await node.leave("room")
        left: set[bytes] = set()
        while left != {node.key, other.key}:  # it goes on looking from outside
            left.update((await anext(second)).left)
        await second.aclose()


async def test_ping(enter: Connect) -> None:
    async with enter() as node:
        assert 0 < await node.ping() < 5


async def test_facts(relay: ThreadedRelay, enter: Connect) -> None:
    identity = Identity.generate()
    async with enter(identity=identity) as node:
        assert node.key == identity.public_key
        assert str(node.relay) == relay.address
        assert node.limits.payload_bytes == 1_048_576
        assert node.is_connected
        assert node.statistics().connections == 1
    assert not node.is_connected


async def test_iteration_ends_when_the_node_is_closed(enter: Connect) -> None:
    async with enter() as one, enter() as two:
        await one.send(two.key, b"last")
        await one.flush()
        await two.ping()  # what was sent before has arrived
        await two.aclose()
        await two.aclose()
        assert [message.payload async for message in two] == [b"last"]
        assert [type(event) async for event in two.events()] == [Connected]
        for refused in (
            two.publish("room", b""),
            two.ping(),
            two.join("room"),
            two.leave("room"),
            two.members("r"),
        ):
            with pytest.raises(ConnectionEnded, match="the node is closed"):
                await refused
        with pytest.raises(ConnectionEnded, match="the node is closed"):
            two.publish_nowait("room", b"")


async def test_what_was_published_before_the_end_arrives(enter: Connect) -> None:
    async with enter() as reader:
        async with enter() as writer:
            for _ in range(20):
                await writer.send(reader.key, bytes(100_000))
        for _ in range(20):
            assert len((await anext(reader)).payload) == 100_000


async def test_waiting_ends_when_the_node_is_closed(enter: Connect) -> None:
    ended = []

    async def iterate(node: Node) -> None:
        async for _ in node:
            pass
        ended.append("messages")

    async def watch(node: Node, watching: anyio.Event) -> None:
        async for _ in node.watch("room"):
            watching.set()
        ended.append("watch")

    async def listen(node: Node) -> None:
        async for _ in node.events():
            pass
        ended.append("events")

    async def ask(node: Node) -> None:
        with pytest.raises(OutcomeUnknown, match="the connection ended before the answer"):
            await node.request(node.key, b"?", timeout_s=60)
        ended.append("request")

    async with enter() as node, anyio.create_task_group() as tasks:
        watching = anyio.Event()
        tasks.start_soon(watch, node, watching)
        tasks.start_soon(listen, node)
        await watching.wait()
        tasks.start_soon(ask, node)
        assert (await anext(node)).is_request
        tasks.start_soon(iterate, node)
        await node.ping()
        await node.aclose()
    assert sorted(ended) == ["events", "messages", "request", "watch"]


async def test_errors_of_the_block_come_out_as_they_are(enter: Connect) -> None:
    with pytest.raises(KeyError) as error:
        async with enter("room"):
            raise KeyError("mine")
    assert error.value.__cause__ is None
    with pytest.raises(ExceptionGroup, match="mine"):
        async with enter("room"):
            raise ExceptionGroup("mine", [KeyError()])


async def test_the_block_can_be_cancelled(enter: Connect) -> None:
    with anyio.CancelScope() as scope:
        async with enter("room") as node:
            scope.cancel()
            await anext(node)
    assert scope.cancelled_caught
    assert not node.is_connected


async def test_bad_arguments_are_refused_before_anything_is_sent(enter: Connect) -> None:
    async with enter() as node:
        for room in ("", "x" * 129, "a\nb", "@me/room"):
            with pytest.raises(RoomRefused, match="room name"):
                await node.publish(room, b"")
            with pytest.raises(RoomRefused, match="room name"):
                await node.send_any(room, b"")
            with pytest.raises(RoomRefused, match="room name"):
                await node.join(room)
        for peer in (b"", bytes(31), "a" * 64):
            with pytest.raises(AddressError, match="32 bytes"):
                await node.send(peer, b"")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"a payload is bytes, not str; encode text"):
            await node.publish("room", "text")  # type: ignore[arg-type]
        with pytest.raises(LocalProtocolError, match="traffic_class must be an integer from 0 to 6"):
            await node.publish("room", b"", traffic_class=7)
        limit = node.limits.payload_bytes
        with pytest.raises(PayloadTooLarge, match="publish to room 'room': the payload has 1,048,577 bytes"):
            await node.publish("room", bytes(limit + 1))
        with pytest.raises(PayloadTooLarge):
            await node.request(node.key, bytes(limit))
        assert node.statistics().undecided_bytes == 0


async def test_bad_arguments_of_connect(relay: ThreadedRelay, enter: Connect, tmp_path: Path) -> None:
    cases: list[tuple[type[Exception], dict[str, Any]]] = [
        (KeyFileError, {"identity": tmp_path / "missing"}),
        (LocalProtocolError, {"attributes": {"name": 1.5}}),
        (LocalProtocolError, {"attributes": {f"name {number}": 1 for number in range(17)}}),
    ]
    for error, options in cases:
        with pytest.raises(error):
            async with enter(**options):
                pass
    with pytest.raises(RoomRefused, match="control characters"):
        async with enter("a\x00b"):
            pass
    with pytest.raises(RoomRefused, match=r"join room '@.*': this room is owned"):
        async with enter(f"@{STRANGER.hex()}/room"):
            pass


async def test_an_identity_can_be_a_key_file(enter: Connect, tmp_path: Path) -> None:
    identity = Identity.generate()
    identity.save(tmp_path / "key")
    async with enter(identity=tmp_path / "key") as node:
        assert node.key == identity.public_key


async def test_an_owned_room_is_its_owners(enter: Connect) -> None:
    identity = Identity.generate()
    room = f"@{identity.public_key.hex()}/room"
    async with enter(room, identity=identity) as owner, enter() as other:
        assert len(await owner.members(room)) == 1
        with pytest.raises(RoomRefused, match="ask its owner"):
            await other.join(room)
        await other.publish(room, b"?")
        with pytest.raises(RoomRefused):
            await other.flush()
        with pytest.raises(RoomRefused):
            await anext(other.watch(room))
