"""Records on disk which rows are done, so that memory does not grow with rows and a killed pod loses little.

A SQLite file has one line per distinct conversation. The same transaction records the position of the work. A process
that opens the file for the same inputs continues from there.
"""

from __future__ import annotations

import errno
import json
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS conversation (
    digest BLOB PRIMARY KEY, source TEXT NOT NULL, row INTEGER NOT NULL, lot INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS held_out (row INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, document TEXT NOT NULL) WITHOUT ROWID;
"""
_CACHE_KIB = 16 * 1024
# SQLite integers are signed; a sample key has 64 bits without sign. The file calls its column `lot`.
_KEY_OFFSET = 1 << 63


class RowLedger:
    """Distinct conversations of a dataset and the state of the work on it."""

    def __init__(self, path: Path, inputs: str) -> None:
        """Open the ledger at `path`; if it is broken or belongs to other `inputs` (a digest), start a new one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        try:
            self._open()
            fresh = self.state("inputs") != inputs
        except sqlite3.DatabaseError:
            self._connection.close()
            fresh = True
        if fresh:
            self.remove()
            self._open()
            self.commit({"inputs": inputs})

    def _open(self) -> None:
        # The rollback journal works on network volumes, and SQLite's write-ahead log does not.
        self._connection = sqlite3.connect(self._path, isolation_level=None)
        with _disk_errors():
            self._connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            self._connection.execute("PRAGMA journal_mode = DELETE")
            self._connection.executescript(_SCHEMA)
            self._connection.execute("BEGIN")

    def add(self, digest: bytes, source: str, row: int, sample_key: int) -> str | None:
        """Add a conversation. Return None if it is new, else the source that already has it."""
        with _disk_errors():
            added = self._connection.execute(
                "INSERT OR IGNORE INTO conversation VALUES (?, ?, ?, ?)",
                (digest, source, row, sample_key - _KEY_OFFSET),
            )
            if added.rowcount:
                return None
            found = self._connection.execute(
                "SELECT source FROM conversation WHERE digest = ?", (digest,)
            ).fetchone()
            return str(found[0])

    def state(self, name: str) -> Any:
        """Return the document last committed under `name`; None if there is none."""
        with _disk_errors():
            found = self._connection.execute("SELECT document FROM state WHERE name = ?", (name,)).fetchone()
        return None if found is None else json.loads(found[0])

    def commit(self, states: dict[str, Any]) -> None:
        """Make the conversations added so far and these states permanent, all together or not at all."""
        with _disk_errors():
            for name, document in states.items():
                self._connection.execute(
                    "INSERT OR REPLACE INTO state VALUES (?, ?)", (name, json.dumps(document))
                )
            self._connection.execute("COMMIT")
            self._connection.execute("BEGIN")

    def choose_held_out(self, source: str, fraction: float) -> None:
        """Hold out the conversations of `source` with the lowest sample keys: `fraction` of all, but at least one."""
        with _disk_errors():
            count = self._connection.execute(
                "SELECT COUNT(*) FROM conversation WHERE source = ?", (source,)
            ).fetchone()[0]
            self._connection.execute("DELETE FROM held_out")
            self._connection.execute(
                "INSERT INTO held_out SELECT row FROM conversation WHERE source = ? ORDER BY lot, row LIMIT ?",
                (source, max(1, round(fraction * count))),
            )

    def held_out(self) -> Iterator[int]:
        """Yield the rows chosen by `choose_held_out` in ascending order."""
        with _disk_errors():
            for (row,) in self._connection.execute("SELECT row FROM held_out ORDER BY row"):
                yield row

    def close(self) -> None:
        """Close the file and discard uncommitted changes."""
        self._connection.close()

    def remove(self) -> None:
        """Close and delete the file."""
        self.close()
        for name in (self._path.name, f"{self._path.name}-journal"):
            self._path.with_name(name).unlink(missing_ok=True)


@contextmanager
def _disk_errors() -> Iterator[None]:
    """Raise the OSError that SQLite's error for a full or failing disk stands for."""
    try:
        yield
    except sqlite3.OperationalError as error:
        code = error.sqlite_errorcode & 0xFF
        if code == sqlite3.SQLITE_FULL:
            raise OSError(errno.ENOSPC, "no space left for the row ledger") from error
        if code in {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}:
            raise OSError(errno.EIO, f"the row ledger cannot be written: {error}") from error
        raise
