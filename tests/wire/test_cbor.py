from __future__ import annotations

import re
from pathlib import Path

import cbor2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from awesomeconnect.errors import ErrorCode, RemoteProtocolError
from awesomeconnect.wire.cbor import MAX_ARRAY_ITEMS, MAX_DEPTH, MAX_MAP_ENTRIES, decode, encode, head
from awesomeconnect.wire.messages import Message, Role, decode_body, encode_body
from tests.strategies import cbor_values, messages

# RFC 8949 appendix A, what the profile allows.
VALID = {
    "00": 0,
    "01": 1,
    "0a": 10,
    "17": 23,
    "1818": 24,
    "1819": 25,
    "1864": 100,
    "1903e8": 1000,
    "1a000f4240": 1_000_000,
    "1b000000e8d4a51000": 1_000_000_000_000,
    "1bffffffffffffffff": 18_446_744_073_709_551_615,
    "3bffffffffffffffff": -18_446_744_073_709_551_616,
    "20": -1,
    "29": -10,
    "3863": -100,
    "3903e7": -1000,
    "f4": False,
    "f5": True,
    "f6": None,
    "40": b"",
    "4401020304": b"\x01\x02\x03\x04",
    "60": "",
    "6161": "a",
    "6449455446": "IETF",
    "62225c": '"\\',
    "62c3bc": "\u00fc",
    "63e6b0b4": "\u6c34",
    "64f0908591": "\U00010151",
    "80": [],
    "83010203": [1, 2, 3],
    "8301820203820405": [1, [2, 3], [4, 5]],
    "98190102030405060708090a0b0c0d0e0f101112131415161718181819": list(range(1, 26)),
    "a0": {},
    "a26161016162820203": {"a": 1, "b": [2, 3]},
    "826161a161626163": ["a", {"b": "c"}],
    "a56161614161626142616361436164614461656145": {"a": "A", "b": "B", "c": "C", "d": "D", "e": "E"},
    "a3616200616301626161 02": {"b": 0, "c": 1, "aa": 2},
}

# RFC 8949 appendix A, what the profile leaves out.
OUT_OF_PROFILE = [
    "c249010000000000000000",
    "c349010000000000000000",
    "f90000",
    "f93c00",
    "f97e00",
    "f97c00",
    "fa47c35000",
    "fa7fc00000",
    "fb3ff199999999999a",
    "f7",
    "f0",
    "f8ff",
    "c074323031332d30332d32315432303a30343a30305a",
    "c11a514b67b0",
    "d74401020304",
    "d818456449455446",
    "a201020304",
    "5f42010243030405ff",
    "7f657374726561646d696e67ff",
    "9fff",
    "9f018202039f0405ffff",
    "83018202039f0405ff",
    "bf61610161629f0203ffff",
    "bf6346756ef563416d7421ff",
]

# RFC 8949 appendix F.1.
ILL_FORMED = [
    bytes.fromhex(line)
    for line in """
        18|19|1a|1b|19 01|1a 01 02|1b 01 02 03 04 05 06 07|38|58|78|98|9a 01 ff 00|b8|d8|f8|f9 00
        fa 00 00|fb 00 00 00
        41|61|5a ff ff ff ff 00|5b ff ff ff ff ff ff ff ff 01 02 03|7a ff ff ff ff 00
        7b 7f ff ff ff ff ff ff ff 01 02 03
        81|81 81 81 81 81 81 81 81 81|82 00|a1|a2 01 02|a1 00|a2 00 00 00
        c0
        5f 41 00|7f 61 00
        9f|9f 01 02|bf|bf 01 02 01 02|81 9f|9f 80 00|9f 9f 9f 9f 9f ff ff ff ff|9f 81 9f 81 9f 9f ff ff ff
        1c|1d|1e|3c|3d|3e|5c|5d|5e|7c|7d|7e|9c|9d|9e|bc|bd|be|dc|dd|de|fc|fd|fe
        f8 00|f8 01|f8 18|f8 1f
        5f 00 ff|5f 21 ff|5f 61 00 ff|5f 80 ff|5f a0 ff|5f c0 00 ff|5f e0 ff|7f 41 00 ff
        5f 5f 41 00 ff ff|7f 7f 61 00 ff ff
        ff
        81 ff|82 00 ff|a1 ff|a1 ff 00|a1 00 ff|a2 00 00 ff|9f 81 ff|9f 82 9f 81 9f 9f ff ff ff ff
        bf 00 ff|bf 00 00 00 ff
        1f|3f|df
    """.replace("\n", "|").split("|")
    if line.strip()
]

# What the profile refuses, with the offset and reason that the error names.
REFUSED = {
    "": "offset 0: ends where an item is due",
    "8101 00": "offset 2: bytes after the item",
    "8119": "offset 1: ends inside a head",
    "811817": "offset 1: a head that is longer than needed",
    "1900ff": "offset 0: a head that is longer than needed",
    "1a0000ffff": "offset 0: a head that is longer than needed",
    "1b00000000ffffffff": "offset 0: a head that is longer than needed",
    "3817": "offset 0: a head that is longer than needed",
    "580161": "offset 0: a head that is longer than needed",
    "780161": "offset 0: a head that is longer than needed",
    "9800": "offset 0: a head that is longer than needed",
    "b800": "offset 0: a head that is longer than needed",
    "5803 0102": "offset 0: a head that is longer than needed",
    "43 0102": "offset 0: a string of 3 bytes, but 2 are left",
    "63 6162": "offset 0: a string of 3 bytes, but 2 are left",
    "81 62 61ff": "offset 3: invalid UTF-8",
    "62 c080": "offset 1: invalid UTF-8",
    "63 eda080": "offset 1: invalid UTF-8",
    "82 00": "offset 1: 2 items are due, but 1 bytes are left",
    "a1 6161": "offset 3: ends where an item is due",
    "a2 6161 00": "offset 1: 4 items are due, but 3 bytes are left",
    "a1 00 00": "offset 1: a map key that is not text",
    "a1 80 00": "offset 2: nested deeper than 4",
    "a2 6161 00 6161 00": "offset 4: a map key that is repeated or out of order",
    "a2 6162 00 6161 00": "offset 4: a map key that is repeated or out of order",
    "a2 626161 00 6162 00": "offset 5: a map key that is repeated or out of order",
    "8181818180": "offset 5: nested deeper than 4",
    "81818181a0": "offset 5: nested deeper than 4",
    "9f ff": "offset 0: an indefinite length",
    "5f ff": "offset 0: an indefinite length",
    "9c": "offset 0: a reserved head",
    "c0 00": "offset 0: a tag is not allowed",
    "f7": "offset 0: a float or simple value other than true, false and null is not allowed",
    "fb 3ff199999999999a": "offset 0: a float or simple value other than true, false and null is not allowed",
    "ff": "offset 0: a float or simple value other than true, false and null is not allowed",
    "991001": "offset 3: an array of more than 4096 items",
    "9b ffffffffffffffff": "offset 9: an array of more than 4096 items",
    "b821": "offset 2: a map of more than 32 entries",
    "bb ffffffffffffffff": "offset 9: a map of more than 32 entries",
}


def refusal(data: bytes) -> str:
    with pytest.raises(RemoteProtocolError) as refused:
        decode(data)
    assert refused.value.code is ErrorCode.PROTOCOL_ERROR
    return str(refused.value)


@pytest.mark.parametrize(("encoded", "value"), VALID.items())
def test_valid(encoded: str, value: object) -> None:
    data = bytes.fromhex(encoded)
    assert decode(data) == value
    assert type(decode(data)) is type(value)
    assert encode(value) == data


@pytest.mark.parametrize("encoded", VALID)
def test_every_prefix_and_every_tail_is_refused(encoded: str) -> None:
    data = bytes.fromhex(encoded)
    for end in range(len(data)):
        refusal(data[:end])
    assert "bytes after the item" in refusal(data + b"\x00")


@pytest.mark.parametrize("encoded", OUT_OF_PROFILE)
def test_out_of_profile(encoded: str) -> None:
    refusal(bytes.fromhex(encoded))


@pytest.mark.parametrize("data", ILL_FORMED, ids=bytes.hex)
def test_ill_formed(data: bytes) -> None:
    refusal(data)


@pytest.mark.parametrize(("encoded", "reason"), REFUSED.items())
def test_reason(encoded: str, reason: str) -> None:
    assert refusal(bytes.fromhex(encoded)) == f"bad CBOR at {reason}"


def test_limits_hold_exactly() -> None:
    longest: list[object] = [0] * MAX_ARRAY_ITEMS
    widest = {f"{number:02}": number for number in range(MAX_MAP_ENTRIES)}
    deepest: object = {"a": 1}
    for _ in range(MAX_DEPTH - 1):
        deepest = [deepest]
    for value in (longest, widest, deepest):
        assert decode(encode(value)) == value


def test_items_are_counted_over_all_containers() -> None:
    data = encode([[0, 0, 0], {"a": 0, "b": []}])  # 2 + 3 + 4 items
    assert decode(data, 9) == [[0, 0, 0], {"a": 0, "b": []}]
    with pytest.raises(RemoteProtocolError, match="more items than allowed"):
        decode(data, 8)


def test_a_long_frame_of_tiny_items_is_refused() -> None:
    row = head(4, MAX_ARRAY_ITEMS) + bytes(MAX_ARRAY_ITEMS)
    assert "more items than allowed" in refusal(head(4, 16) + row * 16)


@pytest.mark.parametrize("major", range(6))
@pytest.mark.parametrize("argument", [0, 23, 24, 255, 256, 65_535, 65_536, (1 << 32) - 1, 1 << 32, (1 << 64) - 1])
def test_head_is_the_shortest(major: int, argument: int) -> None:
    uint = bytearray(cbor2.dumps(argument))
    uint[0] |= major << 5
    assert head(major, argument) == uint


def test_head_refuses_more_than_64_bits() -> None:
    with pytest.raises(ValueError, match="64 bits"):
        head(0, 1 << 64)


def in_profile(value: object, depth: int = MAX_DEPTH) -> bool:
    """The profile, said once more, over what cbor2 decodes."""
    if isinstance(value, list):
        return depth > 0 and len(value) <= MAX_ARRAY_ITEMS and all(in_profile(v, depth - 1) for v in value)
    if isinstance(value, dict):
        return (
            depth > 0
            and len(value) <= MAX_MAP_ENTRIES
            and all(type(name) is str for name in value)
            and all(in_profile(v, depth - 1) for v in value.values())
        )
    if type(value) is int:
        return -(1 << 64) <= value < 1 << 64
    return value is None or type(value) in (bool, bytes, str)


def cbor2_decode(data: bytes) -> object:
    """What cbor2, strict options, checks and the comparison with the canonical form make of it.

    Raises:
        ValueError: refused.
    """
    try:
        value = cbor2.loads(data, allow_indefinite=False, allow_duplicate_keys=False)
        canonical = in_profile(value) and cbor2.dumps(value, canonical=True) == data
    except Exception as error:
        raise ValueError from error
    if not canonical:
        raise ValueError
    return value


def assert_same_verdict(data: bytes) -> None:
    try:
        expected = cbor2_decode(data)
    except ValueError:
        refusal(data)
    else:
        assert encode(decode(data)) == data
        assert decode(data) == expected


@given(cbor_values)
def test_values_survive_and_agree_with_cbor2(value: object) -> None:
    data = encode(value)
    assert_same_verdict(data)
    if in_profile(value):
        assert decode(data) == value


@given(st.binary(max_size=40))
@example(bytes.fromhex("c2 41 05"))  # a bignum that is an int to cbor2
def test_random_bytes_agree_with_cbor2(data: bytes) -> None:
    assert_same_verdict(data)


@given(st.data(), cbor_values | messages.map(encode_body))
def test_damaged_items_agree_with_cbor2(data: st.DataObject, value: object) -> None:
    damaged = bytearray(value if isinstance(value, bytes) else encode(value))
    at = data.draw(st.integers(0, len(damaged)))
    replaced = data.draw(st.integers(0, 2))
    damaged[at : at + replaced] = data.draw(st.binary(max_size=3))
    assert_same_verdict(bytes(damaged))


# ---- the vectors of the specification ----------------------------------------------------------------

SPECIFICATION = Path(__file__).resolve().parents[2] / "protocol-spec" / "cbor.md"
_ROW = re.compile(r"\| `([0-9a-f ]+)`(?: and ([0-9,]+) bytes `00`)? \| (good|bad)( at a relay)?\b")
ROWS = [
    (bytes.fromhex(text) + bytes(int((zeros or "0").replace(",", ""))), verdict, bool(at_a_relay))
    for text, zeros, verdict, at_a_relay in _ROW.findall(SPECIFICATION.read_text())
]


def test_the_specification_has_vectors() -> None:
    assert len(ROWS) == 30


@pytest.mark.parametrize(("data", "verdict", "at_a_relay"), ROWS)
def test_vector_of_the_specification(data: bytes, verdict: str, at_a_relay: bool) -> None:
    if verdict == "good" or at_a_relay:
        assert encode(decode(data)) == data
    else:
        with pytest.raises(RemoteProtocolError, match="bad CBOR"):
            decode(data)


def whole_frames() -> list[bytes]:
    """The frames under "Whole frames": a length of 8 digits, and the array, on one or more indented lines."""
    block = SPECIFICATION.read_text().partition("Whole frames")[2].partition("```")[2].partition("```")[0]
    found = re.findall(r"^ +([0-9a-f]{8}) ([0-9a-f]+(?:\n +[0-9a-f]+(?=\n))*)$", block, re.MULTILINE)
    return [bytes.fromhex(length + "".join(body.split())) for length, body in found]


def decode_any(body: bytes) -> Message | None:
    """The message of a client, or else of a relay."""
    try:
        return decode_body(body, Role.CLIENT)
    except RemoteProtocolError:
        return decode_body(body, Role.RELAY)


def test_whole_frames_of_the_specification() -> None:
    frames = whole_frames()
    kinds = set()
    for frame in frames:
        assert int.from_bytes(frame[:4], "big") == len(frame) - 4
        message = decode_any(frame[4:])
        assert message is not None
        assert encode_body(message) == frame[4:]
        kinds.add(type(message))
    assert (len(frames), len(kinds)) == (23, 22)


@pytest.mark.parametrize(("sender", "most", "array"), [(Role.CLIENT, 4_096, 1_000), (Role.RELAY, 65_536, 4_096)])
def test_items_of_a_frame_are_bounded_by_who_reads_it(sender: Role, most: int, array: int) -> None:
    # An extension: the outer array holds the kind and arrays, each of them an item, and their items.
    whole, rest = divmod(most - 1, array + 1)
    arrays = [[0] * array] * whole + [[0] * (rest - 1)]
    assert decode_body(encode([64, *arrays]), sender) is None
    with pytest.raises(RemoteProtocolError, match="more items than allowed"):
        decode_body(encode([64, *arrays, 0]), sender)
