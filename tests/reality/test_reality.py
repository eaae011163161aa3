"""The short forms; the long ones are ``python -m tests.reality``."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import trio

from tests.reality.scenarios import Report, drain_to_an_alternate, faults_under_load, outage

#: Twice what each takes on a busy machine.
MOST_S = 60.0


async def _bounded(scenario: Coroutine[Any, Any, Report]) -> Report:
    with trio.fail_after(MOST_S):
        return await scenario


def _check(report: Report) -> None:
    assert not report.violations, "\n".join(report.violations)


def test_kills_stops_and_drains_under_load() -> None:
    _check(trio.run(_bounded, faults_under_load(("kill", "stop", "kill and move", "kill"))))


def test_a_drain_to_an_alternate_loses_nothing() -> None:
    _check(trio.run(_bounded, drain_to_an_alternate()))


def test_a_hundred_nodes_come_back() -> None:
    _check(trio.run(_bounded, outage(1)))
