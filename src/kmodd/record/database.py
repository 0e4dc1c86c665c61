"""The journal's file: events in SQLite, written in batches, read in pages; every call here blocks.

Write-ahead logging (sqlite.org/wal.html) with synchronous=NORMAL: what is committed survives the daemon,
however it ends; a power failure may cost the last batches, and never the file. A file that is no database,
or a damaged one, is put aside, and a new one begun.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from kmodd.errors import KmoddError
from kmodd.model import Event
from kmodd.record.select import Selection

EVENTS_MAX = 1_000_000
"""Events that are kept at the most, however young: about 700 MB, more where many modules were denied.

Of those beyond it the oldest go that anybody can cause without end: first what was asked for and is not
there, then what else brought nothing in, but for the newest tenth; others only where that is not enough.
"""

_BUSY = 1.0
"""Seconds that a call waits for somebody else's lock on the file."""
_PAGE = 500
_WANTED = """
    SELECT seq, data FROM events
    WHERE time >= :since AND (:uid IS NULL OR uid = :uid)
        AND (:event IS NULL OR event = :event) AND (:outcome IS NULL OR outcome = :outcome)
        AND (:denied OR event <> 'request' OR outcome IS NOT 'denied')
"""
_FORWARD = _WANTED + "AND seq > :seq ORDER BY seq LIMIT :page"
_BACKWARD = _WANTED + "AND seq < :seq ORDER BY seq DESC LIMIT :page"
_HIGHEST = "SELECT max(id) FROM (SELECT id FROM events ORDER BY seq DESC LIMIT :newest)"
_IN_PROGRESS_MAX = 100_000
"""Behind the event with the highest number are only those that were in progress when it began."""
_IN_VAIN = (
    "outcome NOT IN ('loaded', 'timed-out') "
    "AND (outcome IN ('not-found', 'denied') OR instr(data, '\"modules\": []'))"
)
"""What has failed may have brought in what it needs all the same, and is known by the modules it tells."""
_INDEX_IN_VAIN = f"""
    CREATE INDEX IF NOT EXISTS events_in_vain ON events (outcome <> 'not-found', seq) WHERE {_IN_VAIN}
"""
"""Made where it is needed, at the bound: no start waits for it, and to every version it is one more index."""
_DROP_IN_VAIN = f"""
    DELETE FROM events WHERE seq IN (
        SELECT seq FROM events WHERE {_IN_VAIN} AND seq <= :until
        ORDER BY outcome <> 'not-found', seq LIMIT :beyond
    )
"""  # noqa: S608 - of constants only
_DROP_OLDEST = "DELETE FROM events WHERE seq IN (SELECT seq FROM events ORDER BY seq LIMIT :beyond)"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_MIGRATIONS = (
    """
    CREATE TABLE events (
        seq INTEGER PRIMARY KEY,
        id INTEGER NOT NULL,
        time INTEGER NOT NULL,
        event TEXT NOT NULL,
        outcome TEXT,
        uid INTEGER,
        data TEXT NOT NULL
    );
    CREATE INDEX events_time ON events (time);
    """,
)
"""What brings the file from each version to the next; the version is SQLite's user_version."""


class NewerJournal(KmoddError):
    """The file was written by a later version of kmodd, and is left alone."""


class Database:
    """One file. Calls may come from any thread, one at a time for each object."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None

    def append(self, events: Sequence[Event], *, keep: float | None) -> int:
        """Write events, all or none, and return the place of the last one.

        Those older than `keep` seconds are dropped; None for none.

        Raises:
            sqlite3.Error, OSError: nothing was written; another time it may be possible.
            NewerJournal: it never will.
        """
        try:
            connection = self._open()
            with connection:  # one transaction
                connection.executemany(
                    "INSERT INTO events (id, time, event, outcome, uid, data) VALUES (?, ?, ?, ?, ?, ?)",
                    map(_row, events),
                )
                if keep is not None:
                    self._expire(connection, keep)
                return _place(connection)
        except sqlite3.Error as err:
            self.close()
            if _is_damage(err):
                self._put_aside()
            raise

    def last(self) -> tuple[int, int]:
        """Return the highest number that an event has, and the place of the last event; 0 for none.

        Raises:
            sqlite3.Error, OSError, NewerJournal: as `append`.
        """
        try:
            return _last(self._open())
        except sqlite3.Error as err:
            self.close()
            if _is_damage(err):
                self._put_aside()
            raise

    def close(self) -> None:
        """Let go of the file; the next call opens it again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None and self._identity() != self._file:
            # Removed, or hidden by a file system that was mounted since, as /var is while a machine boots.
            self.close()
        if self._connection is None:
            os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
            # Who asked for what is not for everybody; SQLite gives its other files the same mode.
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            connection = sqlite3.connect(self._path, timeout=_BUSY, check_same_thread=False)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
                _migrate(connection, self._path)
            except BaseException:
                connection.close()
                raise
            self._connection, self._file = connection, self._identity()
        return self._connection

    def _identity(self) -> tuple[int, int] | None:
        try:
            info = os.stat(self._path)
        except OSError:
            return None
        return info.st_dev, info.st_ino

    @staticmethod
    def _expire(connection: sqlite3.Connection, keep: float) -> None:
        oldest = _microseconds(datetime.now(UTC)) - int(keep * 1_000_000)
        connection.execute("DELETE FROM events WHERE time < ?", (oldest,))
        (count,) = connection.execute("SELECT count(*) FROM events").fetchone()
        beyond = count - EVENTS_MAX
        if beyond <= 0:
            return
        connection.execute(_INDEX_IN_VAIN)
        until = _place(connection) - EVENTS_MAX // 10
        dropped = connection.execute(_DROP_IN_VAIN, {"until": until, "beyond": beyond}).rowcount
        connection.execute(_DROP_OLDEST, {"beyond": beyond - dropped})

    def _put_aside(self) -> None:
        """Rename a damaged file, and remove what belongs to it; the last damaged one is kept."""
        with contextlib.suppress(OSError):
            os.replace(self._path, f"{self._path}.damaged")
        for belonging in ("-wal", "-shm"):
            with contextlib.suppress(OSError):
                os.unlink(self._path + belonging)


class Reader:
    """The events of a file that somebody wants, oldest first, in pages.

    Each page is read by a connection of its own: nothing stays open while nobody asks for the next one.
    """

    def __init__(self, path: str, until: int, selection: Selection, count: int | None) -> None:
        """`until`: the place of the last event that is looked at. `count`: of all that match the newest."""
        self._path = path
        self._selection = selection
        self._until = until
        self._count = count
        self._after: int | None = None

    def page(self) -> list[dict[str, Any]]:
        """Return the next events, as JSON objects; empty after the last.

        Raises:
            sqlite3.Error: the file cannot be read, or is locked for too long.
        """
        with contextlib.closing(_connect_to_read(self._path)) as connection:
            if self._after is None:
                self._after = 0 if self._count is None else self._start_of_newest(connection, self._count)
            while True:
                rows = self._rows(connection, _FORWARD, self._after)
                if not rows or rows[0][0] > self._until:
                    return []
                self._after = rows[-1][0]
                if found := [data for seq, data in self._wanted(rows) if seq <= self._until]:
                    return found

    def _start_of_newest(self, connection: sqlite3.Connection, count: int) -> int:
        """Return the number before the `count` newest that match."""
        before, left, oldest = self._until + 1, count, self._until + 1
        while left > 0:
            rows = self._rows(connection, _BACKWARD, before)
            if not rows:
                break
            before = rows[-1][0]
            matching = [seq for seq, _data in self._wanted(rows)][:left]
            left -= len(matching)
            oldest = matching[-1] if matching else oldest
        return oldest - 1

    def _rows(self, connection: sqlite3.Connection, query: str, seq: int) -> list[tuple[int, str]]:
        selection = self._selection
        uid, outcome = selection.uid, selection.outcome
        if uid is not None and not 0 <= uid < 1 << 32:
            uid = -1  # nobody's, and SQLite takes no number beyond 64 bits
        if outcome is not None and not outcome.isascii():
            outcome = ""  # nothing's, and SQLite takes no lone surrogate
        values = {
            "since": 0 if selection.since is None else _microseconds(selection.since),
            "uid": uid,
            "event": selection.event,
            "outcome": outcome,
            "denied": selection.denied,
            "seq": seq,
            "page": _PAGE,
        }
        return connection.execute(query, values).fetchall()

    def _wanted(self, rows: Iterable[tuple[int, str]]) -> Iterator[tuple[int, dict[str, Any]]]:
        for seq, text in rows:
            data = json.loads(text)
            if self._selection.matches(_event(data)):
                yield seq, data


def last_without_writing(path: str) -> tuple[int, int]:
    """Return what `Database.last` does, and leave everything as it is; 0 where there is no file.

    Raises:
        sqlite3.Error: it cannot be read.
    """
    if not os.path.exists(path):
        return 0, 0
    with contextlib.closing(_connect_to_read(path)) as connection:
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'events'").fetchone()
        return _last(connection) if tables else (0, 0)


def _connect_to_read(path: str) -> sqlite3.Connection:
    # Where nobody can write, as on a file system that is mounted read-only, SQLite cannot make the files that
    # readers and writers share, and must be told that there is nobody to share with (sqlite.org/uri.html).
    alone = "" if os.access(os.path.dirname(path), os.W_OK) else "&immutable=1"
    return sqlite3.connect(f"file:{quote(path)}?mode=ro{alone}", uri=True, timeout=_BUSY)


def _last(connection: sqlite3.Connection) -> tuple[int, int]:
    (number,) = connection.execute(_HIGHEST, {"newest": _IN_PROGRESS_MAX}).fetchone()
    return int(number or 0), _place(connection)


def _place(connection: sqlite3.Connection) -> int:
    """Return the place of the last event; it is where SQLite looks first, however many there are."""
    (place,) = connection.execute("SELECT max(seq) FROM events").fetchone()
    return int(place or 0)


def _row(event: Event) -> tuple[int, int, str, str | None, int | None, str]:
    fields = event.fields
    requester = fields.get("requester") or {}
    return (
        event.id,
        _microseconds(event.time),
        event.event,
        fields.get("outcome"),
        requester.get("uid"),
        json.dumps(event.as_json()),
    )


def _event(data: dict[str, Any]) -> Event:
    fields = {key: value for key, value in data.items() if key not in {"id", "time", "event"}}
    return Event(data["id"], datetime.fromisoformat(data["time"]), data["event"], fields)


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _migrate(connection: sqlite3.Connection, path: str) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(_MIGRATIONS):
        raise NewerJournal(
            f"{path} was written by a later version of kmodd (its version is {version}, this one knows "
            f"{len(_MIGRATIONS)}): nothing is written to it"
        )
    for number, script in enumerate(_MIGRATIONS[version:], version + 1):
        # All of one step or nothing of it: executescript() commits what was before, and no more.
        connection.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {number:d}; COMMIT;")


def _is_damage(err: sqlite3.Error) -> bool:
    """Whether the file itself is wrong, not the disk full or the file locked (sqlite.org/rescode.html)."""
    return getattr(err, "sqlite_errorname", "").split("_")[:2] in (
        ["SQLITE", "CORRUPT"],
        ["SQLITE", "NOTADB"],
    )
