"""Records: layout, any chunking, rekeying, and everything that must fail."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st

from awesomeconnect.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from awesomeconnect.wire.records import MAX_PLAINTEXT, OVERHEAD_BYTES, REKEY_INTERVAL, Opener, Sealer

KEY = bytes(range(32))

plaintext_lists = st.lists(st.binary(min_size=1, max_size=100) | st.integers(1, 2_000).map(bytes), max_size=12)


def open_all(opener: Opener, data: bytes) -> list[bytes]:
    """The plaintexts, or the failure, also where good records came before it."""
    plaintexts = opener.open(data)
    if opener.failure is not None:
        raise opener.failure
    return plaintexts


def test_good_records_before_a_bad_one_are_returned() -> None:
    records = seal_all([b"zero", b"one", b"two"])
    opener = Opener(KEY)
    assert opener.open(records[0] + records[1] + records[1]) == [b"zero", b"one"]
    assert isinstance(opener.failure, RemoteProtocolError)
    assert_dead(opener)


def seal_all(plaintexts: list[bytes]) -> list[bytes]:
    sealer = Sealer(KEY)
    return [sealer.seal(plaintext) for plaintext in plaintexts]


def assert_dead(opener: Opener) -> None:
    with pytest.raises(LocalProtocolError, match="failed before"):
        opener.open(b"")


class TestLayout:
    def test_is_length_then_ciphertext(self) -> None:
        record = Sealer(KEY).seal(b"hello")
        assert record[:2] == (5 + 16).to_bytes(2, "big")
        assert record[2:] == ChaCha20Poly1305(KEY).encrypt(bytes(12), b"hello", None)

    def test_nonce_is_a_little_endian_counter_after_four_zero_bytes(self) -> None:
        records = seal_all([b"x"] * 259)
        for number in (1, 255, 256, 258):
            nonce = bytes(4) + number.to_bytes(8, "little")
            assert ChaCha20Poly1305(KEY).decrypt(nonce, records[number][2:], None) == b"x"

    @pytest.mark.parametrize("size", [1, 2, 255, 16_384, MAX_PLAINTEXT - 1, MAX_PLAINTEXT])
    def test_sizes(self, size: int) -> None:
        record = Sealer(KEY).seal(bytes(size))
        assert len(record) == size + OVERHEAD_BYTES == size + 18
        assert Opener(KEY).open(record) == [bytes(size)]

    def test_the_longest_fills_the_length(self) -> None:
        assert MAX_PLAINTEXT == 65_519
        assert Sealer(KEY).seal(bytes(MAX_PLAINTEXT))[:2] == b"\xff\xff"

    @pytest.mark.parametrize("size", [0, MAX_PLAINTEXT + 1])
    def test_refuses_to_seal(self, size: int) -> None:
        sealer = Sealer(KEY)
        with pytest.raises(LocalProtocolError, match=f"a record of {size} bytes"):
            sealer.seal(bytes(size))
        assert sealer.seal(b"x") == Sealer(KEY).seal(b"x")

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_takes_any_bytes(self, kind: type) -> None:
        record = Sealer(KEY).seal(kind(b"hello"))
        assert type(record) is bytes
        assert Opener(KEY).open(kind(record)) == [b"hello"]

    def test_keeps_keys_and_not_ciphers(self) -> None:
        """HOTPATH 5: a cipher takes 2.25 KiB for each idle connection."""
        sealer, opener = Sealer(KEY), Opener(KEY)
        opener.open(sealer.seal(b"x"))
        for keeper in (sealer, opener):
            kept = [getattr(keeper, name) for name in type(keeper).__slots__]
            assert not any(isinstance(value, ChaCha20Poly1305) for value in kept)


class TestSealInto:
    @pytest.mark.parametrize("view", [lambda buffer: buffer, memoryview], ids=["bytearray", "memoryview"])
    def test_writes_what_seal_returns(self, view: Callable[[bytearray], bytearray | memoryview]) -> None:
        into, returning = Sealer(KEY), Sealer(KEY)
        storage = bytearray(b"\xee" * 100)
        for plaintext in (b"a", b"hello", b"x" * 82):
            size = into.seal_into(memoryview(plaintext), view(storage))
            assert storage[:size] == returning.seal(plaintext)
        assert size == 100

    def test_touches_nothing_behind_the_record(self) -> None:
        storage = bytearray(b"\xee" * 50)
        size = Sealer(KEY).seal_into(b"hello", storage)
        assert storage[size:] == b"\xee" * (50 - size)

    @pytest.mark.parametrize("short", [0, 1, 2, 22])
    def test_a_short_buffer_seals_nothing(self, short: int) -> None:
        sealer = Sealer(KEY)
        with pytest.raises(ValueError, match="buffer"):
            sealer.seal_into(b"hello", bytearray(short))
        assert sealer.seal(b"hello") == Sealer(KEY).seal(b"hello")


class TestChunking:
    @given(plaintext_lists, st.lists(st.integers(0, 25_000)))
    def test_any_chunking_gives_the_same_plaintexts(self, plaintexts: list[bytes], cuts: list[int]) -> None:
        stream = b"".join(seal_all(plaintexts))
        edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
        opener = Opener(KEY)
        opened = [p for start, end in pairwise(edges) for p in opener.open(memoryview(stream)[start:end])]
        assert opened == plaintexts

    @given(plaintext_lists)
    @settings(max_examples=20, deadline=None)
    def test_byte_by_byte(self, plaintexts: list[bytes]) -> None:
        opener = Opener(KEY)
        for record, plaintext in zip(seal_all(plaintexts), plaintexts, strict=True):
            for byte in record[:-1]:
                assert opener.open(bytes([byte])) == []
            assert opener.open(record[-1:]) == [plaintext], "as soon as the last byte is there"

    @pytest.mark.parametrize("step", [1_000, 8_192, 65_536, 65_537, 262_144])
    def test_long_records_and_rekeying(self, step: int) -> None:
        plaintexts = [bytes([number % 256]) * (1 + number % 200) for number in range(2_100)]
        plaintexts[700:710] = [b"l" * MAX_PLAINTEXT] * 10
        stream = memoryview(b"".join(seal_all(plaintexts)))
        opener = Opener(KEY)
        opened = [p for at in range(0, len(stream), step) for p in opener.open(stream[at : at + step])]
        assert opened == plaintexts

    def test_the_receive_buffer_may_be_reused(self) -> None:
        stream = b"".join(seal_all([b"one", b"two", b"three"]))
        buffer = bytearray(10)
        opener = Opener(KEY)
        opened = []
        for start in range(0, len(stream), len(buffer)):
            piece = stream[start : start + len(buffer)]
            buffer[: len(piece)] = piece
            opened += opener.open(memoryview(buffer)[: len(piece)])
            buffer[:] = b"\xee" * len(buffer)
        assert opened == [b"one", b"two", b"three"]
        buffer.append(0)  # would be a BufferError if anything still referred to it

    def test_nothing_in_nothing_out(self) -> None:
        assert Opener(KEY).open(b"") == []


class TestRekeying:
    def test_follows_noise(self) -> None:
        """Beside the noiseprotocol package in test_noise, the definition of Noise 4.2 itself."""
        records = seal_all([b"x"] * (2 * REKEY_INTERVAL + 1))
        rekey_nonce = bytes(4) + (2**64 - 1).to_bytes(8, "little")
        key = KEY
        for number, record in enumerate(records):
            nonce = bytes(4) + number.to_bytes(8, "little")
            assert ChaCha20Poly1305(key).decrypt(nonce, record[2:], None) == b"x"
            if number % 1024 == 1023:
                key = ChaCha20Poly1305(key).encrypt(rekey_nonce, bytes(32), b"")[:32]

    def test_the_old_key_opens_nothing_more(self) -> None:
        records = seal_all([b"x"] * (REKEY_INTERVAL + 1))
        opener = Opener(KEY)
        assert len(opener.open(b"".join(records[:-1]))) == REKEY_INTERVAL
        forged = ChaCha20Poly1305(KEY).encrypt((REKEY_INTERVAL << 32).to_bytes(12, "little"), b"x", None)
        with pytest.raises(RemoteProtocolError):
            open_all(opener, len(forged).to_bytes(2, "big") + forged)


class TestRefusals:
    @pytest.mark.parametrize("length", range(17))
    @pytest.mark.parametrize("before", [0, 1, 2])
    def test_a_short_length_is_refused_at_its_second_byte(self, length: int, before: int) -> None:
        records = seal_all([b"x"] * before)
        bad = length.to_bytes(2, "big")
        opener = Opener(KEY)
        with pytest.raises(RemoteProtocolError, match=f"record {before} has length {length}") as caught:
            open_all(opener, b"".join(records) + bad)
        assert caught.value.code == ErrorCode.PROTOCOL_ERROR
        assert_dead(opener)

        opener = Opener(KEY)
        opener.open(b"".join(records) + bad[:1])
        with pytest.raises(RemoteProtocolError):
            open_all(opener, bad[1:])
        assert_dead(opener)

    @given(plaintext_lists.filter(bool), st.data())
    def test_a_flipped_bit(self, plaintexts: list[bytes], data: st.DataObject) -> None:
        records = seal_all(plaintexts)
        hit = data.draw(st.integers(0, len(records) - 1))
        changed = bytearray(records[hit])
        bit = data.draw(st.integers(0, 8 * len(changed) - 1))
        changed[bit // 8] ^= 1 << bit % 8
        opener = Opener(KEY)
        assert opener.open(b"".join(records[:hit])) == plaintexts[:hit]
        # Zeros follow, so that a record whose length grew is complete.
        with pytest.raises(RemoteProtocolError):
            open_all(opener, changed + bytes(65_537))
        assert_dead(opener)

    @given(plaintext_lists.filter(bool), st.data())
    def test_truncation(self, plaintexts: list[bytes], data: st.DataObject) -> None:
        """A record cut short is never opened, whether the stream ends there or its length lies."""
        records = seal_all(plaintexts)
        hit = data.draw(st.integers(0, len(records) - 1))
        lost = data.draw(st.integers(1, len(records[hit]) - 1))
        cut = records[hit][:-lost]
        assert Opener(KEY).open(b"".join(records[:hit]) + cut) == plaintexts[:hit]
        opener = Opener(KEY)
        opener.open(b"".join(records[:hit]))
        with pytest.raises(RemoteProtocolError):
            open_all(opener, max(0, len(cut) - 2).to_bytes(2, "big") + cut[2:])
        assert_dead(opener)

    @pytest.mark.parametrize(
        "order",
        [(0, 0), (0, 1, 0), (0, 1, 1), (1,), (1, 0), (0, 2), (0, 2, 1)],
        ids=["replay", "replay of the first", "replay of the last", "lost", "swapped", "hole", "late"],
    )
    @pytest.mark.parametrize("together", [True, False], ids=["in one chunk", "one by one"])
    def test_replay_reordering_and_loss(self, order: tuple[int, ...], together: bool) -> None:
        records = seal_all([b"zero", b"one", b"two"])
        opener = Opener(KEY)
        wrong_at = next(at for at, number in enumerate(order) if at != number)
        sent = [records[number] for number in order]
        for record in [] if together else sent[:wrong_at]:
            opener.open(record)
        with pytest.raises(RemoteProtocolError, match=f"record {wrong_at} failed authentication"):
            open_all(opener, b"".join(sent) if together else sent[wrong_at])
        assert_dead(opener)

    def test_the_other_directions_key(self) -> None:
        opener = Opener(KEY[::-1])
        with pytest.raises(RemoteProtocolError, match="record 0 failed authentication"):
            open_all(opener, Sealer(KEY).seal(b"reflected"))
        assert_dead(opener)

    @given(st.lists(st.binary(max_size=200)))
    def test_noise_is_refused_or_waited_for(self, chunks: list[bytes]) -> None:
        opener = Opener(KEY)
        try:
            for chunk in chunks:
                assert opener.open(chunk) == []
        except RemoteProtocolError:
            assert_dead(opener)
