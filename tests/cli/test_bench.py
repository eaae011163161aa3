"""``bench``: a few messages of every workload, through real relays."""

from __future__ import annotations

import csv
import io
import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from click.testing import CliRunner, Result

from awesomeconnect.bench.results import COLUMNS
from awesomeconnect.cli import main
from awesomeconnect.cli.bench_report import Report
from awesomeconnect.cli.exits import ExitCode

from .conftest import Program

Run = Callable[..., tuple[int, bytes, str]]
Start = Callable[..., Program]
NOBODY = f"ac://{'ab' * 32}@127.0.0.1:1"


def invoke(*arguments: str) -> Result:
    """Where nothing is measured."""
    return CliRunner(env={"AWESOMECONNECT_RELAY": ""}).invoke(main, ["bench", *arguments])


def lines(stdout: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stdout.splitlines()]


def relay_with(start: Start, tmp_path: Any, *arguments: str) -> tuple[str, Program]:
    key = ["--key", str(tmp_path / "relay.key")]
    program = start("serve", "--listen", "127.0.0.1:0", "--json", *key, *arguments)
    address: str = json.loads(program.line())["addresses"][0]
    return address, program


class TestARunningRelay:
    def test_messages_are_counted_where_they_arrive(self, run: Run) -> None:
        code, stdout, stderr = run("bench", "fanout", "room", "pair", "--clients", "3", "--msgs", "128", "--json")
        assert (code, stderr) == (0, "")
        fanout, room, packed, single = lines(stdout)
        assert [row["workload"] for row in (fanout, room, packed, single)] == ["fanout", "room", "pair", "pair"]
        assert [row["messages"] for row in (fanout, room, packed, single)] == [128] * 4
        assert [row["deliveries"] for row in (fanout, room, packed, single)] == [384, 256, 128, 128]
        assert [row["members"] for row in (fanout, room, packed, single)] == [3, 3, 1, 1]
        assert [row["pack"] for row in (packed, single)] == [64, 1]
        assert room["payload_bytes"] == 200
        assert not [name for name in fanout if "server" in name]

    def test_the_process_tells_what_the_relay_uses(self, start: Start, run: Run, tmp_path: Any) -> None:
        address, program = relay_with(start, tmp_path)
        pid = str(program.process.pid)
        code, stdout, stderr = run(
            "bench", "pair", "--relay", address, "--pid", pid, "--msgs", "5", "--pack", "1", "--json"
        )
        assert code == 0, stderr
        [row] = lines(stdout)
        assert row["server_cpu_us_per_delivery"] > 0
        assert row["server_rss_bytes"] > 1 << 20
        assert row["server_cpu_us_per_delivery"] * row["deliveries_per_server_cpu_s"] == pytest.approx(1e6)

    def test_latency_at_a_rate_is_of_every_delivery(self, run: Run) -> None:
        code, stdout, stderr = run(
            "bench", "rtt", "pair", "connect", "--rate", "1000", "--msgs", "8", "--clients", "2", "--json"
        )
        assert code == 0, stderr
        rtt, pair, connect = lines(stdout)
        assert (rtt["deliveries"], pair["deliveries"], connect["handshakes"]) == (16, 8, 8)
        assert (rtt["rate"], pair["pack"]) == (1000, 1)
        for row in (rtt, pair, connect):
            figures = [row[f"latency_{name}_us"] for name in ("p50", "p90", "p99", "p99_9", "max")]
            assert figures == sorted(figures)
            assert figures[0] > 0

    @pytest.mark.parametrize("arguments", [("pair",), ("room", "--clients", "3"), ("rtt",)], ids=" ".join)
    def test_messages_that_travel_in_pieces(self, run: Run, arguments: tuple[str, ...]) -> None:
        code, stdout, stderr = run("bench", *arguments, "--size", "70000", "--msgs", "4", "--json")
        assert code == 0, stderr
        [row] = lines(stdout)
        assert (row["messages"], row["pack"]) == (4, 1)

    def test_one_byte_and_another_class(self, run: Run) -> None:
        code, stdout, stderr = run(
            "bench", "pair", "--size", "1", "--class", "urgent", "--msgs", "64", "--pack", "64", "--json"
        )
        assert code == 0, stderr
        assert [(row["deliveries"], row["traffic_class"]) for row in lines(stdout)] == [(64, 5)]

    def test_csv_has_a_column_for_everything(self, run: Run) -> None:
        code, stdout, stderr = run("bench", "rtt", "connect", "--msgs", "2", "--csv")
        assert code == 0, stderr
        rtt, connect = csv.DictReader(io.StringIO(stdout.decode()))
        assert list(rtt) == list(connect) == list(COLUMNS)
        assert (rtt["deliveries"], rtt["handshakes"]) == ("4", "")
        assert (connect["deliveries"], connect["handshakes"]) == ("", "2")


class TestARelayOfItsOwn:
    def test_memory_and_cpu_of_idle_connections(self, run: Run) -> None:
        code, stdout, stderr = run(
            "bench", "idle", "--clients", "200", "--duration", "0.1", "--json", AWESOMECONNECT_RELAY=""
        )
        assert code == 0, stderr
        assert "started afresh" in stderr
        [row] = lines(stdout)
        assert row["connections"] == row["members"] == 200
        assert 1_000 < row["server_bytes_per_connection"] < 100_000
        assert row["server_cpu_fraction"] >= 0

    def test_a_table_for_people(self, run: Run) -> None:
        code, stdout, stderr = run(
            "bench", "fanout", "connect", "rtt", "--clients", "2", "--msgs", "16", AWESOMECONNECT_RELAY=""
        )
        assert code == 0, stderr
        text = stdout.decode()
        assert "128 B, 1 -> 2, pack 8" in text
        assert "2 at a time" in text
        assert "latency, ms" in text
        assert "p99.9" in text


class TestInterrupted:
    def test_ctrl_c_shows_what_was_measured(self, relay: str, monkeypatch: pytest.MonkeyPatch) -> None:
        @contextmanager
        def press_ctrl_c(*_arguments: object) -> Iterator[Callable[[int, float], None]]:
            pressed: list[float] = []

            def press(_done: int, elapsed_s: float) -> None:
                if not pressed:
                    os.kill(os.getpid(), signal.SIGINT)
                pressed.append(elapsed_s)

            yield press

        monkeypatch.setattr(Report, "progress", press_ctrl_c)
        result = invoke("pair", "rtt", "--relay", relay, "--duration", "600", "--json")
        assert result.exit_code == ExitCode.INTERRUPTED, result.stderr
        [row] = lines(result.stdout_bytes)
        assert (row["workload"], row["interrupted"]) == ("pair", True)
        assert row["deliveries"] == row["messages"]

    def test_ctrl_c_before_anything_was_measured(self, start: Start) -> None:
        program = start("bench", "idle", "--duration", "600", AWESOMECONNECT_RELAY="")
        program.wait_for("started afresh")
        assert program.finish(signal.SIGINT) == (ExitCode.INTERRUPTED, b"", "")

    def test_sigterm_leaves_no_process_behind(self, start: Start) -> None:
        program = start("bench", "idle", "--duration", "600", AWESOMECONNECT_RELAY="")
        program.wait_for("started afresh")
        # Their end of the pipe, which the relay would hold open.
        assert program.finish(signal.SIGTERM) == (128 + signal.SIGTERM, b"", "")


class TestErrors:
    def test_nobody_is_there(self, run: Run) -> None:
        code, stdout, stderr = run("bench", "rtt", "--relay", NOBODY)
        assert (code, stdout) == (ExitCode.NO_CONNECTION, b"")
        assert "Connection refused; is the relay running there?" in stderr

    def test_another_relay_than_the_address_says(self, run: Run, relay: str) -> None:
        code, _stdout, stderr = run("bench", "rtt", "--relay", f"ac://{'ab' * 32}@{relay.rpartition('@')[2]}")
        assert code == ExitCode.NO_CONNECTION
        assert "its address names abab" in stderr

    def test_more_than_the_contract(self, start: Start, run: Run, tmp_path: Any) -> None:
        address, _relay = relay_with(start, tmp_path, "--contract", "data:2kB/s:1kB:0ms")
        code, stdout, stderr = run("bench", "pair", "--relay", address, "--msgs", "5000")
        assert (code, stdout) == (ExitCode.FAILURE, b"")
        assert "the sending contract is used up" in stderr
        assert "allows a connection 2,000 bytes/s in bursts of 1,000: give --rate 10.4 or less" in stderr

    def test_within_the_contract(self, start: Start, run: Run, tmp_path: Any) -> None:
        address, _relay = relay_with(start, tmp_path, "--contract", "data:2MB/s:1MB")
        code, stdout, stderr = run("bench", "pair", "--relay", address, "--msgs", "5", "--rate", "500", "--json")
        assert code == 0, stderr
        assert lines(stdout)[0]["deliveries"] == 5

    def test_more_connections_than_the_relay_takes(self, start: Start, run: Run, tmp_path: Any) -> None:
        address, _relay = relay_with(start, tmp_path, "--connections", "5")
        code, _stdout, stderr = run("bench", "fanout", "--relay", address)
        assert code == ExitCode.FAILURE
        assert "it may have as many as it allows" in stderr

    def test_longer_messages_than_the_relay_takes(self, run: Run) -> None:
        code, _stdout, stderr = run("bench", "pair", "--size", "2000000")
        assert code == ExitCode.FAILURE
        assert "--size 2000000 is above this relay's limit; give at most 1048576" in stderr

    def test_more_connections_than_files(self) -> None:
        _soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        result = invoke("idle", "--clients", str(most))
        assert result.exit_code == ExitCode.FAILURE
        assert f"--clients {most - 128}" in result.stderr

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["nothing"], "is not one of 'fanout', 'room', 'pair', 'rtt', 'connect', 'idle'"),
            (["--json", "--csv"], "--json or --csv"),
            (["--pid", "1"], "name it with --relay"),
            (["--pid", "999999999", "--relay", NOBODY], "no such process"),
            (["--relay", NOBODY, "--relay", NOBODY], "one relay at a time"),
            (["--relay", "localhost"], "not a relay address"),
            (["pair", "--clients", "2"], "always one node and one other"),
            (["room", "--clients", "1"], "--clients 2 or more"),
            (["fanout", "--pack", "5", "--window", "3"], "never lets 5 messages leave together"),
            (["rtt", "--rate", "0"], "range"),
            (["rtt", "--class", "7"], "0 to 6"),
        ],
    )
    def test_usage(self, arguments: list[str], told: str) -> None:
        result = invoke(*arguments)
        assert (result.exit_code, result.stdout) == (ExitCode.USAGE, "")
        assert told in result.stderr
