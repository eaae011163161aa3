"""Makes protocol-spec/vectors/reliable.json, with nothing of this project: cbor2, PyNaCl and hashlib alone.

    python -m tests.reliable.make_vectors > protocol-spec/vectors/reliable.json

The runs of receivers are written by hand.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import cbor2
from nacl.public import Box
from nacl.signing import SigningKey

A1, A2, B1 = (bytes.fromhex(f"0000018c{n:08x}") + bytes((n,)) * 8 for n in (1, 2, 3))


def payload(name: str, content: int, value: list[Any]) -> dict[str, Any]:
    return {"name": name, "content": content, "payload": cbor2.dumps(value, canonical=True).hex()}


PAYLOADS = [
    payload("segment", 1, [A1, 1, 1, 60_000, 0, b"one"]),
    payload("segment of a request, long numbers", 1, [A1, 1 << 32, 300, 86_400_000, 4, bytes(8)]),
    payload("segment with an empty payload", 1, [A1, (1 << 64) - 1, (1 << 64) - 1, 1, 0, b""]),
    payload("ack", 2, [0, B1, A1, 1, 2, [], []]),
    payload("ack with ranges", 2, [0, B1, A1, 6, 5, [[6, 6]], [[5, 5], [8, 300]]]),
    payload("refusal", 2, [1, A1, 0, 1]),
    payload("refusal for a reason that is not known", 2, [1, A1, 0, 77]),
    payload("mark", 2, [2, None, A1, [[1, 3, 9]]]),
    payload("mark of a room, nothing kept in one class", 2, [2, "Räume", A1, [[0, 7, 7], [5, 1, 2]]]),
    payload("request", 2, [3, "room", A1, 1, [[2, 2], [4, 9]]]),
    payload("repair", 2, [4, "room", A1, 2, 1, 1_234, 0, b"two"]),
]

BAD = [
    payload("segment: base above the sequence", 1, [A1, 1, 2, 60_000, 0, b""]),
    payload("segment: sequence 0", 1, [A1, 0, 0, 60_000, 0, b""]),
    payload("segment: expires_ms 0", 1, [A1, 1, 1, 0, 0, b""]),
    payload("segment: expires_ms above a day", 1, [A1, 1, 1, 86_400_001, 0, b""]),
    payload("segment: a segment inside", 1, [A1, 1, 1, 60_000, 1, b""]),
    payload("segment: incarnation of 15 bytes", 1, [A1[:15], 1, 1, 60_000, 0, b""]),
    payload("segment: one item more", 1, [A1, 1, 1, 60_000, 0, b"", 0]),
    {"name": "segment: not the shortest form", "content": 1, "payload": "8650" + A1.hex() + "180101190fff0040"},
    {"name": "segment: a byte after it", "content": 1, "payload": PAYLOADS[0]["payload"] + "00"},
    payload("ack: class 7", 2, [0, B1, A1, 7, 2, [], []]),
    payload("ack: ranges that touch", 2, [0, B1, A1, 1, 2, [[3, 4], [5, 6]], []]),
    payload("ack: a range backwards", 2, [0, B1, A1, 1, 2, [[4, 3]], []]),
    payload("ack: 33 ranges", 2, [0, B1, A1, 1, 2, [[n, n] for n in range(3, 69, 2)], []]),
    payload("mark: no stream", 2, [2, None, A1, []]),
    payload("mark: base above next", 2, [2, None, A1, [[1, 3, 2]]]),
    payload("request: empty room", 2, [3, "", A1, 1, [[2, 2]]]),
    payload("not an array", 2, {}),  # type: ignore[arg-type]
]


def sealed(name: str, form: int, traffic_class: int, sequence: int, content: int, text: bytes) -> dict[str, Any]:
    sender, receiver = SigningKey(bytes(range(32))), SigningKey(bytes(range(1, 33)))
    keys = bytes(sender.verify_key), bytes(receiver.verify_key)
    place = bytes((form, traffic_class)) + A1 + sequence.to_bytes(8, "big")
    nonce = hashlib.sha256(b"awesomeconnect-sealed-1" + place + keys[0] + keys[1]).digest()[:24]
    box = Box(sender.to_curve25519_private_key(), receiver.verify_key.to_curve25519_public_key())
    ciphertext = box.encrypt(bytes((content,)) + text, nonce).ciphertext
    whole = cbor2.dumps([A1, sequence, ciphertext], canonical=True) if form == 0 else ciphertext
    return {
        "name": name,
        "sender_seed": bytes(sender).hex(),
        "receiver_seed": bytes(receiver).hex(),
        "form": form,
        "class": traffic_class,
        "incarnation": A1.hex(),
        "sequence": sequence,
        "nonce": nonce.hex(),
        "inner_content": content,
        "inner_payload": text.hex(),
        "payload": whole.hex(),
    }


SEALED = [
    sealed("by SEND", 0, 1, 1, 0, b"secret"),
    sealed("a request by SEND, another class", 0, 5, 1, 4, bytes(8) + b"?"),
    sealed("in a segment", 1, 1, 1, 0, b"secret"),
    sealed("nothing but the content", 1, 0, (1 << 40) + 1, 0, b""),
]


def segment(at_ms: int, sequence: int, base: int, hands: list[int], **more: Any) -> dict[str, Any]:
    """A segment arrives; the application gets ``hands`` (sequences, or [first, last] of gaps)."""
    return {"at_ms": at_ms, "segment": [A1.hex(), sequence, base, 1_000], "hands": hands, **more}


UNICAST = [
    {
        "name": "in order; taken late, so held",
        "events": [
            segment(0, 1, 1, [1]),
            segment(1, 2, 1, [2]),
            {"at_ms": 101, "ack": [1, [], [[1, 2]]]},
            {"at_ms": 150, "take": 1, "ack": [2, [], [[2, 2]]]},
            {"at_ms": 150, "take": 2, "ack": [3, [], []]},
        ],
    },
    {
        "name": "a hole, and a duplicate",
        "events": [
            segment(0, 1, 1, [1]),
            segment(0, 3, 1, [], ack=[1, [], [[1, 1], [3, 3]]]),
            segment(5, 2, 1, [2, 3]),
            {"at_ms": 6, "take": 1, "ack": [2, [], [[2, 3]]]},
            segment(7, 1, 1, [], ack=[2, [], [[2, 3]]]),
        ],
    },
    {
        "name": "a stream that begins in the middle, and a base that passes what is missing",
        "events": [
            segment(0, 57, 55, [], ack=[55, [], [[57, 57]]]),
            {"at_ms": 3, "mark": [A1.hex(), 57, 58], "hands": [57], "ack": [57, [], [[57, 57]]]},
            {"at_ms": 4, "take": 57, "ack": [58, [], []]},
        ],
    },
    {
        "name": "too late: neither taken nor held",
        "events": [
            segment(0, 1, 1, [1]),
            {"at_ms": 100, "ack": [1, [], [[1, 1]]]},
            segment(900, 2, 1, [2]),
            {"at_ms": 1_000, "take": 1, "is_late": True, "ack": [1, [], [[2, 2]]]},
            {"at_ms": 1_001, "take": 2, "ack": [1, [[2, 2]], []]},
            segment(1_002, 3, 2, [3]),
            {"at_ms": 1_003, "take": 3, "ack": [4, [], []]},
        ],
    },
]

ROOMS = [
    {
        "name": "nothing is missed before the first; a hole is repaired",
        "events": [
            segment(0, 4, 1, [4]),
            segment(10, 6, 1, []),
            {"at_ms": 30, "request": [[5, 5]]},
            segment(40, 5, 1, [5, 6]),
        ],
    },
    {
        "name": "a mark shows the loss of the last, the base that it is gone",
        "events": [
            segment(0, 1, 1, [1]),
            {"at_ms": 1_000, "mark": [A1.hex(), 1, 3], "hands": []},
            {"at_ms": 1_020, "request": [[2, 2]]},
            {"at_ms": 1_040, "mark": [A1.hex(), 3, 3], "hands": [[2, 2]]},
            segment(1_050, 3, 3, [3]),
        ],
    },
    {
        "name": "patience ends",
        "events": [
            segment(0, 1, 1, [1]),
            segment(10, 3, 1, []),
            {"at_ms": 30, "request": [[2, 2]]},
            {"at_ms": 530, "request": [[2, 2]]},
            {"at_ms": 1_530, "request": [[2, 2]]},
            {"at_ms": 20_010, "hands": [[2, 2], 3]},
            segment(20_011, 2, 1, []),
        ],
    },
]


def main() -> None:
    """Write the file to standard output."""
    whole = {
        "about": "Payloads and receivers of protocol-spec/reliable.md and sealed.md; format in README.md.",
        "payloads": PAYLOADS,
        "bad_payloads": BAD,
        "sealed": SEALED,
        "unicast_receivers": UNICAST,
        "room_receivers": ROOMS,
    }
    print(json.dumps(whole, indent=1))


if __name__ == "__main__":
    main()
