"""The Trio daemon around the pure parts: sockets, tasks, deadlines. See `Relay` in supervisor.py."""

from awesomeconnect.server.supervisor import Relay

__all__ = ["Relay"]
