"""The fuzz targets' invariants on random inputs, and on valid messages with a few bytes changed."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from awesomeconnect.wire.messages import encode_body
from fuzz import messages as fuzz_messages
from tests.strategies import client_messages, relay_messages


@given(st.binary(max_size=200))
@example(b"")
@example(b"\x00")
@example(b"\x01\x9f\xff")
def test_any_bytes(data: bytes) -> None:
    fuzz_messages.check(data)


@given(st.data(), st.booleans())
def test_valid_messages_with_changes(data: st.DataObject, from_relay: bool) -> None:
    message = data.draw(relay_messages if from_relay else client_messages)
    body = bytearray(encode_body(message))
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(body) - 1), st.integers(0, 255)), max_size=3)):
        body[at] = value
    fuzz_messages.check(bytes([from_relay]) + bytes(body))
