"""The vectors of the specification: payloads, sealed messages, and runs of receivers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from awesomeconnect.identity import Identity
from awesomeconnect.reliable.receiver import Arrival, IncomingStream
from awesomeconnect.reliable.repair import Found, Gap, RoomStream
from awesomeconnect.reliable.segments import (
    BadPayload,
    Segment,
    decode_control,
    decode_segment,
    encode_control,
    encode_segment,
)
from awesomeconnect.reliable.settings import ReliableSettings
from awesomeconnect.wire import cbor
from awesomeconnect.wire.sealing import Place, SealBroken, Sealer, decode_sealed, encode_sealed
from tests import cddl
from tests.reliable import make_vectors

VECTORS = json.loads((Path(__file__).parents[2] / "protocol-spec" / "vectors" / "reliable.json").read_text())
SCHEMA = cddl.Schema((Path(__file__).parents[2] / "protocol-spec" / "reliable.cddl").read_text())
SETTINGS = ReliableSettings()
SENDER = bytes(32)
DELAY_MS = 20


def cases(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", VECTORS[name], ids=[case["name"] for case in VECTORS[name]])


def test_the_file_is_what_is_generated(capsys: pytest.CaptureFixture[str]) -> None:
    make_vectors.main()
    assert json.loads(capsys.readouterr().out) == VECTORS


@cases("payloads")
def test_payloads(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["payload"])
    if case["content"] == 1:
        assert encode_segment(decode_segment(data)) == data
    else:
        control = decode_control(data)
        assert control is not None
        assert encode_control(control) == data


@cases("bad_payloads")
def test_bad_payloads(case: dict[str, Any]) -> None:
    with pytest.raises(BadPayload):
        (decode_segment if case["content"] == 1 else decode_control)(bytes.fromhex(case["payload"]))


@cases("sealed")
def test_sealed(case: dict[str, Any]) -> None:
    sender, receiver = (Identity.from_seed(bytes.fromhex(case[f"{end}_seed"])) for end in ("sender", "receiver"))
    incarnation, sequence = bytes.fromhex(case["incarnation"]), case["sequence"]
    place = Place(case["form"], case["class"], incarnation, sequence)
    inside = case["inner_content"], bytes.fromhex(case["inner_payload"])
    box = Sealer(sender).seal(receiver.public_key, place, *inside)
    data = bytes.fromhex(case["payload"])
    if case["form"] == 0:
        assert SCHEMA.accepts("sealed", cbor.decode(data))
        assert encode_sealed(incarnation, sequence, box) == data
        assert decode_sealed(data) == (incarnation, sequence, box)
    else:
        assert box == data
    assert Sealer(receiver).open(sender.public_key, place, box) == inside
    with pytest.raises(SealBroken):
        Sealer(receiver).open(sender.public_key, place._replace(sequence=sequence + 1), box)


def segment_of(values: list[Any]) -> Segment:
    incarnation, sequence, base, expires_ms = values
    return Segment(bytes.fromhex(incarnation), sequence, base, expires_ms, 0, b"")


def shown(found: list[Found] | list[Arrival]) -> list[Any]:
    return [[one.first, one.last] if isinstance(one, Gap) else one.sequence for one in found]


def begin(case: dict[str, Any]) -> Segment:
    return segment_of(case["events"][0]["segment"])


@cases("unicast_receivers")
def test_unicast_receivers(case: dict[str, Any]) -> None:
    first = begin(case)
    stream = IncomingStream(SENDER, 1, first.incarnation, first.base, SETTINGS)
    queue: dict[int, Arrival] = {}
    for event in case["events"]:
        now_ms, arrivals = event["at_ms"], []
        if "segment" in event:
            arrivals = stream.on_segment(segment_of(event["segment"]), now_ms, 1 << 20)
        elif "mark" in event:
            arrivals = stream.on_mark(event["mark"][1], now_ms)
        elif "take" in event:
            arrival = queue.pop(event["take"])
            assert stream.may_hand_over(arrival, now_ms) is not event.get("is_late", False)
            if not event.get("is_late"):
                stream.taken(arrival.sequence, now_ms)
        assert shown(arrivals) == event.get("hands", [])
        queue.update((arrival.sequence, arrival) for arrival in arrivals)
        is_due = stream.ack_at_ms is not None and stream.ack_at_ms <= now_ms
        assert is_due == ("ack" in event), event
        if is_due:
            ack = stream.ack(bytes(16))
            assert [ack.next, *map(list, (map(list, ack.taken), map(list, ack.held)))] == event["ack"], event


@cases("room_receivers")
def test_room_receivers(case: dict[str, Any]) -> None:
    first = begin(case)
    stream = RoomStream(SENDER, "room", 1, first.incarnation, first.sequence, SETTINGS)
    for event in case["events"]:
        now_ms = event["at_ms"]
        found: list[Found] = []
        if "segment" in event:
            found = stream.on_segment(segment_of(event["segment"]), now_ms, DELAY_MS, 1 << 20)
        elif "mark" in event:
            found = stream.on_mark(event["mark"][1], event["mark"][2], now_ms, DELAY_MS)
        more, ranges = stream.on_timer(now_ms)
        assert shown(found + more) == event.get("hands", []), event
        assert list(map(list, ranges)) == event.get("request", []), event
