"""Large frames in pieces, so that an urgent message waits for one piece and never for a whole upload.

One fragmented frame may be open per traffic class and direction, which is why fragments need no identifiers.
Pieces of different classes interleave freely. The pieces together are one CBOR array without a length.
"""

from __future__ import annotations

from awesomeconnect.errors import ErrorCode, RemoteProtocolError
from awesomeconnect.wire.framing import FRAGMENT_ABOVE_BYTES, LENGTH_BYTES, frame
from awesomeconnect.wire.messages import Anycast, Deliver, Fragment, FragmentEnd, Publish, Send, payload_head

# SPEC frames.md: A sender SHOULD use chunks of 16,320 bytes.
#: Four pieces with their heads, and a small control frame, fill one record of 65,519 bytes.
CHUNK_BYTES = 16_320
#: length 4, array 1, kind 1, class 1, end 1, byte string head 3
FRAGMENT_HEAD_BYTES = 11
# SPEC frames.md: A sender MUST fragment only PUBLISH, SEND, ANYCAST and DELIVER frames.
# SPEC frames.md: A sender MUST NOT nest fragments.
#: The kinds that travel in fragments. Each is one byte, after the one of the array's head.
_KINDS = frozenset((Publish.KIND, Send.KIND, Anycast.KIND, Deliver.KIND))


def is_fragmented(entry: bytes, above_bytes: int = FRAGMENT_ABOVE_BYTES) -> bool:
    """Whether this queue entry is one application message that travels in pieces.

    Several small frames do not, nor does a long control frame, such as HELLO or MEMBERS_PAGE.
    """
    # SPEC frames.md: A sender SHOULD fragment every such frame whose total size with its length prefix is above
    #   17,408 bytes.
    if len(entry) <= above_bytes or entry[LENGTH_BYTES + 1] not in _KINDS:
        return False
    return int.from_bytes(entry[:LENGTH_BYTES], "big") + LENGTH_BYTES == len(entry)


def piece(
    large_frame: bytes, offset: int, traffic_class: int, room_bytes: int, chunk_bytes: int = CHUNK_BYTES
) -> tuple[bytes, int]:
    """The FRAGMENT frame that carries a large frame on from ``offset``.

    Args:
        large_frame: with its length prefix, which is not sent.
        offset: bytes of it already sent, at least `LENGTH_BYTES`.
        room_bytes: at most this long.
        chunk_bytes: how much of the large frame it carries, but for the last one; 1,024 to 65,508.

    Returns:
        The frame and the offset that follows it; an empty frame when the room is too small for a useful piece.
    """
    rest = len(large_frame) - offset
    size = min(chunk_bytes, rest)
    if size > room_bytes - FRAGMENT_HEAD_BYTES:
        return b"", offset
    end = FragmentEnd.LAST if size == rest else FragmentEnd.MORE
    # SPEC frames.md: A sender MUST write the class of the inner message into every FRAGMENT.
    head = bytes((0x84, Fragment.KIND, traffic_class, end))
    following = offset + size
    return frame(b"".join((head, payload_head(size), large_frame[offset:following]))), following


class OpenFrame:
    """What has come of a fragmented frame."""

    __slots__ = ("chunks", "size_bytes")

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.size_bytes = 0


class Reassembler:
    """The fragmented frames that are open in one direction, at most one a class.

    Args:
        open_classes: what is open in each class, shared with the `FrameReader`, which refuses other frames of these
            classes.

    Attributes:
        held_bytes: of all open frames.
    """

    __slots__ = ("_open", "held_bytes", "limit")

    def __init__(self, limit: int, open_classes: dict[int, OpenFrame]) -> None:
        self.limit = limit
        # SPEC frames.md: A receiver MUST NOT treat any order of frames of different classes as an error.
        self._open = open_classes
        self.held_bytes = 0

    def add(self, fragment: Fragment) -> bytes | None:
        """Take one fragment.

        Returns:
            The whole body when this was its last piece, else None.

        Raises:
            RemoteProtocolError: the frame grew over the limit, or an abort came with nothing open.
        """
        traffic_class, chunk = fragment.traffic_class, fragment.chunk
        opened = self._open.get(traffic_class)
        if fragment.end == FragmentEnd.ABORT:
            # SPEC frames.md: A receiver MUST answer an abort in a class in which no fragmented frame is open with
            #   CLOSE protocol_error.
            if opened is None:
                raise RemoteProtocolError(f"abort of class {traffic_class}, where no fragmented frame is open")
            # SPEC frames.md: A receiver MUST drop all chunks of a frame that is aborted, and MUST NOT count it as
            #   an ordinal.
            self._close(traffic_class)
            return None
        # SPEC frames.md: A receiver MUST check the total of the chunks against its frame limit as each chunk
        #   arrives, and MUST answer an excess with CLOSE frame_too_large.
        if (opened.size_bytes if opened else 0) + len(chunk) > self.limit:
            raise RemoteProtocolError(f"fragmented frame of over {self.limit} bytes", ErrorCode.FRAME_TOO_LARGE)
        if fragment.end == FragmentEnd.MORE:
            if opened is None:
                opened = self._open[traffic_class] = OpenFrame()
            opened.chunks.append(chunk)
            opened.size_bytes += len(chunk)
            self.held_bytes += len(chunk)
            return None
        # SPEC frames.md: A receiver MUST accept fragmented frames that are short, as long as their chunks are
        #   legal.
        if opened is None:
            return chunk
        self._close(traffic_class)
        return b"".join((*opened.chunks, chunk))

    def _close(self, traffic_class: int) -> None:
        self.held_bytes -= self._open.pop(traffic_class).size_bytes
