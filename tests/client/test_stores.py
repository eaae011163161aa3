"""Reliable messages that outlive their processes: the hooks, and the SQLite store."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from awesomeconnect.client import SQLiteStore, connect
from awesomeconnect.errors import OutcomeUnknown
from awesomeconnect.identity import Identity
from awesomeconnect.reliable.stores import StoredMessage, StoredOutbox, StoredStream
from tests.client.test_reliable import ADDRESS, Network, _run, network, take

__all__ = ["network"]

ONE, TWO = (Identity.from_seed(bytes(30) + bytes((9, n))) for n in (1, 2))
in_virtual_time = pytest.mark.trio(run=_run)


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[tuple[SQLiteStore, SQLiteStore]]:
    with SQLiteStore(tmp_path / "one.db") as one, SQLiteStore(tmp_path / "two.db", synchronous="FULL") as two:
        yield one, two


@in_virtual_time
async def test_an_outbox_outlives_its_process(network: Network, stores: tuple[SQLiteStore, SQLiteStore]) -> None:
    store = stores[0]

    def enter():  # type: ignore[no-untyped-def]
        return connect(ADDRESS, identity=ONE, outbox_store=store, settings=network.settings)

    async with enter() as one:
        for number in range(3):
            await one.post(TWO.public_key, b"%d" % number)
        await one.post(TWO.public_key, b"sealed", sealed=True, traffic_class=4)
        await one.post(TWO.public_key, b"short", expires_s=5)
        delivery = await one.post(TWO.public_key, b"3")
        await trio.sleep(1)
    assert isinstance(delivery.error, OutcomeUnknown)
    await trio.sleep(10)
    async with network.enter(identity=TWO) as two:
        async with enter() as one:
            assert await take(two, 5) == [b"sealed", b"0", b"1", b"2", b"3"]
            await one.post(two.key, b"4")
            assert await take(two, 1) == [b"4"]
            with pytest.raises(OutcomeUnknown):  # the short one
                await one.flush()
        async with enter() as one:
            await one.post(two.key, b"5")
            assert await take(two, 1) == [b"5"]
            await trio.sleep(1)
    assert store.load_outbox().messages == []


@in_virtual_time
async def test_nothing_is_taken_twice_by_two_processes(
    network: Network, stores: tuple[SQLiteStore, SQLiteStore]
) -> None:
    outbox, taken = stores
    async with connect(ADDRESS, identity=ONE, outbox_store=outbox, settings=network.settings) as one:
        deliveries = [await one.post(TWO.public_key, b"%d" % number, expires_s=600) for number in range(20)]
        seen: list[bytes] = []
        for _ in range(10):
            with trio.CancelScope() as crash:
                async with connect(ADDRESS, identity=TWO, taken_store=taken, settings=network.settings) as two:
                    seen += await take(two, 2)
                    network.kill()  # the acknowledgement is lost
                    await network.start()
                    crash.cancel()
            await trio.sleep(3)
        async with connect(ADDRESS, identity=TWO, taken_store=taken, settings=network.settings):
            for delivery in deliveries:
                await delivery.wait()
        assert seen == [b"%d" % number for number in range(20)]


@in_virtual_time
async def test_manual_acknowledgements_outlive_their_process(
    network: Network, stores: tuple[SQLiteStore, SQLiteStore]
) -> None:
    store = stores[1]

    def enter():  # type: ignore[no-untyped-def]
        return connect(ADDRESS, identity=TWO, taken_store=store, ack="manual", settings=network.settings)

    async with network.enter() as one:
        deliveries = [await one.post(TWO.public_key, b"%d" % number) for number in range(4)]
        async with enter() as two:
            messages = [await anext(two) for _ in range(4)]
            two.ack(messages[2])
            two.ack(messages[0])
        async with enter() as two:
            messages = [await anext(two) for _ in range(2)]
            assert [message.payload for message in messages] == [b"1", b"3"]
            for message in messages:
                two.ack(message)
            for delivery in deliveries:
                await delivery.wait()
            (stored,) = store.load_taken()
            assert (stored.next, stored.beyond) == (5, [])


keys = st.binary(min_size=32, max_size=32)
classes = st.integers(0, 6)


@given(
    st.lists(
        st.builds(
            StoredStream,
            keys,
            classes,
            st.binary(min_size=16, max_size=16),
            st.integers(1, (1 << 64) - 1),
            st.lists(st.integers(1, (1 << 64) - 1), max_size=4),
            st.integers(1, 86_400_000),
            st.integers(0, 1 << 50),
        ),
        max_size=5,
        unique_by=lambda stream: stream[:2],
    )
)
def test_what_was_taken_is_kept(streams: list[StoredStream]) -> None:
    with TemporaryDirectory() as folder, SQLiteStore(Path(folder) / "node.db") as store:
        for stream in streams:
            store.taken(stream._replace(next=1))
            store.taken(stream)
        assert sorted(store.load_taken()) == sorted(streams)
        for stream in streams:
            store.forget(stream.sender, stream.traffic_class)
        assert store.load_taken() == []


def test_what_was_posted_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    with SQLiteStore(path) as store:
        assert store.load_outbox() == StoredOutbox(None, [], {}, 1)
        store.begin(b"i" * 16)
        messages = [StoredMessage(b"p" * 32, 1, number, 0, b"%d" % number, 99) for number in (1, 2, 3)]
        for message in messages:
            store.add(message)
        store.remove(b"p" * 32, 1, 3)
        store.add(StoredMessage(b"q" * 32, 0, 7, 0, b"", 99))
        store.remove(b"q" * 32, 0, 7)
        with pytest.raises(sqlite3.IntegrityError):
            store.add(messages[0])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with SQLiteStore(path) as store:
        assert store.load_outbox() == StoredOutbox(b"i" * 16, messages[:2], {(b"p" * 32, 1): 4}, 8)


def test_a_store_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        SQLiteStore(tmp_path / "missing" / "node.db")
    (tmp_path / "text").write_text("this is no database, but long enough to look at" * 10)
    with pytest.raises(sqlite3.DatabaseError):
        SQLiteStore(tmp_path / "text")
