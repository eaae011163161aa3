"""Routing decisions, synchronous and pure: who is where, what goes to whom. Knows neither sockets nor tasks."""
