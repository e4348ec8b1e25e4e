"""MariaDB and PostgreSQL as processes of the benchmark's own, their data in a directory of its own.

Both keep all of the data in memory, and neither waits for a disk: what is compared is the servers
in front of them.
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pymysql  # type: ignore[import-untyped, unused-ignore]

from tests.servers import mysql, packages
from tests.servers.base import Place, UnavailableError, free_port, program, run_once

_TIMEOUT_S = 600.0
_BUFFER = "1G"
_OPTIONS = f"local-infile=ON\ninnodb-buffer-pool-size={_BUFFER}\n"


class MariaDb:
    """A MariaDB; `create` makes an empty database in it."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._password = ""
        self.port = 0

    async def start(self) -> "MariaDb":
        """Start it. Raises UnavailableError where it cannot be had."""
        self.port, self._password = await mysql.launch(self._place, _OPTIONS)
        return self

    def create(self, database: str) -> None:
        """Create a database."""
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {database} CHARACTER SET utf8mb4")

    def url(self, driver: str, database: str) -> str:
        """Give the URL of a database for a driver of SQLAlchemy, or for `mysql2` of Node."""
        return f"{driver}://{mysql.USER}:{self._password}@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str | None = None) -> Any:
        """Open a connection of the benchmark's own."""
        return pymysql.connect(
            host="127.0.0.1",
            port=self.port,
            user=mysql.USER,
            password=self._password,
            database=database,
            local_infile=True,
            connect_timeout=10,
            read_timeout=_TIMEOUT_S,
            write_timeout=_TIMEOUT_S,
        )


class PostgreSql:
    """A PostgreSQL with an empty database; as root it runs as its package's own user."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.port = free_port()

    @property
    def url(self) -> str:
        """The URL of its database."""
        return f"postgres://noosphere@127.0.0.1:{self.port}/postgres"

    async def start(self) -> "PostgreSql":
        """Start it. Raises UnavailableError where it cannot be had."""
        if _binary("initdb") is None:
            await packages.install(self._place, ["postgresql"], "initdb not found")
        initdb, postgres = _binary("initdb"), _binary("postgres")
        if initdb is None or postgres is None:
            raise UnavailableError("the package postgresql is there, but not initdb and postgres")
        # Beside the other directory, which its user may not enter.
        directory = Path(tempfile.mkdtemp(prefix="noosphere-postgres-"))
        self._place.undo.append(lambda: shutil.rmtree(directory))
        prefix: tuple[str, ...] = ()
        if os.geteuid() == 0:
            shutil.chown(directory, "postgres", "postgres")
            prefix = ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups")
        data = directory / "data"
        await _done(
            *prefix,
            *(initdb, "-D", data, "-U", "noosphere", "--auth=trust", "-E", "UTF8"),
            *("--locale=C.UTF-8", "--no-sync"),
        )
        settings = (
            *("fsync=off", "synchronous_commit=off", f"shared_buffers={_BUFFER}B"),
            *("listen_addresses=127.0.0.1", f"unix_socket_directories={directory}"),
            "max_connections=400",
        )
        process = await self._place.run(
            "postgres",
            *(*prefix, postgres, "-D", str(data), "-p", str(self.port)),
            *(word for setting in settings for word in ("-c", setting)),
        )
        await process.answer(self._answers)
        return self

    async def _answers(self) -> bool:
        code, _ = await run_once(*self._psql("-c", "SELECT 1"), timeout_s=10)
        return code == 0

    def _psql(self, *words: str) -> tuple[str | Path, ...]:
        psql = _binary("psql")
        assert psql is not None
        return (psql, self.url, "-q", "-v", "ON_ERROR_STOP=1", *words)

    async def run(self, script: str) -> None:
        """Run a script of psql."""
        file = self._place.directory / "script.sql"
        file.write_text(script)
        await _done(*self._psql("-f", str(file)))


def _binary(name: str) -> str | None:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=_version)
    return str(found[-1]) if found else program(name)


def _version(path: Path) -> int:
    number = path.parent.parent.name
    return int(number) if number.isdecimal() else 0


async def _done(*argv: str | Path) -> None:
    code, output = await run_once(*argv, timeout_s=_TIMEOUT_S)
    if code != 0:
        raise UnavailableError(f"{argv[0]} failed: {output[-2000:].strip()}")
