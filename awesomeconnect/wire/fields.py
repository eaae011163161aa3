"""Checks of message fields, one for each rule of ``protocol-spec/messages.cddl``.

Every check is an attrs validator: messages are checked once, when they are made, whether by a caller or by
the decoder. A failure is a ``LocalProtocolError`` that names message and field; the decoder, which knows that
the other side is to blame, turns it into a ``RemoteProtocolError``. This module knows no message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn, TypeAlias

from attrs import Attribute

from awesomeconnect.errors import LocalProtocolError
from awesomeconnect.wire import cbor
from awesomeconnect.wire.rooms import MAX_ROOM_BYTES

Check: TypeAlias = Callable[[Any, "Attribute[Any]", Any], None]

KEY_BYTES: Final = 32
MAX_UINT: Final = (1 << 64) - 1
MAX_ATTRIBUTES: Final = 16
MAX_ATTRIBUTES_BYTES: Final = 1_024
MAX_NAME_BYTES: Final = 64
MAX_CAPABILITY_BYTES: Final = 4_096


def wire_name(message: type) -> str:
    """How the specification writes a message's name: ``MEMBERS_PAGE`` for ``MembersPage``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", message.__name__).upper()


def refuse(message: Any, attribute: Attribute[Any], must: str) -> NoReturn:
    raise LocalProtocolError(f"{wire_name(type(message))} {attribute.name} must be {must}")


def between(low: int, high: int) -> Check:
    """An integer from ``low`` to ``high``; true and false are none."""

    def check(message: Any, attribute: Attribute[Any], value: Any) -> None:
        if not isinstance(value, int) or value is True or value is False or not low <= value <= high:
            refuse(message, attribute, f"an integer from {low} to {high}")

    return check


def octets(low: int, high: int) -> Check:
    """A byte string of ``low`` to ``high`` bytes."""

    def check(message: Any, attribute: Attribute[Any], value: Any) -> None:
        if not isinstance(value, bytes) or not low <= len(value) <= high:
            refuse(message, attribute, f"{low} to {high} bytes" if low < high else f"{low} bytes")

    return check


def text(low: int, high: int) -> Check:
    """Text of ``low`` to ``high`` bytes of UTF-8."""

    def check(message: Any, attribute: Attribute[Any], value: Any) -> None:
        if not is_text(value, low, high):
            refuse(message, attribute, f"text of {low} to {high} bytes of UTF-8")

    return check


def is_text(value: object, low: int, high: int) -> bool:
    if not isinstance(value, str):
        return False
    if value.isascii():
        return low <= len(value) <= high
    try:
        return low <= len(value.encode()) <= high
    except UnicodeEncodeError:  # a lone surrogate
        return False


def payload(message: Any, attribute: Attribute[Any], value: Any) -> None:
    """A byte string of any length: the frame limit bounds it."""
    if not isinstance(value, bytes):
        refuse(message, attribute, "bytes")


def optional(check: Check) -> Check:
    """Null, or what ``check`` accepts."""

    def check_optional(message: Any, attribute: Attribute[Any], value: Any) -> None:
        if value is not None:
            check(message, attribute, value)

    return check_optional


def target(message: Any, attribute: Attribute[Any], value: Any) -> None:
    """A room (text), a peer (key), or null for the connection."""
    if value is not None and not is_text(value, 1, MAX_ROOM_BYTES) and not _is_key(value):
        refuse(message, attribute, "a room, a key or null")


def _is_key(value: object) -> bool:
    return isinstance(value, bytes) and len(value) == KEY_BYTES


def many(item_is_good: Callable[[Any], bool], what: str, most: int = cbor.MAX_ARRAY_ITEMS) -> Check:
    """A tuple of at most ``most`` items, each of which ``item_is_good``."""

    def check(message: Any, attribute: Attribute[Any], value: Any) -> None:
        if not isinstance(value, tuple) or len(value) > most or not all(map(item_is_good, value)):
            refuse(message, attribute, f"a tuple of at most {most} {what}")

    return check


def named(value_is_good: Callable[[Any], bool], what: str, most: int = cbor.MAX_MAP_ENTRIES) -> Check:
    """A mapping of at most ``most`` names of 1 to 64 bytes to values, each of which ``value_is_good``."""

    def check(message: Any, attribute: Attribute[Any], value: Any) -> None:
        if (
            not isinstance(value, Mapping)
            or len(value) > most
            or not all(is_text(name, 1, MAX_NAME_BYTES) for name in value)
            or not all(map(value_is_good, value.values()))
        ):
            refuse(message, attribute, f"a map of at most {most} names of 1 to {MAX_NAME_BYTES} bytes to {what}")

    return check


def is_uint(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_UINT


def is_counter(value: object) -> bool:
    """An unsigned integer or a tuple of them, as in STATS_REPORT."""
    if isinstance(value, tuple):
        return len(value) <= cbor.MAX_ARRAY_ITEMS and all(map(is_uint, value))
    return is_uint(value)


def _is_attribute(value: object) -> bool:
    if isinstance(value, int):
        return -MAX_UINT - 1 <= value <= MAX_UINT
    return value is None or isinstance(value, bytes) or is_text(value, 0, MAX_ATTRIBUTES_BYTES)


_named_attributes: Final = named(_is_attribute, "text, bytes, integers, booleans or null", MAX_ATTRIBUTES)


def attributes(message: Any, attribute: Attribute[Any], value: Any) -> None:
    """At most 16 names with values, at most 1,024 bytes when encoded."""
    _named_attributes(message, attribute, value)
    # SPEC messages.md: A sender MUST keep the encoded attributes map at most 1,024 bytes long.
    # SPEC messages.md: A receiver MUST answer an attributes map whose encoding is longer than 1,024 bytes with
    #   CLOSE protocol_error.
    if len(cbor.encode(value)) > MAX_ATTRIBUTES_BYTES:
        refuse(message, attribute, f"at most {MAX_ATTRIBUTES_BYTES} bytes when encoded")


uint: Final = between(0, MAX_UINT)
positive: Final = between(1, MAX_UINT)
key: Final = octets(KEY_BYTES, KEY_BYTES)
keys: Final = many(_is_key, f"keys of {KEY_BYTES} bytes")
room: Final = text(1, MAX_ROOM_BYTES)
capability: Final = octets(1, MAX_CAPABILITY_BYTES)
token: Final = octets(0, 32)
eight_bytes: Final = octets(8, 8)
# SPEC frames.md: A receiver MUST answer class 7 or above in a message with CLOSE protocol_error.
traffic_class: Final = between(0, 6)
content: Final = between(0, 23)
alternates: Final = many(lambda item: is_text(item, 1, 256), "texts of 1 to 256 bytes", 16)
# SPEC messages.md: A receiver MUST ignore keys of limits and STATS_REPORT maps that it does not know.
limits: Final = named(is_uint, "unsigned integers")
counters: Final = named(is_counter, "unsigned integers or tuples of them")
