"""AwesomeConnect: a lightweight, encrypted relay through which the nodes of an application talk.

    from awesomeconnect import connect

    async with connect("ac://KEY@host:port", rooms=["weather"]) as node:
        await node.publish("weather", b"sunny")
        async for message in node:
            print(message.sender.hex(), message.payload)

The house, from the ground up; imports point downwards only:

    errors      every code of the wire and every exception
    identity    Ed25519 identities, key files, relay addresses
    wire        bytes <-> messages, without I/O, for both roles
    shaping     who leaves first: the egress queue, without I/O
    reliable    delivery across broken connections, between endpoints, without I/O
    relay       routing, synchronous and pure
    client      the client library, on anyio: trio and asyncio alike
    config      settings of a relay
    server      the relay as a Trio daemon
    bench       the load generator of benchmarks, on blocking sockets and epoll
    cli         the command line

The public names are here, and are imported when they are first used: ``import awesomeconnect`` alone loads neither
trio nor anyio.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from awesomeconnect.client import ClientSettings as ClientSettings
    from awesomeconnect.client import Connected as Connected
    from awesomeconnect.client import Delivery as Delivery
    from awesomeconnect.client import Disconnected as Disconnected
    from awesomeconnect.client import Event as Event
    from awesomeconnect.client import GapReport as GapReport
    from awesomeconnect.client import GoingAway as GoingAway
    from awesomeconnect.client import Message as Message
    from awesomeconnect.client import Moved as Moved
    from awesomeconnect.client import Node as Node
    from awesomeconnect.client import NodeStatistics as NodeStatistics
    from awesomeconnect.client import Paused as Paused
    from awesomeconnect.client import PresenceChange as PresenceChange
    from awesomeconnect.client import Receipt as Receipt
    from awesomeconnect.client import Refusal as Refusal
    from awesomeconnect.client import Resumed as Resumed
    from awesomeconnect.client import RoomLost as RoomLost
    from awesomeconnect.client import SQLiteStore as SQLiteStore
    from awesomeconnect.client import connect as connect
    from awesomeconnect.config import RelaySettings as RelaySettings
    from awesomeconnect.errors import AddressError as AddressError
    from awesomeconnect.errors import AwesomeConnectError as AwesomeConnectError
    from awesomeconnect.errors import ConnectFailed as ConnectFailed
    from awesomeconnect.errors import ConnectionBroken as ConnectionBroken
    from awesomeconnect.errors import ConnectionEnded as ConnectionEnded
    from awesomeconnect.errors import Declined as Declined
    from awesomeconnect.errors import ErrorCode as ErrorCode
    from awesomeconnect.errors import Expired as Expired
    from awesomeconnect.errors import HandshakeError as HandshakeError
    from awesomeconnect.errors import KeyFileError as KeyFileError
    from awesomeconnect.errors import LinkError as LinkError
    from awesomeconnect.errors import LocalProtocolError as LocalProtocolError
    from awesomeconnect.errors import NoMembers as NoMembers
    from awesomeconnect.errors import NoSuchPeer as NoSuchPeer
    from awesomeconnect.errors import OutcomeUnknown as OutcomeUnknown
    from awesomeconnect.errors import PayloadTooLarge as PayloadTooLarge
    from awesomeconnect.errors import ProtocolError as ProtocolError
    from awesomeconnect.errors import RateExceeded as RateExceeded
    from awesomeconnect.errors import ReceiverCongested as ReceiverCongested
    from awesomeconnect.errors import ReceiverGone as ReceiverGone
    from awesomeconnect.errors import Refused as Refused
    from awesomeconnect.errors import RelayKeyMismatch as RelayKeyMismatch
    from awesomeconnect.errors import RemoteProtocolError as RemoteProtocolError
    from awesomeconnect.errors import RequestFailed as RequestFailed
    from awesomeconnect.errors import RequestTimeout as RequestTimeout
    from awesomeconnect.errors import RoomRefused as RoomRefused
    from awesomeconnect.identity import Identity as Identity
    from awesomeconnect.identity import RelayAddress as RelayAddress
    from awesomeconnect.server import Relay as Relay
    from awesomeconnect.wire.parts import Member as Member
    from awesomeconnect.wire.parts import Mode as Mode
    from awesomeconnect.wire.parts import TrafficClass as TrafficClass

__version__ = "0.1.0"

_HOMES = {
    "client": (
        "ClientSettings", "Connected", "Delivery", "Disconnected", "Event", "GapReport", "GoingAway", "Message",
        "Moved", "Node", "NodeStatistics", "Paused", "PresenceChange", "Receipt", "Refusal", "Resumed", "RoomLost",
        "SQLiteStore", "connect",
    ),
    "config": ("RelaySettings",),
    "errors": (
        "AddressError", "AwesomeConnectError", "ConnectFailed", "ConnectionBroken", "ConnectionEnded", "Declined",
        "ErrorCode", "Expired",
        "HandshakeError", "KeyFileError", "LinkError", "LocalProtocolError", "NoMembers", "NoSuchPeer",
        "OutcomeUnknown", "PayloadTooLarge", "ProtocolError", "RateExceeded", "ReceiverCongested", "ReceiverGone",
        "Refused", "RelayKeyMismatch", "RemoteProtocolError", "RequestFailed", "RequestTimeout", "RoomRefused",
    ),
    "identity": ("Identity", "RelayAddress"),
    "server": ("Relay",),
    "wire.parts": ("Member", "Mode", "TrafficClass"),
}  # fmt: skip
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
