"""Databases for tests: empty ones, gone after a test, and made ones, emptied for the next test."""

import contextlib
import secrets
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit, urlunsplit

import pymysql  # type: ignore[import-untyped, unused-ignore]
from redis import Redis
from sqlalchemy import make_url

_TIMEOUT_S = 30


@contextlib.contextmanager
def fresh_database(server_url: str) -> Iterator[str]:
    """Create a database for the block; give `server_url` with its name.

    What is still connected to it at the end is disconnected, lest DROP wait for its locks.
    """
    name = _create(server_url)
    try:
        yield _named(server_url, name)
    finally:
        _drop(server_url, name)


class MadeDatabases:
    """Databases whose tables `make` makes, given a URL; each is emptied for whoever comes next.

    Making sixty tables takes seconds, and finding those with rows in them milliseconds.
    """

    def __init__(self, server_url: str, make: Callable[[str], None]) -> None:
        self._server_url = server_url
        self._make = make
        self._ready: list[str] = []
        self._tables: frozenset[str] = frozenset()
        self._kept: frozenset[str] = frozenset()
        self._counting: frozenset[str] = frozenset()

    @contextlib.contextmanager
    def one(self) -> Iterator[str]:
        """Give the URL of a database for the block."""
        name = self._ready.pop() if self._ready else self._new()
        try:
            yield _named(self._server_url, name)
        finally:
            self._take_back(name)

    def close(self) -> None:
        """Drop those there are."""
        while self._ready:
            _drop(self._server_url, self._ready.pop())

    def _new(self) -> str:
        name = _create(self._server_url)
        self._make(_named(self._server_url, name))
        with _administration(self._server_url) as cursor:
            self._tables = _tables(cursor, name)
            self._kept = _with_rows(cursor, name, self._tables)
            cursor.execute(
                "SELECT table_name FROM information_schema.tables "
                "WHERE table_schema = %s AND auto_increment IS NOT NULL",
                (name,),
            )
            self._counting = frozenset(table for (table,) in cursor.fetchall())
        return name

    def _take_back(self, name: str) -> None:
        with _administration(self._server_url) as cursor:
            _disconnect(cursor, name)
            is_whole = _tables(cursor, name) == self._tables
            if is_whole:
                cursor.execute(f"USE {name}")
                cursor.execute("SET foreign_key_checks = 0")
                for table in _with_rows(cursor, name, self._tables) - self._kept:
                    cursor.execute(f"DELETE FROM `{table}`")  # noqa: S608 - names of our own tables.
                for table in self._counting:
                    cursor.execute(f"ALTER TABLE `{table}` AUTO_INCREMENT = 1")
        if is_whole:
            self._ready.append(name)
        else:
            _drop(self._server_url, name)


def _named(server_url: str, name: str) -> str:
    return make_url(server_url).set(database=name).render_as_string(hide_password=False)


def _create(server_url: str) -> str:
    name = f"test_{secrets.token_hex(8)}"
    with _administration(server_url) as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
    return name


def _drop(server_url: str, name: str) -> None:
    with _administration(server_url) as cursor:
        _disconnect(cursor, name)
        cursor.execute(f"DROP DATABASE IF EXISTS {name}")


def _disconnect(cursor: pymysql.cursors.Cursor, name: str) -> None:
    cursor.execute("SELECT id FROM information_schema.processlist WHERE db = %s", (name,))
    for (connection_id,) in cursor.fetchall():
        with contextlib.suppress(pymysql.err.OperationalError):
            cursor.execute(f"KILL {connection_id}")


def _tables(cursor: pymysql.cursors.Cursor, name: str) -> frozenset[str]:
    cursor.execute(f"SHOW TABLES FROM {name}")
    return frozenset(table for (table,) in cursor.fetchall())


def _with_rows(cursor: pymysql.cursors.Cursor, name: str, tables: frozenset[str]) -> frozenset[str]:
    cursor.execute(
        " UNION ALL ".join(
            f"SELECT '{table}' FROM DUAL WHERE EXISTS (SELECT 1 FROM {name}.`{table}`)"  # noqa: S608
            for table in sorted(tables)
        )
    )
    return frozenset(table for (table,) in cursor.fetchall())


@contextlib.contextmanager
def _administration(server_url: str) -> Iterator[pymysql.cursors.Cursor]:
    url = make_url(server_url)
    connection = pymysql.connect(
        host=url.host,
        port=url.port or 3306,
        user=url.username,
        password=url.password or "",
        connect_timeout=_TIMEOUT_S,
        read_timeout=_TIMEOUT_S,
        write_timeout=_TIMEOUT_S,
        autocommit=True,
    )
    with connection, connection.cursor() as cursor:
        yield cursor


def empty_redis(server_url: str, *, database: int) -> str:
    """Empty a database (from 0 on) of a server; give the URL that names it."""
    url = urlsplit(server_url)
    named = (
        urlunsplit(url._replace(query=f"db={database}"))
        if url.scheme == "unix"
        else urlunsplit(url._replace(path=f"/{database}"))
    )
    with Redis.from_url(named, socket_timeout=_TIMEOUT_S) as client:
        client.flushdb()
    return named
