"""The CBOR of the protocol: RFC 8949 core deterministic encoding of a small set of types, strictly.

Allowed are unsigned and negative integers, byte and text strings, arrays, maps with text keys, true, false
and null, each in the one encoding that RFC 8949 section 4.2.1 gives it. Equal values therefore have equal
bytes, which is what lets a relay compare heads of frames without decoding them. Refused are tags, floats,
undefined and other simple values, indefinite lengths, heads longer than needed, unsorted or repeated keys,
invalid UTF-8, bytes after the item, and more than the limits below. A count is checked against its limit and
against the bytes that remain before anything is allocated for it.

The decoder is written by hand: for the short items of this protocol it is faster than ``cbor2.loads``, checks
and a comparison with the canonical form, and it stops at the first fault. Encoding is cbor2's. This module
knows nothing of messages.
"""

from __future__ import annotations

from typing import Final

import cbor2

from awesomeconnect.errors import RemoteProtocolError

# SPEC cbor.md: A receiver MUST answer nesting deeper than 4, an array of more than 4,096 items or a map of more
#   than 32 entries with CLOSE protocol_error.
MAX_DEPTH: Final = 4
"""Arrays and maps inside each other: frame, page, member, attributes."""

MAX_ARRAY_ITEMS: Final = 4_096
MAX_MAP_ENTRIES: Final = 32

# SPEC cbor.md: A client MUST answer more than 65,536 items in a frame with CLOSE protocol_error.
MAX_ITEMS: Final = 65_536
"""Items in all, unless the caller allows fewer: more than any page of members (49,152 bytes) can hold.

Tiny items cost the decoder most for each byte, and one frame is decoded in one go.
"""

_UINT, _NINT, _BYTES, _TEXT, _ARRAY, _MAP = range(6)
_SIMPLE: Final[dict[int, bool | None]] = {0xF4: False, 0xF5: True, 0xF6: None}
_FLOORS: Final = (24, 1 << 8, 1 << 16, 1 << 32)  # the least argument that needs 1, 2, 4, 8 further bytes
# SPEC cbor.md: A receiver MUST answer a tag, a float, undefined, another simple value or an indefinite length with
#   CLOSE protocol_error.
_REFUSED_MAJORS: Final = {6: "a tag", 7: "a float or simple value other than true, false and null"}


def decode(data: bytes, max_items: int = MAX_ITEMS) -> object:
    """The value of the one item that ``data`` holds: int, bytes, str, list, dict, bool or None.

    Args:
        data: the whole item, nothing else.
        max_items: how many items all its arrays and maps may hold together (a map's entry is two).

    Raises:
        RemoteProtocolError: ``data`` is not exactly one item in its deterministic encoding, or is over a
            limit; the text has the offset and the reason.
    """
    value, end = _read(data, 0, MAX_DEPTH, [max_items])
    # SPEC cbor.md: A receiver MUST answer bytes after the item, or an item that is not complete at the end of the
    #   frame, with CLOSE protocol_error.
    # SPEC frames.md: A receiver MUST answer an array that does not end exactly where the length says with CLOSE
    #   protocol_error.
    if end != len(data):
        raise _refused(end, "bytes after the item")
    return value


def read_head(data: bytes, at: int, major: int) -> tuple[int, int]:
    """The argument of the head at an offset, which must have this major type (0 to 5), and the offset after it.

    For formats whose shape is fixed, where reading item by item is faster than `decode`.

    Raises:
        RemoteProtocolError: there is no such head there, or it is not the shortest.
    """
    if at >= len(data):
        raise _refused(at, "ends where an item is due")
    initial = data[at]
    if initial >> 5 != major:
        raise _refused(at, "an item of another type")
    if initial & 31 < 24:
        return initial & 31, at + 1
    return _read_argument(data, at)


def read_uints(data: bytes, at: int, count: int) -> tuple[list[int], int]:
    """So many unsigned integers from an offset on, and the offset after them; as `read_head`, in one go."""
    numbers = []
    size = len(data)
    for _ in range(count):
        number = data[at] if at < size else 0xFF
        at += 1
        if number >= 24:
            if number > 27:
                raise _refused(at - 1, "no unsigned integer where one is due")
            floor, end = _FLOORS[number - 24], at + (1 << number - 24)
            number = int.from_bytes(data[at:end], "big")
            if end > size or number < floor:
                raise _refused(at - 1, "a head that is longer than needed, or cut off")
            at = end
        numbers.append(number)
    return numbers, at


def _read(data: bytes, at: int, depth: int, budget: list[int]) -> tuple[object, int]:
    """The item at offset ``at`` and the offset after it; it may open ``depth`` more levels."""
    if at >= len(data):
        raise _refused(at, "ends where an item is due")
    initial = data[at]
    if initial < 24:
        return initial, at + 1
    if initial >= 0xC0:
        if initial in _SIMPLE:
            return _SIMPLE[initial], at + 1
        raise _refused(at, f"{_REFUSED_MAJORS[initial >> 5]} is not allowed")
    major, argument, start = initial >> 5, initial & 31, at + 1
    if argument > 23:
        argument, start = _read_argument(data, at)
    if major == _BYTES or major == _TEXT:  # noqa: SIM109 (half the time of a membership test)
        end = start + argument
        if end > len(data):
            raise _refused(at, f"a string of {argument} bytes, but {len(data) - start} are left")
        return (data[start:end] if major == _BYTES else _text(data, start, end)), end
    if major == _UINT:
        return argument, start
    if major == _NINT:
        return -1 - argument, start
    return (_read_array if major == _ARRAY else _read_map)(data, start, argument, depth, budget)


def _read_argument(data: bytes, at: int) -> tuple[int, int]:
    """The argument of a head that is longer than its initial byte, and the offset after the head."""
    information = data[at] & 31
    if information > 27:
        raise _refused(at, "an indefinite length" if information == 31 else "a reserved head")
    end = at + 1 + (1 << information - 24)
    if end > len(data):
        raise _refused(at, "ends inside a head")
    argument = int.from_bytes(data[at + 1 : end], "big")
    # SPEC cbor.md: A receiver MUST answer an item that is not in the shortest form with CLOSE protocol_error.
    if argument < _FLOORS[information - 24]:
        raise _refused(at, "a head that is longer than needed")
    return argument, end


def _text(data: bytes, start: int, end: int) -> str:
    # SPEC cbor.md: A receiver MUST answer text that is not valid UTF-8 with CLOSE protocol_error.
    try:
        return data[start:end].decode()
    except UnicodeDecodeError as error:
        raise _refused(start + error.start, "invalid UTF-8") from None


def _open(data: bytes, at: int, items: int, depth: int, budget: list[int]) -> None:
    """Admit an array or map of ``items`` items (two an entry) before anything is allocated for it."""
    if depth == 0:
        raise _refused(at, f"nested deeper than {MAX_DEPTH}")
    # SPEC cbor.md: A receiver MUST check a length or count against the bytes that remain before it allocates memory
    #   for it.
    if items > len(data) - at:
        raise _refused(at, f"{items} items are due, but {len(data) - at} bytes are left")
    budget[0] -= items
    if budget[0] < 0:
        raise _refused(at, "more items than allowed")


def _read_array(data: bytes, at: int, count: int, depth: int, budget: list[int]) -> tuple[list[object], int]:
    if count > MAX_ARRAY_ITEMS:
        raise _refused(at, f"an array of more than {MAX_ARRAY_ITEMS} items")
    _open(data, at, count, depth, budget)
    depth -= 1
    array = []
    for _ in range(count):
        item, at = _read(data, at, depth, budget)
        array.append(item)
    return array, at


def _read_map(data: bytes, at: int, count: int, depth: int, budget: list[int]) -> tuple[dict[str, object], int]:
    if count > MAX_MAP_ENTRIES:
        raise _refused(at, f"a map of more than {MAX_MAP_ENTRIES} entries")
    _open(data, at, 2 * count, depth, budget)
    depth -= 1
    # SPEC cbor.md: A receiver MUST answer a map whose keys are not text, not in ascending order of their encoded
    #   bytes, or repeated with CLOSE protocol_error.
    entries: dict[str, object] = {}
    previous = b""
    for _ in range(count):
        key, end = _read(data, at, 0, budget)
        if not isinstance(key, str):
            raise _refused(at, "a map key that is not text")
        encoded = data[at:end]
        if encoded <= previous:
            raise _refused(at, "a map key that is repeated or out of order")
        entries[key], at = _read(data, end, depth, budget)
        previous = encoded
    return entries, at


def _refused(at: int, reason: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"bad CBOR at offset {at}: {reason}")


def encode(value: object) -> bytes:
    """The deterministic encoding of a value that this profile allows; messages hold no others.

    cbor2's canonical form sorts map keys by length first, as RFC 7049 did: for text keys that is the order
    of RFC 8949. Lists and tuples become arrays, subclasses of int (enums) integers.
    """
    # SPEC cbor.md: A sender MUST write every integer and every length in the shortest form.
    # SPEC cbor.md: A sender MUST sort the keys of a map by their encoded bytes.
    # SPEC cbor.md: A sender MUST NOT use tags, floats, undefined, other simple values or indefinite lengths.
    return cbor2.dumps(value, canonical=True)


def head(major: int, argument: int) -> bytes:
    """The shortest initial bytes of an item of this major type (0 to 5).

    Raises:
        ValueError: the argument does not fit 64 bits.
    """
    initial = major << 5
    if argument < 24:
        return bytes((initial | argument,))
    if argument < 1 << 8:
        return bytes((initial | 24, argument))
    if argument < 1 << 16:
        return bytes((initial | 25,)) + argument.to_bytes(2, "big")
    if argument < 1 << 32:
        return bytes((initial | 26,)) + argument.to_bytes(4, "big")
    if argument < 1 << 64:
        return bytes((initial | 27,)) + argument.to_bytes(8, "big")
    raise ValueError("cannot encode an integer of more than 64 bits")
