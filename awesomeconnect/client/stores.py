"""The store of reliable mode that is shipped: one SQLite file for a node's outbox and for what it has taken.

Writes happen where the library calls, on the event loop: with ``synchronous="NORMAL"`` in WAL mode one takes tens
of microseconds and survives a crash of the process; with ``"FULL"`` it waits for the disk and survives one of the
machine.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from typing import Literal

from awesomeconnect.reliable.stores import StoredMessage, StoredOutbox, StoredStream

_SEQUENCE_BYTES = 8  # SQLite's integers are signed
_SCHEMA = """
CREATE TABLE IF NOT EXISTS node (id INTEGER PRIMARY KEY CHECK (id = 0), incarnation BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS streams (
    peer BLOB, class INTEGER, next INTEGER NOT NULL, PRIMARY KEY (peer, class)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outbox (
    peer BLOB, class INTEGER, sequence INTEGER, content INTEGER NOT NULL, payload BLOB NOT NULL,
    expires_unix_ms INTEGER NOT NULL, PRIMARY KEY (peer, class, sequence)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS taken (
    sender BLOB, class INTEGER, incarnation BLOB NOT NULL, next BLOB NOT NULL, beyond BLOB NOT NULL,
    longest_ms INTEGER NOT NULL, heard_unix_ms INTEGER NOT NULL, PRIMARY KEY (sender, class)
) WITHOUT ROWID;
"""


class SQLiteStore:
    """An `OutboxStore` and a `TakenStore` in one file. For one node at a time, and for one identity.

    Args:
        path: is made if it is missing, readable by its owner only.
        synchronous: as SQLite's pragma of that name.

    Raises:
        sqlite3.Error: from every method, when the file cannot be used.
    """

    def __init__(self, path: str | os.PathLike[str], *, synchronous: Literal["NORMAL", "FULL"] = "NORMAL") -> None:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute(f"PRAGMA synchronous = {'FULL' if synchronous == 'FULL' else 'NORMAL'}")
        self._database.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file; the node must have ended."""
        self._database.close()

    def __enter__(self) -> SQLiteStore:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    # ---- outbox --------------------------------------------------------------------------------------

    def load_outbox(self) -> StoredOutbox:
        """See `OutboxStore`."""
        execute = self._database.execute
        row = execute("SELECT incarnation FROM node").fetchone()
        rows = execute("SELECT * FROM outbox ORDER BY peer, class, sequence").fetchall()
        streams = {(peer, c): following for peer, c, following in execute("SELECT * FROM streams")}
        messages = [StoredMessage(*row) for row in rows]
        kept = {(message.peer, message.traffic_class) for message in messages}
        return StoredOutbox(
            row[0] if row else None,
            messages,
            {stream: following for stream, following in streams.items() if stream in kept},
            max(streams.values(), default=1),
        )

    def begin(self, incarnation: bytes) -> None:
        """See `OutboxStore`."""
        self._database.execute("INSERT INTO node VALUES (0, ?)", (incarnation,))

    def add(self, message: StoredMessage) -> None:
        """See `OutboxStore`."""
        peer, traffic_class, sequence = message[:3]
        with self._database:
            self._database.execute("BEGIN")
            self._database.execute("INSERT INTO outbox VALUES (?, ?, ?, ?, ?, ?)", message)
            self._database.execute(
                "INSERT OR REPLACE INTO streams VALUES (?, ?, ?)", (peer, traffic_class, sequence + 1)
            )

    def remove(self, peer: bytes, traffic_class: int, sequence: int) -> None:
        """See `OutboxStore`."""
        self._database.execute(
            "DELETE FROM outbox WHERE peer = ? AND class = ? AND sequence = ?", (peer, traffic_class, sequence)
        )

    # ---- what was taken ------------------------------------------------------------------------------

    def load_taken(self) -> Sequence[StoredStream]:
        """See `TakenStore`."""
        return [
            StoredStream(
                sender,
                traffic_class,
                incarnation,
                int.from_bytes(following, "big"),
                [
                    int.from_bytes(beyond[at : at + _SEQUENCE_BYTES], "big")
                    for at in range(0, len(beyond), _SEQUENCE_BYTES)
                ],
                longest_ms,
                heard_unix_ms,
            )
            for sender, traffic_class, incarnation, following, beyond, longest_ms, heard_unix_ms in (
                self._database.execute("SELECT * FROM taken").fetchall()
            )
        ]

    def taken(self, stream: StoredStream) -> None:
        """See `TakenStore`."""
        sender, traffic_class, incarnation, following, beyond, longest_ms, heard_unix_ms = stream
        encoded = b"".join(sequence.to_bytes(_SEQUENCE_BYTES, "big") for sequence in beyond)
        self._database.execute(
            "INSERT OR REPLACE INTO taken VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                sender,
                traffic_class,
                incarnation,
                following.to_bytes(_SEQUENCE_BYTES, "big"),
                encoded,
                longest_ms,
                heard_unix_ms,
            ),
        )

    def forget(self, sender: bytes, traffic_class: int) -> None:
        """See `TakenStore`."""
        self._database.execute("DELETE FROM taken WHERE sender = ? AND class = ?", (sender, traffic_class))
