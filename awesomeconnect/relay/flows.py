"""Routing of application messages: per stream, not per message.

A stream is what one connection sends to one destination in one class. The frames of a chunk are gathered per
stream (`wire.framing`); here a stream's frames become blobs that fit a record, and each receiver's egress queue
takes the same blobs. Nothing runs per message and member.

`Router` belongs to one connection. It resolves destinations, keeps the streams, and says which queues it
touched, so that the server can flush them at the end of the turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from attrs import define

from awesomeconnect.errors import ErrorCode
from awesomeconnect.relay.admission import judge_room
from awesomeconnect.relay.ingress import Forward, Gate, Ingress
from awesomeconnect.relay.rooms import Peer, Registry, Room
from awesomeconnect.shaping.ats import NS_PER_MS, Discard, Scheduler
from awesomeconnect.shaping.egress import Egress
from awesomeconnect.wire.framing import FRAGMENT_ABOVE_BYTES, LENGTH_BYTES, FrameReader
from awesomeconnect.wire.messages import (
    Anycast,
    ClassContract,
    Mode,
    Publish,
    Send,
    anycast_prefix,
    deliver_prefix,
    payload_head,
    publish_prefix,
    send_prefix,
)
from awesomeconnect.wire.records import MAX_PLAINTEXT


@define(slots=True)
class Traffic:
    """Plain counters of a relay; read on scrape, never reset."""

    received_messages: int = 0
    received_bytes: int = 0
    delivered_messages: int = 0
    delivered_bytes: int = 0
    rejected_messages: int = 0
    receiver_gone_messages: int = 0
    gap_messages: int = 0


class Stream:
    """One destination in one class, as one connection sends to it.

    Attributes:
        parts: frames gathered in this chunk, as DELIVER frames; each part is whole frames and fits a record.
        frames: how many.
        received_bytes: how long they were as received, with their length prefixes.
    """

    __slots__ = ("frames", "parts", "received_bytes", "target", "traffic_class")

    def __init__(self, target: Room | Peer, traffic_class: int) -> None:
        self.target = target
        self.traffic_class = traffic_class
        self.parts: list[bytes] = []
        self.frames = 0
        self.received_bytes = 0


#: What became of messages: a code, after how many ns to try again, and the work done, in deliveries.
Verdict = tuple[ErrorCode, int, int]
#: (first ordinal, count, code, retry after in ms): messages of this connection that are refused.
Refusal = Callable[[int, int, ErrorCode, int], None]
#: (first ordinal, count): messages that were accepted for one receiver, which disconnected first.
Gone = Callable[[int, int], None]
#: (queue, class, whom to tell, first ordinal, count)
Unicast = tuple[Any, int, Gone, int, int]
#: (destination, class): a receiver's queue is over its high-water mark.
Congestion = Callable[[Room | Peer, int, Any], None]
#: The contracts of a room that this connection sends its first message to; they are announced to it.
RoomContracts = Callable[[Room], Iterable[ClassContract]]


class Router:
    """Routes what one connection sends.

    Args:
        registry: where rooms and peers are looked up.
        key: the sender's public key, which the relay vouches for.
        egress: the sender's own queue: a room's message does not come back to it.
        reader: its frames; flows are bound to it.
        traffic: the relay's counters.
        touched: queues that something was put into; whoever flushes them empties it.
        unicasts: ``(queue, class, whom to tell, first ordinal, count)`` of what went to a single receiver; whoever
            flushes empties it, and remembers those that are still queued.
        gone: called with the first ordinal and the count when a receiver disconnects before its turn.
        ingress: what this connection may send.
        fan_out: bounds the bytes that its messages are multiplied to.
        room_contracts: called at the first message to a room whose contracts are not in force yet.
        refuse: called for refused messages.
        congested: called when a receiver's queue is above its high-water mark.
    """

    __slots__ = (
        "_congested",
        "_egress",
        "_fan_out",
        "_gone",
        "_key",
        "_reader",
        "_refuse",
        "_registry",
        "_room_contracts",
        "_streams",
        "_touched",
        "_traffic",
        "_unicasts",
        "ingress",
    )

    def __init__(
        self,
        registry: Registry,
        key: bytes,
        egress: Egress,
        reader: FrameReader,
        traffic: Traffic,
        touched: dict[Any, None],
        unicasts: list[Unicast],
        gone: Gone,
        ingress: Ingress,
        fan_out: Scheduler,
        room_contracts: RoomContracts,
        refuse: Refusal,
        congested: Congestion,
    ) -> None:
        self._registry = registry
        self._key = key
        self._egress = egress
        self._reader = reader
        self._traffic = traffic
        self._touched = touched
        self._unicasts = unicasts
        self._gone = gone
        self.ingress = ingress
        self._fan_out = fan_out
        self._room_contracts = room_contracts
        self._refuse = refuse
        self._congested = congested
        self._streams: dict[tuple[Room | Peer, int], Stream] = {}

    def route_gathered(self, now_ns: int) -> int:
        """Route the streams that the reader has gathered.

        Returns:
            Work done, in deliveries.
        """
        reader = self._reader
        streams, runs = reader.touched, reader.runs
        reader.touched, reader.runs = [], []
        singly = self._not_at_once(streams, now_ns) if self.ingress.is_limiting else ()
        work = 0
        verdicts: dict[Stream, Verdict] = {}  # of the streams whose runs have to be named
        for stream in streams:
            if stream in singly:
                continue
            verdict = self._route(stream.target, stream.traffic_class, stream.parts, stream.frames, now_ns)
            work += verdict[2]
            if verdict[0] or type(stream.target) is Peer:
                verdicts[stream] = verdict
        if verdicts or singly:
            parts = {stream: iter(stream.parts) for stream in singly}
            for stream, first, count, size in runs:
                if stream in singly:
                    part = next(parts[stream])
                    work += self._judge(stream.target, stream.traffic_class, part, first, count, size, now_ns)[1]
                elif stream in verdicts:
                    self._conclude(stream.target, stream.traffic_class, first, count, verdicts[stream], now_ns)
        for stream in streams:
            stream.parts = []
            stream.frames = stream.received_bytes = 0
        return work

    def _not_at_once(self, streams: list[Stream], now_ns: int) -> set[Stream]:
        """The streams whose messages must be judged in the order in which they came; the others may pass."""
        # SPEC shaping.md: A relay MUST process the messages of a group in the order in which they arrived.
        ingress, ordinal = self.ingress, self._reader.ordinal
        groups: dict[int, list[Stream]] = {}
        singly: set[Stream] = set()
        for stream in streams:
            groups.setdefault(stream.traffic_class, []).append(stream)
        for traffic_class, group in groups.items():
            gates = {ingress.gate(stream.target, traffic_class) for stream in group}
            if any(ingress.closed_ns(stream.target, traffic_class, ordinal, now_ns) for stream in group):
                singly.update(group)
            elif gates != {None}:
                total = sum([stream.received_bytes for stream in group])
                gate = gates.pop()
                if gates or gate is None or not gate.passes(now_ns, total, min(total, LONGEST_GATHERED)):
                    singly.update(group)
        return singly

    def _judge(
        self, target: Room | Peer, traffic_class: int, part: bytes, first: int, count: int, size: int, now_ns: int
    ) -> tuple[ErrorCode, int]:
        """Pass, hold or refuse a run of messages of equal length, one behind the other.

        Args:
            part: their frames, as they are passed on.
            size: of each frame, as it was received.

        Returns:
            The code of the last one, and the work done, in deliveries.
        """
        ingress = self.ingress
        # SPEC shaping.md: A relay MUST refuse every later message of the same connection, destination and class
        #   with REJECT rate_exceeded and the remaining time, until the retry time has passed.
        if closed_ns := ingress.closed_ns(target, traffic_class, first, now_ns):
            return self._refused(first, ErrorCode.RATE_EXCEEDED, closed_ns, count), 1
        gate = ingress.gate(target, traffic_class)
        if gate is None or gate.passes(now_ns, count * size, size):
            verdict = self._route(target, traffic_class, [part], count, now_ns)
            self._conclude(target, traffic_class, first, count, verdict, now_ns)
            return verdict[0], verdict[2]
        length = len(part) // count
        work = 0
        for index in range(count):
            frame = part[index * length : (index + 1) * length]
            forward = partial(self._forward, target, traffic_class, frame, first + index)
            code, done = self._admit(
                gate, target, traffic_class, size, first + index, count - index, forward, now_ns
            )
            work += done + ONE_BY_ONE_COST
            if code:
                return code, work
        return ErrorCode.OK, work

    def _admit(
        self,
        gate: Gate,
        target: Room | Peer,
        traffic_class: int,
        size: int,
        ordinal: int,
        count: int,
        forward: Forward,
        now_ns: int,
    ) -> tuple[ErrorCode, int]:
        """Pass or hold one message; or refuse it with the rest of its run, ``count`` messages in all."""
        verdict = gate.admit(now_ns, size)
        if not isinstance(verdict, Discard):
            if verdict > now_ns or gate.held:
                # SPEC shaping.md: A relay MUST hold a message once, before it is copied for its receivers.
                # SPEC shaping.md: A relay MUST hold a message whose eligibility time is not after its arrival +
                #   max_residence_ms, and process it at that time.
                self.ingress.hold(gate, (verdict, ordinal, target, forward))
                return ErrorCode.OK, 0
            return ErrorCode.OK, forward(now_ns)
        if verdict.retry_after_ns is None:
            return self._refused(ordinal, ErrorCode.PAYLOAD_TOO_LARGE, count=count), 1
        # SPEC shaping.md: A relay MUST refuse a message whose eligibility time is later than that with REJECT
        #   rate_exceeded.
        self.ingress.close(target, traffic_class, ordinal, now_ns + verdict.retry_after_ns)
        return self._refused(ordinal, ErrorCode.RATE_EXCEEDED, verdict.retry_after_ns, count), 1

    def _conclude(
        self, target: Room | Peer, traffic_class: int, first: int, count: int, verdict: Verdict, now_ns: int
    ) -> None:
        """Refuse a run, or remember who sent it to its one receiver."""
        code, retry_after_ns, _work = verdict
        if code:
            if code is ErrorCode.RATE_EXCEEDED:
                self.ingress.close(target, traffic_class, first, now_ns + retry_after_ns)
            self._refused(first, code, retry_after_ns, count)
        elif isinstance(target, Peer):
            self._unicasts.append((target.egress, traffic_class, self._gone, first, count))

    def publish(self, message: Publish, ordinal: int, now_ns: int) -> int:
        """Route a flow's first message, or a large one; later frames of the flow are gathered.

        Returns:
            Work done, in deliveries.
        """
        code = judge_room(self._key, message.room)
        if code:
            self._refused(ordinal, code)
            return 1
        return self._first(
            message,
            self._room(message.room, now_ns),
            publish_prefix(message.room, message.traffic_class, message.content),
            deliver_prefix(Mode.BROADCAST, self._key, message.room, message.traffic_class, message.content),
            ordinal,
            now_ns,
        )

    def send(self, message: Send, ordinal: int, now_ns: int) -> int:
        """Route a flow's first unicast message, or a large one.

        Returns:
            Work done, in deliveries.
        """
        return self._first(
            message,
            self._registry.peer(message.peer),
            send_prefix(message.peer, message.traffic_class, message.content),
            deliver_prefix(Mode.UNICAST, self._key, None, message.traffic_class, message.content),
            ordinal,
            now_ns,
        )

    def anycast(self, message: Anycast, ordinal: int, now_ns: int) -> int:
        """Route an anycast message to the member with the fewest bytes queued, round robin among equals.

        Returns:
            Work done, in deliveries.
        """
        if len(message.payload) > self._reader.payload_limit:
            self._refused(ordinal, ErrorCode.PAYLOAD_TOO_LARGE)
            return 1
        code = judge_room(self._key, message.room)
        if code:
            self._refused(ordinal, code)
            return 1
        ingress, traffic_class = self.ingress, message.traffic_class
        room = self._room(message.room, now_ns)
        if closed_ns := ingress.closed_ns(room, traffic_class, ordinal, now_ns):
            self._refused(ordinal, ErrorCode.RATE_EXCEEDED, closed_ns)
            return 1
        gate = ingress.gate(room, traffic_class)
        if gate is None:
            return self._forward_to_any(room, message, ordinal, now_ns)
        prefix = anycast_prefix(message.room, traffic_class, message.content)
        size = _frame_bytes(prefix, message.payload)
        forward = partial(self._forward_to_any, room, message, ordinal)
        return self._admit(gate, room, traffic_class, size, ordinal, 1, forward, now_ns)[1]

    def forget(self) -> None:
        """Drop cached routes: what they were admitted under has changed, or the connection is idle."""
        self._reader.forget()
        self._streams.clear()

    def _room(self, name: str, now_ns: int) -> Room:
        """The slot of a room that a message goes to; its contracts are in force from the first one on."""
        room = self._registry.room(name)
        if not self.ingress.knows(room) and (contracts := self._room_contracts(room)):
            self.ingress.set_contracts(contracts, now_ns, room)
        return room

    def _first(
        self,
        message: Publish | Send,
        target: Room | Peer,
        prefix: bytes,
        out_prefix: bytes,
        ordinal: int,
        now_ns: int,
    ) -> int:
        if len(message.payload) > self._reader.payload_limit:
            self._refused(ordinal, ErrorCode.PAYLOAD_TOO_LARGE)
            return 1
        frame = _deliver_frame(out_prefix, message.payload)
        size = _frame_bytes(prefix, message.payload)
        code, work = self._judge(target, message.traffic_class, frame, ordinal, 1, size, now_ns)
        if not code and len(message.payload) <= FRAGMENT_ABOVE_BYTES:
            self._bind(target, message.traffic_class, prefix, out_prefix)
        return work

    def _forward(self, target: Room | Peer, traffic_class: int, frame: bytes, ordinal: int, now_ns: int) -> int:
        """Route one message that is eligible."""
        if closed_ns := self.ingress.closed_ns(target, traffic_class, ordinal, now_ns):
            self._refused(ordinal, ErrorCode.RATE_EXCEEDED, closed_ns)
            return 1
        verdict = self._route(target, traffic_class, [frame], 1, now_ns)
        self._conclude(target, traffic_class, ordinal, 1, verdict, now_ns)
        return verdict[2]

    def _forward_to_any(self, room: Room, message: Anycast, ordinal: int, _now_ns: int) -> int:
        candidates = room.anycast_order(self._egress)
        if not candidates:
            self._refused(ordinal, ErrorCode.NO_MEMBERS)
            return 1
        traffic_class = message.traffic_class
        frame = _deliver_frame(
            deliver_prefix(Mode.ANYCAST, self._key, message.room, traffic_class, message.content),
            message.payload,
        )
        for chosen in candidates:
            if chosen.push(traffic_class, frame):
                break
        else:
            self._congested(room, traffic_class, candidates[0])
            self._refused(ordinal, ErrorCode.RECEIVER_CONGESTED)
            return len(candidates)
        if chosen.queued[traffic_class] > chosen.limits.high_water_bytes:
            self._congested(room, traffic_class, chosen)
        room.messages += 1
        self._touched[chosen] = None
        self._unicasts.append((chosen, traffic_class, self._gone, ordinal, 1))
        self._count(1, len(frame), 1)
        return 1

    def _bind(self, target: Room | Peer, traffic_class: int, prefix: bytes, out_prefix: bytes) -> None:
        stream = self._streams.get((target, traffic_class))
        if stream is None:
            if len(self._streams) >= MAX_STREAMS:
                self.forget()
            stream = self._streams[target, traffic_class] = Stream(target, traffic_class)
        self._reader.bind(prefix, stream, out_prefix)

    def _route(
        self, target: Room | Peer, traffic_class: int, parts: list[bytes], frames: int, now_ns: int
    ) -> Verdict:
        """Queue eligible messages for whoever they are for now."""
        blobs = _blobs(parts)
        size = sum(map(len, blobs))
        if isinstance(target, Room):
            return self._route_to_room(target, traffic_class, blobs, frames, size, now_ns)
        egress = target.egress
        if egress is None:
            return ErrorCode.NO_SUCH_PEER, 0, 1
        # All or nothing, so that the refusal can name the messages.
        if not egress.has_room(traffic_class, size):
            self._congested(target, traffic_class, egress)
            return ErrorCode.RECEIVER_CONGESTED, 0, 1
        for blob in blobs:
            egress.push(traffic_class, blob)
        if egress.queued[traffic_class] > egress.limits.high_water_bytes:
            self._congested(target, traffic_class, egress)
        self._touched[egress] = None
        self._count(frames, size, 1)
        return ErrorCode.OK, 0, frames

    def _route_to_room(
        self, room: Room, traffic_class: int, blobs: list[bytes], frames: int, size: int, now_ns: int
    ) -> Verdict:
        members = room.members
        own = self._egress
        receivers = len(members) - (own in members)
        if not receivers:
            return ErrorCode.NO_MEMBERS, 0, 1
        if receivers > 1:
            # SPEC shaping.md: A relay MUST refuse what exceeds this bound with REJECT rate_exceeded, for all
            #   receivers or for none.
            budget = self._fan_out.process(now_ns, size * receivers)
            if isinstance(budget, Discard):
                return ErrorCode.RATE_EXCEEDED, budget.retry_after_ns or 0, 1
        touched = self._touched
        for egress in members:
            if egress is own:
                continue
            for blob in blobs:
                if not egress.push(traffic_class, blob):
                    lost = 1 if len(blobs) == 1 and frames == 1 else count_frames(blob)
                    egress.lose(traffic_class, room.name, lost, len(blob))
                    self._traffic.gap_messages += lost
                    self._traffic.delivered_messages -= lost  # counted below with those that were queued
                    self._traffic.delivered_bytes -= len(blob)
            if egress.queued[traffic_class] > egress.limits.high_water_bytes:
                self._congested(room, traffic_class, egress)
            touched[egress] = None
        room.messages += frames
        self._count(frames, size, receivers)
        return ErrorCode.OK, 0, frames * receivers

    def _count(self, frames: int, size: int, receivers: int) -> None:
        traffic = self._traffic
        traffic.received_messages += frames
        traffic.received_bytes += size
        traffic.delivered_messages += frames * receivers
        traffic.delivered_bytes += size * receivers

    def _refused(self, first: int, code: ErrorCode, retry_after_ns: int = 0, count: int = 1) -> ErrorCode:
        self._traffic.rejected_messages += count
        # SPEC shaping.md: A relay MUST name the retry_after of the scheduler in this REJECT, rounded up to a whole
        #   millisecond.
        self._refuse(first, count, code, -(-retry_after_ns // NS_PER_MS))
        return code


#: Judging a message by itself costs as much as this many deliveries.
ONE_BY_ONE_COST = 4
#: Destinations with a cached route a connection; as many as known heads.
MAX_STREAMS = 512
#: Longer frames are not gathered.
LONGEST_GATHERED = FRAGMENT_ABOVE_BYTES


def _frame_bytes(prefix: bytes, payload: bytes) -> int:
    """Length of a frame as it was received, or would have been in one piece, with its length prefix."""
    return LENGTH_BYTES + len(prefix) + len(payload_head(len(payload))) + len(payload)


def _deliver_frame(prefix: bytes, payload: bytes) -> bytes:
    inner = payload_head(len(payload))
    length = len(prefix) + len(inner) + len(payload)
    return b"".join((length.to_bytes(LENGTH_BYTES, "big"), prefix, inner, payload))


def _blobs(parts: list[bytes]) -> list[bytes]:
    """Parts joined into as few blobs as fit records; a large frame is alone."""
    if len(parts) == 1:
        return parts
    if sum(map(len, parts)) <= MAX_PLAINTEXT:
        return [b"".join(parts)]
    blobs: list[bytes] = []
    joined: list[bytes] = []
    size = 0
    for part in parts:
        if size + len(part) > MAX_PLAINTEXT:
            blobs.append(b"".join(joined))  # a single part is not copied
            joined, size = [], 0
        joined.append(part)
        size += len(part)
    blobs.append(b"".join(joined))
    return blobs


def count_frames(blob: bytes) -> int:
    count = at = 0
    while at < len(blob):
        at += LENGTH_BYTES + int.from_bytes(blob[at : at + LENGTH_BYTES], "big")
        count += 1
    return count
