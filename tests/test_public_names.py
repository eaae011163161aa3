"""The package gives out its public names when they are first used; type checkers see the same ones."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import awesomeconnect


def test_every_public_name_is_there() -> None:
    for name in awesomeconnect.__all__:
        assert getattr(awesomeconnect, name) is not None
    assert set(awesomeconnect.__all__) <= set(dir(awesomeconnect))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = awesomeconnect.nothing


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(awesomeconnect.__file__).read_bytes())
    guard = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        (alias.name, node.module.removeprefix("awesomeconnect."))
        for node in ast.walk(guard)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    assert seen == set(awesomeconnect._HOME.items())


def test_names_of_the_core_load_no_event_loop() -> None:
    code = (
        "import sys; from awesomeconnect import Identity, RelayAddress, TrafficClass, Refused; "
        "print({'trio', 'anyio', 'asyncio'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
