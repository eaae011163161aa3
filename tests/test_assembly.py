"""A thousand nodes, as `tests.assembly` runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[str]:
    command = ["serve", "--json", "--listen", "127.0.0.1:0", "--key", str(tmp_path / "relay.key")]
    with subprocess.Popen(
        [sys.executable, "-m", "awesomeconnect", *command], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["addresses"][0]
        process.terminate()


def test_a_thousand_nodes_hear_each_other(relay: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tests.assembly", relay, "1000"], capture_output=True, text=True, timeout=150
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("1000 nodes heard each other")
