"""What the application hands over to be sent: to which flow it belongs, when it may be queued, what became of it.

A publisher waits while there is no connection, while its class is full, and, if it chose to, for receivers that are
behind. It knows the outbox and the pauses; connections it only knows from being told.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import anyio

from awesomeconnect.client.outbox import Outbox, over_burst, too_large
from awesomeconnect.client.pauses import Pauses
from awesomeconnect.client.receipts import Flow, Receipt
from awesomeconnect.errors import AddressError, AwesomeConnectError, ErrorCode, RoomRefused
from awesomeconnect.identity import KEY_BYTES
from awesomeconnect.wire.messages import Content, room_name_problem

Payload: TypeAlias = bytes | bytearray | memoryview

#: A publisher lets others run after this much.
TURN_BYTES = 64 << 10
#: A message counts for at least this much.
MESSAGE_COST_BYTES = 64
#: Destinations whose flows are remembered.
MAX_FLOWS = 1_024


class Publisher:
    """The entry to a node's outbox.

    Args:
        window_bytes: what a publisher that waits for receivers keeps without the relay's verdict.
        connected: returns once there is a connection; raises when there will be none.

    Attributes:
        more_problems: gives and forgets problems of other messages, for `flush`.
        is_open: there is a connection, and the node is not about to be closed.
        payload_bytes: what the relay takes.
    """

    def __init__(
        self,
        outbox: Outbox,
        pauses: Pauses,
        window_bytes: int,
        connected: Callable[[], Awaitable[object]],
    ) -> None:
        self.is_open = False
        self.payload_bytes = 0
        self.more_problems: Callable[[], list[AwesomeConnectError]] = list
        self._outbox = outbox
        self._pauses = pauses
        self._window_bytes = window_bytes
        self._connected = connected
        self._room_flows: dict[tuple[str, int, int], Flow] = {}
        self._other_flows: dict[tuple[Any, ...], Flow] = {}
        self._turn_bytes = 0

    # ---- destinations --------------------------------------------------------------------------------

    def to_room(self, room: str, traffic_class: int, content: int = Content.APPLICATION) -> Flow:
        """To all members of a room; raises RoomRefused for a name that is not valid."""
        flow = self._room_flows.get((room, traffic_class, content))
        if flow is None:
            check_room(room)
            _make_space(self._room_flows)
            flow = self._room_flows[room, traffic_class, content] = Flow.publish(room, traffic_class, content)
        return flow

    def to_peer(self, peer: bytes, traffic_class: int, content: int = Content.APPLICATION) -> Flow:
        """To one node; raises AddressError for what is no key."""
        flow = self._other_flows.get((peer, traffic_class, content))
        if flow is None:
            check_peer(peer)
            _make_space(self._other_flows)
            flow = self._other_flows[peer, traffic_class, content] = Flow.send(peer, traffic_class, content)
        return flow

    def to_any(self, room: str, traffic_class: int, content: int = Content.APPLICATION) -> Flow:
        """To any one member of a room; raises as `to_room`."""
        flow = self._other_flows.get((room, traffic_class, content))
        if flow is None:
            check_room(room)
            _make_space(self._other_flows)
            flow = self._other_flows[room, traffic_class, content] = Flow.anycast(room, traffic_class, content)
        return flow

    # ---- entry ---------------------------------------------------------------------------------------

    async def queue(self, flow: Flow, payload: bytes, wait: bool = False) -> Receipt:
        """Queue a message as soon as it may be."""
        if self.must_wait(flow, len(payload)) or wait:
            await self.admit(flow, len(payload), wait)
        return self._outbox.put(flow, payload)

    def queue_nowait(self, flow: Flow, payload: bytes) -> Receipt:
        """Queue a message now, or raise WouldBlock."""
        size = len(payload)
        if not self.is_open:
            raise anyio.WouldBlock
        self.check_size(flow, size)
        if self._outbox.is_full(flow, size) or self._outbox.is_early(flow, size):
            raise anyio.WouldBlock
        return self._outbox.put(flow, payload)

    def must_wait(self, flow: Flow, size: int) -> bool:
        """Whether a message cannot be put at once, or not without a word."""
        self._turn_bytes += size + MESSAGE_COST_BYTES
        return (
            self._turn_bytes > TURN_BYTES
            or not self.is_open
            or size > self.payload_bytes
            or self._outbox.is_full(flow, size)
            or self._outbox.never_leaves(flow, size)
        )

    async def admit(self, flow: Flow, size: int, wait: bool) -> None:
        """Return when a message may be put."""
        outbox = self._outbox
        await self.take_turns()
        passed = False
        while True:
            await self._connected()
            self.check_size(flow, size)
            if outbox.is_full(flow, size):
                await outbox.progress.wait()
            elif not wait:
                return
            elif (undecided := outbox.undecided_bytes) and undecided + size > self._window_bytes:
                if not outbox.is_asking:
                    outbox.flush()
                await outbox.progress.wait()
            elif (where := (flow.target, flow.traffic_class)) in self._pauses and not passed:
                await self._pauses.passed(where)
                passed = True
            else:
                return

    def is_turn_over(self, size: int) -> bool:
        """Whether others should run, now that this much more was handed over: call `take_turns`."""
        self._turn_bytes += size + MESSAGE_COST_BYTES
        return self._turn_bytes > TURN_BYTES

    async def take_turns(self) -> None:
        """Let others run if it is time."""
        if self._turn_bytes > TURN_BYTES:
            self._turn_bytes = 0
            await anyio.lowlevel.checkpoint()

    def check_size(self, flow: Flow, size: int) -> None:
        """Raise PayloadTooLarge for what can never leave."""
        if size > self.payload_bytes:
            raise too_large(flow, size, self.payload_bytes)
        # SPEC shaping.md: A client SHOULD tell the publisher at once when a message is longer than the cbs_bytes of
        #   its contract.
        if self._outbox.never_leaves(flow, size):
            raise over_burst(flow, size)

    # ---- verdicts ------------------------------------------------------------------------------------

    async def flush(self) -> None:
        """See `Node.flush`."""
        outbox = self._outbox
        problems: list[AwesomeConnectError] = []
        try:
            while not outbox.is_settled:
                await self._connected()
                if await outbox.flush().answer.wait():
                    break
        except AwesomeConnectError as over:
            problems.append(over)
        await outbox.wait_for_former()
        forgotten = outbox.problems.forgotten
        problems[:0] = [*outbox.problems.take(), *self.more_problems()]
        if len(problems) == 1:
            raise problems[0]
        if problems:
            more = f", and {forgotten} more problems" if forgotten else ""
            raise ExceptionGroup(f"messages since the last flush were not all accepted{more}", problems)


def check_room(room: str) -> None:
    """Raise RoomRefused for a name that is not valid."""
    problem = room_name_problem(room)
    if problem is not None:
        raise RoomRefused(f"room {room!r}: {problem}", ErrorCode.BAD_ROOM)


def check_peer(peer: bytes) -> None:
    """Raise AddressError for what is no key."""
    if not isinstance(peer, bytes) or len(peer) != KEY_BYTES:
        raise AddressError(f"a peer is {KEY_BYTES} bytes of public key (parse_key reads the text form)")


def octets(payload: Payload) -> bytes:
    """A payload as bytes."""
    if not isinstance(payload, bytes | bytearray | memoryview):
        raise TypeError(f"a payload is bytes, not {type(payload).__name__}; encode text with .encode()")
    return bytes(payload)


def _make_space(table: dict[Any, Any]) -> None:
    """A flow costs a little when it is made anew, and nothing else: drop them all at times."""
    if len(table) >= MAX_FLOWS:
        table.clear()
