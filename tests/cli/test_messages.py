"""Messages between real processes: ``pub``, ``sub``, ``send``, ``recv``, ``who``, ``ping``."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from awesomeconnect.client import connect
from awesomeconnect.identity import Identity

from .conftest import Program

Start = Callable[..., Program]
Run = Callable[..., tuple[int, bytes, str]]


@pytest.fixture
def begin(start: Start, relay: str) -> Callable[..., Program]:
    """Starts a command against the relay and waits until it receives messages."""

    def begin(*arguments: str, **options: int) -> Program:
        program = start(*arguments, AWESOMECONNECT_RELAY=relay, **options)
        program.wait_for(f"on {relay}")
        return program

    return begin


class TestRooms:
    def test_a_file_arrives_whole_at_three(self, begin: Start, run: Run, tmp_path: Path) -> None:
        content = random.Random(1).randbytes(3_000_001)
        path = tmp_path / "film"
        path.write_bytes(content)
        subs = [begin("sub", "films", "--count", "12") for _ in range(3)]
        assert run("pub", "films", str(path), "--class", "bulk") == (0, b"", "")
        for sub in subs:
            code, stdout, stderr = sub.finish()
            assert (code, stderr) == (0, "")
            assert hashlib.sha256(stdout).digest() == hashlib.sha256(content).digest()

    def test_a_pipe_is_cut_into_full_messages(self, begin: Start, run: Run) -> None:
        sub = begin("sub", "pipes", "--json", "--count", "3")
        assert run("pub", "pipes", "--size", "100000", stdin=b"x" * 250_000)[0] == 0
        code, stdout, _stderr = sub.finish()
        assert code == 0
        assert [json.loads(line)["size"] for line in stdout.splitlines()] == [100_000, 100_000, 50_000]

    def test_an_empty_input_is_an_empty_message(self, begin: Start, run: Run) -> None:
        sub = begin("sub", "empty", "--lines", "--count", "1")
        assert run("pub", "empty")[0] == 0
        assert sub.finish()[:2] == (0, b"\n")

    def test_lines(self, begin: Start, run: Run) -> None:
        lines = b"one\n\ntwo\r\nlast without end"
        sub = begin("sub", "lines", "--lines", "--count", "4")
        assert run("pub", "lines", "--lines", stdin=lines) == (0, b"", "")
        assert sub.finish()[:2] == (0, lines + b"\n")

    def test_lines_leave_as_they_come(self, begin: Start, start: Start, relay: str) -> None:
        sub = begin("sub", "chat", "--lines")
        pub = start("pub", "chat", "--lines", AWESOMECONNECT_RELAY=relay, stdin=subprocess.PIPE)
        for line in ("hello", "are you there"):
            pub.write(line.encode() + b"\n")
            assert sub.line() == line
        assert pub.finish()[0] == 0

    def test_json(self, begin: Start, run: Run, key_file: Path) -> None:
        sub = begin("sub", "json", "other", "--json", "--count", "2")
        text = "größe \x1b[2J\u202e"
        run("pub", "json", "--class", "urgent", "--key", str(key_file), stdin=text.encode())
        run("pub", "other", "--class", "3", "--any", "--key", str(key_file), stdin=b"\xff\x00")
        code, stdout, _stderr = sub.finish()
        assert code == 0
        assert stdout.isascii()
        assert b"\x1b" not in stdout
        sender = Identity.load(key_file).public_key.hex()
        assert [json.loads(line) for line in stdout.splitlines()] == [
            {
                "room": "json",
                "sender": sender,
                "class": "urgent",
                "mode": "broadcast",
                "size": len(text.encode()),
                "payload": text,
            },
            {
                "room": "other",
                "sender": sender,
                "class": 3,
                "mode": "anycast",
                "size": 2,
                "payload_base64": base64.b64encode(b"\xff\x00").decode(),
            },
        ]

    def test_jobs_go_to_one_each(self, begin: Start, run: Run) -> None:
        workers = [begin("recv", "jobs", "--lines", "--count", "5") for _ in range(2)]
        jobs = [b"job %d" % number for number in range(10)]
        assert run("pub", "jobs", "--lines", "--any", stdin=b"\n".join(jobs))[0] == 0
        done = [worker.finish() for worker in workers]
        assert sorted(b"".join(stdout for _code, stdout, _stderr in done).splitlines()) == sorted(jobs)


class TestPeers:
    def test_send_and_recv(self, begin: Start, run: Run, key_file: Path) -> None:
        content = random.Random(2).randbytes(700_000)
        peer = Identity.load(key_file).public_key.hex()
        recv = begin("recv", "--key", str(key_file), "--count", "3")
        assert run("send", peer, stdin=content) == (0, b"", "")
        assert recv.finish() == (0, content, "")

    def test_recv_says_who_it_is(self, start: Start, run: Run, relay: str) -> None:
        recv = start("recv", "--count", "1", AWESOMECONNECT_RELAY=relay)
        peer = recv.wait_for("listening as").split()[2]
        assert run("send", peer, stdin=b"hi")[0] == 0
        assert recv.finish()[:2] == (0, b"hi")

    def test_unknown_peer(self, run: Run) -> None:
        peer = Identity.generate().public_key
        code, stdout, stderr = run("send", peer.hex(), stdin=b"hi")
        assert (code, stdout) == (1, b"")
        assert stderr.startswith("Error: ")
        assert "no node with this key" in stderr


class TestLooking:
    def test_who(self, begin: Start, run: Run, key_file: Path) -> None:
        first = begin("sub", "club", "--key", str(key_file), "--attribute", "name=Eve\x1b[2J\u202e")
        begin("sub", "club")
        key = Identity.load(key_file).public_key.hex()
        code, stdout, _stderr = run("who", "club", "--json")
        members = [json.loads(line) for line in stdout.splitlines()]
        assert code == 0
        assert [member["key"] == key for member in members] == [True, False]
        assert members[0]["attributes"] == {"name": "Eve\x1b[2J\u202e", "ac:reliable": 1}
        assert members[0]["joined"] < members[1]["joined"]
        code, stdout, _stderr = run("who", "club")
        assert code == 0
        assert stdout.decode().splitlines()[0] == f"{key}  name=Eve\\x1b[2J\\u202e"
        assert first.finish(signal.SIGINT)[0] == 130

    def test_who_is_in_an_empty_room(self, run: Run) -> None:
        assert run("who", "nowhere") == (0, b"", "nobody is in nowhere\n")

    def test_ping(self, run: Run, relay: str) -> None:
        code, stdout, _stderr = run("ping", "--count", "3", "--interval", "0")
        lines = stdout.decode().splitlines()
        assert code == 0
        assert [line.startswith(f"{relay}: ") for line in lines] == [True, True, True, False]
        assert lines[-1].startswith("min/avg/max ")
        trips = [json.loads(line)["rtt_ms"] for line in run("ping", "--json", "--interval", "0")[1].splitlines()]
        assert len(trips) == 4
        assert min(trips) > 0


class TestEndings:
    def test_nobody_listens(self, run: Run) -> None:
        code, stdout, stderr = run("pub", "void", stdin=b"hi")
        assert (code, stdout) == (1, b"")
        assert "nobody else is in the room" in stderr

    def test_refused_lines_do_not_stop_the_others(self, run: Run) -> None:
        code, _stdout, stderr = run("pub", "void", "--lines", stdin=b"a\nb\nc")
        assert code == 1
        assert "Error: 3 of 3 lines were refused" in stderr

    def test_wait_runs_out(self, run: Run) -> None:
        code, stdout, stderr = run("sub", "quiet", "--wait", "0.05", "--count", "2")
        assert (code, stdout) == (4, b"")
        assert "Error: --wait: no message for 0.05 s; received 0 of 2" in stderr

    def test_wait_ends_a_transfer(self, begin: Start, run: Run) -> None:
        sub = begin("sub", "transfer", "--wait", "2")
        assert run("pub", "transfer", stdin=b"data")[0] == 0
        assert sub.finish()[:2] == (0, b"data")

    def test_oversize(self, begin: Start, run: Run) -> None:
        sub = begin("sub", "big", "--count", "1")
        code, _stdout, stderr = run("pub", "big", "--size", "2000000", stdin=b"x" * 2_000_000)
        assert code == 1
        assert "give at most 1048576" in stderr
        code, _stdout, stderr = run("pub", "big", "--lines", stdin=b"fits\n" + b"x" * 1_048_577)
        assert code == 1
        assert "line 2 is longer than a message may be (1048576 bytes)" in stderr
        assert sub.finish()[:2] == (0, b"fits")

    @pytest.mark.parametrize("command", ["sub room", "recv"])
    def test_interrupted_receiver(self, command: str, begin: Start) -> None:
        assert begin(*command.split()).finish(signal.SIGINT) == (130, b"", "")

    def test_interrupted_ping(self, start: Start, relay: str) -> None:
        ping = start("ping", "--count", "1000", AWESOMECONNECT_RELAY=relay)
        ping.line()
        code, _stdout, stderr = ping.finish(signal.SIGINT)
        assert (code, stderr) == (130, "")

    def test_interrupted_while_it_waits_for_input(self, begin: Start, start: Start, relay: str) -> None:
        sub = begin("sub", "waiting", "--lines")
        pub = start("pub", "waiting", "--lines", AWESOMECONNECT_RELAY=relay, stdin=subprocess.PIPE)
        pub.write(b"here\n")
        assert sub.line() == "here"
        pub.process.send_signal(signal.SIGINT)
        assert pub.process.wait() == 130

    def test_losses_are_told(self, begin: Start, relay: str) -> None:
        """A reader that stands still, and a publisher that does not wait for it."""
        sub = begin("sub", "flood", "--count", "60")

        async def flood() -> None:
            async with connect(relay) as node:
                for _ in range(60):
                    await node.publish("flood", bytes(512 << 10))
                await node.flush()

        anyio.run(flood, backend="trio")
        code, stdout, stderr = sub.finish()
        assert code == 5
        assert len(stdout) % (512 << 10) == 0
        lost = 60 - len(stdout) // (512 << 10)
        assert lost > 0
        assert f"Error: {lost} messages were lost on the way here" in stderr
        assert "Warning: lost " in stderr
        assert "in flood: receiver_congested" in stderr

    def test_the_same_key_twice(self, begin: Start, key_file: Path) -> None:
        first = begin("sub", "room", "--key", str(key_file))
        begin("sub", "room", "--key", str(key_file))
        code, stdout, stderr = first.finish()
        assert (code, stdout) == (3, b"")
        assert "Error: another process connected with the same key" in stderr

    def test_attributes_that_are_too_long(self, run: Run) -> None:
        code, _stdout, stderr = run("ping", "--attribute", f"name={'x' * 2_000}")
        assert code == 2
        assert stderr.startswith("Error: ")

    def test_reader_of_the_output_went_away(self, begin: Start, run: Run) -> None:
        sub = begin("sub", "head")
        assert sub.process.stdout is not None
        sub.process.stdout.close()
        run("pub", "head", stdin=b"x")
        sub.process.stdout = None
        code, _stdout, stderr = sub.finish()
        assert (code, stderr) == (141, "")


class TestConnecting:
    def test_wrong_relay_key(self, run: Run, relay: str) -> None:
        key = Identity.generate().public_key.hex()
        code, stdout, stderr = run("ping", "--relay", f"ac://{key}@{relay.partition('@')[2]}")
        assert (code, stdout) == (3, b"")
        assert stderr.startswith("Error: ")
        assert "key" in stderr
        assert "Traceback" not in stderr

    def test_unreachable_relay(self, run: Run) -> None:
        with socket.socket() as bound:  # bound and not listening: nobody can answer there
            bound.bind(("127.0.0.1", 0))
            address = f"ac://{Identity.generate().public_key.hex()}@127.0.0.1:{bound.getsockname()[1]}"
            code, stdout, stderr = run("ping", "--relay", address)
        assert (code, stdout) == (3, b"")
        assert "refused" in stderr.lower()

    def test_no_such_host(self, run: Run) -> None:
        address = f"ac://{Identity.generate().public_key.hex()}@relay.invalid"
        code, _stdout, stderr = run("ping", "--relay", address)
        assert code == 3
        assert stderr.startswith("Error: ")

    def test_another_service_answers(self, run: Run) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = f"ac://{Identity.generate().public_key.hex()}@127.0.0.1:{server.getsockname()[1]}"

            def answer() -> None:
                connected, _address = server.accept()
                with connected:
                    connected.recv(100)
                    connected.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 8)

            thread = threading.Thread(target=answer)
            thread.start()
            code, _stdout, stderr = run("ping", "--relay", address)
            thread.join()
        assert code == 3
        assert "Traceback" not in stderr

    def test_the_relay_goes_and_comes_back(self, start: Start, tmp_path: Path) -> None:
        """The reader reconnects by itself, and its exit code says that something may be missing."""
        path = tmp_path / "relay.sock"
        serve = ["serve", "--listen", str(path), "--key", str(tmp_path / "relay.key"), "--json"]
        relay = start(*serve)
        address = json.loads(relay.line())["addresses"][0]
        sub = start("sub", "room", "--count", "1", "--relay", address)
        sub.wait_for("joined room")
        relay.finish(signal.SIGKILL)
        sub.wait_for("connection lost")
        relay = start(*serve)
        relay.line()
        sub.wait_for("connected again")
        assert start("pub", "room", "/etc/hostname", "--relay", address).finish()[0] == 0
        code, stdout, stderr = sub.finish()
        assert (code, stdout) == (5, Path("/etc/hostname").read_bytes())
        assert "messages may be missing" in stderr
