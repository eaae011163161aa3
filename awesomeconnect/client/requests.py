"""Requests that wait for their answers.

A request is a message of content 4, ``id | body``; its answer is a unicast of content 5, ``id | status | body``.
The id is 8 random bytes: for a request to any member of a room it is all that tells an answer from a forgery.

Knows no connection: `Node` sends, and feeds what arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from awesomeconnect.client.receipts import Receipt
from awesomeconnect.client.waiting import Answer
from awesomeconnect.errors import OutcomeUnknown, Refused, RequestFailed

ID_BYTES = 8
ANSWERED, FAILED = 0, 1


class Request:
    """One that waits.

    Attributes:
        request_id: names it.
        peer: who may answer; None: whoever knows the id.
        receipt: of the message that carries it, once it was queued.
        answer: its outcome.
    """

    __slots__ = ("answer", "peer", "receipt", "request_id")

    def __init__(self, request_id: bytes, peer: bytes | None) -> None:
        self.request_id = request_id
        self.peer = peer
        self.receipt: Receipt | None = None
        self.answer: Answer[bytes] = Answer()


class Requests:
    """All requests of a node that wait for answers."""

    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        self._random_bytes = random_bytes
        self._waiting: dict[bytes, Request] = {}

    @contextmanager
    def open(self, peer: bytes | None) -> Iterator[Request]:
        """A new request, until the block ends."""
        request = Request(self._random_bytes(ID_BYTES), peer)
        self._waiting[request.request_id] = request
        try:
            yield request
        finally:
            del self._waiting[request.request_id]

    def on_response(self, sender: bytes, payload: bytes) -> bool:
        """Give an answer to who waits for it; False when nobody does."""
        request = self._waiting.get(payload[:ID_BYTES])
        if request is None or len(payload) <= ID_BYTES or request.peer not in (None, sender):
            return False
        status, body = payload[ID_BYTES], payload[ID_BYTES + 1 :]
        if status == ANSWERED:
            request.answer.give(body)
        else:
            request.answer.fail(RequestFailed(body.decode(errors="replace")))
        return True

    def refuse(self, refused: Refused, connection: int) -> int:
        """Tell the requests among refused messages of a connection; how many there are."""
        told = 0
        for request in self._waiting.values():
            receipt = request.receipt
            if receipt is not None and receipt.connection == connection and receipt.ordinal in refused.ordinals:
                request.answer.fail(refused)
                told += 1
        return told

    def broke(self) -> None:
        """The connection is gone: requests that had left may have been lost, or their answers."""
        for request in self._waiting.values():
            receipt = request.receipt
            if receipt is not None and receipt.ordinal is not None:
                text = "the connection ended before the answer to a request arrived; it may have been acted upon"
                request.answer.fail(OutcomeUnknown(text, range(receipt.ordinal, receipt.ordinal + 1)))

    def end(self, error: Exception) -> None:
        """There will be no connection any more."""
        for request in self._waiting.values():
            request.answer.fail(error)


def response(request_id: bytes, status: int, body: bytes) -> bytes:
    """The payload of an answer."""
    return b"".join((request_id, bytes((status,)), body))
