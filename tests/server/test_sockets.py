"""Real sockets: listening on IPv4, IPv6 and Unix sockets, and what the system refuses."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from awesomeconnect.config import DEFAULT_PORT, RelaySettings
from awesomeconnect.errors import AddressError, ErrorCode
from awesomeconnect.server import Relay, listeners, session, shaper, supervisor
from awesomeconnect.server.listeners import bound_address, close_listener, open_listeners
from awesomeconnect.server.transport import NOTSENT_LOWAT_BYTES, SocketTransport
from awesomeconnect.wire.messages import Close, Deliver, Goaway, Publish
from tests.server.conftest import IDENTITY
from tests.support.node import Node

HAS_V6 = socket.has_ipv6
try:
    with socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
except OSError:
    HAS_V6 = False

needs_v6 = pytest.mark.skipif(not HAS_V6, reason="this machine has no IPv6")


@pytest.fixture
def opened() -> Iterator[list[socket.socket]]:
    """Listeners, closed at the end of the test."""
    sockets: list[socket.socket] = []
    yield sockets
    for one in sockets:
        one.close()


async def dial(listener: socket.socket) -> Node:
    """A node that has connected to a listener, and was let in to room x."""
    client = socket.socket(listener.family, socket.SOCK_STREAM)
    client.setblocking(False)
    connecting = trio.socket.from_stdlib_socket(client)
    await connecting.connect(listener.getsockname())
    transport = SocketTransport(client, "the relay")
    node = Node(transport, IDENTITY.public_key)
    node._keep = connecting  # type: ignore[attr-defined]
    await node.enter("x")
    return node


async def until_empty(relay: Relay) -> None:
    """The kernel tells the relay in its own time that a client is gone."""
    with trio.fail_after(10):
        while relay.sessions:
            await trio.lowlevel.checkpoint()


# ---- connections -------------------------------------------------------------------------------------


@pytest.mark.trio
async def test_all_families_at_once(tmp_path: Path, nursery: trio.Nursery, opened: list[socket.socket]) -> None:
    relay = Relay(IDENTITY)
    texts = ["127.0.0.1:0", str(tmp_path / "relay.socket"), *(["[::1]:0"] if HAS_V6 else [])]
    for text in texts:
        opened += open_listeners(text)
    await nursery.start(relay.serve, opened)
    nodes = [await dial(listener) for listener in opened]
    peers = {session._transport.peer.partition(":")[0] for session in relay.sessions}
    assert peers == {"127.0.0.1", "unix", *(["["] if HAS_V6 else [])}
    large = os.urandom(900_000)
    for node in nodes:
        await node.send(Publish("x", 1, 0, b"small"), Publish("x", 0, 0, large))
        for other in nodes:
            if other is not node:
                await other.expect(Deliver, sender=node.key, payload=b"small")
                await other.expect(Deliver, sender=node.key, payload=large)
    await nodes[0].send(Close())
    await nodes[0].expect_close(ErrorCode.OK)
    nodes[1].close()
    for node in nodes:
        node.close()
    await until_empty(relay)
    close_listener(opened[1])
    assert not os.path.exists(texts[1])  # noqa: ASYNC240
    close_listener(opened[0])


@pytest.mark.trio
async def test_a_receiver_slower_than_its_sender(nursery: trio.Nursery, opened: list[socket.socket]) -> None:
    relay = Relay(IDENTITY)
    opened += open_listeners("127.0.0.1:0")
    await nursery.start(relay.serve, opened)
    a, b = await dial(opened[0]), await dial(opened[0])
    payloads = [bytes([n]) * 500_000 for n in range(12)]
    async with trio.open_nursery() as sending:
        sending.start_soon(a.send, *(Publish("x", 1, 0, payload) for payload in payloads))
        for payload in payloads:
            await b.expect(Deliver, payload=payload)
    assert not relay.traffic.gap_messages
    a.close()
    b.close()


@pytest.mark.trio
async def test_a_reset_connection_is_forgotten(nursery: trio.Nursery, opened: list[socket.socket]) -> None:
    relay = Relay(IDENTITY)
    opened += open_listeners("127.0.0.1:0")
    await nursery.start(relay.serve, opened)
    node = await dial(opened[0])
    connected = node._keep  # type: ignore[attr-defined]
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    node.close()
    await until_empty(relay)
    assert not relay.events


@pytest.mark.trio
async def test_draining_ends_serving(opened: list[socket.socket]) -> None:
    relay = Relay(IDENTITY, RelaySettings(drain_s=0.01))
    opened += open_listeners("127.0.0.1:0")
    async with trio.open_nursery() as nursery:
        await nursery.start(relay.serve, opened)
        node = await dial(opened[0])
        nursery.start_soon(relay.drain)
        await node.expect(Goaway, code=ErrorCode.DRAINING)
        await node.expect(Close, code=ErrorCode.DRAINING)
        node.close()
    assert not relay.sessions


@pytest.mark.skipif(not hasattr(socket, "TCP_DEFER_ACCEPT"), reason="of Linux")
@pytest.mark.trio
async def test_a_connection_without_a_byte_is_accepted_late(
    opened: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "DEFER_S", 60)
    opened += open_listeners("127.0.0.1:0")
    silent, speaking = (socket.create_connection(opened[0].getsockname()) for _ in range(2))
    with silent, speaking:
        speaking.send(b"A")
        await trio.lowlevel.wait_readable(opened[0])
        accepted, address = opened[0].accept()
        accepted.close()
        assert address == speaking.getsockname()
        with pytest.raises(BlockingIOError):
            opened[0].accept()


# ---- accept ------------------------------------------------------------------------------------------


class Listener:
    """A listening socket whose `accept` has troubles first."""

    def __init__(self, real: socket.socket, *troubles: BaseException | tuple[Any, Any]) -> None:
        self._real = real
        self._troubles = list(troubles)
        self.family = real.family
        self.fileno = real.fileno
        self.getsockname = real.getsockname
        self.close = real.close

    def accept(self) -> tuple[Any, Any]:
        if self._troubles:
            trouble = self._troubles.pop(0)
            if isinstance(trouble, BaseException):
                raise trouble
            return trouble
        return self._real.accept()


@pytest.mark.trio
@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_accept_pauses_when_the_system_is_exhausted(
    nursery: trio.Nursery,
    opened: list[socket.socket],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    code: int,
) -> None:
    monkeypatch.setattr(supervisor, "ACCEPT_PAUSE_S", 0.001)
    opened += open_listeners("127.0.0.1:0")
    exhausted = OSError(code, os.strerror(code))
    relay = Relay(IDENTITY)
    await nursery.start(relay.serve, [Listener(opened[0], exhausted, exhausted, exhausted)])
    node = await dial(opened[0])
    assert relay.events == {"accept_pauses": 3}
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        f"cannot accept connections: {os.strerror(code)}; raise the limit (ulimit -n)"
    ]
    node.close()


@pytest.mark.trio
async def test_accept_survives_connections_that_are_gone_at_once(
    nursery: trio.Nursery, opened: list[socket.socket]
) -> None:
    class Gone:
        family = socket.AF_INET

        def setblocking(self, _flag: bool) -> None:
            raise OSError(errno.EINVAL, "gone")

        def close(self) -> None:
            closed.append(self)

    closed: list[Gone] = []
    gone = Gone()
    opened += open_listeners("127.0.0.1:0")
    relay = Relay(IDENTITY)
    aborted = ConnectionAbortedError(errno.ECONNABORTED, "aborted")
    await nursery.start(relay.serve, [Listener(opened[0], aborted, (gone, ("192.0.2.1", 1)))])
    node = await dial(opened[0])
    assert closed == [gone]
    node.close()


# ---- transport ---------------------------------------------------------------------------------------


@pytest.mark.trio
async def test_a_socket_is_tuned_and_closed_once(nursery: trio.Nursery, opened: list[socket.socket]) -> None:
    opened += open_listeners("127.0.0.1:0")
    with socket.create_connection(opened[0].getsockname()) as client:
        transport = SocketTransport(client, "somewhere")
        assert not client.getblocking()
        assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            assert client.getsockopt(socket.IPPROTO_TCP, 25) == NOTSENT_LOWAT_BYTES
        await transport.wait_writable()
        woken: list[bool] = []

        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await transport.wait_readable()
            woken.append(True)

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        transport.close()
        transport.close()
        await trio.testing.wait_all_tasks_blocked()
        assert woken == [True]


# ---- listening: what the text says -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("example.org:80", "example.org", 80),
        ("example.org", "example.org", DEFAULT_PORT),
        ("127.0.0.1:0", "127.0.0.1", 0),
        ("127.0.0.1:", "127.0.0.1", DEFAULT_PORT),
        (":7000", "", 7_000),
        ("7000", "", 7_000),
        ("[::1]:7000", "::1", 7_000),
        ("[::1]", "::1", DEFAULT_PORT),
    ],
)
def test_listener_text(text: str, host: str, port: int) -> None:
    assert listeners._split(text) == (host, port)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "empty"),
        ("::1", "brackets"),
        ("::1:7000", "brackets"),
        ("1.2.3.4:5:6", "brackets"),
        ("[::1", "brackets"),
        ("[::1]x", "brackets"),
        ("host:port", "port must be a number"),
        ("host:65536", "port must be a number"),
        ("65536", "port must be a number"),
        ("host:-1", "port must be a number"),
        ("host:٣", "port must be a number"),
        ("٣", "port must be a number"),
    ],
)
def test_bad_listener_text(text: str, problem: str) -> None:
    with pytest.raises(AddressError, match=problem):
        open_listeners(text)


def test_a_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: Any, **_more: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(OSError, match=r"cannot listen on nowhere\.invalid:80: Name or service not known"):
        open_listeners("nowhere.invalid:80")


def test_addresses_that_were_taken(tmp_path: Path, opened: list[socket.socket]) -> None:
    opened += open_listeners("127.0.0.1:0")
    opened += open_listeners(str(tmp_path / "s"))
    assert bound_address(opened[0]) == f"127.0.0.1:{opened[0].getsockname()[1]}"
    assert bound_address(opened[1]) == str(tmp_path / "s")
    if HAS_V6:
        opened += open_listeners("[::1]:0")
        assert bound_address(opened[2]) == f"[::1]:{opened[2].getsockname()[1]}"


def test_all_addresses(monkeypatch: pytest.MonkeyPatch, opened: list[socket.socket]) -> None:
    opened += open_listeners(":0")
    families = [one.family for one in opened]
    assert families == [socket.AF_INET, *([socket.AF_INET6] if HAS_V6 else [])]


def test_all_addresses_without_ipv6(monkeypatch: pytest.MonkeyPatch, opened: list[socket.socket]) -> None:
    make = socket.socket

    def no_v6(family: int = -1, *more: Any, **options: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return make(family, *more, **options)

    monkeypatch.setattr(socket, "socket", no_v6)
    opened += open_listeners(":0")
    assert [one.family for one in opened] == [socket.AF_INET]
    with pytest.raises(OSError, match=r"cannot listen on \[::1\]:0: Address family"):
        open_listeners("[::1]:0")


def test_a_port_in_use(opened: list[socket.socket]) -> None:
    opened += open_listeners("127.0.0.1:0")
    port = opened[0].getsockname()[1]
    with pytest.raises(OSError, match=f"127.0.0.1:{port} is in use.*--listen") as caught:
        open_listeners(f"127.0.0.1:{port}")
    assert caught.value.errno == errno.EADDRINUSE


def test_one_failure_closes_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[socket.socket] = []
    listen = listeners._listen

    def fail_second(*arguments: Any) -> socket.socket:
        if made:
            raise OSError(errno.EADDRINUSE, "in use")
        made.append(listen(*arguments))
        return made[0]

    addresses = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 0))] * 2
    addresses[1] = (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.2", 0))
    monkeypatch.setattr(listeners, "_listen", fail_second)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_a, **_k: addresses)
    with pytest.raises(OSError, match="in use"):
        open_listeners("two.example:0")
    assert made[0].fileno() == -1


def test_an_address_that_is_not_ours() -> None:
    with pytest.raises(OSError, match=r"cannot listen on 192\.0\.2\.1:7420"):
        open_listeners("192.0.2.1:7420")


# ---- Unix sockets ------------------------------------------------------------------------------------


def test_a_stale_socket_file_is_replaced(tmp_path: Path, opened: list[socket.socket]) -> None:
    path = tmp_path / "relay.socket"
    open_listeners(str(path))[0].close()  # as a killed relay leaves it
    assert path.exists()
    opened += open_listeners(str(path))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_socket_file_in_use_is_not_touched(tmp_path: Path, opened: list[socket.socket]) -> None:
    path = tmp_path / "relay.socket"
    opened += open_listeners(str(path))
    with pytest.raises(OSError, match="another relay listens there") as caught:
        open_listeners(str(path))
    assert caught.value.errno == errno.EADDRINUSE
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_another_file_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("precious")
    with pytest.raises(OSError, match="exists and is not a socket"):
        open_listeners(str(path))
    assert path.read_text() == "precious"


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot listen on .*missing/relay.socket: No such file"):
        open_listeners(str(tmp_path / "missing" / "relay.socket"))


def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot listen on .*too long"):
        open_listeners(str(tmp_path / ("x" * 120)))


def test_closing_a_listener_whose_file_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "relay.socket"
    [listener] = open_listeners(str(path))
    path.unlink()
    close_listener(listener)
    assert listener.fileno() == -1


def test_relays_in_several_threads_do_not_disturb_each_other() -> None:
    """What is read and what is sealed stands in buffers that all sessions share: those of one thread."""

    def buffers() -> set[int]:
        found = (session._buffers.received, shaper._buffers.record)
        return {id(view.obj) for view in found}

    with ThreadPoolExecutor(1) as pool:
        assert not buffers() & pool.submit(buffers).result()
