"""Arguments, help, keys and texts: everything that needs no relay."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from awesomeconnect.cli import main
from awesomeconnect.cli.exits import ExitCode, explain
from awesomeconnect.cli.text import attributes_text, json_line, safe
from awesomeconnect.errors import AddressError, ConnectFailed, KeyFileError, NoSuchPeer, RelayKeyMismatch

COMMANDS = [
    "serve",
    "key",
    "key new",
    "key show",
    "pub",
    "sub",
    "send",
    "recv",
    "who",
    "ping",
    "demo",
    "bench",
    "bounds",
]
ADDRESS = f"ac://{'ab' * 32}@localhost"


def invoke(*arguments: str) -> Result:
    return CliRunner(env={"AWESOMECONNECT_RELAY": "", "AWESOMECONNECT_KEY": ""}).invoke(main, arguments)


class TestHelp:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_explains_itself(self, command: str) -> None:
        result = invoke(*command.split(), "--help")
        assert result.exit_code == 0
        assert "Usage:" in result.stdout
        assert command in ("key", "demo") or "Examples:" in result.stdout

    def test_the_group_lists_commands_and_exit_codes(self) -> None:
        text = invoke("--help").stdout
        assert all(f"\n  {command} " in text for command in COMMANDS if " " not in command)
        assert all(f"{code:>3}  {code.meaning}" in text for code in ExitCode)

    def test_version(self) -> None:
        assert invoke("--version").stdout.startswith("awesomeconnect, version ")

    def test_help_is_quick(self) -> None:
        """It must not import what takes long to import."""
        imported = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "awesomeconnect", "pub", "--help"],
            capture_output=True,
            check=True,
            text=True,
        ).stderr
        names = {line.rpartition("|")[2].strip() for line in imported.splitlines()}
        assert not names & {"trio", "anyio", "cryptography", "nacl", "rich", "cbor2", "asyncio"}


class TestUsageErrors:
    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["sub"], "Missing argument"),
            (["sub", "room"], "AWESOMECONNECT_RELAY"),
            (["sub", "a\x1b[2Jb", "--relay", ADDRESS], "control characters"),
            (["sub", "x" * 129, "--relay", ADDRESS], "1 to 128 bytes"),
            (["sub", "", "--relay", ADDRESS], "1 to 128 bytes"),
            (["pub", "@nobody", "--relay", ADDRESS], "@KEY/REST"),
            (["who", "room", "--relay", "http://localhost"], "not a relay address"),
            (["who", "room", "--relay", ADDRESS + ":99999"], "not a TCP port"),
            (["send", "AB" * 32, "--relay", ADDRESS], "64 lower-case hexadecimal digits"),
            (["pub", "room", "--relay", ADDRESS, "--class", "7"], "0 to 6"),
            (["pub", "room", "--relay", ADDRESS, "--class", "soon"], "urgent"),
            (["pub", "room", "/does/not/exist", "--relay", ADDRESS], "does not exist"),
            (["pub", "room", "--relay", ADDRESS, "--attribute", "x"], "NAME=VALUE"),
            (["sub", "room", "--relay", ADDRESS, "--count", "0"], "range"),
            (["serve", "--listen", "1.2.3.4:http"], "port must be a number"),
            (["serve", "--listen", "fe80::1:7420"], "in brackets"),
        ],
    )
    def test_exit_with_2_and_say_why(self, arguments: list[str], told: str, tmp_path: Path) -> None:
        if arguments[0] == "serve":
            arguments = [*arguments, "--key", str(tmp_path / "relay.key")]
        result = invoke(*arguments)
        assert (result.exit_code, result.stdout) == (ExitCode.USAGE, "")
        assert told in " ".join(result.stderr.split())
        assert "\x1b" not in result.stderr


class TestKey:
    def test_new_then_show(self, tmp_path: Path) -> None:
        path = tmp_path / "alice.key"
        made = invoke("key", "new", str(path))
        assert made.exit_code == 0
        assert path.stat().st_mode & 0o777 == 0o600
        assert bytes.fromhex(made.stdout.strip())
        assert invoke("key", "show", str(path)).stdout == made.stdout
        assert json.loads(invoke("key", "show", str(path), "--json").stdout) == {
            "key": made.stdout.strip(),
            "file": str(path),
        }

    def test_never_overwrites(self, key_file: Path) -> None:
        before = key_file.read_bytes()
        result = invoke("key", "new", str(key_file))
        assert (result.exit_code, result.stdout) == (ExitCode.USAGE, "")
        assert "not overwritten" in result.stderr
        assert key_file.read_bytes() == before

    @pytest.mark.parametrize("command", ["key show", "serve --key", "ping --relay ADDRESS --key"])
    def test_open_to_others(self, command: str, key_file: Path) -> None:
        key_file.chmod(0o644)
        result = invoke(*command.replace("ADDRESS", ADDRESS).split(), str(key_file))
        assert (result.exit_code, result.stdout) == (ExitCode.USAGE, "")
        assert result.stderr.startswith("Error: ")
        assert f"chmod 600 {key_file}" in result.stderr

    def test_missing_and_damaged(self, tmp_path: Path) -> None:
        assert "key new" in invoke("key", "show", str(tmp_path / "none.key")).stderr
        damaged = tmp_path / "damaged.key"
        damaged.touch(0o600)
        assert "not a key file" in invoke("key", "show", str(damaged)).stderr

    def test_verbose_shows_the_traceback(self, tmp_path: Path) -> None:
        shown = invoke("-v", "key", "show", str(tmp_path / "none.key"))
        assert "Traceback" in shown.stderr
        assert shown.exit_code == ExitCode.USAGE


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (AddressError("bad"), ExitCode.USAGE),
            (KeyFileError("bad"), ExitCode.USAGE),
            (ConnectFailed("bad"), ExitCode.NO_CONNECTION),
            (RelayKeyMismatch("bad"), ExitCode.NO_CONNECTION),
            (NoSuchPeer("bad", 33), ExitCode.FAILURE),
            (OSError(28, "bad"), ExitCode.FAILURE),
            (KeyboardInterrupt(), ExitCode.INTERRUPTED),
        ],
    )
    @pytest.mark.parametrize("depth", [0, 1, 3])
    def test_have_an_exit_code_however_deep(self, error: BaseException, code: ExitCode, depth: int) -> None:
        for _ in range(depth):
            error = BaseExceptionGroup("tasks", [error])
        ending = explain(error)
        assert ending is not None
        assert ending.exit_code == code

    def test_the_most_telling_of_several_speaks(self) -> None:
        ending = explain(ExceptionGroup("", [OSError("late"), NoSuchPeer("first", 33), NoSuchPeer("x", 33)]))
        assert str(ending) == "first (and 2 more)"

    def test_a_bug_is_not_hidden(self) -> None:
        assert explain(ExceptionGroup("tasks", [ZeroDivisionError()])) is None
        assert explain(ExceptionGroup("tasks", [NoSuchPeer("x", 33), ZeroDivisionError()])) is None

    def test_are_one_line_that_moves_no_cursor(self) -> None:
        ending = explain(ConnectFailed("one\n\x1b[2Jtwo\u202ethree\x9b"))
        assert str(ending) == "one; \\x1b[2Jtwo\\u202ethree\\x9b"


class TestText:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("größe 大", "größe 大"),
            ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
            ("a\r\nb", "a\\r\\nb"),
            ("\u202e\u2066\u200f", "\\u202e\\u2066\\u200f"),
            ("\x85\x9b", "\\x85\\x9b"),
            ("\udcff", "\\udcff"),
            ("x" * 300, "x" * 199 + "…"),
            ("\x00" * 300, ("\\x00" * 300)[:199] + "…"),
        ],
    )
    def test_is_safe(self, text: str, shown: str) -> None:
        assert safe(text) == shown

    def test_attributes(self) -> None:
        assert attributes_text({"name": "Eve\x1b", "n": 1, "b": b"\xff"}) == "name=Eve\\x1b n=1 b=ff"

    def test_json_is_ascii(self) -> None:
        line = json_line(room="\u202ex\x1b", key=b"\x01")
        assert line.isascii()
        assert "\x1b" not in line
        assert json.loads(line) == {"room": "\u202ex\x1b", "key": {"hex": "01"}}
