"""Round trips: pairs of members, one of which asks and the other answers, both through the server.

Closed loop: each pair has `window` questions under way. With a rate questions are due at their times, and count
from then (see `load`). Both sides open what they receive, as applications do.
"""

from __future__ import annotations

import random
import time
from collections import deque
from itertools import cycle
from typing import Any

from awesomeconnect.bench.histogram import Histogram
from awesomeconnect.bench.load import STALL_S, Client, Clock, Connect, Limits, Loop, Lost
from awesomeconnect.bench.workloads import ROOM, Workload


class _End:
    """One side of a pair: a connection in a room of its own, and the message that it sends to the other's."""

    def __init__(self, client: Client, own_room: str, other_room: str, payload: bytes) -> None:
        self.client = client
        self._message = client.messages(other_room, payload, 1)
        self._payload = payload
        delivery = client.delivery(own_room, payload)
        self._delivery_bytes, self._payload_at = len(delivery), delivery.rindex(payload)
        self._rest = b""

    def sealed(self) -> bytes:
        return self.client.seal(self._message)

    def take(self, data: memoryview) -> int:
        """How many messages have become complete."""
        opened = self._rest + self.client.open(data)
        count, rest = divmod(len(opened), self._delivery_bytes)
        whole = len(opened) - rest
        if not all(
            opened.startswith(self._payload, at) for at in range(self._payload_at, whole, self._delivery_bytes)
        ):
            raise Lost(f"something else than deliveries arrived: {opened[:200]!r}")
        self._rest = opened[whole:]
        return count


class RoundTrips:
    """Pairs that ask and answer."""

    def __init__(self, loop: Loop, connect: Connect, address: str, workload: Workload, room: str = ROOM) -> None:
        self._loop = loop
        self._window = workload.window
        self._histogram = Histogram()
        self._under_way: list[deque[float]] = []  # of each pair, when its questions were asked, or due
        self._askers: list[_End] = []
        payload = random.Random(0).randbytes(workload.payload_bytes)
        for number in range(workload.members):
            loop.check()
            ask, answer = f"{room}-{number}-ask", f"{room}-{number}-answer"
            asker = _End(connect(address, answer), answer, ask, payload)
            answerer = _End(connect(address, ask), ask, answer, payload)
            self._askers.append(asker)
            self._under_way.append(deque())
            self._watch(asker, answerer, self._under_way[-1])
        self._turns = cycle(range(workload.members))

    def run(self, limits: Limits) -> dict[str, Any]:
        """Ask, then wait for the last answer.

        Returns:
            `messages`, the round trips; `deliveries`, two for each; `latency_us` of round trips.

        Raises:
            Lost: something else than answers came, or nothing for 5 s.
            Refused: the server said so.
        """
        loop, askers, under_way = self._loop, self._askers, self._under_way
        self._histogram = Histogram()
        most = limits.messages
        asked = 0
        start = heard = time.monotonic()
        deadline = start + limits.seconds
        clock = Clock(start, limits.rate) if limits.rate else None
        while True:
            now = time.monotonic()
            loop.tick(now, self._histogram.count)
            wait_s = STALL_S
            if now < deadline and (most is None or asked < most) and not loop.is_stopped:
                for _ in range(len(askers) * self._window):
                    pair = next(self._turns)
                    if len(under_way[pair]) >= self._window or (most is not None and asked >= most):
                        continue
                    due = now
                    if clock is not None:
                        if (early_s := clock.wait_s(now)) > 0:
                            wait_s = min(early_s, deadline - now, STALL_S)
                            break
                        due = clock.due(asked)
                    under_way[pair].append(due)
                    loop.send(askers[pair].client, askers[pair].sealed())
                    asked += 1
                    heard = now
            elif asked == self._histogram.count:
                break
            if loop.turn(wait_s):
                heard = time.monotonic()
            elif asked > self._histogram.count and time.monotonic() - heard >= STALL_S:
                raise Lost(f"{asked - self._histogram.count} of {asked} questions were not answered")
        return {"messages": asked, "deliveries": 2 * asked, "latency_us": self._histogram.summary_us()}

    def _watch(self, asker: _End, answerer: _End, under_way: deque[float]) -> None:
        loop = self._loop

        def answer(data: memoryview) -> None:
            for _ in range(answerer.take(data)):
                loop.send(answerer.client, answerer.sealed())

        def note(data: memoryview) -> None:
            now = time.monotonic()
            for _ in range(asker.take(data)):
                self._histogram.record(round((now - under_way.popleft()) * 1e9))

        for end, on_data in ((asker, note), (answerer, answer)):
            end.client.settle()
            loop.add(end.client, on_data)
