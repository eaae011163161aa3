"""Run seeds: ``python -m tests.simulation --seeds 0:200``, or one with its story: ``--seed 17 --trace``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor

from tests.simulation.world import Result, simulate


def main() -> int:
    """The exit status: 1 when a seed has a violation."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seeds", metavar="A:B", help="seeds from A to B - 1")
    which.add_argument("--seed", type=int, metavar="N", help="one seed, alone")
    parser.add_argument("--trace", action="store_true", help="print what happened, line by line")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="seeds at once [all CPUs]")
    chosen = parser.parse_args()
    if chosen.seeds:
        first, _colon, stop = chosen.seeds.partition(":")
        seeds: Iterable[int] = range(int(first), int(stop))
    else:
        seeds = [chosen.seed]
    begun = time.monotonic()
    totals: Counter[str] = Counter()
    failed: list[int] = []
    for result in _results(seeds, chosen.jobs):
        totals.update(result.counters, seeds=1, crashes=result.crashes)
        if chosen.trace:
            print("\n".join(result.trace))
        if chosen.trace or result.violations or chosen.seed is not None:
            print(f"seed {result.seed}: {len(result.violations)} violations, digest {result.digest}")
            print("".join(f"  {violation}\n" for violation in result.violations), end="", flush=True)
        if sys.stderr.isatty() or not totals["seeds"] % 50:
            print(f"{totals['seeds']} seeds, {len(failed)} with violations", file=sys.stderr, flush=True)
        if result.violations:
            failed.append(result.seed)
    print(", ".join(f"{name} {count:,}" for name, count in totals.items()))
    print(f"{time.monotonic() - begun:.1f} s; seeds with violations: {failed or 'none'}")
    return 1 if failed else 0


def _results(seeds: Iterable[int], jobs: int) -> Iterator[Result]:
    if jobs == 1 or isinstance(seeds, list):
        yield from map(simulate, seeds)
        return
    with ProcessPoolExecutor(jobs, max_tasks_per_child=200) as pool:
        yield from pool.map(simulate, seeds)


if __name__ == "__main__":
    sys.exit(main())
