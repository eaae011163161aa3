"""Cuts frames out of the plaintext byte stream, and recognises the heads of frames seen before.

A frame is ``u32be length | one CBOR array``. The length is judged before anything is buffered.

Everything before the payload of a PUBLISH, SEND or DELIVER is the same for all frames of a flow that have
the same payload length; and because encoding is deterministic, equal meaning has equal bytes. So a head that
was decoded and validated once can key a dictionary: when it comes again, only the payload is new, and every
byte string is a valid payload (a microflow cache, as in Open vSwitch). Two tables:

* prefixes: from the bytes between the length and the payload's own head to the flow's stream. An entry is made
  by `FrameReader.bind` after the full decode of the flow's first frame.
* heads: from a whole head (length, prefix, payload head) to what to do with the frame. Filled
  from the prefixes when a new payload length appears.

The reader knows nothing of messages: a frame that it does not recognise is handed out whole, to be decoded.
It must agree with the full decoder on every input (tests/wire/test_flow_cache.py).
"""

from __future__ import annotations

from struct import Struct
from typing import Any, Protocol

from awesomeconnect.errors import ErrorCode, RemoteProtocolError
from awesomeconnect.wire.messages import payload_head
from awesomeconnect.wire.records import MAX_PLAINTEXT

LENGTH_BYTES = 4
#: Frames in both directions until WELCOME: room for 256 rooms in HELLO.
GREETING_FRAME_BYTES = 65_536
#: What a frame may be longer than its payload: kind, key, room, class, content come to at most 174 bytes.
FRAME_OVERHEAD_BYTES = 1_024
#: Frames longer than this travel as fragments, so they never pass through the flow cache.
FRAGMENT_ABOVE_BYTES = 17_408
# SPEC limits.md: A relay MUST bound every queue and every table that a client can make grow.
#: Known heads a connection: the 512 of an Open vSwitch handler's exact-match cache class, about 100 KiB at most.
MAX_HEADS = 512
#: From this frame size on a view costs less than a copy.
VIEW_FROM_BYTES = 2_048

_length_at = Struct(">I").unpack_from


class Stream(Protocol):
    """Where the frames of a flow are gathered until the turn's routing: one destination, one class."""

    traffic_class: int
    parts: list[bytes]
    frames: int
    received_bytes: int


class FrameReader:
    """One direction's frames. Feed plaintext, then call `gather` or `next_frame` until it returns None.

    Attributes:
        limit: longest body accepted, in bytes; raised when the session opens.
        touched: streams that `gather` put frames into, in order of first touch; the caller empties it.
        runs: ``(stream, first ordinal, frames, bytes of each)`` in the order of arrival; the caller empties it.
        ordinal: application messages counted so far: those gathered here, and those that the decoder counts.
        open_classes: traffic class -> the fragmented frame that is open: no other frame of the class may come.
    """

    __slots__ = (
        "_data",
        "_flows",
        "_guess",
        "_heads",
        "_need",
        "_offset",
        "_prefix_lengths",
        "_waiting",
        "limit",
        "open_classes",
        "ordinal",
        "payload_limit",
        "runs",
        "touched",
    )

    def __init__(self, limit: int = GREETING_FRAME_BYTES) -> None:
        self.limit = limit
        self.payload_limit = 0
        self.touched: list[Any] = []
        self.runs: list[tuple[Any, int, int, int]] = []
        self.ordinal = 0
        self.open_classes: dict[int, Any] = {}
        self._data = b""
        self._offset = 0
        self._waiting: bytearray | None = None  # the beginning of a frame that is not complete yet
        self._need = 0
        self._flows: dict[bytes, tuple[Any, bytes]] = {}  # prefix -> (stream, out_prefix)
        self._prefix_lengths: tuple[int, ...] = ()
        # head -> (stream, out_head, head bytes, frame bytes, most frames in a joined run)
        self._heads: dict[bytes, tuple[Any, bytes, int, int, int]] = {}
        self._guess: dict[int, int] = {}  # frame length -> length of the head that last came with it

    @property
    def buffered_bytes(self) -> int:
        """Bytes held of a frame that is not complete."""
        return len(self._data) - self._offset if self._waiting is None else len(self._waiting)

    def feed(self, plaintexts: list[bytes]) -> None:
        """Add plaintext. The frames fed before must have been taken."""
        # SPEC records.md: A receiver MUST NOT give any meaning to where records begin and end.
        waiting = self._waiting
        if waiting is None:
            if self._offset < len(self._data):
                plaintexts = [self._data[self._offset :], *plaintexts]
            self._data = plaintexts[0] if len(plaintexts) == 1 else b"".join(plaintexts)
            self._offset = 0
            return
        if len(waiting) + sum(map(len, plaintexts)) >= self._need:
            self._data = b"".join((waiting, *plaintexts))
            self._offset = 0
            self._waiting = None
        else:
            # Not kept one by one: a bytes object of two bytes takes twenty times as much.
            waiting += b"".join(plaintexts)

    def gather(self) -> bytes | None:
        """Put recognised frames into their streams, up to the first frame that is not recognised.

        Returns:
            The body of that frame, or None when no complete frame is left.

        Raises:
            RemoteProtocolError: a frame is too long or empty, or comes inside a fragmented one of its class.
        """
        if self._waiting is not None:
            return None
        data = self._data
        offset = self._offset
        end = len(data)
        # SPEC messages.md: A relay MUST NOT read the payload.
        heads, guess = self._heads, self._guess
        while end - offset >= LENGTH_BYTES:
            length = _length_at(data, offset)[0]
            head = data[offset : offset + guess.get(length, 0)]
            entry = heads.get(head)
            if entry is None:
                entry = self._recognise(data, offset, length, end)
                if entry is None:
                    return self._cut(data, offset, length, end)
                head = data[offset : offset + entry[2]]
            stream, out_head, skip, total, most = entry
            following = offset + total
            if following > end:
                return self._cut(data, offset, length, end)
            if self.open_classes and stream.traffic_class in self.open_classes:
                raise _inside_fragments(stream.traffic_class)
            if not stream.parts:
                self.touched.append(stream)
            # Equal heads usually come in runs: compare in place, and join the run in one call.
            source = data if total < VIEW_FROM_BYTES else memoryview(data)
            tails = [b"", source[offset + skip : following]]
            offset = following
            following += total
            while following <= end and data.startswith(head, offset) and len(tails) <= most:
                tails.append(source[offset + skip : following])
                offset = following
                following += total
            stream.parts.append(out_head.join(tails))
            count = len(tails) - 1
            stream.frames += count
            stream.received_bytes += count * total
            self.runs.append((stream, self.ordinal + 1, count, total))
            self.ordinal += count
        self._data = data[offset:]
        self._offset = 0
        return None

    def next_frame(self) -> tuple[Any, bytes] | None:
        """The next frame: its flow's stream and its payload when it is recognised, else None and its body.

        Returns:
            None when no complete frame is left.

        Raises:
            RemoteProtocolError: as `gather`.
        """
        if self._waiting is not None:
            return None
        data, offset = self._data, self._offset
        end = len(data)
        if end - offset < LENGTH_BYTES:
            self._data = data[offset:]
            self._offset = 0
            return None
        length = _length_at(data, offset)[0]
        entry = self._heads.get(data[offset : offset + self._guess.get(length, 0)])
        if entry is None:
            entry = self._recognise(data, offset, length, end)
        if entry is None or offset + entry[3] > end:
            body = self._cut(data, offset, length, end)
            return None if body is None else (None, body)
        stream = entry[0]
        if self.open_classes and stream.traffic_class in self.open_classes:
            raise _inside_fragments(stream.traffic_class)
        self._offset = offset + entry[3]
        return stream, data[offset + entry[2] : self._offset]

    def bind(self, prefix: bytes, stream: Any, out_prefix: bytes = b"") -> None:
        """Recognise later frames of a flow whose first frame was decoded and admitted.

        Args:
            prefix: what they have between their length and their payload's head.
            stream: gathers them (relay), or stands for them (client).
            out_prefix: replaces ``prefix`` in what is gathered.
        """
        if len(self._flows) >= MAX_HEADS and prefix not in self._flows:
            self.forget()
        self._flows[prefix] = (stream, out_prefix)
        if len(prefix) not in self._prefix_lengths:
            self._prefix_lengths = (len(prefix), *self._prefix_lengths)

    def forget(self) -> None:
        """Drop every known head: the policy changed, the tables are full, or the connection is idle."""
        self._flows.clear()
        self._heads.clear()
        self._guess.clear()
        self._prefix_lengths = ()

    def _recognise(
        self, data: bytes, offset: int, length: int, end: int
    ) -> tuple[Any, bytes, int, int, int] | None:
        """Look the frame's prefix up; on success remember its whole head."""
        # SPEC frames.md: A receiver MUST compare the length with the limit as soon as it has the 4 bytes, before it
        #   buffers or allocates anything for the frame.
        # SPEC frames.md: A receiver MUST answer a length above the limit with CLOSE frame_too_large.
        if length > self.limit:
            raise RemoteProtocolError(
                f"frame of {length} bytes, at most {self.limit} are allowed here",
                ErrorCode.FRAME_TOO_LARGE,
            )
        # SPEC frames.md: A receiver MUST answer a frame of length 0 with CLOSE protocol_error.
        if length == 0:
            raise RemoteProtocolError("empty frame")
        if length + LENGTH_BYTES > FRAGMENT_ABOVE_BYTES:
            return None
        start = offset + LENGTH_BYTES
        for prefix_length in self._prefix_lengths:
            flow = self._flows.get(data[start : start + prefix_length])
            if flow is None:
                continue
            stream, out_prefix = flow
            payload_bytes = _payload_bytes(length - prefix_length)
            if not 0 <= payload_bytes <= self.payload_limit:
                return None
            after = start + prefix_length
            inner = payload_head(payload_bytes)
            if data[after : after + len(inner)] != inner:
                return None
            out_length = len(out_prefix) + len(inner) + payload_bytes
            out_head = out_length.to_bytes(LENGTH_BYTES, "big") + out_prefix + inner
            skip = LENGTH_BYTES + prefix_length + len(inner)
            most = MAX_PLAINTEXT // (LENGTH_BYTES + out_length)
            entry = (stream, out_head, skip, LENGTH_BYTES + length, most)
            if len(self._heads) >= MAX_HEADS:
                self._heads.clear()
                self._guess.clear()
            self._heads[data[offset : offset + skip]] = entry
            self._guess[length] = skip
            return entry
        return None

    def _cut(self, data: bytes, offset: int, length: int, end: int) -> bytes | None:
        """The body of the frame at ``offset``; or None, and its bytes are collected, when it is not complete."""
        following = offset + LENGTH_BYTES + length
        if following <= end:
            self._offset = following
            return data[offset + LENGTH_BYTES : following]
        self._need = LENGTH_BYTES + length
        self._waiting = bytearray(data[offset:])
        self._data = b""
        self._offset = 0
        return None


def frame(body: bytes) -> bytes:
    """A body with its length before it."""
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def _payload_bytes(rest: int) -> int:
    """Length of the payload when it and its shortest-form head fill ``rest`` bytes; -1 where none fits."""
    for head_bytes, least, below in ((1, 0, 24), (2, 24, 1 << 8), (3, 1 << 8, 1 << 16)):
        if least <= rest - head_bytes < below:
            return rest - head_bytes
    return -1


def _inside_fragments(traffic_class: int) -> RemoteProtocolError:
    return RemoteProtocolError(f"a frame of class {traffic_class} inside a fragmented frame of that class")
