"""Decoding of one frame: a message whose encoding is the input again, an ignored extension, or a coded refusal."""

from __future__ import annotations

import sys

from awesomeconnect.errors import RemoteProtocolError
from awesomeconnect.wire.messages import FIRST_EXTENSION_KIND, Role, decode_body, encode_body


def check(data: bytes) -> None:
    """The invariant. The first byte chooses the direction."""
    sender = Role.RELAY if data[:1] and data[0] & 1 else Role.CLIENT
    body = data[1:]
    try:
        message = decode_body(body, sender)
    except RemoteProtocolError:
        return
    if message is not None:
        # Equal meaning has equal bytes: this is what the flow cache relies on.
        assert encode_body(message) == body
        assert message.KIND < FIRST_EXTENSION_KIND


if __name__ == "__main__":
    import atheris

    atheris.instrument_all()
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
