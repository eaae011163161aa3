"""The simulated network does what kernels and paths do."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from tests.simulation import determinism
from tests.simulation.network import End, Host, Network, Weather


def run(
    play: Callable[[Host, Host, Callable[[], Awaitable[tuple[End, End]]]], Awaitable[None]],
    weather: Weather = Weather(latency_s=0.01),  # noqa: B008
) -> None:
    """Give a test two hosts, and a way to connect them: our end, their end."""

    async def main() -> None:
        def ignore(*_arguments: Any, **_details: Any) -> None:
            pass

        network = Network(random.Random(1), ignore, lambda: weather, ignore)
        ours, theirs = Host("here", network), Host("there", network)
        accepted: list[End] = []
        network.listen("place", theirs, accepted.append)

        async def connect() -> tuple[End, End]:
            return await network.dial(ours, "place"), accepted[-1]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(network.run)
            with trio.fail_after(1_000):
                await play(ours, theirs, connect)
            nursery.cancel_scope.cancel()

    determinism.run(1, main)


async def receive(end: End) -> bytes:
    """Everything up to the end of the stream."""
    received, buffer = b"", bytearray(100)
    while True:
        try:
            size = end.recv_into(buffer)
        except BlockingIOError:
            await end.wait_readable()
            continue
        if not size:
            return received
        received += buffer[:size]


def test_bytes_take_their_time_and_come_in_order() -> None:
    async def play(ours: Host, theirs: Host, connect: Any) -> None:
        here, there = await connect()
        begun = trio.current_time()
        assert here.send(bytes(4_000)) == 1_000  # what fits
        with pytest.raises(BlockingIOError):
            here.send(b"x")
        await there.wait_readable()
        assert trio.current_time() - begun == pytest.approx(0.11)  # 10 ms, and 1,000 bytes at 10 kB/s
        here.half_close()
        assert await receive(there) == bytes(1_000)

    run(play, Weather(latency_s=0.01, rate_bytes_per_s=10_000, capacity_bytes=1_000))


def test_what_a_killed_process_had_sent_arrives() -> None:
    async def play(ours: Host, theirs: Host, connect: Any) -> None:
        here, there = await connect()
        here.send(b"last words")
        ours.kill()
        assert here.send(b"of a ghost") == 10  # nobody sees that
        assert await receive(there) == b"last words"

    run(play)


def test_a_process_that_is_killed_with_unread_input_resets() -> None:
    async def play(ours: Host, theirs: Host, connect: Any) -> None:
        here, there = await connect()
        there.send(b"unread")
        await here.wait_readable()
        ours.kill()
        with pytest.raises(ConnectionResetError):
            await receive(there)
        with pytest.raises(BrokenPipeError):
            there.send(b"x")

    run(play)


def test_a_process_is_killed_at_a_byte() -> None:
    async def play(ours: Host, theirs: Host, connect: Any) -> None:
        here, there = await connect()
        ours.bytes_left = 3
        here.send(b"abcdef")
        assert not ours.is_on
        assert await receive(there) == b"abc"

    run(play)


def test_who_loses_power_says_nothing_until_it_is_back() -> None:
    async def play(ours: Host, theirs: Host, connect: Any) -> None:
        _here, there = await connect()
        ours.lose_power()
        there.send(b"?")
        with trio.move_on_after(100) as waiting:
            await there.wait_readable()
        assert waiting.cancelled_caught
        ours.has_power = True
        there.send(b"??")
        with pytest.raises(ConnectionResetError):
            await receive(there)

    run(play)


def test_half_open() -> None:
    async def play(ours: Host, theirs: Host, connect: Any) -> None:
        here, there = await connect()
        here.go_silent(is_told=True)
        with pytest.raises(ConnectionResetError):
            await receive(here)
        there.send(b"?")
        with trio.move_on_after(100) as waiting:
            await there.wait_readable()
        assert waiting.cancelled_caught

    run(play)


def test_what_was_sent_while_the_cable_was_out_arrives_later() -> None:
    async def play(ours: Host, theirs: Host, connect: Any) -> None:
        here, there = await connect()
        ours.cut_off()
        here.send(b"patience")
        here.half_close()
        with trio.move_on_after(20) as waiting:
            await there.wait_readable()
        assert waiting.cancelled_caught
        ours.plug_in()
        assert await receive(there) == b"patience"

    run(play)


def test_a_process_that_stands_still_reads_when_it_goes_on() -> None:
    async def play(ours: Host, theirs: Host, connect: Any) -> None:
        here, there = await connect()
        theirs.freeze()
        here.send(b"later")
        here.half_close()
        with trio.move_on_after(20) as waiting:
            await there.wait_readable()
        assert waiting.cancelled_caught
        theirs.thaw()
        assert await receive(there) == b"later"

    run(play)


def test_nobody_listens() -> None:
    async def play(ours: Host, theirs: Host, connect: Any) -> None:
        theirs.kill()
        with pytest.raises(ConnectionRefusedError):
            await connect()

    run(play)


def test_nobody_answers() -> None:
    async def play(ours: Host, theirs: Host, connect: Any) -> None:
        theirs.lose_power()
        with pytest.raises(TimeoutError):
            await connect()

    run(play)
