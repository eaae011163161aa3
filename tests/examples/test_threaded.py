"""The example works with a real relay, and is as short as the README says."""

from __future__ import annotations

from pathlib import Path

import pytest

from awesomeconnect.identity import Identity, RelayAddress
from awesomeconnect.wire.messages import Deliver, Joined, Publish, Reject, Welcome
from tests.examples import threaded
from tests.examples.threaded import ThreadedNode
from tests.support.relay import PATIENCE_S, ThreadedRelay


def test_two_nodes_on_threads() -> None:
    relay = ThreadedRelay()
    relay.start()
    try:
        address = RelayAddress.parse(relay.address)
        one, two = (ThreadedNode(address, Identity.generate(), ["room"]) for _ in range(2))
        for node in (one, two):
            assert isinstance(node.messages.get(timeout=PATIENCE_S), Welcome)
            assert isinstance(node.messages.get(timeout=PATIENCE_S), Joined)
        for payload in (b"short", bytes(500_000)):
            one.send(Publish("room", 1, 0, payload))
            delivered = two.messages.get(timeout=PATIENCE_S)
            assert isinstance(delivered, Deliver)
            assert delivered.payload == payload
        one.send(Publish("empty", 1, 0, b""))
        assert isinstance(one.messages.get(timeout=PATIENCE_S), Reject)
        for node in (one, two):
            node.close()
            assert node.messages.get(timeout=PATIENCE_S) is None
    finally:
        relay.kill()


def test_it_says_why_a_connection_ended(capfd: pytest.CaptureFixture[str]) -> None:
    relay = ThreadedRelay()
    relay.start()
    node = ThreadedNode(RelayAddress.parse(relay.address), Identity.generate(), [])
    assert isinstance(node.messages.get(timeout=PATIENCE_S), Welcome)
    relay.kill()
    assert node.messages.get(timeout=PATIENCE_S) is None
    node._socket.close()
    assert "the connection ended" in capfd.readouterr().err


def test_it_is_short() -> None:
    lines = Path(threaded.__file__).read_text().splitlines()
    assert len(lines) < 100
