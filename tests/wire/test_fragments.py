"""Large frames in pieces, and together again."""

from __future__ import annotations

import pytest

from awesomeconnect.errors import ErrorCode, RemoteProtocolError
from awesomeconnect.wire.fragments import (
    CHUNK_BYTES,
    FRAGMENT_HEAD_BYTES,
    OpenFrame,
    Reassembler,
    is_fragmented,
    piece,
)
from awesomeconnect.wire.framing import FRAGMENT_ABOVE_BYTES, LENGTH_BYTES
from awesomeconnect.wire.messages import (
    Anycast,
    Deliver,
    Fragment,
    Hello,
    Incarnation,
    Member,
    MembersPage,
    Message,
    Mode,
    Presence,
    Publish,
    Role,
    RoomIntent,
    Send,
    decode_body,
    encode_body,
    encode_frame,
    publish_prefix,
)
from awesomeconnect.wire.records import MAX_PLAINTEXT
from tests.wire.playbook import frames_of

KEY = bytes(range(32))
MEMBERS = tuple(Member(KEY, number, {"name": "n" * 900}) for number in range(1, 40))
MORE = Fragment(1, 0, bytes(1_024))
ABORT = Fragment(1, 2, b"")


def application_messages(payload: bytes) -> list[Message]:
    return [
        Publish("r", 3, 0, payload),
        Send(KEY, 3, 0, payload),
        Anycast("r", 3, 0, payload),
        Deliver(Mode.BROADCAST, KEY, "r", 3, 0, payload),
        Deliver(Mode.UNICAST, KEY, None, 3, 0, payload),
    ]


def publish_frame(frame_bytes: int) -> bytes:
    """A PUBLISH frame of this size, its length included."""
    head_bytes = LENGTH_BYTES + len(publish_prefix("r", 3, 0)) + (3 if frame_bytes < 1 << 16 else 5)
    whole = encode_frame(Publish("r", 3, 0, bytes(frame_bytes - head_bytes)))
    assert len(whole) == frame_bytes
    return whole


def in_pieces(whole: bytes, room_bytes: int = MAX_PLAINTEXT) -> list[Fragment]:
    fragments = []
    offset = LENGTH_BYTES
    while offset < len(whole):
        fragment, offset = piece(whole, offset, 3, room_bytes)
        assert 0 < len(fragment) <= room_bytes
        (body,) = frames_of(fragment)
        fragments.append(decode_body(body, Role.CLIENT))
    assert offset == len(whole)
    return fragments


class TestIsFragmented:
    @pytest.mark.parametrize("number", range(5))
    def test_application_messages_that_are_long(self, number: int) -> None:
        assert is_fragmented(encode_frame(application_messages(bytes(20_000))[number]))
        assert not is_fragmented(encode_frame(application_messages(bytes(1_000))[number]))

    def test_from_17_409_bytes_on(self) -> None:
        assert not is_fragmented(publish_frame(FRAGMENT_ABOVE_BYTES))
        assert is_fragmented(publish_frame(FRAGMENT_ABOVE_BYTES + 1))

    def test_not_several_frames(self) -> None:
        assert not is_fragmented(publish_frame(10_000) * 3)
        assert not is_fragmented(publish_frame(20_000) + publish_frame(300))

    @pytest.mark.parametrize(
        "message",
        [
            Hello(1, Incarnation(1, bytes(8)), 1, {}, tuple(RoomIntent(f"{n:0128}") for n in range(256))),
            MembersPage("r", 0, 1, MEMBERS),
            Presence("r", 0, 39, (), MEMBERS),
        ],
        ids=lambda message: type(message).__name__,
    )
    def test_not_control_frames_however_long(self, message: Message) -> None:
        assert len(encode_frame(message)) > FRAGMENT_ABOVE_BYTES
        assert not is_fragmented(encode_frame(message))


class TestPiece:
    @pytest.mark.parametrize(
        "frame_bytes",
        [
            FRAGMENT_ABOVE_BYTES + 1,
            2 * CHUNK_BYTES + 3,
            2 * CHUNK_BYTES + 4,
            2 * CHUNK_BYTES + 5,
            70_000,
            1_000_000,
        ],
    )
    def test_round_trip(self, frame_bytes: int) -> None:
        whole = publish_frame(frame_bytes)
        fragments = in_pieces(whole)
        assert [fragment.end for fragment in fragments] == [0] * (len(fragments) - 1) + [1]
        assert {len(fragment.chunk) for fragment in fragments[:-1]} == {CHUNK_BYTES}
        reassembler = Reassembler(frame_bytes, {})
        *begun, body = [reassembler.add(fragment) for fragment in fragments]
        assert not any(begun)
        assert body == whole[LENGTH_BYTES:]

    @pytest.mark.parametrize(
        "message", application_messages(bytes(range(256)) * 100), ids=lambda m: type(m).__name__
    )
    def test_every_kind(self, message: Message) -> None:
        reassembler = Reassembler(1 << 20, {})
        bodies = [reassembler.add(fragment) for fragment in in_pieces(encode_frame(message))]
        assert bodies[-1] == encode_body(message)

    def test_four_fill_a_record(self) -> None:
        assert MAX_PLAINTEXT - 300 < 4 * (CHUNK_BYTES + FRAGMENT_HEAD_BYTES) <= MAX_PLAINTEXT

    def test_nothing_when_the_room_is_too_small(self) -> None:
        whole = publish_frame(40_000)
        assert piece(whole, LENGTH_BYTES, 3, CHUNK_BYTES + FRAGMENT_HEAD_BYTES - 1) == (b"", LENGTH_BYTES)
        fragment, following = piece(whole, LENGTH_BYTES, 3, CHUNK_BYTES + FRAGMENT_HEAD_BYTES)
        assert (len(fragment), following) == (CHUNK_BYTES + FRAGMENT_HEAD_BYTES, LENGTH_BYTES + CHUNK_BYTES)

    def test_a_short_last_one_in_little_room(self) -> None:
        whole = publish_frame(LENGTH_BYTES + 2 * CHUNK_BYTES + 10)
        offset = LENGTH_BYTES + 2 * CHUNK_BYTES
        assert piece(whole, offset, 3, 20) == (b"", offset)
        fragment, following = piece(whole, offset, 3, 21)
        assert following == len(whole)
        (body,) = frames_of(fragment)
        assert decode_body(body, Role.RELAY) == Fragment(3, 1, whole[-10:])


class TestReassembler:
    def test_opens_and_closes_its_class(self) -> None:
        open_classes: dict[int, OpenFrame] = {}
        reassembler = Reassembler(10_000, open_classes)
        assert reassembler.add(MORE) is None
        assert set(open_classes) == {1}
        assert reassembler.add(Fragment(5, 0, bytes(2_000))) is None
        assert set(open_classes) == {1, 5}
        assert reassembler.held_bytes == 3_024
        assert reassembler.add(Fragment(1, 1, b"x")) == bytes(1_024) + b"x"
        assert set(open_classes) == {5}
        assert reassembler.add(Fragment(5, 2, b"")) is None
        assert not open_classes
        assert reassembler.held_bytes == 0

    def test_one_fragment_alone(self) -> None:
        open_classes: dict[int, OpenFrame] = {}
        assert Reassembler(10, open_classes).add(Fragment(1, 1, b"body")) == b"body"
        assert not open_classes

    def test_begins_anew_after_an_abort(self) -> None:
        reassembler = Reassembler(10_000, {})
        assert [reassembler.add(fragment) for fragment in (MORE, MORE, ABORT, Fragment(1, 1, b"x"))][-1] == b"x"

    def test_abort_of_nothing(self) -> None:
        reassembler = Reassembler(10_000, {})
        reassembler.add(Fragment(2, 0, bytes(1_024)))
        with pytest.raises(RemoteProtocolError, match="class 1, where no fragmented frame is open") as caught:
            reassembler.add(ABORT)
        assert caught.value.code is ErrorCode.PROTOCOL_ERROR

    @pytest.mark.parametrize("last", [Fragment(1, 1, b"xy"), MORE])
    def test_over_the_limit(self, last: Fragment) -> None:
        reassembler = Reassembler(2_049, {})
        reassembler.add(MORE)
        reassembler.add(MORE)
        with pytest.raises(RemoteProtocolError) as caught:
            reassembler.add(last)
        assert caught.value.code is ErrorCode.FRAME_TOO_LARGE
        assert reassembler.held_bytes == 2_048

    def test_at_the_limit(self) -> None:
        reassembler = Reassembler(2_049, {})
        reassembler.add(MORE)
        reassembler.add(MORE)
        assert len(reassembler.add(Fragment(1, 1, b"x")) or b"") == 2_049
