"""The client library, on anyio: the same for trio and asyncio.

node       the public `Node`, and `connect`
link       one connection: handshake, reader, writer, keepalive
publishing what the application hands over to be sent
outbox     what waits to be sent; receipts of it (receipts)
inbox      what waits for the application
pauses     receivers that are behind, and publishers that wait for them
rooms      where the node wants to be, and member lists
watch      a member list that is always right in the end
reliable   messages that are acknowledged: drives the core of that name; what became of one (delivery)
stores     reliable messages that outlive the process, in SQLite
sealed     messages that only the receiver can open
requests   requests that wait for answers
dialler    finds a relay that answers
reconnect  backoff, and the incarnation of this process
events     messages and events, as the application sees them
settings   bounds; and what a simulation replaces
transport  sockets, as four names
waiting    a signal, and an answer
"""

from awesomeconnect.client.delivery import Delivery
from awesomeconnect.client.events import (
    Connected,
    Disconnected,
    Event,
    GapReport,
    GoingAway,
    Message,
    Moved,
    Paused,
    PresenceChange,
    Refusal,
    Resumed,
    RoomLost,
)
from awesomeconnect.client.node import Node, NodeStatistics, connect
from awesomeconnect.client.receipts import Receipt
from awesomeconnect.client.reconnect import Process
from awesomeconnect.client.settings import ClientSettings
from awesomeconnect.client.stores import SQLiteStore
from awesomeconnect.client.transport import SocketTransport, Transport

__all__ = [
    "ClientSettings",
    "Connected",
    "Delivery",
    "Disconnected",
    "Event",
    "GapReport",
    "GoingAway",
    "Message",
    "Moved",
    "Node",
    "NodeStatistics",
    "Paused",
    "PresenceChange",
    "Process",
    "Receipt",
    "Refusal",
    "Resumed",
    "RoomLost",
    "SQLiteStore",
    "SocketTransport",
    "Transport",
    "connect",
]
