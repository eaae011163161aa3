"""Bytes to messages and back, sans-IO, for both roles: no socket, no clock, no logging.

From the bottom up: ``noise`` proves who is there, ``records`` seals the byte stream, ``framing`` cuts it into
frames, ``cbor`` and ``messages`` give them meaning, ``fragments`` lets urgent ones overtake long ones, and
``connection`` is the state machine over all of them. ``sealing`` is apart: between endpoints.
"""
