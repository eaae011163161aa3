"""``bounds``: tables, JSON lines and exit codes; the numbers are the business of tests/shaping/test_bounds.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from awesomeconnect.cli.bounds import bounds
from awesomeconnect.cli.exits import ExitCode
from tests.shaping.test_bounds import FILE


@pytest.fixture
def contract(tmp_path: Path) -> Path:
    return tmp_path / "contract.toml"


def run(contract: Path, text: str, *options: str) -> Result:
    contract.write_text(text)
    return CliRunner().invoke(bounds, [str(contract), *options])


def test_a_table(contract: Path) -> None:
    result = run(contract, FILE)
    assert result.exit_code == ExitCode.OK
    heading, urgent, bulk = result.stdout.splitlines()
    assert heading.split() == ["class", "queueing", "ms", "record", "ms", "turn", "ms", "bound", "ms"]
    assert urgent.split() == ["5", "urgent", "244.660", "13.978", "2.500", "261.137"]
    assert bulk.startswith("0 bulk ")


def test_json_lines(contract: Path) -> None:
    result = run(contract, FILE, "--json")
    assert result.exit_code == ExitCode.OK
    urgent, bulk = map(json.loads, result.stdout.splitlines())
    assert urgent == {
        "class": 5,
        "over_committed": False,
        "queueing_ms": 244.659505,
        "record_ms": 13.9776,
        "turn_ms": 2.5,
        "bound_ms": 261.137105,
    }
    assert bulk["class"] == 0


def test_over_commitment_fails_and_shows_what_has_a_bound(contract: Path) -> None:
    text = FILE.replace("600_000", "1_300_000")
    result = run(contract, text)
    assert result.exit_code == ExitCode.FAILURE
    assert "class 0 is over-committed: classes 0 to 7 may send" in result.stderr
    _, urgent, bulk = result.stdout.splitlines()
    assert urgent.endswith("261.137")
    assert bulk.split() == ["0", "bulk", "over-committed"]
    lines = [json.loads(line) for line in run(contract, text, "--json").stdout.splitlines()]
    assert [(line["class"], line["over_committed"]) for line in lines] == [(5, False), (0, True)]
    assert lines[1]["rate_bytes_per_s"] > lines[1]["link_bytes_per_s"] == 1_250_000


@pytest.mark.parametrize(("text", "told"), [("x", "not TOML"), (FILE.replace("420", "1"), "flow 1: ")])
def test_a_wrong_file_is_a_usage_error(contract: Path, text: str, told: str) -> None:
    result = run(contract, text)
    assert result.exit_code == ExitCode.USAGE
    assert f"{contract}: {told}" in result.stderr
    assert result.stdout == ""


def test_a_file_that_is_no_text_or_not_there(contract: Path) -> None:
    contract.write_bytes(b"\xff\xfe")
    assert CliRunner().invoke(bounds, [str(contract)]).exit_code == ExitCode.USAGE
    contract.unlink()
    assert CliRunner().invoke(bounds, [str(contract)]).exit_code == ExitCode.USAGE


def test_the_example_of_the_help_is_a_contract(contract: Path) -> None:
    """Each of its lines begins with a setting that a contract file knows."""
    text = CliRunner().invoke(bounds, ["--help"], terminal_width=110).stdout
    names = {line.split("=")[0].strip() for line in text.splitlines() if " = " in line}
    assert names == {
        "link_bytes_per_s",
        "class",
        "count",
        "rate_bytes_per_s",
        "burst_bytes",
        "min_bytes",
        "max_bytes",
    }
