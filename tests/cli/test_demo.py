"""``demo`` says what arrived, and succeeds."""

from __future__ import annotations

from collections.abc import Callable


def test_everything_arrives(run: Callable[..., tuple[int, bytes, str]]) -> None:
    code, stdout, stderr = run("demo")
    text = stdout.decode()
    assert code == 0, stderr
    assert text.endswith("Everything arrived.\n")
    assert text.count("8,192 KiB, hash matches") == 4
    assert "1,000 messages arrived" in stderr
