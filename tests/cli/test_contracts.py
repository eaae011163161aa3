"""Contracts as people write them."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from awesomeconnect.cli import main
from awesomeconnect.cli.contracts import contract, rate, room_contract
from awesomeconnect.wire.messages import ClassContract


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bulk:5MB/s:2MB:500ms", ClassContract(0, 5_000_000, 2_000_000, 500)),
        ("urgent:20kB/s:4KiB", ClassContract(5, 20_000, 4_096, 100)),
        ("6:8Mbit/s:1.5MB:2s", ClassContract(6, 1_000_000, 1_500_000, 2_000)),
        ("data:1000:300:0ms", ClassContract(1, 1_000, 300, 0)),
    ],
)
def test_contracts(text: str, expected: ClassContract) -> None:
    assert contract(text) == expected
    assert room_contract(f"a=b:c={text}") == ("a=b:c", expected)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("bulk", "CLASS:RATE:BURST"),
        ("bulk:1MB/s:1MB:1s:more", "CLASS:RATE:BURST"),
        ("control:1MB/s:1MB", "none of bulk"),
        ("7:1MB/s:1MB", "none of bulk"),
        ("bulk:fast:1MB", "'fast' is not a rate; write for example 5MB/s"),
        ("bulk:1mb/s:1MB", "not a rate"),
        ("bulk:-1:1MB", "not a rate"),
        ("bulk:1MB/s:1MB/s", "'1MB/s' is not a size"),
        ("bulk:1MB/s:1MB:5", "'5' is not a time; write for example 500ms"),
        ("bulk:0MB/s:1MB", "let nothing pass"),
        ("bulk:1MB/s:0.4B", "let nothing pass"),
    ],
)
def test_what_is_wrong_is_said(text: str, told: str) -> None:
    with pytest.raises(click.BadParameter, match=told.replace("(", r"\(")):
        contract(text)


def test_rates_are_bits_or_bytes() -> None:
    assert rate("8Mbit/s") == rate("1MB/s") == rate("1MB") == 1_000_000


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--contract", "bulk:1MB/s"], "CLASS:RATE:BURST"),
        (["--contract", "bulk:1MB/s:1MB", "--contract", "0:1MB/s:1MB"], "two contracts"),
        (["--room-contract", "bulk:1MB/s:1MB"], "ROOM=CLASS"),
        (["--room-contract", "@x=bulk:1MB/s:1MB"], "room"),
        (["--room-contract", "x=0:1MB/s:1MB", "--room-contract", "x=0:1MB/s:1MB"], "room 'x'"),
        (["--downlink", "10"], ""),
        (["--downlink", "10Mb/s"], "not a rate"),
    ],
)
def test_serve_refuses_what_it_does_not_understand(tmp_path: Path, arguments: list[str], told: str) -> None:
    where = ["--key", str(tmp_path / "key"), "--listen", "no such place:0"]
    result = CliRunner().invoke(main, ["serve", *where, *arguments])
    assert result.exit_code == (2 if told else 1)
    assert told in result.stderr
