"""A slow link between two network namespaces of this machine: where the relay runs, and where its reader does.

    sender namespace  [tbf: rate, burst, limit] ----> reader namespace        no limit on the way back

A veth pair carries it, or, when a round trip time is asked for, two TUN devices with `delay.py` between them:
not every kernel has netem. Only root may do this. Everything is gone after the block, and what a killed run
left behind goes with the next run.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs

SENDER_IP, READER_IP = "10.99.0.1", "10.99.0.2"
DEVICE = "slow0"
#: tbf's bucket: what may pass at once after a pause. 8 ms of 10 Mbit/s.
BURST_BYTES = 10_000
#: tbf's queue: 80 ms of 10 Mbit/s, a small home router.
LIMIT_BYTES = 100_000
_PREFIX = "ac-urgent-"


class Unable(Exception):
    """This machine or this user cannot make such a link; the text says what is missing."""


@attrs.frozen
class Link:
    """A link that is up. Addresses: SENDER_IP and READER_IP."""

    sender: str
    reader: str
    rtt_ms: float
    congestion_control: str

    def set_rate(self, mbit_per_s: float) -> None:
        """Limit the way to the reader, from now on."""
        _run("tc", "-n", self.sender, "qdisc", "replace", "dev", DEVICE, "root", *_tbf(mbit_per_s))


def inside(namespace: str, *command: str) -> list[str]:
    """The command line that runs a command in a namespace."""
    return ["ip", "netns", "exec", namespace, *command]


def describe(mbit_per_s: float | None) -> str:
    """The limit in tc's own words."""
    return " ".join(_tbf(mbit_per_s)) if mbit_per_s else "no limit"


@contextlib.contextmanager
def link(rate_mbit_per_s: float | None, rtt_ms: float = 0, congestion_control: str = "") -> Iterator[Link]:
    """Make a link, and take it away again.

    Args:
        rate_mbit_per_s: towards the reader; None for no limit.
        rtt_ms: added round trip time.
        congestion_control: of TCP in both namespaces; empty for the system's default.

    Raises:
        Unable: not root, or a tool or a kernel feature is missing.
    """
    if os.geteuid() != 0:
        raise Unable("a rate-limited link needs root: network namespaces and tc; run it with sudo")
    _remove_leftovers()
    name = f"{_PREFIX}{os.getpid()}-"
    sender, reader = name + "relay", name + "reader"
    with contextlib.ExitStack() as stack:
        for namespace in (sender, reader):
            _run("ip", "netns", "add", namespace)
            stack.callback(_run, "ip", "netns", "del", namespace)
            _run("ip", "-n", namespace, "link", "set", "lo", "up")
            if congestion_control:
                setting = f"net.ipv4.tcp_congestion_control={congestion_control}"
                _run(*inside(namespace, "sysctl", "-qw", setting))
        if rtt_ms:
            stack.enter_context(_delayed(sender, reader, rtt_ms / 2))
        else:
            _run("ip", "-n", sender, "link", "add", DEVICE, "type", "veth", "peer", "name", DEVICE, "netns", reader)
        for namespace, ip in ((sender, SENDER_IP), (reader, READER_IP)):
            _run("ip", "-n", namespace, "address", "add", f"{ip}/24", "dev", DEVICE)
            _run("ip", "-n", namespace, "link", "set", DEVICE, "up")
        used = _run(*inside(sender, "sysctl", "-n", "net.ipv4.tcp_congestion_control")).strip()
        made = Link(sender, reader, rtt_ms, used)
        if rate_mbit_per_s:
            made.set_rate(rate_mbit_per_s)
        yield made


@contextlib.contextmanager
def _delayed(sender: str, reader: str, one_way_ms: float) -> Iterator[None]:
    """A TUN device in each namespace, and a process between them that holds every packet back."""
    command = [sys.executable, "-m", "tests.benchmarks.delay", reader, str(one_way_ms)]
    process = subprocess.Popen(inside(sender, *command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        if process.stdout.readline() != "ready\n":
            raise Unable("packets cannot be delayed here: /dev/net/tun is missing")
        yield
    finally:
        process.kill()
        process.communicate()


def _tbf(mbit_per_s: float) -> list[str]:
    return ["tbf", "rate", f"{mbit_per_s:g}mbit", "burst", str(BURST_BYTES), "limit", str(LIMIT_BYTES)]


def _remove_leftovers() -> None:
    """Namespaces of runs that were killed."""
    for line in _run("ip", "netns", "list").splitlines():
        namespace = line.split()[0]
        owner = namespace.removeprefix(_PREFIX).partition("-")[0]
        if namespace.startswith(_PREFIX) and not Path("/proc", owner).exists():
            _run("ip", "netns", "del", namespace)


def _run(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        raise Unable(f"{command[0]} is not installed (Debian package iproute2)") from None
    except subprocess.CalledProcessError as problem:
        raise Unable(f"{' '.join(command)}: {problem.stderr.strip()}") from None
