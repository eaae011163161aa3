"""What happens when there is no relay, another relay, or none any more."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from awesomeconnect.client import (
    ClientSettings,
    Connected,
    Disconnected,
    GoingAway,
    Node,
    Process,
    connect,
)
from awesomeconnect.client.reconnect import Backoff, ended_text, ends_node, is_final
from awesomeconnect.errors import (
    AddressError,
    ConnectFailed,
    ConnectionBroken,
    ConnectionEnded,
    ErrorCode,
    HandshakeError,
    OutcomeUnknown,
    RelayKeyMismatch,
)
from awesomeconnect.identity import Identity
from awesomeconnect.wire.messages import Incarnation
from tests.client.conftest import AT_ONCE, Connect
from tests.support.relay import PATIENCE_S, ThreadedRelay

pytestmark = pytest.mark.anyio

NOBODY = Identity.from_seed(bytes(32)).public_key.hex()


async def until(node: Node, kind: type) -> list[object]:
    """The node's events up to the first of a kind."""
    seen: list[object] = []
    with anyio.fail_after(PATIENCE_S):
        async for event in node.events():
            seen.append(event)
            if isinstance(event, kind):
                return seen
    raise AssertionError(f"no {kind.__name__} among {seen}")


async def reconnected(node: Node, connections: int = 2) -> list[object]:
    """The node's events up to its n-th connection."""
    seen: list[object] = []
    with anyio.fail_after(PATIENCE_S):
        async for event in node.events():
            seen.append(event)
            connections -= isinstance(event, Connected)
            if not connections:
                break
    return seen


async def test_a_killed_relay_comes_back(relay: ThreadedRelay, enter: Connect) -> None:
    async with enter("room") as one, enter("room", attributes={"name": "two"}) as two:
        changes = one.watch("room")
        await anext(changes)
        relay.kill()
        await until(one, Disconnected)
        assert not one.is_connected
        with pytest.raises(anyio.WouldBlock):
            one.publish_nowait("room", b"")
        relay.start()
        seen = await reconnected(one)
        await reconnected(two)
        first, *between, last = seen
        assert isinstance(first, Connected)
        assert isinstance(last, Connected)
        assert first.epoch != last.epoch
        assert all(isinstance(event, Disconnected) and event.retry_in_s is not None for event in between)
        while len(await one.members("room")) < 2:
            await anext(changes)
        members = {member.key: member.attributes.get("name") for member in await one.members("room")}
        assert members == {one.key: None, two.key: "two"}
        await one.publish("room", b"still here")
        assert (await anext(two)).payload == b"still here"
        assert one.statistics().connections == 2


async def test_a_publisher_waits_for_the_connection(relay: ThreadedRelay, enter: Connect) -> None:
    async with enter() as one, enter() as two:
        relay.kill()
        await until(one, Disconnected)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.send, two.key, b"patience")
            tasks.start_soon(one.join, "room")
            await anyio.wait_all_tasks_blocked()
            relay.start()
            await reconnected(two)
        # The peer may have been a moment later than the message.
        try:
            await one.flush()
        except Exception:
            await one.send(two.key, b"patience")
        assert (await anext(two)).payload == b"patience"
        assert len(await one.members("room")) == 1


async def test_a_draining_relay_is_left_and_found_again(relay: ThreadedRelay, enter: Connect) -> None:
    async with enter("room") as node:
        await anyio.to_thread.run_sync(relay.drain)
        relay.start()
        seen = await reconnected(node)
        going = next(event for event in seen if isinstance(event, GoingAway))
        assert going.code == ErrorCode.DRAINING
        disconnected = next(event for event in seen if isinstance(event, Disconnected))
        assert isinstance(disconnected.error, ConnectionEnded)
        assert disconnected.retry_in_s is not None
        assert disconnected.retry_in_s <= going.spread_ms / 1000
        assert len(await node.members("room")) == 1


async def test_the_next_relay_is_tried(relay: ThreadedRelay) -> None:
    dead = ThreadedRelay(identity=relay.identity)
    dead.place = f"127.0.0.1:{_free_port()}"
    async with connect([dead.address, relay.address], settings=ClientSettings(**AT_ONCE)) as node:
        assert str(node.relay) == relay.address
        relay.kill()
        await until(node, Disconnected)
        dead.start()
        try:
            await reconnected(node)
            assert str(node.relay) == dead.address
        finally:
            dead.kill()


async def test_another_process_with_the_same_key_ends_the_node(enter: Connect) -> None:
    identity = Identity.generate()
    async with enter("room", identity=identity) as one:
        watch = one.watch("room")
        settings = ClientSettings(process=Process())
        async with enter(identity=identity, settings=settings) as two:
            with pytest.raises(ConnectionEnded, match="another process connected with the same key") as ended:
                await anext(one)
            assert ended.value.code == ErrorCode.REPLACED
            seen = [event async for event in one.events()]
            assert isinstance(seen[-1], Disconnected)
            assert seen[-1].retry_in_s is None
            await one.flush()  # nothing is open
            for again in (one.publish("room", b""), anext(one), one.ping(), anext(watch)):
                with pytest.raises(ConnectionEnded, match="another process"):
                    await again
            await two.ping()


async def test_a_newer_connection_of_this_process_takes_over(enter: Connect) -> None:
    identity = Identity.generate()
    async with enter(identity=identity) as one, enter(identity=identity) as two:
        with pytest.raises(ConnectionEnded, match="this process made a newer connection"):
            await anext(one)
        await two.ping()


async def test_a_wrong_key_is_told(relay: ThreadedRelay) -> None:
    wrong = f"ac://{NOBODY}@{relay.place}"
    with pytest.raises(RelayKeyMismatch) as error:
        async with connect(wrong):
            pass
    text = str(error.value)
    assert f"the relay proved the key {relay.identity.public_key.hex()}" in text
    assert f"but its address names {NOBODY}" in text
    assert "ask the relay's operator" in text


async def test_a_relay_that_comes_back_with_another_key_is_not_dialled_again(
    relay: ThreadedRelay, enter: Connect
) -> None:
    async with enter() as node:
        impostor = ThreadedRelay(relay.place)
        relay.kill()
        impostor.start()
        try:
            with pytest.raises(RelayKeyMismatch):
                await anext(node)
        finally:
            impostor.kill()


async def test_unreachable_relays_are_listed() -> None:
    addresses = [f"ac://{NOBODY}@127.0.0.1:{_free_port()}", f"ac://{NOBODY}@/nowhere/relay.sock"]
    with pytest.raises(ConnectFailed) as error:
        async with connect(addresses):
            pass
    text = str(error.value)
    assert text.startswith("none of 2 relays could be reached:")
    assert f"{addresses[0]}: cannot connect to {addresses[0]}: Connection refused; is the relay running?" in text
    assert "No such file or directory" in text


async def test_a_name_that_does_not_resolve() -> None:
    with pytest.raises(ConnectFailed, match="is the relay running"):
        async with connect(f"ac://{NOBODY}@relay.invalid:1", timeout_s=5):
            pass


async def test_no_address() -> None:
    with pytest.raises(AddressError, match="no relay address"):
        async with connect([]):
            pass
    with pytest.raises(AddressError, match="not a relay address"):
        async with connect("http://example.org"):
            pass


@pytest.fixture(params=["http", "hangs up", "silent"])
def stranger(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """Something else that listens, and where."""
    listener = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def serve() -> None:
        connected, _ = listener.accept()
        with connected:
            if request.param == "silent":
                done.wait(PATIENCE_S)
            else:
                connected.recv(64)
            if request.param == "http":
                connected.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n" + b"<html>" * 50)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield request.param, f"ac://{NOBODY}@127.0.0.1:{listener.getsockname()[1]}"
    done.set()
    thread.join(PATIENCE_S)
    listener.close()


async def test_something_else_listens_there(stranger: tuple[str, str]) -> None:
    kind, address = stranger
    expected = ConnectFailed if kind == "silent" else HandshakeError
    with pytest.raises(expected, match="is this an AwesomeConnect relay") as error:
        async with connect(address, timeout_s=0.2):
            pass
    assert "127.0.0.1" in str(error.value)


@pytest.mark.parametrize("listen", ["[::1]:0", "relay.sock", "localhost:0"])
async def test_addresses_of_all_kinds(listen: str, tmp_path: Path) -> None:
    relay = ThreadedRelay(str(tmp_path / listen) if "." in listen else listen)
    relay.start()
    if listen.startswith("localhost"):
        relay.place = "localhost:" + relay.place.rpartition(":")[2]
    try:
        async with connect(relay.address) as node:
            assert await node.ping() > 0
    finally:
        relay.kill()


async def test_unknown_outcomes_are_told_once(relay: ThreadedRelay, enter: Connect) -> None:
    async with enter("room") as one, enter("room"):
        receipt = await one.publish("room", b"?")
        while receipt.ordinal is None:
            await anyio.lowlevel.checkpoint()
        relay.kill()
        with pytest.raises(OutcomeUnknown, match="1 message") as unknown:
            await one.flush()
        assert unknown.value.ordinals == range(1, 2)
        await one.flush()


# ---- the parts -----------------------------------------------------------------------------------------


def test_backoff_grows_to_its_cap_and_starts_again_after_a_settled_connection() -> None:
    backoff = Backoff(0.1, 2.5, 30, 60, 60)
    backoff.connected(0)
    backoff.broke(10)
    assert [round(backoff.next_delay_s(10, 1.0), 3) for _ in range(6)] == [0.2, 0.4, 0.8, 1.6, 2.5, 2.5]
    assert backoff.next_delay_s(70, 1.0) == pytest.approx(12.8)
    assert [backoff.next_delay_s(70, 1.0) for _ in range(60)][-1] == 30
    assert backoff.next_delay_s(70, 0.5) == 15
    backoff.connected(100)
    backoff.broke(130)
    assert backoff.next_delay_s(130, 1.0) == 2.5
    backoff.connected(200)
    backoff.broke(260)
    assert backoff.next_delay_s(260, 1.0) == 0.2


def test_a_process_has_one_incarnation_for_each_key() -> None:
    process = Process(lambda: 7, lambda size: bytes(range(size)))
    incarnation = Incarnation(7, bytes(range(8)))
    assert process.next_connection(b"a") == (incarnation, 1)
    assert process.next_connection(b"b") == (incarnation, 1)
    assert process.next_connection(b"a") == (incarnation, 2)


def test_which_ends_are_final() -> None:
    for code in ErrorCode:
        assert is_final(ConnectionEnded("", code)) == (code != ErrorCode.OK and not code.may_retry)
    assert is_final(RelayKeyMismatch(""))
    assert not is_final(HandshakeError(""))
    assert not is_final(ConnectionBroken(""))
    assert not is_final(ConnectionEnded("", 99))
    assert ends_node(ConnectionEnded("", ErrorCode.REPLACED))
    assert ends_node(ConnectionEnded("", ErrorCode.SUPERSEDED))
    assert not ends_node(ConnectionEnded("", ErrorCode.NOT_ALLOWED))
    assert not ends_node(ConnectionBroken(""))
    assert ends_node(KeyError())


def test_the_relays_last_words() -> None:
    assert ended_text(ErrorCode.DRAINING, "") == "the relay is shutting down"
    assert ended_text(ErrorCode.DRAINING, "the relay is shutting down") == "the relay is shutting down"
    assert ended_text(ErrorCode.PROTOCOL_ERROR, "bad") == "the relay closed the connection, protocol_error: bad"
    assert ended_text(99, "") == "the relay closed the connection, code_99"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port
