"""Publishers that wait: for room in the queue, for a receiver that is behind, for the relay's verdict."""

from __future__ import annotations

import anyio
import pytest

from awesomeconnect.client import Paused, Resumed
from awesomeconnect.errors import (
    ErrorCode,
    NoMembers,
    OutcomeUnknown,
    PayloadTooLarge,
    ReceiverGone,
    RequestTimeout,
)
from awesomeconnect.wire.messages import (
    Content,
    Deliver,
    Pause,
    Ping,
    PingKind,
    Pong,
    Publish,
    Reject,
    Resume,
    Send,
)
from tests.client.conftest import Connect
from tests.support.scripted import ScriptedRelay

pytestmark = pytest.mark.anyio

PEER, OTHER = bytes(range(32)), bytes(32)


def published(script: ScriptedRelay) -> list[bytes]:
    return [message.payload for message in script.heard if isinstance(message, Publish)]


async def test_who_waits_stops_until_resume(script: ScriptedRelay, play: Connect) -> None:
    async with play() as node:
        script.say(Pause("room", 1, 60_000), Pause("room", 1, 60_000))
        await node.ping()
        async with anyio.create_task_group() as tasks:

            async def publish() -> None:
                await node.publish("room", b"patient", wait=True)

            tasks.start_soon(publish)
            await anyio.wait_all_tasks_blocked()
            await node.publish("room", b"impatient")
            await node.publish("room", b"urgent", traffic_class=5, wait=True)
            await node.publish("other", b"elsewhere", wait=True)
            await node.ping()
            assert published(script) == [b"urgent", b"impatient", b"elsewhere"]
            script.say(Resume("room", 1), Resume("room", 1))
        await node.flush()
        assert published(script)[-1] == b"patient"
        events = node.events()
        await anext(events)
        assert [await anext(events), await anext(events)] == [Paused("room", 1), Resumed("room", 1)]


async def test_a_pause_lapses(script: ScriptedRelay, play: Connect) -> None:
    async with play() as node:
        script.say(Pause(PEER, 1, 10))
        await node.ping()
        await node.send(PEER, b"", wait=True)
        await script.expect(Send)


async def test_a_pause_that_lapsed_is_probed_with_one_message(script: ScriptedRelay, play: Connect) -> None:
    async with play() as node:
        script.say(Pause("room", 1, 5))
        await node.ping()
        script.answers_pings = False
        async with anyio.create_task_group() as tasks:

            async def publish() -> None:
                for number in range(4):
                    await node.publish("room", b"%d" % number, wait=True)

            tasks.start_soon(publish)
            ping = await script.expect(Ping, kind=PingKind.FLUSH)
            assert published(script) == [b"0"]
            # The receiver is still behind: after the lapse, which has doubled, another probe.
            started = anyio.current_time()
            script.say(Pause("room", 1, 5), Pong(ping.token))
            ping = await script.expect(Ping, kind=PingKind.FLUSH)
            assert anyio.current_time() - started >= 0.010
            assert published(script) == [b"0", b"1"]
            # No PAUSE before the PONG: the pause is over.
            script.say(Pong(ping.token))
            await anyio.wait_all_tasks_blocked()
            assert published(script) == [b"0", b"1", b"2", b"3"]
        script.answers_pings = True


async def test_a_publisher_that_waits_loses_nothing_at_a_slow_reader(enter: Connect) -> None:
    count, payload = 24, bytes(1_000_000)
    async with enter("room") as writer, enter("room") as reader, anyio.create_task_group() as tasks:

        async def publish() -> None:
            for number in range(count):
                await writer.publish("room", b"%d " % number + payload, wait=True)
            await writer.flush()

        tasks.start_soon(publish)
        for number in range(count):
            assert (await anext(reader)).payload.startswith(b"%d " % number)
            await anyio.sleep(0.005)
        assert reader.statistics().lost_messages == 0


async def test_pauses_are_bounded(script: ScriptedRelay, play: Connect) -> None:
    async with play() as node:
        for number in range(2_000):
            script.say(Pause(f"room {number}", 1, 60_000))
        await node.ping()
        assert len(node._pauses) <= 1_024


async def test_flows_are_bounded(script: ScriptedRelay, play: Connect) -> None:
    async with play() as node:
        for number in range(2_000):
            await node.publish(f"room {number}", b"")
            await node.send(number.to_bytes(32, "big"), b"")
        await node.flush()
        assert len(node._publisher._room_flows) <= 1_024
        assert len(node._publisher._other_flows) <= 1_024


async def test_who_waits_keeps_to_the_window(script: ScriptedRelay, play: Connect) -> None:
    script.answers_pings = False
    async with play(settings={"window_bytes": 1_000}) as node:
        async with anyio.create_task_group() as tasks:
            done = 0

            async def publish() -> None:
                nonlocal done
                for _ in range(5):
                    await node.publish("room", bytes(400), wait=True)
                    done += 1

            tasks.start_soon(publish)
            for expected in (2, 4):
                ping = await script.expect(Ping, kind=PingKind.FLUSH)
                await anyio.wait_all_tasks_blocked()
                assert done == expected
                script.say(Pong(ping.token))
        script.answers_pings = True
        await node.flush()
        await node.publish("room", bytes(5_000), wait=True)  # over the window, but alone


async def test_publishers_wait_for_room_in_the_queue(script: ScriptedRelay, play: Connect) -> None:
    async with play(settings={"queue_bytes": 1_000}) as node:
        script.transport.change(room_bytes=0)
        await node.publish("room", bytes(900))
        await anyio.wait_all_tasks_blocked()  # it is sealed, and stuck in the socket
        for _ in range(2):
            await node.publish("room", bytes(450))
        with pytest.raises(anyio.WouldBlock):
            node.publish_nowait("room", bytes(450))
        await node.publish("room", b"other class", traffic_class=2)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(node.publish, "room", b"waiting" * 50)
            await anyio.wait_all_tasks_blocked()
            assert node.statistics().queued_messages == 3
            script.transport.change(room_bytes=None)
        await node.flush()
        assert len(published(script)) == 5


async def test_a_waiting_publisher_learns_of_a_smaller_limit(script: ScriptedRelay, play: Connect) -> None:
    async with play(settings={"first_cap_s": 0.05}) as node:
        script.limits = {"payload_bytes": 4_096}
        script.hang_up()
        while node.is_connected:
            await anyio.lowlevel.checkpoint()
        with pytest.raises(PayloadTooLarge, match="the relay takes 4,096 at most"):
            await node.publish("room", bytes(5_000))


async def test_a_cancelled_publish_was_not_queued(script: ScriptedRelay, play: Connect) -> None:
    async with play(settings={"queue_messages": 1}) as node:
        script.transport.change(room_bytes=0)
        await node.publish("room", b"stuck")
        await anyio.wait_all_tasks_blocked()
        await node.publish("room", b"queued")
        with anyio.move_on_after(0.01) as scope:
            await node.publish("room", b"cancelled")
        assert scope.cancelled_caught
        script.transport.change(room_bytes=None)
        await node.flush()
        assert published(script) == [b"stuck", b"queued"]


async def test_a_long_publish_loop_lets_others_run(script: ScriptedRelay, play: Connect) -> None:
    async with play() as node:
        for _ in range(1_000):
            await node.publish("room", bytes(128))
        assert published(script)


async def test_a_flush_goes_on_after_a_reconnect(script: ScriptedRelay, play: Connect) -> None:
    script.answers_pings = False
    async with play() as node, anyio.create_task_group() as tasks:
        script.transport.change(room_bytes=0)
        await node.publish("room", b"1")
        await anyio.wait_all_tasks_blocked()
        await node.publish("room", b"2")
        script.answers_pings = True

        async def flush() -> None:
            with pytest.raises(OutcomeUnknown, match="1 message") as unknown:
                await node.flush()
            assert unknown.value.ordinals == range(1, 2)

        tasks.start_soon(flush)
        await anyio.wait_all_tasks_blocked()
        script.hang_up()
    assert published(script) == [b"2"]


async def test_a_flush_of_a_node_that_ends(script: ScriptedRelay, play: Connect) -> None:
    async with play() as node:
        script.transport.change(room_bytes=0)
        await node.publish("room", b"1")
        await anyio.wait_all_tasks_blocked()
        await node.publish("room", b"2")
        script.refuses = OSError(1, "no")
        script.hang_up()
        while node.is_connected:
            await anyio.lowlevel.checkpoint()
        await node.aclose()
        with pytest.raises(ExceptionGroup) as group:
            await node.flush()
        assert [str(problem).split(" ")[0] for problem in group.value.exceptions] == ["the", "the"]
        assert "the node is closed" in str(group.value.exceptions[1])


# ---- requests ------------------------------------------------------------------------------------------


async def test_answers_of_others_are_ignored(script: ScriptedRelay, play: Connect) -> None:
    async with play() as node, anyio.create_task_group() as tasks:

        async def ask() -> None:
            assert await node.request(PEER, b"?") == b"right"

        tasks.start_soon(ask)
        request = await script.expect(Send)
        assert (request.content, request.payload[8:]) == (Content.REQUEST, b"?")
        request_id = request.payload[:8]
        script.say(
            Deliver(1, OTHER, None, 1, Content.RESPONSE, request_id + b"\0forged"),
            Deliver(1, PEER, None, 1, Content.RESPONSE, bytes(8) + b"\0other request"),
            Deliver(1, PEER, None, 1, Content.RESPONSE, request_id),
            Deliver(0, PEER, "room", 1, Content.RESPONSE, request_id + b"\0to all"),
            Deliver(1, PEER, None, 1, Content.RESPONSE, request_id + b"\0right"),
            Deliver(1, PEER, None, 1, Content.RESPONSE, request_id + b"\0too late"),
        )
    assert node.statistics().ignored_messages >= 4


async def test_a_request_to_all_is_none(script: ScriptedRelay, play: Connect) -> None:
    async with play() as node:
        script.say(
            Deliver(0, PEER, "room", 4, Content.REQUEST, b"12345678body"),
            Deliver(0, PEER, "room", 4, Content.APPLICATION, b"next"),
        )
        assert (await anext(node)).payload == b"next"
        assert node.statistics().ignored_messages == 1


async def test_an_answer_goes_back_in_the_class_of_the_request(script: ScriptedRelay, play: Connect) -> None:
    async with play() as node:
        script.say(Deliver(2, PEER, "room", 4, Content.REQUEST, b"12345678body"))
        message = await anext(node)
        assert (message.request_id, message.payload, message.is_request) == (b"12345678", b"body", True)
        await node.reply(message, b"yes")
        await node.reply_error(message, "nö")
        assert await script.expect(Send) == Send(PEER, 4, Content.RESPONSE, b"12345678\0yes")
        assert (await script.expect(Send)).payload == b"12345678\1" + "nö".encode()


async def test_a_lost_connection_fails_a_request(script: ScriptedRelay, play: Connect) -> None:
    async with play() as node, anyio.create_task_group() as tasks:

        async def ask() -> None:
            with pytest.raises(OutcomeUnknown, match="it may have been acted upon"):
                await node.request(PEER, b"?")

        tasks.start_soon(ask)
        await script.expect(Send)
        script.hang_up()


async def test_a_request_that_did_not_leave_leaves_later(script: ScriptedRelay, play: Connect) -> None:
    async with play() as node, anyio.create_task_group() as tasks:
        script.transport.change(room_bytes=0)
        await node.send(OTHER, b"stuck")
        await anyio.wait_all_tasks_blocked()

        async def ask() -> None:
            assert await node.request(PEER, b"?") == b"!"

        tasks.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        script.hang_up()
        while len(script.transports) < 2:
            await anyio.lowlevel.checkpoint()
        request = await script.expect(Send)
        script.say(Deliver(1, PEER, None, 1, Content.RESPONSE, request.payload[:8] + b"\0!"))


async def test_a_refused_request_is_not_told_by_flush(script: ScriptedRelay, play: Connect) -> None:
    async with play() as node, anyio.create_task_group() as tasks:

        async def ask() -> None:
            with pytest.raises(NoMembers):
                await node.request(PEER, b"?")

        tasks.start_soon(ask)
        await script.expect(Send)
        script.say(Reject(1, 1, 32))
        await node.flush()


async def test_a_message_refused_with_a_request_is_told_by_flush(script: ScriptedRelay, play: Connect) -> None:
    async with play() as node, anyio.create_task_group() as tasks:

        async def ask() -> None:
            with pytest.raises(ReceiverGone):
                await node.request(PEER, b"?")

        tasks.start_soon(ask)
        await script.expect(Send)
        await node.send(PEER, b".")
        await script.expect(Send)
        script.say(Reject(1, 2, ErrorCode.RECEIVER_GONE))
        with pytest.raises(ReceiverGone):
            await node.flush()


async def test_a_refusal_after_the_timeout_is_told_by_flush(script: ScriptedRelay, play: Connect) -> None:
    async with play() as node:
        with pytest.raises(RequestTimeout):
            await node.request(PEER, b"?", timeout_s=0.001)
        await script.expect(Send)
        script.say(Reject(1, 1, 32))
        await node.ping()
        with pytest.raises(NoMembers):
            await node.flush()
