"""Payloads of contents 1 to 3: a value whose encoding is the input again, an unknown kind, or a refusal."""

from __future__ import annotations

import sys

from awesomeconnect.reliable.segments import (
    BadPayload,
    decode_control,
    decode_segment,
    encode_control,
    encode_segment,
)
from awesomeconnect.wire.sealing import SealBroken, decode_sealed, encode_sealed


def check(data: bytes) -> None:
    """The invariant. The first byte chooses the content."""
    content, payload = data[0] % 3 if data else 0, data[1:]
    try:
        if content == 0:
            assert encode_segment(decode_segment(payload)) == payload
        elif content == 1:
            control = decode_control(payload)
            assert control is None or encode_control(control) == payload
        else:
            assert encode_sealed(*decode_sealed(payload)) == payload
    except (BadPayload, SealBroken):
        return


if __name__ == "__main__":
    import atheris

    atheris.instrument_all()
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
