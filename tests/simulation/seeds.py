"""Seeds that every run of the tests plays again."""

from __future__ import annotations

#: Chosen for speed, and because together they have every kind of fault.
CI_SEEDS = range(40)

#: Seeds that found a bug, each with a sentence about it.
NAMED_SEEDS: dict[int, str] = {}
