"""Empty databases for tests, made in a moment and gone after it."""

import contextlib
import secrets
from collections.abc import Iterator
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
    url = make_url(server_url)
    name = f"test_{secrets.token_hex(8)}"
    with _administration(server_url) as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
    try:
        yield url.set(database=name).render_as_string(hide_password=False)
    finally:
        with _administration(server_url) as cursor:
            cursor.execute("SELECT id FROM information_schema.processlist WHERE db = %s", (name,))
            for (connection_id,) in cursor.fetchall():
                with contextlib.suppress(pymysql.err.OperationalError):
                    cursor.execute(f"KILL {connection_id}")
            cursor.execute(f"DROP DATABASE IF EXISTS {name}")


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
