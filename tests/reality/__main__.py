"""The long forms, by hand: ``python -m tests.reality --kills 200``."""

from __future__ import annotations

import argparse
import functools
import sys

import trio

from tests.reality.scenarios import Report, drain_to_an_alternate, faults_under_load, outage, random_faults


def main() -> int:
    """The exit status: 1 when something was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.reality", description=__doc__)
    parser.add_argument("--kills", type=int, default=0, metavar="N", help="SIGKILLs of a relay under load")
    parser.add_argument("--drains", type=int, default=0, metavar="N", help="drains to an alternate under load")
    parser.add_argument("--outage", type=float, default=0, metavar="S", help="seconds that 100 nodes have no relay")
    parser.add_argument("--nodes", type=int, default=12, metavar="N", help="nodes that talk [12]")
    chosen = parser.parse_args()
    reports: list[tuple[str, Report]] = []
    if chosen.kills:
        run = functools.partial(faults_under_load, random_faults(chosen.kills), nodes=chosen.nodes)
        reports.append(("faults under load", trio.run(run)))
    for number in range(chosen.drains):
        run = functools.partial(drain_to_an_alternate, nodes=chosen.nodes)
        reports.append((f"drain {number + 1}", trio.run(run)))
    if chosen.outage:
        reports.append(("outage", trio.run(outage, chosen.outage)))
    for name, report in reports:
        print(f"{name}: " + ", ".join(f"{what} {value}" for what, value in report.figures.items()))
        print("".join(f"  {violation}\n" for violation in report.violations), end="")
    return 1 if not reports or any(report.violations for _name, report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
