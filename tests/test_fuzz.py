"""The fuzz targets' invariants on random inputs, and on valid messages with a few bytes changed."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from awesomeconnect.wire.messages import encode_body
from fuzz import messages as fuzz_messages
from fuzz import reliable as fuzz_reliable
from tests.strategies import client_messages, relay_messages

_VECTORS = json.loads((Path(__file__).parent.parent / "protocol-spec" / "vectors" / "reliable.json").read_text())
#: (which content, payload); a box by itself is none.
PAYLOADS = [
    *((case["content"] - 1, bytes.fromhex(case["payload"])) for case in _VECTORS["payloads"]),
    *((2, bytes.fromhex(case["payload"])) for case in _VECTORS["sealed"] if case["form"] == 0),
]


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


@given(st.binary(max_size=200))
@example(b"")
def test_any_bytes_as_payloads_between_endpoints(data: bytes) -> None:
    fuzz_reliable.check(data)


@given(st.data(), st.sampled_from(PAYLOADS))
def test_valid_payloads_between_endpoints_with_changes(data: st.DataObject, payload: tuple[int, bytes]) -> None:
    choice, octets = payload
    body = bytearray(octets)
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(body) - 1), st.integers(0, 255)), max_size=3)):
        body[at] = value
    fuzz_reliable.check(bytes([choice]) + bytes(body))
