"""Routing of application messages: per stream, not per message.

A stream is what one connection sends to one destination in one class. The frames of a chunk are gathered per
stream (`wire.framing`); here a stream's frames become blobs that fit a record, and each receiver's egress queue
takes the same blobs. Nothing runs per message and member.

`Router` belongs to one connection. It resolves destinations, keeps the streams, and says which queues it
touched, so that the server can flush them at the end of the turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from attrs import define

from awesomeconnect.errors import ErrorCode
from awesomeconnect.relay.admission import judge_room
from awesomeconnect.relay.ingress import Gate, Ingress
from awesomeconnect.relay.rooms import Peer, Registry, Room
from awesomeconnect.shaping.ats import Discard, Scheduler
from awesomeconnect.shaping.egress import Egress
from awesomeconnect.wire.framing import FRAGMENT_ABOVE_BYTES, LENGTH_BYTES, FrameReader
from awesomeconnect.wire.messages import (
    Anycast,
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
        refused_until_ns: after a refusal for its rate the stream is closed until then, so that a retry does not
            reorder it.
    """

    __slots__ = ("frames", "parts", "received_bytes", "refused_until_ns", "target", "traffic_class")

    def __init__(self, target: Room | Peer, traffic_class: int) -> None:
        self.target = target
        self.traffic_class = traffic_class
        self.parts: list[bytes] = []
        self.frames = 0
        self.received_bytes = 0
        self.refused_until_ns = 0


#: (first ordinal, count, code, retry after in ms): messages of this connection that are refused.
Refusal = Callable[[int, int, ErrorCode, int], None]
#: (first ordinal, count): messages that were accepted for one receiver, which disconnected first.
Gone = Callable[[int, int], None]
#: (queue, class, whom to tell, first ordinal, count)
Unicast = tuple[Any, int, Gone, int, int]
#: (destination, class): a receiver's queue is over its high-water mark.
Congestion = Callable[[Room | Peer, int, Any], None]


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
        fan_out: bounds what its messages are multiplied to, in bytes; None where one receiver is all there is.
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
        "_retry_after_ms",
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
        fan_out: Scheduler | None,
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
        self._retry_after_ms = 0  # with the last code of rate_exceeded
        self._refuse = refuse
        self._congested = congested
        self._streams: dict[tuple[Room | Peer, int], Stream] = {}

    def route_gathered(self, now_ns: int) -> int:
        """Route the streams that the reader has gathered.

        Returns:
            Work done, in deliveries.
        """
        reader, gates = self._reader, self.ingress.gates
        streams, runs = reader.touched, reader.runs
        reader.touched, reader.runs = [], []
        work = 0
        codes: dict[Stream, tuple[ErrorCode, int]] = {}  # of the streams whose runs have to be named
        singly: dict[Stream, Iterator[bytes]] = {}  # those of which not everything passes at once
        for stream in streams:
            gate = gates.get(stream.traffic_class) if gates else None
            if gate is not None and (
                now_ns < stream.refused_until_ns or not gate.passes(now_ns, stream.received_bytes)
            ):
                singly[stream] = iter(stream.parts)
                continue
            code, deliveries = self._route(stream, now_ns)
            work += deliveries
            if code:
                self._traffic.rejected_messages += stream.frames
            if code or type(stream.target) is Peer:
                codes[stream] = code, self._retry_after_ms if code is ErrorCode.RATE_EXCEEDED else 0
        if codes or singly:
            for stream, first, count, size in runs:
                if stream in singly:
                    work += self._one_by_one(stream, next(singly[stream]), first, count, size, now_ns)
                elif stream in codes:
                    self._conclude(stream, first, count, *codes[stream])
        for stream in streams:
            stream.parts = []
            stream.frames = stream.received_bytes = 0
        return work

    def _conclude(self, stream: Stream, first: int, count: int, code: ErrorCode, retry_after_ms: int) -> None:
        """Refuse a run, or remember who sent it to its one receiver."""
        if code:
            self._refuse(first, count, code, retry_after_ms)
        elif isinstance(stream.target, Peer):
            self._unicasts.append((stream.target.egress, stream.traffic_class, self._gone, first, count))

    def publish(self, message: Publish, ordinal: int, now_ns: int) -> int:
        """Route a flow's first message, or a large one; later frames of the flow are gathered.

        Returns:
            Work done, in deliveries.
        """
        code = judge_room(self._key, message.room)
        if code:
            return self._refused(ordinal, code)
        return self._first(
            message,
            self._registry.room(message.room),
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
            return self._refused(ordinal, ErrorCode.PAYLOAD_TOO_LARGE)
        code = judge_room(self._key, message.room)
        if code:
            return self._refused(ordinal, code)
        gate = self.ingress.gates.get(message.traffic_class)
        if gate is None:
            self._forward_to_any(message, ordinal, now_ns)
            return 1
        prefix = anycast_prefix(message.room, message.traffic_class, message.content)
        # Each member is a destination of its own, so there is no order to keep by closing one.
        discard = gate.admit(
            now_ns, _frame_bytes(prefix, message.payload), ordinal, partial(self._forward_to_any, message, ordinal)
        )
        return 1 if discard is None else self._discarded(ordinal, discard)

    def release(self, now_ns: int) -> int | None:
        """Route what was held and has become eligible; when to call again, None when nothing is held."""
        return self.ingress.release(now_ns)

    def forget(self) -> None:
        """Drop cached routes: what they were admitted under has changed, or the connection is idle."""
        self._reader.forget()
        self._streams.clear()

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
            return self._refused(ordinal, ErrorCode.PAYLOAD_TOO_LARGE)
        stream = self._streams.get((target, message.traffic_class))
        if stream is None:
            stream = Stream(target, message.traffic_class)
        size = _frame_bytes(prefix, message.payload)
        frame = _deliver_frame(out_prefix, message.payload)
        gate = self.ingress.gates.get(message.traffic_class)
        if gate is not None:
            self._admit(gate, stream, frame, size, ordinal, now_ns)
            work, code = 1, ErrorCode.OK
        else:
            code, work = self._forward(stream, frame, ordinal, now_ns)
        if not code and len(message.payload) <= FRAGMENT_ABOVE_BYTES:
            self._bind(stream, prefix, out_prefix)
        return work

    def _one_by_one(self, stream: Stream, part: bytes, first: int, count: int, size: int, now_ns: int) -> int:
        """Judge each message of a run by itself; ``part`` is its frames, as they are passed on."""
        gate = self.ingress.gates[stream.traffic_class]
        out_size = len(part) // count
        for index in range(count):
            frame = part[index * out_size : (index + 1) * out_size]
            self._admit(gate, stream, frame, size, first + index, now_ns)
        return count * ONE_BY_ONE_COST

    def _admit(self, gate: Gate, stream: Stream, frame: bytes, size: int, ordinal: int, now_ns: int) -> None:
        if now_ns < stream.refused_until_ns:
            self._discarded(ordinal, Discard(stream.refused_until_ns - now_ns))
            return
        discard = gate.admit(now_ns, size, ordinal, partial(self._forward, stream, frame, ordinal))
        if discard is not None:
            if discard.retry_after_ns is not None:
                stream.refused_until_ns = now_ns + discard.retry_after_ns
            self._discarded(ordinal, discard)

    def _discarded(self, ordinal: int, discard: Discard) -> int:
        if discard.retry_after_ns is None:
            return self._refused(ordinal, ErrorCode.PAYLOAD_TOO_LARGE)
        return self._refused(ordinal, ErrorCode.RATE_EXCEEDED, discard.retry_after_ms)

    def _forward(self, stream: Stream, frame: bytes, ordinal: int, now_ns: int) -> tuple[ErrorCode, int]:
        """Route one message that is eligible."""
        alone = Stream(stream.target, stream.traffic_class)
        alone.parts = [frame]
        alone.frames = 1
        code, work = self._route(alone, now_ns)
        self._traffic.rejected_messages += bool(code)
        self._conclude(stream, ordinal, 1, code, self._retry_after_ms if code is ErrorCode.RATE_EXCEEDED else 0)
        return code, work

    def _forward_to_any(self, message: Anycast, ordinal: int, _now_ns: int) -> None:
        room = self._registry.find_room(message.room)
        candidates = [] if room is None else room.anycast_order(self._egress)
        if room is None or not candidates:
            self._refused(ordinal, ErrorCode.NO_MEMBERS)
            return
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
            return
        if chosen.queued[traffic_class] > chosen.limits.high_water_bytes:
            self._congested(room, traffic_class, chosen)
        room.messages += 1
        self._touched[chosen] = None
        self._unicasts.append((chosen, traffic_class, self._gone, ordinal, 1))
        self._count(1, len(frame), 1)

    def _bind(self, stream: Stream, prefix: bytes, out_prefix: bytes) -> None:
        if len(self._streams) >= MAX_STREAMS:
            self.forget()
        self._streams[stream.target, stream.traffic_class] = stream
        self._reader.bind(prefix, stream, out_prefix)

    def _route(self, stream: Stream, now_ns: int) -> tuple[ErrorCode, int]:
        target = stream.target
        if isinstance(target, Room):
            return self._route_to_room(target, stream, now_ns)
        egress = target.egress
        if egress is None:
            return ErrorCode.NO_SUCH_PEER, 1
        traffic_class = stream.traffic_class
        blobs = _blobs(stream.parts)
        # All or nothing, so that the refusal can name the messages.
        if not egress.has_room(traffic_class, sum(map(len, blobs))):
            self._congested(target, traffic_class, egress)
            return ErrorCode.RECEIVER_CONGESTED, 1
        for blob in blobs:
            egress.push(traffic_class, blob)
        if egress.queued[traffic_class] > egress.limits.high_water_bytes:
            self._congested(target, traffic_class, egress)
        self._touched[egress] = None
        self._count(stream.frames, sum(map(len, blobs)), 1)
        return ErrorCode.OK, stream.frames

    def _route_to_room(self, room: Room, stream: Stream, now_ns: int) -> tuple[ErrorCode, int]:
        members = room.members
        own = self._egress
        receivers = len(members) - (own in members)
        if not receivers:
            return ErrorCode.NO_MEMBERS, 1
        traffic_class, touched = stream.traffic_class, self._touched
        frames = stream.frames
        blobs = _blobs(stream.parts)
        size = sum(map(len, blobs))
        if receivers > 1 and self._fan_out is not None:
            verdict = self._fan_out.process(now_ns, size * receivers)
            if isinstance(verdict, Discard):
                self._retry_after_ms = verdict.retry_after_ms
                return ErrorCode.RATE_EXCEEDED, 1
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
        return ErrorCode.OK, frames * receivers

    def _count(self, frames: int, size: int, receivers: int) -> None:
        traffic = self._traffic
        traffic.received_messages += frames
        traffic.received_bytes += size
        traffic.delivered_messages += frames * receivers
        traffic.delivered_bytes += size * receivers

    def _refused(self, ordinal: int, code: ErrorCode, retry_after_ms: int = 0) -> int:
        self._traffic.rejected_messages += 1
        self._refuse(ordinal, 1, code, retry_after_ms)
        return 1


#: Judging a message by itself costs as much as this many deliveries.
ONE_BY_ONE_COST = 4
#: Destinations with a cached route a connection; as many as known heads.
MAX_STREAMS = 512


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
