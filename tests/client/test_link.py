"""One connection, byte by byte: greeting, closing, silence, broken protocol, and sends that stop half way."""

from __future__ import annotations

import anyio
import pytest

from awesomeconnect.client import Connected, Disconnected
from awesomeconnect.errors import (
    ConnectionBroken,
    ConnectionEnded,
    ErrorCode,
    HandshakeError,
    RemoteProtocolError,
)
from awesomeconnect.wire.messages import (
    Close,
    Deliver,
    Goaway,
    Hello,
    Joined,
    Ping,
    PingKind,
    Pong,
    Publish,
    Reject,
    StatsReport,
    Welcome,
)
from tests.client.conftest import Connect
from tests.support.scripted import ScriptedRelay

pytestmark = pytest.mark.anyio

PEER = bytes(range(32))


async def test_hello_says_who_is_there(script: ScriptedRelay, play: Connect) -> None:
    async with play("a", "b", attributes={"name": "me"}) as node:
        hello = script.hellos[0]
        assert hello.attributes == {"name": "me", "ac:reliable": 1}
        assert [intent.room for intent in hello.rooms] == ["a", "b"]
        script.hang_up()
        while len(script.hellos) != 2:
            await anyio.lowlevel.checkpoint()
        again = script.hellos[1]
        assert (again.incarnation, again.connection) == (hello.incarnation, hello.connection + 1)
        assert again.rooms == hello.rooms
        assert node.relay == script.address


async def test_limits_have_defaults(script: ScriptedRelay, play: Connect) -> None:
    script.limits = {"payload_bytes": 4_096, "future": 1}
    async with play() as node:
        assert node.limits.payload_bytes == 4_096
        assert node.limits.drop_ms == 60_000


async def test_our_close_comes_last_and_waits_for_theirs(script: ScriptedRelay, play: Connect) -> None:
    async with play() as node:
        await node.publish("room", bytes(40_000))
        await node.publish("room", b"urgent", traffic_class=5)
    kinds = [type(message) for message in script.heard]
    assert kinds == [Hello, Publish, Publish, Close]
    assert script.transport.is_closed


async def test_a_relay_that_does_not_answer_close_is_not_waited_for_long(
    script: ScriptedRelay, play: Connect
) -> None:
    async with play(settings={"closing_s": 0.01}) as node:
        script.transport.change(room_bytes=0)
        await node.publish("room", b"")
    await script.closed()
    assert not any(isinstance(message, Close) for message in script.heard)


async def test_a_cancelled_block_still_says_close(script: ScriptedRelay, play: Connect) -> None:
    with anyio.CancelScope() as scope:
        async with play():
            scope.cancel()
            await anyio.sleep_forever()
    assert isinstance(script.heard[-1], Close)
    assert script.transport.is_closed


async def test_a_record_in_part_is_the_end_of_the_connection(script: ScriptedRelay, play: Connect) -> None:
    with anyio.CancelScope() as scope:
        async with play() as node:
            script.transport.change(room_bytes=10)
            await node.publish("room", bytes(100))
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
            await anyio.sleep_forever()
    script.transport.change(room_bytes=None)
    assert [type(message) for message in script.heard] == [Hello]
    assert script.transport.is_closed


async def test_sends_go_on_where_they_stopped(script: ScriptedRelay, play: Connect) -> None:
    async with play() as node:
        script.transport.change(room_bytes=1)
        await node.publish("room", b"in parts")
        for _ in range(200):
            await anyio.wait_all_tasks_blocked()
            script.transport.change(room_bytes=1)
            if len(script.heard) > 1:
                break
        assert (await script.expect(Publish)).payload == b"in parts"
        script.transport.change(room_bytes=None)


async def test_pings_are_answered(script: ScriptedRelay, play: Connect) -> None:
    async with play():
        script.say(Ping(PingKind.KEEPALIVE, b"a"), Ping(PingKind.FLUSH, b"b"))
        assert (await script.expect(Pong)).token == b"a"
        assert (await script.expect(Pong)).token == b"b"


async def test_a_pong_answers_earlier_pings(script: ScriptedRelay, play: Connect) -> None:
    script.answers_pings = False
    async with play() as node, anyio.create_task_group() as tasks:
        tasks.start_soon(node.ping)
        tasks.start_soon(node.ping)
        await script.expect(Ping)
        second = await script.expect(Ping)
        script.say(Pong(b"unknown"), Pong(b"?" * 8), Pong(second.token))


async def test_a_silent_relay_is_asked_and_then_left(script: ScriptedRelay, play: Connect) -> None:
    script.answers_pings = False
    script.limits = {"drop_ms": 30, "keepalive_ms": 25}
    async with play() as node:
        first = script.transport
        async for event in node.events():
            if isinstance(event, Disconnected):
                assert isinstance(event.error, ConnectionBroken)
                assert "nothing was heard from the relay" in str(event.error)
                break
        assert first.is_closed


async def test_a_relay_that_answers_is_kept(script: ScriptedRelay, play: Connect) -> None:
    script.limits = {"drop_ms": 1_000, "keepalive_ms": 3}
    async with play() as node:
        for _ in range(6):
            await script.expect(Ping, kind=PingKind.KEEPALIVE)
        assert node.statistics().connections == 1


async def test_a_broken_protocol_is_told_to_the_relay(script: ScriptedRelay, play: Connect) -> None:
    async with play() as node:
        script.say(Reject(1, 1, ErrorCode.NO_MEMBERS))  # of a message that was not sent
        close = await script.expect(Close)
        assert close.code == ErrorCode.PROTOCOL_ERROR
        async for event in node.events():
            if isinstance(event, Disconnected):
                assert isinstance(event.error, RemoteProtocolError)
                assert "REJECT of message 1; 0 were sent" in str(event.error)
                break
        await node.ping()


async def test_forged_bytes_end_the_connection(script: ScriptedRelay, play: Connect) -> None:
    async with play() as node:
        script.transport.arrive(b"\x00\x20" + bytes(32))
        assert (await script.expect(Close)).code == ErrorCode.PROTOCOL_ERROR
        await node.ping()
        assert node.statistics().connections == 2


async def test_an_error_of_the_socket_is_a_broken_connection(script: ScriptedRelay, play: Connect) -> None:
    async with play() as node:
        script.transport.change(error=ConnectionResetError(104, "Connection reset by peer"))
        async for event in node.events():
            if isinstance(event, Disconnected):
                assert "Connection reset by peer" in str(event.error)
                break


async def test_messages_without_use_are_ignored(script: ScriptedRelay, play: Connect) -> None:
    async with play() as node:
        script.say(
            StatsReport({"rooms": 1}),
            Joined("unasked", 1, 1, 1),
            Deliver(1, PEER, None, 1, 9, b"content of the future"),
            Deliver(1, PEER, None, 1, 4, b"short"),
            Deliver(1, PEER, None, 1, 5, b"an answer nobody waits for"),
            Deliver(1, PEER, None, 1, 0, b"known"),
        )
        assert (await anext(node)).payload == b"known"
        assert node.statistics().ignored_messages == 3


async def test_fragments_from_the_relay_are_joined(script: ScriptedRelay, play: Connect) -> None:
    async with play() as node:
        script.say(Deliver(1, PEER, None, 1, 0, bytes(50_000)), Deliver(1, PEER, None, 5, 0, b"small"))
        await node.ping()
        assert (await anext(node)).payload == b"small"
        assert len((await anext(node)).payload) == 50_000


async def test_much_that_arrives_at_once(script: ScriptedRelay, play: Connect) -> None:
    async with play() as node:
        for _ in range(10):
            script.say(Deliver(1, PEER, None, 1, 0, bytes(30_000)))
        for _ in range(10):
            assert len((await anext(node)).payload) == 30_000


# ---- greeting ------------------------------------------------------------------------------------------


async def greeted_with(script: ScriptedRelay, play: Connect, *messages: object) -> Exception:
    """How `connect` fails when the relay greets like this."""
    script.welcomes = False

    async def greet() -> None:
        await script.expect(Hello)
        script.say(*messages)  # type: ignore[arg-type]
        if not messages:
            script.hang_up()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_after_dial, script, greet)
        with pytest.raises(Exception) as failed:  # noqa: PT011
            async with play():
                pass
    return failed.value


async def _after_dial(script: ScriptedRelay, greet: object) -> None:
    while not script.transports:
        await anyio.lowlevel.checkpoint()
    await greet()  # type: ignore[operator]


async def test_a_relay_that_sends_this_node_away(script: ScriptedRelay, play: Connect) -> None:
    error = await greeted_with(script, play, Close(ErrorCode.NOT_ALLOWED, "not on the list"))
    assert isinstance(error, ConnectionEnded)
    assert (error.code, str(error)) == (
        ErrorCode.NOT_ALLOWED,
        "the relay does not allow this key: not on the list",
    )


async def test_a_goaway_before_welcome_has_the_reason(script: ScriptedRelay, play: Connect) -> None:
    error = await greeted_with(script, play, Goaway(ErrorCode.SUPERSEDED), Close(ErrorCode.SUPERSEDED))
    assert isinstance(error, ConnectionEnded)
    assert error.code == ErrorCode.SUPERSEDED


async def test_another_revision_is_refused(script: ScriptedRelay, play: Connect) -> None:
    error = await greeted_with(script, play, Welcome(2, bytes(8)))
    assert isinstance(error, ConnectionEnded)
    assert "the relay speaks revision 2 of the protocol, this library 1" in str(error)
    assert (await script.expect(Close)).code == ErrorCode.UNSUPPORTED_REVISION


async def test_an_end_before_welcome(script: ScriptedRelay, play: Connect) -> None:
    error = await greeted_with(script, play)
    assert isinstance(error, ConnectionBroken)
    assert "ended the connection before it let this node in" in str(error)


async def test_a_reset_during_the_handshake(
    script: ScriptedRelay, play: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reset(data: bytes) -> None:
        script.transport.change(error=ConnectionResetError(104, "Connection reset by peer"))

    monkeypatch.setattr(script, "receive", reset)
    with pytest.raises(HandshakeError, match=r"Connection reset by peer; is this an AwesomeConnect relay\?"):
        async with play():
            pass


async def test_a_relay_that_never_says_joined(script: ScriptedRelay, play: Connect) -> None:
    script.welcomes = False

    async def greet() -> None:
        await script.expect(Hello)
        script.say(Welcome(1, bytes(8)))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_after_dial, script, greet)
        with pytest.raises(Exception, match=r"not into its rooms within 0\.5 s"):
            async with play("room", timeout_s=0.5):
                pass


# ---- going away ----------------------------------------------------------------------------------------


async def test_replaced_without_close_ends_the_node_too(script: ScriptedRelay, play: Connect) -> None:
    async with play() as node:
        script.say(Deliver(1, PEER, None, 1, 0, b"queued"), Goaway(ErrorCode.REPLACED))
        script.hang_up()
        assert (await anext(node)).payload == b"queued"
        with pytest.raises(ConnectionEnded) as ended:
            await anext(node)
        assert ended.value.code == ErrorCode.REPLACED
    assert len(script.hellos) == 1


async def test_an_old_session_is_renewed(script: ScriptedRelay, play: Connect) -> None:
    async with play("room") as node:
        script.say(Goaway(ErrorCode.SESSION_TOO_OLD, window_ms=1))
        first = script.transport
        async for event in node.events():
            if isinstance(event, Connected) and node.statistics().connections == 2:
                break
        assert first.is_closed
        assert [intent.room for intent in script.hellos[1].rooms] == ["room"]


async def test_a_closing_relay_gets_its_answer(script: ScriptedRelay, play: Connect) -> None:
    async with play() as node:
        first = script.connection
        script.say(Goaway(ErrorCode.DRAINING, spread_ms=1), Close(ErrorCode.DRAINING, "maintenance"))
        async for event in node.events():
            if isinstance(event, Disconnected):
                assert str(event.error) == "the relay is shutting down: maintenance"
                break
        await node.ping()
        assert first.remote_state.name == "CLOSED"  # it heard our CLOSE


async def test_an_error_in_the_library_ends_the_node(
    script: ScriptedRelay, play: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with play() as node:

        def fail(*_: object) -> None:
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr(node._inbox, "put", fail)
        script.say(Deliver(1, PEER, None, 1, 0, b""))
        with pytest.raises(ZeroDivisionError, match="a bug"):
            await anext(node)
        assert "please report it" in caplog.text


async def test_an_error_between_connections_ends_the_node(
    script: ScriptedRelay, play: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with play() as node:

        def fail(*_: object) -> None:
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr(node._dialler, "wait_s", fail)
        script.hang_up()
        with pytest.raises(ZeroDivisionError, match="a bug"):
            await anext(node)
        assert "please report it" in caplog.text


async def test_a_node_closed_between_connections(script: ScriptedRelay, play: Connect) -> None:
    async with play(settings={"backoff_s": 60, "first_cap_s": 60, "random": lambda: 1.0}) as node:
        script.hang_up()
        async for event in node.events():
            if isinstance(event, Disconnected):
                break
        await node.aclose()
        await anyio.wait_all_tasks_blocked()
        assert [message async for message in node] == []
    assert len(script.hellos) == 1


async def test_a_node_closed_while_it_dials(script: ScriptedRelay, play: Connect) -> None:
    async with play() as node:
        script.welcomes = False
        script.hang_up()
        while len(script.hellos) < 2:
            await anyio.lowlevel.checkpoint()
        await node.aclose()
        script.say(Welcome(1, bytes(8)))
        await script.expect(Close)
        await script.closed()
        assert node.statistics().connections == 1


async def test_attempts_that_fail_are_told(script: ScriptedRelay, play: Connect) -> None:
    async with play() as node:
        script.refuses = ConnectionRefusedError(111, "Connection refused")
        script.hang_up()
        failures = 0
        async for event in node.events():
            if isinstance(event, Disconnected) and "Connection refused" in str(event.error):
                failures += 1
                if failures == 3:
                    break
        script.refuses = None
        await node.ping()
