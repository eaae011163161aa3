"""What became of a reliable message, for who sent it."""

from __future__ import annotations

from collections.abc import Callable

from awesomeconnect.client.waiting import Signal
from awesomeconnect.errors import (
    AwesomeConnectError,
    Declined,
    Expired,
    OutcomeUnknown,
    Refused,
)
from awesomeconnect.reliable.sender import Outcome

_DELIVERED = Outcome.DELIVERED


class Delivery:
    """A reliable message that was handed to the library. `wait` for its end, or leave it to `Node.flush`.

    Attributes:
        outcome: how it ended; None while it is under way.
        is_held: it has arrived, and waits for the application of the peer, or was taken.
    """

    __slots__ = ("_about", "_changed", "_is_watched", "_on_failure", "code", "is_held", "outcome")

    def __init__(self, about: str, on_failure: Callable[[AwesomeConnectError], None]) -> None:
        self.outcome: Outcome | None = None
        self.code = 0
        self.is_held = False
        self._about = about
        self._on_failure = on_failure
        self._is_watched = False
        self._changed: Signal | None = None

    def __repr__(self) -> str:
        return f"Delivery({self.outcome.value if self.outcome else 'held' if self.is_held else 'under way'})"

    async def wait(self, *, until_held: bool = False) -> None:
        """Return when the peer's application has taken the message. Cancelled, it goes on without you.

        Args:
            until_held: return as soon as the peer holds it.

        Raises:
            Expired: it was not delivered in time, and certainly will not be.
            OutcomeUnknown: it was sent, and no acknowledgement came: it may have been taken.
            Declined: the peer does not take reliable messages (of this node).
            Refused: the relay refused it for good.
        """
        self._changed = self._changed or Signal()
        self._is_watched = True
        try:
            while self.outcome is None:
                if until_held and self.is_held:
                    self._is_watched = False  # flush tells what becomes of it
                    return
                await self._changed.wait()
        except BaseException:
            self._is_watched = self.outcome is not None
            raise
        error = self.error
        if error is not None:
            raise error

    @property
    def error(self) -> AwesomeConnectError | None:
        """What `wait` raises; None while the message is under way, or when it was delivered."""
        about, code = self._about, self.code
        match self.outcome:
            case Outcome.EXPIRED:
                return Expired(f"{about}: not delivered in time, and it will not be; is the peer there?")
            case Outcome.UNKNOWN:
                return OutcomeUnknown(
                    f"{about}: no acknowledgement came; it may or may not have been taken", range(0)
                )
            case Outcome.REFUSED:
                return Refused.from_code(code, about)
            case Outcome.DECLINED:
                return Declined(about, code)
        return None

    # ---- the core tells ------------------------------------------------------------------------------

    def held(self) -> None:
        """It has arrived."""
        self.is_held = True
        if self._changed is not None:
            self._changed.notify()

    def settled(self, outcome: Outcome, code: int) -> None:
        """It has ended."""
        self.outcome, self.code = outcome, code
        if self._changed is not None:
            self._changed.notify()
        if outcome is _DELIVERED:
            self.is_held = True
        elif not self._is_watched and (error := self.error) is not None:
            self._on_failure(error)
