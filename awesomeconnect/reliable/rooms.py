"""Reliable mode in rooms: what this node published, and what it hears.

Nothing is acknowledged. Whoever sees a hole asks its sender, after a random delay that grows with the room, so that
after a loss that many share the first requests bring one PUBLISH for all. Marks show the loss of a last message.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

from awesomeconnect.reliable.agenda import Agenda
from awesomeconnect.reliable.outgoing import Outgoing
from awesomeconnect.reliable.repair import Found, RoomStream
from awesomeconnect.reliable.ring import Kept, Ring, RingStream
from awesomeconnect.reliable.segments import (
    CONTROL_CLASS,
    Mark,
    Repair,
    Request,
    Segment,
    encode_control,
    encode_segment,
)
from awesomeconnect.reliable.settings import ReliableSettings
from awesomeconnect.wire.parts import Content

_START_BYTES = 8


class _Beacon:
    """When to publish the next mark of a room."""

    def __init__(self, room: str) -> None:
        self.room = room
        self.at_ms = 0
        self.interval_ms = 0
        self.woken_at_ms: int | None = None


class Rooms:
    """See the module's docstring.

    Args:
        incarnation: of this node; each room sees one with the same start.
        secret: what the other half of those comes from.
        random: uniform in [0, 1).
    """

    def __init__(
        self, incarnation: bytes, secret: bytes, settings: ReliableSettings, random: Callable[[], float]
    ) -> None:
        self._start = incarnation[:_START_BYTES]
        self._secret = secret
        self._settings = settings
        self._random = random
        self._ring = Ring(settings.ring_bytes, settings.streams)
        self._beacons: dict[str, _Beacon] = {}
        self._beacon_timers: Agenda[_Beacon] = Agenda()
        self._sizes: dict[str, int] = {}  # members of the rooms that this node is in
        self._incarnations: dict[tuple[str, bytes], bytes] = {}
        self._streams: dict[tuple[str, bytes, int], RoomStream] = {}
        self._timers: Agenda[RoomStream] = Agenda()
        self._buffered_bytes = 0
        self._found: list[Found] = []
        self._outgoing: list[Outgoing] = []
        self._is_connected = False

    # ---- publishing ----------------------------------------------------------------------------------

    def publish(self, room: str, traffic_class: int, content: int, payload: bytes, now_ms: int) -> bytes:
        """Keep a message that is published now; the payload that carries it."""
        self._ring.expire(now_ms)
        kept = Kept(content, payload, now_ms + self._settings.ring_ms)
        stream, sequence = self._ring.add(room, traffic_class, self._incarnation(room), kept)
        self._begin_marks(room, now_ms + self._settings.first_mark_ms)
        return encode_segment(stream.segment(sequence, kept, now_ms))

    def _incarnation(self, room: str) -> bytes:
        # SPEC reliable.md: A sender MUST use in each room an incarnation whose last 8 bytes nobody can know who has
        #   not heard it there.
        return self._start + blake2b(room.encode(), key=self._secret, digest_size=8).digest()

    def _begin_marks(self, room: str, at_ms: int) -> None:
        beacon = self._beacons.get(room)
        if beacon is None:
            beacon = self._beacons[room] = _Beacon(room)
        beacon.at_ms, beacon.interval_ms = at_ms, self._settings.first_mark_ms
        self._beacon_timers.note(beacon, at_ms)

    def on_request(self, requester: bytes, request: Request, now_ms: int) -> None:
        """Somebody misses messages."""
        self._ring.expire(now_ms)
        stream = self._ring.stream(request.room, request.traffic_class)
        if stream is None or stream.incarnation != request.sender:
            return
        left_bytes = self._settings.window_bytes
        is_lost = False
        for first, last in request.ranges:
            is_lost |= first < stream.base
            for sequence in range(max(first, stream.base), min(last + 1, stream.next_sequence)):
                kept = stream.kept(sequence)
                assert kept is not None
                left_bytes -= len(kept.payload)
                if left_bytes < 0:
                    return  # it will ask for the rest
                self._answer(requester, stream, sequence, kept, now_ms)
        if is_lost:
            # SPEC reliable.md: A sender MUST answer a request for a message that its ring does not hold with a
            #   mark to the receiver that asked.
            payload = encode_control(Mark(stream.room, stream.incarnation, (stream.mark,)))
            self._outgoing.append(Outgoing(requester, CONTROL_CLASS, Content.REPAIR, payload))

    def _answer(self, requester: bytes, stream: RingStream, sequence: int, kept: Kept, now_ms: int) -> None:
        # SPEC reliable.md: A sender MUST answer a request for a message that its ring holds with a repair to the
        #   receiver that asked, or by publishing the segment again.
        if now_ms < kept.quiet_until_ms:
            return
        kept.requesters.add(requester)
        segment = stream.segment(sequence, kept, now_ms)
        # SPEC reliable.md: A sender SHOULD publish a segment again when a third receiver asks for it, and then
        #   leave further requests for it without an answer for 1 s.
        if len(kept.requesters) >= self._settings.requests_for_publish:
            kept.requesters.clear()
            kept.quiet_until_ms = now_ms + self._settings.published_again_ms
            outgoing = Outgoing(stream.room, stream.traffic_class, Content.RELIABLE, encode_segment(segment))
        else:
            payload = encode_control(Repair(stream.room, segment))
            outgoing = Outgoing(requester, stream.traffic_class, Content.REPAIR, payload)
        self._outgoing.append(outgoing)

    # ---- hearing -------------------------------------------------------------------------------------

    def joined(self, room: str, members: int) -> None:
        """This node is in a room."""
        self._sizes[room] = members

    def left(self, room: str) -> None:
        """It is not any more."""
        if self._sizes.pop(room, None) is not None:
            for stream in self._streams.values():
                if stream.room == room:
                    self._buffered_bytes -= stream.buffered_bytes
                    stream.left()

    def on_segment(
        self, sender: bytes, room: str, traffic_class: int, segment: Segment, now_ms: int
    ) -> list[Found]:
        """Take a segment in; what the application gets now."""
        # SPEC reliable.md: A receiver MUST begin a stream of a room with the first segment or mark that it hears,
        #   and miss nothing before it.
        stream = self._stream(sender, room, traffic_class, segment.incarnation, segment.sequence, now_ms)
        if stream is not None:
            before = stream.buffered_bytes
            room_bytes = self._settings.buffer_bytes - self._buffered_bytes
            self._found += stream.on_segment(segment, now_ms, self._delay_ms(room), room_bytes)
            self._buffered_bytes += stream.buffered_bytes - before
            self._timers.note(stream, stream.next_ms)
        return self.take_found()

    def on_repair(self, sender: bytes, traffic_class: int, repair: Repair, now_ms: int) -> list[Found]:
        """Take a repair in; what the application gets now."""
        # SPEC reliable.md: A receiver MUST ignore a repair of a room that it is not in.
        stream = self._streams.get((repair.room, sender, traffic_class))
        if repair.room not in self._sizes or stream is None or stream.incarnation != repair.segment.incarnation:
            return []
        return self.on_segment(sender, repair.room, traffic_class, repair.segment, now_ms)

    def on_mark(self, sender: bytes, room: str, mark: Mark, now_ms: int, is_answer: bool) -> list[Found]:
        """Take a mark in; what the application gets now.

        Args:
            is_answer: it came by SEND, because this node had asked.
        """
        if is_answer and self._incarnations.get((room, sender)) != mark.incarnation:
            return []
        for traffic_class, base, following in mark.marks:
            stream = self._stream(sender, room, traffic_class, mark.incarnation, following, now_ms)
            if stream is not None:
                before = stream.buffered_bytes
                self._found += stream.on_mark(base, following, now_ms, self._delay_ms(room))
                self._buffered_bytes += stream.buffered_bytes - before
                self._timers.note(stream, stream.next_ms)
        return self.take_found()

    def _stream(
        self, sender: bytes, room: str, traffic_class: int, incarnation: bytes, first: int, now_ms: int
    ) -> RoomStream | None:
        known = self._incarnations.get((room, sender))
        if known is not None and known != incarnation:
            # SPEC reliable.md: A receiver MUST ignore segments, marks and repairs of a lower incarnation than that.
            streams = [self._streams.get((room, sender, c)) for c in range(7)]
            if incarnation < known and any(stream and stream.forget_at_ms > now_ms for stream in streams):
                return None
            for stream in streams:
                if stream is not None:
                    self._found += self._forget(stream)
        key = (room, sender, traffic_class)
        stream = self._streams.get(key)
        if stream is None:
            if len(self._streams) >= self._settings.streams:
                self._sweep(now_ms)
            self._incarnations[room, sender] = incarnation
            stream = self._streams[key] = RoomStream(
                sender, room, traffic_class, incarnation, first, self._settings
            )
        return stream

    def _sweep(self, now_ms: int) -> None:
        """Forget half of the streams: those that were heard longest ago."""
        for stream in sorted(self._streams.values(), key=lambda one: one.forget_at_ms)[
            : len(self._streams) // 2 + 1
        ]:
            self._found += self._forget(stream)

    def _forget(self, stream: RoomStream) -> list[Found]:
        """Forget a stream; what the application gets of it."""
        self._buffered_bytes -= stream.buffered_bytes
        del self._streams[stream.room, stream.sender, stream.traffic_class]
        if not any((stream.room, stream.sender, c) in self._streams for c in range(7)):
            del self._incarnations[stream.room, stream.sender]
        return stream.end()

    def _delay_ms(self, room: str) -> int:
        # SPEC reliable.md: A receiver MUST wait before it asks for a random time between 0 and 1 ms for each
        #   member of the room, at least 10 ms and at most 2 s.
        settings = self._settings
        most_ms = min(self._sizes.get(room, 2) * settings.request_ms_per_member, settings.most_request_ms)
        return int(self._random() * max(most_ms, settings.least_request_ms))

    # ---- the connection ------------------------------------------------------------------------------

    def connected(self, now_ms: int) -> None:
        """A connection is up."""
        self._is_connected = True
        self._ring.expire(now_ms)
        # SPEC reliable.md: A sender that has connected anew MUST publish a mark in each room in which its ring is
        #   not empty.
        for room in self._beacons:
            self._begin_marks(room, now_ms + int(self._random() * self._settings.first_mark_ms))
        for stream in self._streams.values():
            stream.on_connected(now_ms, self._delay_ms(stream.room))
            self._timers.note(stream, stream.next_ms)

    def disconnected(self) -> None:
        """It is gone; holes wait for the next one."""
        self._is_connected = False
        self._outgoing.clear()

    # ---- what to send, and when ----------------------------------------------------------------------

    @property
    def next_ms(self) -> int | None:
        """When to `poll` again, if nothing happens before."""
        if not self._is_connected:
            return None
        times = (self._beacon_timers.next_ms, self._timers.next_ms)
        return min([at_ms for at_ms in times if at_ms is not None], default=None)

    @property
    def is_waiting(self) -> bool:
        """Whether there is something to `poll` for now."""
        return self._is_connected and bool(self._outgoing)

    def take_found(self) -> list[Found]:
        """What the application gets since this was last asked."""
        found, self._found = self._found, []
        return found

    def poll(self, now_ms: int) -> list[Outgoing]:
        """What is to be sent now."""
        if not self._is_connected:
            return []
        for stream in self._timers.due(now_ms):
            if self._streams.get((stream.room, stream.sender, stream.traffic_class)) is stream:
                self._look_at(stream, now_ms)
        for beacon in self._beacon_timers.due(now_ms):
            self._beat(beacon, now_ms)
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def _look_at(self, stream: RoomStream, now_ms: int) -> None:
        before = stream.buffered_bytes
        found, ranges = stream.on_timer(now_ms)
        self._found += found
        self._buffered_bytes += stream.buffered_bytes - before
        if ranges and stream.room in self._sizes:
            request = Request(stream.room, stream.incarnation, stream.traffic_class, ranges)
            self._outgoing.append(Outgoing(stream.sender, CONTROL_CLASS, Content.REPAIR, encode_control(request)))
        self._timers.note(stream, stream.next_ms)

    def _beat(self, beacon: _Beacon, now_ms: int) -> None:
        if now_ms < beacon.at_ms:
            self._beacon_timers.note(beacon, beacon.at_ms)
            return
        self._ring.expire(now_ms)
        marks = tuple(stream.mark for stream in self._ring.streams(beacon.room))
        if not marks:
            del self._beacons[beacon.room]
            return
        payload = encode_control(Mark(beacon.room, self._incarnation(beacon.room), marks))
        self._outgoing.append(Outgoing(beacon.room, CONTROL_CLASS, Content.REPAIR, payload))
        # SPEC reliable.md: A sender MUST publish a mark of a room in which its ring is not empty 1 s after its last
        #   message, then after 2, 4, 8 … s more, up to every 60 s.
        beacon.interval_ms = min(2 * beacon.interval_ms, self._settings.most_mark_ms)
        beacon.at_ms = now_ms + beacon.interval_ms
        self._beacon_timers.note(beacon, beacon.at_ms)
