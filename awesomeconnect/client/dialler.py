"""Finds a relay that answers: the addresses of a node, in turn, and the pauses between the attempts.

A relay that proved another key, or sent this node away for good, is not dialled again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import anyio

from awesomeconnect.client.link import Link, open_link
from awesomeconnect.client.reconnect import MOST_SPREAD_S, Backoff, ends_node, is_final
from awesomeconnect.client.settings import ClientSettings
from awesomeconnect.errors import AddressError, AwesomeConnectError, ConnectFailed
from awesomeconnect.identity import Identity, RelayAddress
from awesomeconnect.wire.messages import Hello, Incarnation

#: Relays that are remembered, with those that relays name.
MOST_ADDRESSES = 64


class Dialler:
    """The relays of a node.

    Args:
        hello: makes the first message of a connection from incarnation and connection number.
    """

    def __init__(
        self,
        addresses: Sequence[RelayAddress],
        identity: Identity,
        settings: ClientSettings,
        hello: Callable[[Incarnation, int], Hello],
    ) -> None:
        self._addresses = list(addresses)  # those that may be dialled
        self._known = set(addresses)
        self._identity = identity
        self._settings = settings
        self._hello = hello
        self._backoff = Backoff(
            settings.backoff_s,
            settings.first_cap_s,
            settings.later_cap_s,
            settings.patience_s,
            settings.settled_s,
        )
        self._spread_s = 0.0

    def add(self, alternates: Iterable[str]) -> None:
        """Relays that a relay names; what is no address is passed over."""
        for text in alternates:
            with suppress(AddressError):
                address = RelayAddress.parse(text)
                if address not in self._known and len(self._known) < MOST_ADDRESSES:
                    self._known.add(address)
                    self._addresses.append(address)

    def has_other(self, than: RelayAddress) -> bool:
        """Whether there is another relay."""
        return any(address != than for address in self._addresses)

    async def dial(self, timeout_s: float | None = None, but: RelayAddress | None = None) -> Link:
        """A connection to the first of the relays that lets this node in, each given its share of the time.

        Args:
            timeout_s: for all of them; None: ``welcome_s`` for each.
            but: not to this one; there must be others.

        Raises:
            ConnectFailed: none of several could be reached, or the only one; lists each with its reason.
            AwesomeConnectError: why the only one did not let this node in, as `open_link`.
        """
        addresses = [address for address in self._addresses if address != but]
        if timeout_s is None:
            timeout_s = self._settings.welcome_s * len(addresses)
        deadline = anyio.current_time() + timeout_s
        failures: list[tuple[RelayAddress, AwesomeConnectError]] = []
        for at, address in enumerate(addresses):
            share_s = (deadline - anyio.current_time()) / (len(addresses) - at)
            error: AwesomeConnectError = ConnectFailed(
                f"cannot connect to {address}: no answer in {share_s:.3g} s; is this an AwesomeConnect relay?"
            )
            with anyio.move_on_after(share_s):
                try:
                    link = await self._open(address)
                except OSError as problem:
                    reason = problem.strerror or str(problem)
                    error = ConnectFailed(f"cannot connect to {address}: {reason}; is the relay running?")
                except AwesomeConnectError as problem:
                    error = problem
                    if is_final(error):
                        self._addresses.remove(address)
                else:
                    self._backoff.connected(anyio.current_time())
                    return link
            failures.append((address, error))
        if len(failures) == 1:
            raise failures[0][1]
        listed = "".join(f"\n  {address}: {error}" for address, error in failures)
        raise ConnectFailed(f"none of {len(failures)} relays could be reached:{listed}")

    def broke(self, link: Link, error: Exception) -> None:
        """A connection ended like this."""
        self._backoff.broke(anyio.current_time())
        if is_final(error):
            self._addresses.remove(link.address)
        self._spread_s = 0.0
        if link.goaway is not None and not self.has_other(link.address):
            self._spread_s = min(link.goaway.spread_ms / 1000, MOST_SPREAD_S)

    def wait_s(self, error: Exception) -> float:
        """How long to wait before the next `dial`, after this error; raises it when there must be none."""
        if ends_node(error) or not self._addresses:
            raise error
        random = self._settings.random()
        wait_s = self._backoff.next_delay_s(anyio.current_time(), random)
        if self._spread_s:
            wait_s, self._spread_s = random * self._spread_s, 0.0
        return wait_s

    async def _open(self, address: RelayAddress) -> Link:
        incarnation, number = self._settings.process.next_connection(self._identity.public_key)
        hello = self._hello(incarnation, number)
        return await open_link(self._settings.dial, address, self._identity, number, hello)
