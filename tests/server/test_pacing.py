"""Pacing in the relay: who is paced, what is held back, and that nobody else notices."""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import time
from collections.abc import Iterator

import pytest
import trio

from awesomeconnect.server import tcpinfo
from awesomeconnect.server.tcpinfo import has_path, read_path
from awesomeconnect.server.transport import SocketTransport
from awesomeconnect.shaping.pacer import START_WINDOW_BYTES
from awesomeconnect.wire.messages import Deliver, Publish, TrafficClass
from tests.server.conftest import IDENTITY, House, Opener, in_virtual_time
from tests.support.memory import memory_pair
from tests.support.node import Node

BULK, URGENT = TrafficClass.BULK, TrafficClass.URGENT
#: A window, one piece with its heads, and some small frames.
HELD_BACK_BYTES = START_WINDOW_BYTES + 17_408


class Reader:
    """A node behind a path that acknowledges what the node has read.

    Attributes:
        transport: the node's end; ``waiting_bytes`` of it are in flight.
    """

    def __init__(self, house: House) -> None:
        self.transport, self.relays_end = memory_pair(1 << 30)
        self._sent = 0
        send = self.relays_end.send

        def counted(data: bytes) -> int:
            size = send(data)
            self._sent += size
            return size

        self.relays_end.send = counted  # type: ignore[method-assign]
        self.relays_end.path = lambda: (1_000, self._sent - self.transport.waiting_bytes, 0, 1_000)
        house.relay.connect(self.relays_end)
        self.node = Node(self.transport, IDENTITY.public_key)


async def publish(node: Node, traffic_class: int, *sizes: int) -> None:
    await node.send(*(Publish("room", traffic_class, 0, bytes(size)) for size in sizes))
    await node.flush()


async def read(node: Node, count: int) -> list[int]:
    """The classes of the next deliveries."""
    return [(await node.expect(Deliver)).traffic_class for _ in range(count)]


@in_virtual_time
async def test_bulk_is_held_back_and_urgent_is_not(open_house: Opener) -> None:
    house = await open_house()
    reader, sender = Reader(house), await house.node()
    await reader.node.enter("room")
    await publish(sender, BULK, 900_000, 900_000)
    await trio.sleep(10)
    in_flight = reader.transport.waiting_bytes
    assert 0 < in_flight <= HELD_BACK_BYTES
    await publish(sender, URGENT, 200)
    assert 200 < reader.transport.waiting_bytes - in_flight < 400
    assert await read(reader.node, 3) == [URGENT, BULK, BULK]


@in_virtual_time
async def test_small_messages_are_held_back_too(open_house: Opener) -> None:
    house = await open_house()
    reader, sender = Reader(house), await house.node()
    await reader.node.enter("room")
    await publish(sender, BULK, *[300] * 1_000)
    await trio.sleep(1)
    assert reader.transport.waiting_bytes <= HELD_BACK_BYTES
    assert await read(reader.node, 1_000) == [BULK] * 1_000


@in_virtual_time
async def test_a_stalled_reader_delays_no_other(open_house: Opener) -> None:
    """Property 13."""
    house = await open_house()
    stalled, quick, sender = Reader(house), Reader(house), await house.node()
    for reader in (stalled, quick):
        await reader.node.enter("room")
    await publish(sender, BULK, *[100_000] * 20)
    started = trio.current_time()
    assert await read(quick.node, 20) == [BULK] * 20
    assert trio.current_time() - started < 1
    assert stalled.transport.waiting_bytes <= HELD_BACK_BYTES


@in_virtual_time
async def test_what_is_held_back_still_arrives_before_close(open_house: Opener) -> None:
    house = await open_house()
    reader, sender = Reader(house), await house.node()
    await reader.node.enter("room")
    await publish(sender, BULK, 900_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.relay.drain)
        while type(message := await reader.node.receive()) is not Deliver:
            assert message is not None
        sender.close()
        reader.node.close()


@in_virtual_time
async def test_without_a_known_path_nobody_is_paced(open_house: Opener) -> None:
    house = await open_house()
    reader = Reader(house)
    reader.relays_end.path = None
    sender = await house.node()
    await reader.node.enter("room")
    await publish(sender, BULK, 900_000)
    assert reader.transport.waiting_bytes > 900_000


# ---- what the kernel tells ------------------------------------------------------------------------------


@contextlib.contextmanager
def tcp_connection(segment_bytes: int = 0) -> Iterator[socket.socket]:
    """A connection within this machine, if need be with segments as short as a network's."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as one:
        if segment_bytes:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment_bytes)
        one.connect(server.getsockname())
        with server.accept()[0]:
            yield one


needs_tcp_info = pytest.mark.skipif("not hasattr(__import__('socket'), 'TCP_INFO')", reason="Linux only")


@needs_tcp_info
def test_the_path_of_a_tcp_connection() -> None:
    with tcp_connection(segment_bytes=1_448) as connected:
        assert has_path(connected)
        rtt_us, acked, notsent, min_rtt_us = read_path(connected)
        assert rtt_us >= min_rtt_us > 0
        assert notsent == 0
        assert acked <= 1  # SYN counts
        connected.sendall(bytes(10_000))
        deadline = time.monotonic() + 5
        while read_path(connected)[1] < 10_000:
            assert time.monotonic() < deadline


@needs_tcp_info
def test_within_a_machine_there_is_no_path() -> None:
    with tcp_connection() as connected:
        assert not has_path(connected)


def test_a_unix_socket_has_no_path() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert not has_path(one)


@in_virtual_time
async def test_a_unix_transport_is_unpaced() -> None:
    one, other = socket.socketpair()
    with other:
        transport = SocketTransport(one, "unix")
        assert transport.path is None
        transport.close()


def test_other_systems_have_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with tcp_connection(segment_bytes=1_448) as connected:
        assert not has_path(connected)


@needs_tcp_info
@pytest.mark.parametrize("kernel", ["old", "strange"])
def test_kernels_that_tell_less_have_no_path(kernel: str) -> None:
    class Kernel(socket.socket):
        def getsockopt(self, *_arguments: object) -> bytes:  # type: ignore[override]
            if kernel == "strange":
                raise OSError("no such option")
            return bytes(104)

    with Kernel() as asked:
        assert not has_path(asked)


def test_the_fields_are_where_linux_has_them() -> None:
    layout = {68: ("I", 1), 120: ("Q", 2), 144: ("I", 3), 148: ("I", 4)}
    raw = bytearray(152)
    for offset, (form, value) in layout.items():
        struct.pack_into("=" + form, raw, offset, value)
    assert tcpinfo.FIELDS.unpack(raw) == (1, 2, 3, 4)
