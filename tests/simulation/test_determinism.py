"""A seed replays exactly: in one process, and in another one with other hashes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import trio

from tests.simulation import determinism
from tests.simulation.world import simulate

SEED = 4
ROOT = Path(__file__).resolve().parent.parent.parent


def test_trio_still_has_what_makes_it_deterministic() -> None:
    core = trio._core._run  # type: ignore[attr-defined]
    assert isinstance(core._ALLOW_DETERMINISTIC_SCHEDULING, bool)
    assert isinstance(core._r, random.Random)

    async def order() -> list[int]:
        ran: list[int] = []

        async def note(number: int) -> None:
            for _ in range(3):
                await trio.lowlevel.checkpoint()
                ran.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(note, number)
        return [*ran, int.from_bytes(os.urandom(8), "big")]

    assert determinism.run(1, order) == determinism.run(1, order)
    assert len({tuple(determinism.run(seed, order)) for seed in range(10)}) == 10
    assert os.urandom(16) != os.urandom(16)


def test_a_seed_replays_in_one_process() -> None:
    first, again = simulate(SEED), simulate(SEED)
    assert first.trace == again.trace
    assert first.digest == again.digest
    assert first.digest != simulate(SEED + 1).digest


def test_a_seed_replays_in_processes_with_other_hashes() -> None:
    digests = {_digest_with_hashes_of(number) for number in ("0", "1")}
    assert digests == {simulate(SEED).digest}


def _digest_with_hashes_of(number: str) -> str:
    program = f"from tests.simulation.world import simulate; print(simulate({SEED}).digest)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": number, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()
