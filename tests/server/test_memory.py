"""The stand-in for sockets behaves as the relay expects sockets to behave."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from awesomeconnect.server.transport import Transport
from tests.support.memory import memory_pair

pytestmark = pytest.mark.trio


async def test_has_the_names_of_a_transport() -> None:
    one, _ = memory_pair()
    as_transport: Transport = one
    assert as_transport.peer == "memory"


async def test_bytes_arrive_in_order_and_never_more_than_asked() -> None:
    one, other = memory_pair()
    assert one.send(b"abc") == 3
    assert one.send(memoryview(b"def")) == 3
    assert other.waiting_bytes == 6
    buffer = bytearray(4)
    assert other.recv_into(buffer) == 4
    assert buffer == b"abcd"
    assert other.recv_into(memoryview(buffer)) == 2
    assert buffer[:2] == b"ef"
    with pytest.raises(BlockingIOError):
        other.recv_into(buffer)


async def test_capacity_bounds_a_send() -> None:
    one, other = memory_pair(10)
    assert one.send(bytes(7)) == 7
    assert one.send(bytes(7)) == 3
    with pytest.raises(BlockingIOError):
        one.send(b"x")
    other.recv_into(bytearray(4))
    assert one.send(bytes(7)) == 4


async def test_chunking() -> None:
    one, other = memory_pair()
    one.most_sent_bytes = 3
    other.most_read_bytes = 2
    assert one.send(b"abcdef") == 3
    buffer = bytearray(10)
    assert other.recv_into(buffer) == 2
    assert other.recv_into(buffer) == 1


async def test_waiting_ends_when_bytes_or_room_come(nursery: trio.Nursery) -> None:
    one, other = memory_pair(4)
    done: list[str] = []

    async def wait(name: str) -> None:
        await (other.wait_readable() if name == "readable" else one.wait_writable())
        done.append(name)

    one.send(bytes(4))
    nursery.start_soon(wait, "writable")
    await trio.testing.wait_all_tasks_blocked()
    assert done == []
    other.recv_into(bytearray(1))
    await trio.testing.wait_all_tasks_blocked()
    assert done == ["writable"]
    other.recv_into(bytearray(9))
    nursery.start_soon(wait, "readable")
    await trio.testing.wait_all_tasks_blocked()
    assert done == ["writable"]
    one.send(b"x")
    await trio.testing.wait_all_tasks_blocked()
    assert done == ["writable", "readable"]


async def test_half_close_is_the_end_of_the_stream_after_what_was_sent() -> None:
    one, other = memory_pair()
    one.send(b"last")
    one.half_close()
    with pytest.raises(BrokenPipeError):
        one.send(b"more")
    buffer = bytearray(9)
    assert other.recv_into(buffer) == 4
    await other.wait_readable()
    assert other.recv_into(buffer) == 0
    assert other.send(b"still heard") == 11
    assert one.recv_into(bytearray(99)) == 11


async def test_close_delivers_what_was_sent() -> None:
    one, other = memory_pair()
    one.send(b"last")
    one.close()
    one.close()
    buffer = bytearray(9)
    assert other.recv_into(buffer) == 4
    assert other.recv_into(buffer) == 0
    await other.wait_writable()
    with pytest.raises(BrokenPipeError):
        other.send(b"x")
    for use in (one.half_close, lambda: one.send(b"x"), lambda: one.recv_into(buffer)):
        with pytest.raises(OSError, match="closed"):
            use()


async def test_close_with_unread_bytes_resets() -> None:
    one, other = memory_pair()
    one.send(b"last words")
    other.send(b"unread")
    one.close()
    await other.wait_readable()
    with pytest.raises(ConnectionResetError):
        other.recv_into(bytearray(9))


@pytest.mark.parametrize("name", ["wait_readable", "wait_writable"])
async def test_close_wakes_who_waits(name: str, nursery: trio.Nursery) -> None:
    one, _ = memory_pair(1)
    one.send(b"x")
    woken: list[str] = []

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await getattr(one, name)()
        woken.append(name)

    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    assert not woken
    one.close()
    await trio.testing.wait_all_tasks_blocked()
    assert woken == [name]
    with pytest.raises(trio.ClosedResourceError):
        await getattr(one, name)()
