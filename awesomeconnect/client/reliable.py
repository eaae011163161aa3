"""Reliable mode of a node: drives `awesomeconnect.reliable` with the node's clock, outbox and inbox.

What is to be sent is collected while others run, and sent in one go by a task of the library: so one
acknowledgement stands for all that the application took meanwhile, and none waits for the application.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

import anyio

from awesomeconnect.client.delivery import Delivery
from awesomeconnect.client.events import GapReport, Message
from awesomeconnect.client.inbox import Inbox
from awesomeconnect.client.outbox import Outbox
from awesomeconnect.client.publishing import Publisher
from awesomeconnect.client.receipts import Receipt, Verdicts
from awesomeconnect.client.requests import ID_BYTES, Requests
from awesomeconnect.client.sealed import Sealing
from awesomeconnect.client.waiting import Signal, loop_clock
from awesomeconnect.errors import AwesomeConnectError, Expired, OutcomeUnknown, Refused, RequestTimeout
from awesomeconnect.identity import short_key
from awesomeconnect.reliable.endpoint import Endpoint
from awesomeconnect.reliable.repair import Found, Gap
from awesomeconnect.reliable.segments import MAX_EXPIRES_MS
from awesomeconnect.reliable.settings import ReliableSettings
from awesomeconnect.reliable.stores import OutboxStore, TakenStore
from awesomeconnect.wire import cbor
from awesomeconnect.wire.fields import MAX_ATTRIBUTES, MAX_ATTRIBUTES_BYTES
from awesomeconnect.wire.messages import Attributes, Content, Deliver, Mode
from awesomeconnect.wire.sealing import OVERHEAD_BYTES, SealBroken

#: What HELLO claims of a node that takes reliable messages.
ATTRIBUTE = "ac:reliable"
#: A segment's part of a frame's payload, at most.
SEGMENT_BYTES = 64
#: Control payloads but repairs are shorter: 64 ranges of 18 bytes, and a room.
CONTROL_BYTES = 1_536
#: A timer that fires may be early by rounding.
DUE_SLACK_S = 1e-6


class Reliable:
    """See the module's docstring.

    Args:
        incarnation, secret: of this node, as `Endpoint` takes them.
        random: uniform in [0, 1).
        is_manual: the application acknowledges what it has taken.
        kept_problems: failures of messages that nobody waited for, kept for `Node.flush`.
        check_open: raises when the node is closed.
        unix_ms: the time now.
    """

    def __init__(
        self,
        incarnation: bytes,
        secret: bytes,
        settings: ReliableSettings,
        random: Callable[[], float],
        publisher: Publisher,
        outbox: Outbox,
        inbox: Inbox,
        requests: Requests,
        sealing: Sealing,
        is_manual: bool,
        kept_problems: int,
        check_open: Callable[[], None],
        unix_ms: int,
        outbox_store: OutboxStore | None,
        taken_store: TakenStore | None,
    ) -> None:
        self._clock = loop_clock()
        self._problems: deque[AwesomeConnectError] = deque(maxlen=kept_problems)
        now_ms = self._now_ms()
        self.endpoint = Endpoint(incarnation, secret, settings, random, outbox_store, taken_store, unix_ms - now_ms)
        self.endpoint.unicast.restore(
            lambda peer: Delivery(f"send to {short_key(peer)}", self._problems.append), now_ms
        )
        self._settings = settings
        self._publisher = publisher
        self._outbox = outbox
        self._inbox = inbox
        self._requests = requests
        self._sealing = sealing
        self._is_manual = is_manual
        self._check_open = check_open
        self._wake = Signal()
        self._wakes_ms: int | None = None  # when the task looks again by itself
        self._is_awake = True  # ... or does so now
        self._freed = Signal()
        self._held_up = Signal()
        self._consumer = 0  # the task that iterates over the node
        self._is_over = False

    @property
    def held_bytes(self) -> int:
        """What is held for receivers that have not taken it."""
        return self.endpoint.unicast.held_bytes

    def offer(self, attributes: Attributes) -> Attributes:
        """The attributes of HELLO, with the offer of this mode if it has room there."""
        # SPEC reliable.md: A node SHOULD offer reliable mode by an attribute ac:reliable with the value 1 in HELLO,
        #   when its attributes have room for it.
        if not self._settings.is_offered or len(attributes) >= MAX_ATTRIBUTES:
            return attributes
        offered = {ATTRIBUTE: 1, **attributes}
        return offered if len(cbor.encode(offered)) <= MAX_ATTRIBUTES_BYTES else attributes

    # ---- sending -------------------------------------------------------------------------------------

    async def post(
        self,
        peer: bytes,
        traffic_class: int,
        content: int,
        payload: bytes,
        expires_s: float,
        *,
        is_sealed: bool = False,
        on_failure: Callable[[AwesomeConnectError], None] | None = None,
    ) -> Delivery:
        """Take a message, as soon as the outbox has room for it; see `Node.post`.

        Args:
            on_failure: told why it was not delivered, instead of `Node.flush`.
        """
        expires_ms = int(expires_s * 1000)
        if not 1 <= expires_ms <= MAX_EXPIRES_MS:
            raise ValueError(f"expires_s is between 0.001 and {MAX_EXPIRES_MS // 1000}, not {expires_s}")
        flow = self._publisher.to_peer(peer, traffic_class, Content.RELIABLE)
        if is_sealed:
            self._sealing.check(peer)
        size = len(payload)
        if self._publisher.is_turn_over(size):
            await self._publisher.take_turns()
        while True:
            self._check_open()
            self._publisher.check_size(flow, size + SEGMENT_BYTES + is_sealed * OVERHEAD_BYTES)
            if self.endpoint.has_room(size):
                break
            await self._freed.wait()
        delivery = Delivery(flow.about, on_failure or self._problems.append)
        now_ms = self._now_ms()
        if is_sealed:
            self.endpoint.post(
                peer,
                traffic_class,
                Content.SEALED,
                payload,
                now_ms,
                expires_ms,
                delivery,
                partial(self._seal, peer, traffic_class, content),
            )
        else:
            self.endpoint.post(peer, traffic_class, content, payload, now_ms, expires_ms, delivery)
        self._look()
        return delivery

    def _seal(self, peer: bytes, traffic_class: int, content: int, sequence: int, payload: bytes) -> bytes:
        incarnation = self.endpoint.unicast.incarnation
        return self._sealing.seal_segment(peer, traffic_class, incarnation, sequence, content, payload)

    async def send(
        self, peer: bytes, traffic_class: int, content: int, payload: bytes, expires_s: float, is_sealed: bool
    ) -> Delivery:
        """Send a message and wait; see `Node.send`."""
        delivery = await self.post(peer, traffic_class, content, payload, expires_s, is_sealed=is_sealed)
        await delivery.wait(until_held=anyio.get_current_task().id == self._consumer)
        return delivery

    async def publish(self, room: str, traffic_class: int, payload: bytes, wait: bool) -> Receipt:
        """Publish a message that can be repaired; see `Node.publish`."""
        flow = self._publisher.to_room(room, traffic_class, Content.RELIABLE)
        size = len(payload) + SEGMENT_BYTES
        if self._publisher.must_wait(flow, size) or wait:
            await self._publisher.admit(flow, size, wait)
        segment = self.endpoint.publish(room, traffic_class, Content.APPLICATION, payload, self._now_ms())
        self._look()
        return self._outbox.put(flow, segment)

    async def request(
        self, peer: bytes, traffic_class: int, payload: bytes, timeout_s: float, is_sealed: bool
    ) -> bytes:
        """Ask and wait for the answer; see `Node.request`."""
        with self._requests.open(peer) as request, anyio.move_on_after(timeout_s):

            def fail(error: AwesomeConnectError) -> None:
                if not isinstance(error, Expired | OutcomeUnknown):  # those come with the timeout
                    request.answer.fail(error)

            await self.post(
                peer,
                traffic_class,
                Content.REQUEST,
                request.request_id + payload,
                timeout_s,
                is_sealed=is_sealed,
                on_failure=fail,
            )
            return await request.answer.wait()
        raise RequestTimeout(f"request to {short_key(peer)}: no answer in {timeout_s:g} s")

    def take_problems(self) -> list[AwesomeConnectError]:
        """Why messages were not delivered for which nobody waited."""
        problems, self._problems = list(self._problems), deque(maxlen=self._problems.maxlen)
        return problems

    # ---- receiving -----------------------------------------------------------------------------------

    def note_consumer(self) -> None:
        """The task that runs iterates over the node."""
        self._consumer = anyio.get_current_task().id

    def hand_over(self, message: Message) -> bool:
        """The application is about to get a message; False: it must not any more."""
        arrival = message.origin
        assert arrival is not None
        now = self._now_ms()
        if not self.endpoint.may_hand_over(arrival, now):
            self._look()
            return False
        if not self._is_manual:
            self.endpoint.taken(arrival, now)
            self._look()
        return True

    def ack(self, message: Message) -> None:
        """The application stands for a message that it took."""
        if message.origin is not None:
            self.endpoint.taken(message.origin, self._now_ms())
            self._look()

    def on_deliver(self, message: Deliver) -> None:
        """A payload of content 1 or 2 has arrived."""
        traffic_class, payload = message.traffic_class, message.payload
        is_data = message.content == Content.RELIABLE or len(payload) > CONTROL_BYTES
        if is_data and not self._inbox.has_room(traffic_class, len(payload)):
            return  # as if it had not arrived: it will come again
        arrivals = self.endpoint.on_deliver(
            message.sender, message.mode, message.room, traffic_class, message.content, payload, self._now_ms()
        )
        for found in arrivals:
            self._take_in(found)
        self._look()

    def _take_in(self, arrival: Found) -> None:
        if isinstance(arrival, Gap):
            sender, room, traffic_class, first, last = arrival
            sequences = range(first, last + 1)
            self._inbox.put_gap(GapReport(room, sender, traffic_class, last - first + 1, 0, 0, sequences=sequences))
            return
        content, payload, request_id = arrival.content, arrival.payload, b""
        is_sealed = content == Content.SEALED
        if is_sealed:
            stream = arrival.origin
            try:
                if stream is None:
                    raise SealBroken("sealed to a room")
                content, payload = self._sealing.open_segment(
                    arrival.sender, arrival.traffic_class, stream.incarnation, arrival.sequence, payload
                )
            except SealBroken:
                # SPEC sealed.md: A receiver MUST NOT acknowledge a segment whose box does not open.
                self.endpoint.ignored += 1
                if stream is not None:
                    stream.spoiled(arrival)
                return
        if content == Content.RESPONSE:
            if arrival.room is None:
                self._requests.on_response(arrival.sender, payload)
            self.endpoint.taken(arrival, self._now_ms())
            return
        if content == Content.REQUEST:
            if len(payload) < ID_BYTES or arrival.room is not None:
                self.endpoint.taken(arrival, self._now_ms())
                return
            request_id, payload = payload[:ID_BYTES], payload[ID_BYTES:]
        elif content != Content.APPLICATION:
            self.endpoint.taken(arrival, self._now_ms())
            return
        mode = Mode.UNICAST if arrival.room is None else Mode.BROADCAST
        self._inbox.add(
            Message(
                arrival.sender,
                arrival.room,
                mode,
                arrival.traffic_class,
                content,
                payload,
                request_id,
                is_sealed,
                arrival,
            )
        )

    # ---- the connection ------------------------------------------------------------------------------

    def up(self) -> None:
        """A connection is up."""
        self.endpoint.connected(self._now_ms())
        self._look()

    def down(self) -> None:
        """It is gone."""
        self.endpoint.disconnected()
        self._look()

    def end(self) -> None:
        """There will be none any more."""
        self._is_over = True
        self.endpoint.end()
        self._freed.notify()
        self._wake.notify()
        self._held_up.notify()

    def on_reject(self, refused: Refused, verdicts: Verdicts) -> bool:
        """The relay refused messages of a connection; whether the application need not know."""
        flows = verdicts.flows(refused.ordinals)
        # Of messages to a room it is told, as of plain ones: for example that nobody is there.
        ours = [flow for flow in flows if flow.is_resent]
        if flows and not ours:
            return False
        found = False
        if verdicts is self._outbox.verdicts:
            target = ours[0].target if len(flows) == 1 else None
            found = self.endpoint.on_reject(
                target if isinstance(target, bytes) else None,
                refused.ordinals,
                refused.code,
                refused.retry_after_ms,
                self._now_ms(),
            )
            self._look()
        return len(ours) == len(flows) if flows else found

    # ---- the library's tasks -------------------------------------------------------------------------

    def flush(self) -> None:
        """Queue what is to be sent now."""
        publisher, outbox = self._publisher, self._outbox
        full_classes = outbox.full_classes(self._settings.window_bytes)
        for target, traffic_class, content, payload, entry in self.endpoint.poll(self._now_ms(), full_classes):
            if isinstance(target, bytes):
                flow = publisher.to_peer(target, traffic_class, content)
            else:
                flow = publisher.to_room(target, traffic_class, content)
            receipt = outbox.put(flow, payload)
            if entry is not None:
                entry.transmissions.append(receipt)
        for found in self.endpoint.take_found():
            self._take_in(found)
        self._freed.notify()
        if self.endpoint.is_held_up:
            self._held_up.notify()

    async def run(self) -> None:
        """Send what is to be sent, when it is due, until the node ends."""
        while not self._is_over:
            if not self.endpoint.is_waiting:
                self._wakes_ms = self.endpoint.next_ms
                self._is_awake = False
                await self._wait_until(self._wakes_ms)
                self._is_awake = True
            self.flush()

    async def run_on(self) -> None:
        """Go on as soon as the outbox has room again, until the node ends."""
        while not self._is_over:
            if self.endpoint.is_held_up:
                await self._outbox.progress.wait()
                self._wake.notify()
            else:
                await self._held_up.wait()

    async def _wait_until(self, at_ms: int | None) -> None:
        """Return when this time has come, or when `_wake` is notified."""
        if at_ms is None:
            await self._wake.wait()
            return
        with anyio.move_on_after(at_ms / 1000 - anyio.current_time() + DUE_SLACK_S):
            await self._wake.wait()

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _look(self) -> None:
        """Wake the task if it has something to do earlier than it knows."""
        if self._is_awake:
            return  # it looks before it sleeps
        if self.endpoint.is_waiting or (
            (next_ms := self.endpoint.next_ms) is not None and (self._wakes_ms is None or next_ms < self._wakes_ms)
        ):
            self._is_awake = True
            self._wake.notify()
