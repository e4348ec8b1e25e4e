"""The SQLite file behind `LocalBus`: logs that survive the process. For one thread only."""

import contextlib
import logging
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_log = logging.getLogger(__name__)

# Raised when the meaning of the tables changes; a file of another version is moved aside.
_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS topics (
    id INTEGER PRIMARY KEY,
    topic TEXT NOT NULL UNIQUE,
    epoch TEXT NOT NULL,
    used_at REAL NOT NULL,
    expires_at REAL
);
CREATE INDEX IF NOT EXISTS topics_used_at ON topics (used_at);
CREATE INDEX IF NOT EXISTS topics_expires_at ON topics (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE IF NOT EXISTS opened (boot TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS entries (
    topic_id INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    payload BLOB NOT NULL,
    PRIMARY KEY (topic_id, seq)
) WITHOUT ROWID;
"""
_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
# Above this size a full check would delay the start; corruption is then found when it is met.
_CHECKED_BYTES = 64 * 1024 * 1024
_LOCK_TIMEOUT_S = 5.0
_STATE_IDLE_S = 60.0
_SWEEP_INTERVAL_S = 30.0
_SWEPT_TOPICS = 200
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Retention:
    """How much of each topic's log is kept, and how long.

    A log that outgrows `max_entries` or `max_bytes` (of payload) is trimmed from its old end to
    nine tenths of it; the newest entry always stays. A log without an append for `idle_s` seconds
    is forgotten.
    """

    max_entries: int = 10_000
    max_bytes: int = 16 * 1024 * 1024
    idle_s: float = 24 * 3600.0

    def __post_init__(self) -> None:
        if self.max_entries < 1 or self.max_bytes < 1 or self.idle_s <= 0:
            raise ValueError("Retention needs at least one entry, one byte and some time.")


@dataclass(slots=True)
class _Topic:
    """What is known of a topic without asking the file; `floor` is the newest trimmed seq."""

    id: int
    epoch: str
    floor: int
    head: int
    size_bytes: int
    used_at: float
    expires_at: float | None
    is_dirty: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """Entries read from the file: pairs of seq and payload."""

    epoch: str
    floor: int
    head: int
    entries: list[tuple[int, bytes]]


class StoreBusyError(Exception):
    """Another process holds the file."""


class Store:
    """Topics and entries in one file (or in memory, if `path` is None).

    Every method but `open` and `close` runs inside `transaction`. A failed transaction leaves no
    trace, in the file or in this object. Times are seconds of the system clock, because they must
    mean the same after a restart.
    """

    def __init__(self, path: Path | None, retention: Retention) -> None:
        self._path = path
        self._retention = retention
        self._topics: dict[str, _Topic] = {}
        self._file: sqlite3.Connection | None = None
        self.next_expiry: float | None = None

    def open(self) -> None:
        """Open the file, creating it if absent and moving it aside if it is unreadable.

        Raises StoreBusyError if another process holds it, sqlite3.Error or OSError if the place
        cannot be written.
        """
        try:
            self._file = self._connect()
        except sqlite3.DatabaseError as error:
            if not self.is_corrupt(error):
                raise
            self._move_aside(error)
            self._file = self._connect()
        self._notice_power_cut()
        with self.transaction():
            self._find_next_expiry()

    def close(self) -> None:
        """Write what is pending and let go of the file."""
        if self._file is None:
            return
        with contextlib.suppress(sqlite3.Error), self.transaction():
            self._save_usage()
            self._db.execute("DELETE FROM opened")
        self._drop()

    def is_corrupt(self, error: sqlite3.Error) -> bool:
        """Tell whether `error` means that the file's content is lost."""
        # The primary result code is the low byte of an extended one (SQLITE_CORRUPT_INDEX, …).
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in _CORRUPT

    def reset(self, error: sqlite3.Error) -> None:
        """Move a corrupt file aside and begin an empty one."""
        self._drop()
        self._move_aside(error)
        self._file = self._connect()
        self._notice_power_cut()

    @property
    def sweep_interval_s(self) -> float:
        """How often `sweep` is worth its while, in seconds."""
        return min(_SWEEP_INTERVAL_S, self._retention.idle_s)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Make everything done inside durable at once, or nothing of it."""
        if self._file is None:
            # A reset that failed (a full disk) left nothing open; it may work now.
            self._file = self._connect()
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            self._topics.clear()
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise

    def append(self, topic: str, payload: bytes) -> tuple[str, int]:
        """Add an entry; gives the log's epoch and the entry's seq."""
        state = self._load(topic) or self._create(topic)
        seq = state.head + 1
        self._db.execute("INSERT INTO entries VALUES (?, ?, ?)", (state.id, seq, payload))
        state.head = seq
        state.size_bytes += len(payload)
        state.used_at, state.is_dirty = time.time(), True
        if state.expires_at is not None:
            state.expires_at = None
            self._db.execute("UPDATE topics SET expires_at = NULL WHERE id = ?", (state.id,))
        if (
            state.head - state.floor > self._retention.max_entries
            or state.size_bytes > self._retention.max_bytes
        ):
            self._trim(state)
        return state.epoch, seq

    def read(self, topic: str, after: int, limit: int | None) -> Page:
        """Give entries after `after`, oldest first; an absent log has the epoch ''."""
        state = self._load(topic)
        if state is None:
            return Page("", 0, 0, [])
        rows = self._db.execute(
            "SELECT seq, payload FROM entries WHERE topic_id = ? AND seq > ? ORDER BY seq LIMIT ?",
            (state.id, after, -1 if limit is None else limit),
        ).fetchall()
        return Page(state.epoch, state.floor, state.head, rows)

    def expire(self, topic: str, ttl_s: float) -> None:
        """Forget the log at once, or set the time when it is to be forgotten."""
        state = self._load(topic)
        if state is None:
            return
        if ttl_s <= 0:
            self._delete(topic, state.id)
            return
        state.expires_at = time.time() + ttl_s
        self._db.execute(
            "UPDATE topics SET expires_at = ? WHERE id = ?", (state.expires_at, state.id)
        )
        self.next_expiry = min(self.next_expiry or state.expires_at, state.expires_at)

    def sweep(self) -> tuple[list[str], bool]:
        """Forget logs that expired or idled; gives their topics and whether more are waiting."""
        self._save_usage()
        now = time.time()
        rows = self._db.execute(
            "SELECT id, topic FROM topics WHERE expires_at <= ? OR used_at <= ? LIMIT ?",
            (now, now - self._retention.idle_s, _SWEPT_TOPICS),
        ).fetchall()
        for topic_id, topic in rows:
            self._delete(topic, topic_id)
        self._topics = {
            topic: state
            for topic, state in self._topics.items()
            if state.used_at > now - _STATE_IDLE_S
        }
        self._find_next_expiry()
        return [topic for _, topic in rows], len(rows) == _SWEPT_TOPICS

    def vacuum(self) -> None:
        """Give free pages back to the file system, outside any transaction."""
        self._db.execute("PRAGMA incremental_vacuum(2000)").fetchall()

    @property
    def _db(self) -> sqlite3.Connection:
        if self._file is None:
            raise sqlite3.ProgrammingError("The store is closed.")
        return self._file

    def _connect(self) -> sqlite3.Connection:
        if self._path is not None:
            # Logs hold what people wrote: nobody but the owner reads them. SQLite gives its
            # side files the mode of the main file.
            self._path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
        name = ":memory:" if self._path is None else str(self._path)
        connection = sqlite3.connect(name, timeout=_LOCK_TIMEOUT_S, isolation_level=None)
        try:
            self._prepare(connection)
        except sqlite3.OperationalError as error:
            connection.close()
            if error.sqlite_errorcode & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
                raise StoreBusyError(
                    "Another process holds the event log; several processes need a Redis."
                ) from error
            raise
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        # Heads are kept in memory, so a second process must not write: the lock is exclusive.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL").fetchall()
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        # NORMAL survives the death of the process; for a power cut see `_notice_power_cut`.
        connection.execute("PRAGMA synchronous = NORMAL").fetchall()
        connection.execute("PRAGMA journal_size_limit = 16777216").fetchall()
        connection.execute("BEGIN IMMEDIATE")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        connection.execute("COMMIT")
        if version not in {0, _VERSION}:
            raise _corruption(f"its version is {version}, not {_VERSION}")
        if self._path is not None and self._path.stat().st_size <= _CHECKED_BYTES:
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise _corruption(verdict)
        connection.executescript(_SCHEMA)
        connection.execute(f"PRAGMA user_version = {_VERSION}")

    def _notice_power_cut(self) -> None:
        """Give every log a new epoch if the machine stopped while the file was open.

        The last commits may then be lost, and the next appends would give their seqs again to
        other entries. Linux tells one boot from another; elsewhere all boots look alike.
        """
        try:
            boot = _BOOT_ID.read_text(encoding="ascii").strip()
        except OSError:
            boot = ""
        self._db.execute("PRAGMA synchronous = FULL")
        with self.transaction():
            row = self._db.execute("SELECT boot FROM opened").fetchone()
            if row is not None and row[0] != boot:
                self._db.execute("UPDATE topics SET epoch = lower(hex(randomblob(8)))")
            self._db.execute("DELETE FROM opened")
            self._db.execute("INSERT INTO opened VALUES (?)", (boot,))
        self._db.execute("PRAGMA synchronous = NORMAL")

    def _move_aside(self, error: sqlite3.Error) -> None:
        if self._path is None:
            return
        suffix = f".corrupt-{int(time.time())}-{secrets.token_hex(3)}"
        for side in ("", "-wal", "-shm", "-journal"):
            source = self._path.with_name(self._path.name + side)
            with contextlib.suppress(FileNotFoundError):
                source.rename(self._path.with_name(self._path.name + suffix + side))
        _log.error(
            "The event log %s is unreadable (%s). It was moved to %s; streams begin anew.",
            self._path.name,
            error,
            self._path.name + suffix,
        )

    def _drop(self) -> None:
        self._topics.clear()
        self.next_expiry = None
        if self._file is not None:
            connection, self._file = self._file, None
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _load(self, topic: str) -> _Topic | None:
        state = self._topics.get(topic)
        if state is None:
            row = self._db.execute(
                "SELECT id, epoch, used_at, expires_at FROM topics WHERE topic = ?", (topic,)
            ).fetchone()
            if row is None:
                return None
            first, head, size_bytes = self._db.execute(
                "SELECT MIN(seq), MAX(seq), SUM(LENGTH(payload)) FROM entries WHERE topic_id = ?",
                (row[0],),
            ).fetchone()
            state = _Topic(row[0], row[1], first - 1, head, size_bytes, row[2], row[3])
            self._topics[topic] = state
        # What is past its time is gone for everybody; the sweep deletes and reports it later.
        is_gone = state.expires_at is not None and state.expires_at <= time.time()
        return None if is_gone else state

    def _create(self, topic: str) -> _Topic:
        if gone := self._topics.get(topic):
            self._delete(topic, gone.id)
        now = time.time()
        epoch = secrets.token_hex(8)
        cursor = self._db.execute(
            "INSERT INTO topics (topic, epoch, used_at) VALUES (?, ?, ?)", (topic, epoch, now)
        )
        topic_id = cursor.lastrowid
        assert topic_id is not None  # noqa: S101 - an INSERT into a rowid table has one.
        state = _Topic(topic_id, epoch, 0, 0, 0, now, None)
        self._topics[topic] = state
        return state

    def _delete(self, topic: str, topic_id: int) -> None:
        self._db.execute("DELETE FROM entries WHERE topic_id = ?", (topic_id,))
        self._db.execute("DELETE FROM topics WHERE id = ?", (topic_id,))
        self._topics.pop(topic, None)

    def _trim(self, state: _Topic) -> None:
        # To nine tenths, so that a full log is not trimmed on every append.
        limit = self._retention
        floor = max(state.floor, state.head - max(1, limit.max_entries * 9 // 10))
        kept_bytes = state.size_bytes
        for seq, size_bytes in self._db.execute(
            "SELECT seq, LENGTH(payload) FROM entries WHERE topic_id = ? AND seq < ? ORDER BY seq",
            (state.id, state.head),
        ):
            if seq > floor and kept_bytes <= limit.max_bytes * 9 // 10:
                break
            floor = max(floor, seq)
            kept_bytes -= size_bytes
        self._db.execute("DELETE FROM entries WHERE topic_id = ? AND seq <= ?", (state.id, floor))
        state.floor, state.size_bytes = floor, kept_bytes

    def _save_usage(self) -> None:
        dirty = [state for state in self._topics.values() if state.is_dirty]
        self._db.executemany(
            "UPDATE topics SET used_at = ? WHERE id = ?",
            [(state.used_at, state.id) for state in dirty],
        )
        for state in dirty:
            state.is_dirty = False

    def _find_next_expiry(self) -> None:
        (self.next_expiry,) = self._db.execute("SELECT MIN(expires_at) FROM topics").fetchone()


def _corruption(what: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(what)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error
