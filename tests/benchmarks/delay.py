"""Two TUN devices, each packet from one to the other a fixed time later: netem for kernels without it.

    ip netns exec NAMESPACE python -m tests.benchmarks.delay OTHER_NAMESPACE MILLISECONDS

Prints "ready" and forwards until it is killed. The limit of the rate is not
its business: tbf comes before it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections import deque

from .link import DEVICE

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000


def _tun(name: str) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH14x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return device


def main() -> None:
    """See the module's docstring."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started this process ends it
    other_namespace, delay_s = sys.argv[1], float(sys.argv[2]) / 1e3
    there = _tun(DEVICE)
    subprocess.run(["ip", "link", "set", DEVICE, "netns", other_namespace], check=True)
    here = _tun(DEVICE)
    print("ready", flush=True)
    onward = {here: there, there: here}
    held: deque[tuple[float, int, bytes]] = deque()
    while True:
        wait_s = max(0.0, held[0][0] - time.monotonic()) if held else None
        readable, _, _ = select.select([here, there], [], [], wait_s)
        now = time.monotonic()
        for device in readable:
            with contextlib.suppress(OSError):  # nothing more, or the device is not up yet
                while True:
                    held.append((now + delay_s, onward[device], os.read(device, 65_536)))
        while held and held[0][0] <= now:
            _, device, packet = held.popleft()
            with contextlib.suppress(OSError):  # not up yet: such packets are lost, as on any link
                os.write(device, packet)


if __name__ == "__main__":
    main()
