"""Frames out of a byte stream: limits, chunking, and the tables of the flow cache."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from awesomeconnect.errors import ErrorCode, RemoteProtocolError
from awesomeconnect.wire import framing
from awesomeconnect.wire.framing import FRAGMENT_ABOVE_BYTES, GREETING_FRAME_BYTES, MAX_HEADS, FrameReader, frame
from awesomeconnect.wire.messages import Publish, encode_body, encode_frame, payload_head, publish_prefix
from awesomeconnect.wire.records import MAX_PLAINTEXT
from tests.wire.playbook import GatheredStream, frames_of

PREFIX = publish_prefix("r", 1, 0)
OUT = b"a longer beginning"
ODD_SIZES = [0, 1, 22, 23, 24, 25, 254, 255, 256, 257, 2_030, 2_048, 16_384]


def publish(payload: bytes = b"x", room: str = "r") -> bytes:
    return encode_frame(Publish(room, 1, 0, payload))


def out_frame(payload: bytes) -> bytes:
    return OUT + payload_head(len(payload)) + payload


def bound(payload_limit: int = 1 << 20) -> tuple[FrameReader, GatheredStream]:
    """A reader that knows one flow."""
    reader, stream = FrameReader(payload_limit + 1_024), GatheredStream()
    reader.payload_limit = payload_limit
    reader.bind(PREFIX, stream, OUT)
    return reader, stream


def pieces(data: bytes, sizes: Iterable[int]) -> list[bytes]:
    cut, at = [], 0
    for size in sizes:
        cut.append(data[at : at + size])
        at += size
    return [*filter(None, (*cut, data[at:]))]


class TestFrames:
    @given(
        st.lists(st.binary(min_size=1, max_size=50) | st.integers(1, 3_000).map(bytes), max_size=8),
        st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=3), max_size=20),
        st.booleans(),
    )
    def test_in_any_chunking(self, bodies: list[bytes], feeds: list[list[int]], by_client: bool) -> None:
        reader = FrameReader()
        data = b"".join(map(frame, bodies))
        taken = []
        for sizes in [*feeds, [len(data)]]:
            fed, data = data[: sum(sizes)], data[sum(sizes) :]
            reader.feed(pieces(fed, sizes) or [b""])
            if by_client:
                while (found := reader.next_frame()) is not None:
                    assert found[0] is None
                    taken.append(found[1])
            else:
                taken += iter(reader.gather, None)
        assert taken == bodies
        assert reader.buffered_bytes == 0

    def test_what_is_fed_before_all_was_taken_comes_after(self) -> None:
        reader = FrameReader()
        reader.feed([frame(b"a") + frame(b"b")])
        assert reader.gather() == b"a"
        reader.feed([frame(b"c")])
        assert list(iter(reader.gather, None)) == [b"b", b"c"]

    @pytest.mark.parametrize("take", [FrameReader.gather, FrameReader.next_frame])
    @pytest.mark.parametrize(
        ("length", "code"),
        [
            (0, ErrorCode.PROTOCOL_ERROR),
            (GREETING_FRAME_BYTES + 1, ErrorCode.FRAME_TOO_LARGE),
            (0xFFFFFFFF, ErrorCode.FRAME_TOO_LARGE),
        ],
    )
    def test_a_bad_length_is_refused_at_once(self, take: object, length: int, code: ErrorCode) -> None:
        reader = FrameReader()
        head = length.to_bytes(4, "big")
        reader.feed([head[:3]])
        assert take(reader) is None  # type: ignore[operator]
        reader.feed([head[3:]])
        with pytest.raises(RemoteProtocolError) as caught:
            take(reader)  # type: ignore[operator]
        assert caught.value.code is code
        assert reader.buffered_bytes == 4

    def test_a_frame_at_the_limit(self) -> None:
        reader = FrameReader(100)
        reader.feed([frame(bytes(100))])
        assert reader.gather() == bytes(100)

    def test_counts_what_it_holds(self) -> None:
        reader = FrameReader()
        assert reader.buffered_bytes == 0
        for held, byte in enumerate(frame(bytes(20))[:-1], 1):
            reader.feed([bytes([byte])])
            assert reader.gather() is None
            assert reader.next_frame() is None
            assert reader.buffered_bytes == held

    def test_holds_no_more_than_what_came(self) -> None:
        """A client that seals two bytes a record does not cost twenty times its frame."""
        reader = FrameReader()
        reader.feed([(60_000).to_bytes(4, "big")])
        assert reader.gather() is None
        for _ in range(1_000):
            reader.feed([b"ab"])
            assert reader.gather() is None
        assert isinstance(reader._waiting, bytearray)
        assert len(reader._waiting) == reader.buffered_bytes == 2_004


class TestGather:
    @pytest.mark.parametrize("size", ODD_SIZES)
    def test_replaces_the_head_and_keeps_the_payload(self, size: int) -> None:
        reader, stream = bound()
        payload = bytes(range(256)) * (size // 256 + 1)
        reader.feed([publish(payload[:size]) + publish(payload[1 : size + 1])])
        assert reader.gather() is None
        assert list(frames_of(b"".join(stream.parts))) == [
            out_frame(payload[:size]),
            out_frame(payload[1 : size + 1]),
        ]
        assert (stream.frames, stream.received_bytes) == (2, 2 * len(publish(payload[:size])))
        assert reader.touched == [stream]
        assert reader.runs == [(stream, 1, 2, len(publish(payload[:size])))]
        assert reader.ordinal == 2

    def test_streams_and_runs_in_the_order_of_arrival(self) -> None:
        reader, one = bound()
        two = GatheredStream(5)
        reader.bind(publish_prefix("longer", 1, 0), two, b"")
        frames = [publish(b"a"), publish(b"b"), publish(b"c", "longer"), publish(b"dd"), publish(b"e", "longer")]
        reader.feed([b"".join(frames)])
        assert reader.gather() is None
        assert reader.touched == [one, two]
        sizes = [len(frame) for frame in frames]
        assert reader.runs == [
            (one, 1, 2, sizes[0]),
            (two, 3, 1, sizes[2]),
            (one, 4, 1, sizes[3]),
            (two, 5, 1, sizes[4]),
        ]
        assert (one.frames, two.frames) == (3, 2)

    def test_stops_at_a_frame_that_it_does_not_recognise(self) -> None:
        reader, stream = bound()
        stranger = publish(b"x", "other")
        reader.feed([publish() + stranger + publish()])
        assert reader.gather() == stranger[4:]
        assert stream.frames == 1
        assert reader.gather() is None
        assert stream.frames == 2

    def test_every_part_fits_a_record(self) -> None:
        reader, stream = bound()
        for size in (0, 100, 16_384):
            count = 2 * (MAX_PLAINTEXT // (len(out_frame(bytes(size))) + 4)) + 1
            reader.feed([publish(bytes(size)) * count])
            assert reader.gather() is None
            assert stream.frames == count
            assert len(stream.parts) == 3
            assert MAX_PLAINTEXT - 16_500 < max(map(len, stream.parts)) <= MAX_PLAINTEXT
            assert sum(len(list(frames_of(part))) for part in stream.parts) == count
            stream.parts, stream.frames = [], 0

    def test_a_known_frame_that_is_not_complete_waits(self) -> None:
        reader, stream = bound()
        data = publish(bytes(30)) * 2
        for byte in data[:-1]:
            reader.feed([bytes([byte])])
            assert reader.gather() is None
        assert stream.frames == 1
        assert reader.buffered_bytes == len(data) // 2 - 1
        reader.feed([data[-1:]])
        assert reader.gather() is None
        assert stream.frames == 2
        reader.feed([data[:-1]])  # its whole head is there
        assert reader.gather() is None
        assert stream.frames == 3
        assert reader.buffered_bytes == len(data) // 2 - 1

    @pytest.mark.parametrize("known", [True, False])
    def test_what_differs_in_any_bit_of_its_head_is_handed_out(self, known: bool) -> None:
        """Or, where the length changed, is not complete; never is it gathered."""
        whole = publish(b"payload")
        for bit in range(8 * 4, 8 * (len(whole) - len(b"payload"))):
            reader, stream = bound()
            if known:
                reader.feed([whole])
                assert reader.gather() is None
            changed = bytearray(whole)
            changed[bit // 8] ^= 1 << bit % 8
            reader.feed([bytes(changed)])
            assert reader.gather() == changed[4:]
            assert stream.frames == known

    @pytest.mark.parametrize(
        "body",
        [
            PREFIX,
            PREFIX[:-1],
            PREFIX + b"\x58\x01x",
            PREFIX + b"\x59\x00\x01x",
            PREFIX + b"\x41",
            PREFIX + b"\x41xy",
            PREFIX + b"\x42x",
            PREFIX + b"\x61x",
            PREFIX + b"\x57" + bytes(24),
            PREFIX + b"\x58\x17" + bytes(23),
            PREFIX + b"\x5f\x41x\xff",
            PREFIX + b"\x59\x00\xff" + bytes(255),
            PREFIX + b"\x58\x18",
        ],
        ids=lambda body: body[len(PREFIX) :][:5].hex() or "no payload",
    )
    def test_a_payload_that_is_not_exactly_the_rest_is_handed_out(self, body: bytes) -> None:
        reader, stream = bound()
        reader.feed([frame(body) + publish()])  # what follows does not complete it
        assert reader.gather() == body
        assert not stream.frames

    @pytest.mark.parametrize("body_bytes", [4, 25, 26, 258, 259])
    def test_lengths_at_which_no_payload_fits(self, body_bytes: int) -> None:
        """Between the sizes of two heads a byte is missing."""
        reader, stream = bound()
        body = PREFIX + bytes(body_bytes)
        reader.feed([frame(body)])
        assert reader.gather() == body
        assert not stream.frames

    def test_frames_that_should_be_fragmented_are_handed_out(self) -> None:
        reader, stream = bound()
        longest = FRAGMENT_ABOVE_BYTES - 4 - len(PREFIX) - 3
        reader.feed([publish(bytes(longest)) + publish(bytes(longest + 1))])
        assert reader.gather() == publish(bytes(longest + 1))[4:]
        assert stream.frames == 1

    def test_payloads_over_the_limit_are_handed_out(self) -> None:
        reader, stream = bound(payload_limit=100)
        reader.feed([publish(bytes(100)) + publish(bytes(101))])
        assert reader.gather() == publish(bytes(101))[4:]
        assert stream.frames == 1

    @pytest.mark.parametrize("take", [FrameReader.gather, FrameReader.next_frame])
    def test_nothing_inside_a_fragmented_frame_of_the_class(self, take: object) -> None:
        reader, stream = bound()
        reader.open_classes[stream.traffic_class + 1] = None
        reader.feed([publish()])
        assert not isinstance(take(reader), bytes)  # type: ignore[operator]
        reader.open_classes[stream.traffic_class] = None
        reader.feed([publish()])
        with pytest.raises(RemoteProtocolError, match="inside a fragmented frame"):
            take(reader)  # type: ignore[operator]


class TestTables:
    def test_forget(self) -> None:
        reader, stream = bound()
        reader.feed([publish()])
        assert reader.gather() is None
        reader.forget()
        reader.feed([publish()])
        assert reader.gather() == publish()[4:]
        assert stream.frames == 1

    def test_heads_are_bounded(self) -> None:
        reader, stream = bound()
        for size in range(2 * MAX_HEADS + 10):
            reader.feed([publish(bytes(size))])
            assert reader.gather() is None
            assert 0 < len(reader._heads) <= MAX_HEADS
            assert len(reader._guess) <= MAX_HEADS
        assert stream.frames == 2 * MAX_HEADS + 10

    def test_flows_are_bounded(self) -> None:
        reader = FrameReader()
        for number in range(2 * MAX_HEADS + 10):
            reader.bind(publish_prefix(f"room {number}", 1, 0), GatheredStream())
            assert len(reader._flows) <= MAX_HEADS

    def test_a_flow_that_is_bound_again_drops_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(framing, "MAX_HEADS", 1)
        reader, stream = bound()
        reader.feed([publish()])
        assert reader.gather() is None
        reader.bind(PREFIX, stream, OUT)
        assert reader._heads
        reader.bind(publish_prefix("other", 1, 0), stream)
        assert not reader._heads


class TestNextFrame:
    """The client's way: the flow's stream is a template."""

    @pytest.mark.parametrize("size", ODD_SIZES)
    def test_gives_the_payload_of_a_known_flow(self, size: int) -> None:
        reader, stream = bound()
        payload = bytes(range(256)) * 64
        reader.feed([publish(payload[:size]) * 2])
        assert reader.next_frame() == (stream, payload[:size])
        assert reader.next_frame() == (stream, payload[:size])
        assert reader.next_frame() is None

    def test_gives_the_body_of_others(self) -> None:
        reader, _ = bound()
        stranger = Publish("other", 1, 0, b"x")
        reader.feed([publish() + encode_frame(stranger)])
        reader.next_frame()
        assert reader.next_frame() == (None, encode_body(stranger))

    def test_a_known_frame_that_is_not_complete_waits(self) -> None:
        reader, stream = bound()
        reader.feed([publish(b"12") + publish(b"34")[:-1]])
        assert reader.next_frame() == (stream, b"12")
        assert reader.next_frame() is None
        assert reader.next_frame() is None
        reader.feed([b"4"])
        assert reader.next_frame() == (stream, b"34")
