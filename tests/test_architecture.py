"""Imports point one way: ``cli -> server, client, bench -> relay, shaping, reliable -> wire -> errors, identity``.

And what must stay pure is pure: the protocol, the shaping and the routing know neither I/O nor time nor chance.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOUSE = "awesomeconnect"

#: part of the house -> the parts that it may import besides itself.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "identity": {"errors"},
    "config": {"errors", "identity", "wire", "shaping"},
    "wire": {"errors", "identity"},
    "shaping": {"errors", "wire"},
    "relay": {"errors", "identity", "config", "wire", "shaping"},
    "server": {"errors", "identity", "config", "wire", "shaping", "relay"},
    "reliable": {"errors", "wire"},
    "client": {"errors", "identity", "config", "wire", "shaping", "reliable"},
    "bench": {"errors", "identity", "config", "wire"},
    "cli": {"errors", "identity", "config", "wire", "shaping", "relay", "server", "client", "bench", "__init__"},
    "__main__": {"cli"},
    "__init__": {"errors", "identity", "config", "wire", "client", "server"},
}
PURE = ("errors", "wire", "shaping", "relay", "reliable")
IMPURE_MODULES = {"trio", "anyio", "asyncio", "socket", "ssl", "select", "time", "datetime", "random", "logging"}
NACL_IN = {f"{HOUSE}/identity.py", f"{HOUSE}/wire/noise.py", f"{HOUSE}/wire/sealing.py"}

FILES = sorted((ROOT / HOUSE).rglob("*.py"))


def part_of(module: str) -> str:
    """The part of the house that a dotted name is in; what the package itself re-exports is in ``__init__``."""
    name = module.split(".")[1:2] or ["__init__"]
    return name[0] if name[0] in MAY_IMPORT else "__init__"


def imports_of(file: Path) -> Iterator[str]:
    """The dotted names that a file imports, wherever in it; ``from a import b`` counts as ``a.b``."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def outside(file: Path) -> set[str]:
    """The packages outside the house that a file imports."""
    return {module.split(".")[0] for module in imports_of(file)} - {HOUSE}


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def part_of_file(file: Path) -> str:
    return file.relative_to(ROOT / HOUSE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_point_one_way(file: Path) -> None:
    part = part_of_file(file)
    imported = {part_of(module) for module in imports_of(file) if module.split(".")[0] == HOUSE}
    assert imported - {part} <= MAY_IMPORT[part]


@pytest.mark.parametrize("file", [file for file in FILES if part_of_file(file) in PURE], ids=name_of)
def test_the_core_is_pure(file: Path) -> None:
    assert not outside(file) & IMPURE_MODULES


@pytest.mark.parametrize("file", [file for file in FILES if part_of_file(file) == "bench"], ids=name_of)
def test_the_load_generator_has_no_event_loop(file: Path) -> None:
    assert not outside(file) & {"trio", "anyio", "asyncio"}


def test_nacl_is_used_in_three_files() -> None:
    assert {name_of(file) for file in FILES if "nacl" in outside(file)} == NACL_IN


def test_the_package_imports_neither_trio_nor_anyio() -> None:
    code = f"import sys, {HOUSE}; print(*sorted({{'trio', 'anyio'}} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


def test_the_walk_sees_what_it_should(tmp_path: Path) -> None:
    file = tmp_path / "example.py"
    file.write_text("import a.b\nfrom awesomeconnect.wire import cbor\ndef f():\n    from trio import open_file\n")
    assert list(imports_of(file)) == ["a.b", "awesomeconnect.wire.cbor", "trio.open_file"]
    assert outside(file) == {"a", "trio"}
    assert part_of("awesomeconnect.wire.cbor") == "wire"
    assert part_of("awesomeconnect.connect") == part_of("awesomeconnect") == "__init__"
