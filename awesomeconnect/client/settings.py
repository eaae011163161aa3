"""Settings of a node: every bound has a name, a unit and a reason; and what a simulation replaces."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

from attrs import field, frozen

from awesomeconnect.client.reconnect import THIS_PROCESS, Process
from awesomeconnect.client.transport import Transport, dial
from awesomeconnect.identity import RelayAddress
from awesomeconnect.reliable.settings import ReliableSettings


@frozen
class ClientSettings:
    """Bounds and patience of one node. Times in seconds, sizes in bytes."""

    #: Messages that wait to be sent, per traffic class: eight messages of the relay's default limit.
    queue_bytes: int = 8 << 20
    #: The same as a number, since a small message costs more memory than its bytes.
    queue_messages: int = 65_536
    # SPEC flow-control.md: A client that waits for PAUSE SHOULD keep at most 1,048,576 bytes without the verdict of
    #   a flush, since more than a queue holds can be under way when PAUSE arrives.
    #: What ``wait=True`` keeps without the relay's verdict at most. 1 MiB is 0.8 s of a 10 Mbit/s link.
    window_bytes: int = 1 << 20
    #: Sent without a verdict until the library asks for one; a quarter of the window keeps it moving.
    flush_messages: int = 256
    flush_bytes: int = 256 << 10
    #: Refusals kept for the next flush.
    kept_problems: int = 256
    #: Received and not yet taken by the application, per class: above it the relay is asked to pause the class.
    inbox_high_bytes: int = 1 << 20
    #: Beyond this messages are lost here, and reported. What is under way when the relay pauses has room: socket
    #: buffers of 6 MiB (Linux's tcp_rmem), a quarter more for frames of the least size, and the mark itself.
    inbox_bytes: int = 16 << 20
    #: Events kept for those who have not read them.
    kept_events: int = 256
    #: Connecting, the handshake and WELCOME, for each address when reconnecting.
    welcome_s: float = 10
    #: From our CLOSE to the relay's.
    closing_s: float = 5
    #: Reconnect: attempt n waits up to ``backoff_s * 2**n``, at most ``first_cap_s`` during the first
    #: ``patience_s`` without a connection and ``later_cap_s`` afterwards.
    backoff_s: float = 0.1
    first_cap_s: float = 2.5
    later_cap_s: float = 30
    patience_s: float = 60
    #: A connection that lived this long lets attempts begin at 1 again.
    settled_s: float = 60
    #: Whether to dial relays that a relay names, beside those that the application gave. Their keys are in their
    #: addresses, and they are forgotten with the node.
    follows_alternates: bool = False

    #: Bounds and patience of reliable messages.
    reliable: ReliableSettings = field(factory=ReliableSettings)

    #: Makes connections; a simulated network gives its own.
    dial: Callable[[RelayAddress], Awaitable[Transport]] = dial
    #: Jitter, uniform in [0, 1).
    random: Callable[[], float] = random.random
    #: Which process this is, for the relay; a simulation of several gives each its own.
    process: Process = field(default=THIS_PROCESS, repr=False)
