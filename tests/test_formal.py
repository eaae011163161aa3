"""The formal model of the handshake: its two files belong together; and what holds, where ProVerif is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

FORMAL = Path(__file__).parent.parent / "protocol-spec" / "formal"
PIN = "  if r = pinned then\n"
NO_PIN = "  (* here the relay that answers should be compared with the pinned one *)\n"


def expected(file: str) -> list[str]:
    """The results that README.md promises, in the order of the queries."""
    rows = [line.strip("|").split("|") for line in (FORMAL / "README.md").read_text().splitlines()]
    header = next(row for row in rows if row[0].strip() == "query")
    column = [cell.strip() for cell in header].index(f"`{file}`")
    results = {}
    for row in rows:
        if len(row) == len(header) and re.match(r" \d", row[0]):
            first, last = re.fullmatch(r"(\d)(?:(?:, | to )(\d))?", row[0].strip()).groups()  # type: ignore[union-attr]
            results.update(dict.fromkeys(range(int(first), int(last or first) + 1), row[column].strip()))
    return [results[number] for number in sorted(results)]


def test_the_second_model_lacks_the_pin_and_nothing_else() -> None:
    model = (FORMAL / "zeroproof.pv").read_text()
    assert model.count(PIN) == 1
    assert model.replace(PIN, NO_PIN) == (FORMAL / "without-pin.pv").read_text()


@pytest.mark.parametrize("file", ["zeroproof.pv", "without-pin.pv"])
def test_every_query_has_an_expected_result(file: str) -> None:
    code = re.sub(r"\(\*.*?\*\)", "", (FORMAL / file).read_text(), flags=re.DOTALL)
    assert len(re.findall(r"^query\b", code, re.MULTILINE)) == len(expected(file)) == 9
    assert code.count("(") == code.count(")")


@pytest.mark.skipif(shutil.which("proverif") is None, reason="ProVerif is not installed")
@pytest.mark.parametrize("file", ["zeroproof.pv", "without-pin.pv"])
def test_the_queries_have_the_expected_results(file: str) -> None:
    said = subprocess.run(["proverif", file], cwd=FORMAL, capture_output=True, text=True, check=True).stdout
    results = re.findall(r"^RESULT .* is (true|false)\.|^RESULT .* (cannot be proved)", said, re.MULTILINE)
    assert [true_or_false or problem for true_or_false, problem in results] == expected(file)
