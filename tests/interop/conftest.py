"""Builds the clients in other languages, where their tools are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
BUILD_S = 170
#: What package tools say where there is no network, or a newer toolchain would have to be fetched.
_NO_NETWORK = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ETIMEDOUT", "network", "dial tcp", "toolchain", "proxy")


@pytest.fixture(scope="session")
def node_driver(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command of the client in TypeScript."""
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed, so the client in TypeScript is not tested")
    folder = tmp_path_factory.mktemp("interop") / "node"
    shutil.copytree(HERE / "node", folder, ignore=shutil.ignore_patterns("node_modules", "dist"))
    _build(["npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"], folder)
    return ["node", str(folder / "dist" / "cli.js")]


@pytest.fixture(scope="session")
def go_driver(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command of the client in Go."""
    if shutil.which("go") is None:
        pytest.skip("go is not installed, so the client in Go is not tested")
    program = tmp_path_factory.mktemp("interop") / "acclient"
    _build(["go", "build", "-o", str(program), "./cmd/acclient"], HERE / "go")
    return [str(program)]


def _build(command: list[str], folder: Path) -> None:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=BUILD_S, env={**os.environ, "CI": "true"}
    )
    if done.returncode:
        said = done.stdout + done.stderr
        if any(word in said for word in _NO_NETWORK):
            pytest.skip(f"packages for {folder.name} cannot be fetched: {said.strip().splitlines()[-1]}")
        pytest.fail(f"{' '.join(command)} failed:\n{said}")
