"""The seeds of every test run: a violation names what is wrong, and the command that tells the story."""

from __future__ import annotations

import pytest

from tests.simulation.faults import LEAST_CRASHES
from tests.simulation.seeds import CI_SEEDS, NAMED_SEEDS
from tests.simulation.world import LEAST_MESSAGES, simulate


@pytest.mark.parametrize("seed", sorted({*CI_SEEDS, *NAMED_SEEDS}))
def test_seed(seed: int) -> None:
    result = simulate(seed)
    told = "\n".join([*result.violations, f"replay: python -m tests.simulation --seed {seed} --trace"])
    assert not result.violations, told
    assert result.crashes >= LEAST_CRASHES
    assert result.counters["sent"] >= LEAST_MESSAGES
