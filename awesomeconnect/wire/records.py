"""Records: the sealed byte stream between the handshake and the frames.

One record is ``u16be length | ciphertext``; the length counts the ciphertext with its 16-byte tag, 17..65535.
ChaCha20-Poly1305 without associated data; the nonce is four zero bytes and the record's number in its
direction, 64 bits little-endian. After record 1023, 2047, … the direction's key becomes Noise's REKEY of it;
the number runs on. Records carry a stream: where they begin and end means nothing to the layers above.

Both classes keep the 32-byte key and not the cipher made of it: a cipher takes 2.25 KiB and 0.7 µs to make,
and most connections are idle. They know neither frames nor who is at the other end.

The number never nears 2^64, which a million records a second would reach after half a million years.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from awesomeconnect.errors import LocalProtocolError, RemoteProtocolError

LENGTH_BYTES = 2
TAG_BYTES = 16
OVERHEAD_BYTES = LENGTH_BYTES + TAG_BYTES
"""What a record adds to its plaintext."""

MAX_PLAINTEXT = 65_519
"""The longest plaintext of a record: what a u16 can count, less the tag."""

REKEY_INTERVAL = 1_024
"""Records that one key seals. A power of two: the hot loop masks with it."""

_MIN_LENGTH = 1 + TAG_BYTES
_REKEY_NONCE = bytes(4) + b"\xff" * 8


def _rekeyed(cipher: ChaCha20Poly1305) -> bytes:
    """REKEY of Noise 4.2: the first 32 bytes of ENCRYPT(k, 2^64-1, "", 32 zero bytes)."""
    return cipher.encrypt(_REKEY_NONCE, bytes(32), None)[:32]


class Sealer:
    """Seals this side's records. Each must then be sent: a sealed record that is dropped ends the connection.

    Args:
        key: this direction's key from the handshake (32 bytes).
    """

    __slots__ = ("_counter", "_key")

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._counter = 0

    def seal(self, plaintext: bytes | bytearray | memoryview) -> bytes:
        """The whole record with its length, ``OVERHEAD_BYTES`` longer than the plaintext.

        Raises:
            LocalProtocolError: the plaintext is empty or longer than ``MAX_PLAINTEXT``.
        """
        record = bytearray(len(plaintext) + OVERHEAD_BYTES)
        self.seal_into(plaintext, record)
        return bytes(record)

    def seal_into(self, plaintext: bytes | bytearray | memoryview, buffer: bytearray | memoryview) -> int:
        """Write the whole record to the start of ``buffer``; its size in bytes.

        Raises:
            LocalProtocolError: the plaintext is empty or longer than ``MAX_PLAINTEXT``.
            ValueError: the buffer is shorter than the record; nothing was sealed.
        """
        size = len(plaintext)
        # SPEC records.md: A sender MUST NOT seal a record with less than 1 or more than 65,519 bytes of plaintext.
        if not 0 < size <= MAX_PLAINTEXT:
            raise LocalProtocolError(f"a record of {size} bytes; it carries 1 to {MAX_PLAINTEXT}")
        cipher = ChaCha20Poly1305(self._key)
        counter = self._counter
        view = memoryview(buffer)
        end = size + OVERHEAD_BYTES
        cipher.encrypt_into((counter << 32).to_bytes(12, "little"), plaintext, None, view[LENGTH_BYTES:end])
        view[:LENGTH_BYTES] = (size + TAG_BYTES).to_bytes(LENGTH_BYTES, "big")
        # SPEC records.md: A sender MUST number the records of its direction 0, 1, 2 and so on, without a gap and
        #   without a repetition.
        # SPEC records.md: A sender MUST replace the key of its direction after it has sealed a record whose counter
        #   is 1023 modulo 1024.
        # SPEC records.md: A sender MUST NOT reset the counter when it replaces the key.
        self._counter = counter = counter + 1
        if not counter & (REKEY_INTERVAL - 1):
            self._key = _rekeyed(cipher)
        return end


class Opener:
    """Opens the other side's records. After a refusal it is dead, and so is the connection.

    Args:
        key: the other direction's key from the handshake (32 bytes).
    """

    # SPEC records.md: A receiver MUST NOT keep more than one incomplete record of a connection.
    # _rest is the beginning of a record whose other bytes have not arrived, and _missing how many those are,
    # at least: one byte while the length itself is incomplete.
    __slots__ = ("_counter", "_key", "_missing", "_rest", "failure")

    def __init__(self, key: bytes) -> None:
        self._key: bytes | None = key
        self.failure: RemoteProtocolError | None = None
        self._counter = 0
        self._rest = bytearray()
        self._missing = 0

    def open(self, data: bytes | bytearray | memoryview) -> list[bytes]:
        """The plaintexts of the records that ``data``, the next bytes of the stream, completes.

        Nothing keeps a reference to ``data``. Of an incomplete record at most 65,536 bytes are kept inside.

        Raises:
            RemoteProtocolError: a length below 17, or a record that was changed, repeated, left out or moved.
                Where good records came before it in the same call, these are returned, and `failure` is set.
            LocalProtocolError: called again after that.
        """
        key = self._key
        if key is None:
            raise LocalProtocolError("the stream of records has failed before")
        chunk = memoryview(data)
        rest = self._rest
        missing = self._missing
        if len(chunk) < missing:
            rest += chunk
            self._missing = missing - len(chunk)
            return []
        parts = [chunk]
        if rest:
            # Complete the record in place, so that the rest of the chunk is not copied. Of a record whose
            # length is not complete the end is unknown: then everything goes behind it.
            taken = missing if len(rest) >= LENGTH_BYTES else len(chunk)
            rest += chunk[:taken]
            parts = [memoryview(rest), chunk[taken:]]
            self._rest = bytearray()
            self._missing = 0

        # SPEC records.md: A receiver MUST NOT use any plaintext of a record before its tag is verified.
        # SPEC records.md: A receiver MUST replace the key of the sender's direction after it has opened a record
        #   whose counter is 1023 modulo 1024.
        # SPEC records.md: A receiver MUST forget the replaced key.
        # SPEC records.md: A receiver MUST answer a record length below 17 with CLOSE protocol_error, without
        #   reading further.
        plaintexts: list[bytes] = []
        append = plaintexts.append
        counter = self._counter
        cipher = ChaCha20Poly1305(key)
        decrypt = cipher.decrypt
        try:
            for part in parts:
                end = len(part)
                start = 0
                while start < end:
                    body = start + LENGTH_BYTES
                    if body > end:
                        self._missing = 1
                        break
                    length = part[start] << 8 | part[start + 1]
                    if length < _MIN_LENGTH:
                        self._fail(f"record {counter} has length {length}, below {_MIN_LENGTH}")
                        break
                    stop = body + length
                    if stop > end:
                        self._missing = stop - end
                        break
                    append(decrypt((counter << 32).to_bytes(12, "little"), part[body:stop], None))
                    start = stop
                    counter += 1
                    if not counter & (REKEY_INTERVAL - 1):
                        self._key = _rekeyed(cipher)
                        cipher = ChaCha20Poly1305(self._key)
                        decrypt = cipher.decrypt
                if self.failure is not None:
                    break
                self._rest += part[start:]
        except InvalidTag:
            # SPEC records.md: A receiver MUST answer a record that fails to decrypt with CLOSE protocol_error,
            #   without reading further.
            self._fail(f"record {counter} failed authentication")
        if self.failure is not None and not plaintexts:
            raise self.failure
        self._counter = counter
        return plaintexts

    def _fail(self, reason: str) -> None:
        self._key = None
        self._rest = bytearray()
        self.failure = RemoteProtocolError(reason)
