"""A private MariaDB: fast because nothing in it has to survive a power cut."""

import asyncio
import os
import secrets
from pathlib import Path

from tests.servers.base import Place, UnavailableError, free_port, run_once
from tests.servers.packages import find

PER_WORKER = False

_OPTIONS = """\
[mariadbd]
datadir={directory}/data
socket={directory}/mysql.sock
pid-file={directory}/mysql.pid
tmpdir={directory}
bind-address=127.0.0.1
init-file={directory}/users.sql
skip-name-resolve
skip-log-bin
debug-no-sync
character-set-server=utf8mb4
max-connections=400
innodb-flush-log-at-trx-commit=0
innodb-flush-method=nosync
innodb-doublewrite=OFF
{more}
"""
_SMALL = """\
performance-schema=OFF
table-open-cache=400
innodb-buffer-pool-size=64M
innodb-log-file-size=16M
innodb-log-buffer-size=4M
"""
USER = "noosphere"


async def start(place: Place) -> dict[str, str]:
    """Give the URL of a server whose user may create databases. No database is named in it."""
    port, password = await launch(place, _SMALL)
    return {"NOOSPHERE_TEST_MYSQL_URL": f"mysql+aiomysql://{USER}:{password}@127.0.0.1:{port}"}


async def launch(place: Place, options: str) -> tuple[int, str]:
    """Start a server with more options; give its port and the password of `USER`.

    Raises UnavailableError where it cannot be had.
    """
    names = {"mariadbd": "mariadb-server", "mariadb-install-db": "mariadb-server"}
    programs = await find(place, names)
    password = secrets.token_hex(8)
    file = _configure(place.directory, password, options)
    code, output = await run_once(
        programs["mariadb-install-db"],
        *(f"--defaults-file={file}", f"--datadir={place.directory}/data"),
        *("--skip-test-db", "--auth-root-authentication-method=normal", "--skip-name-resolve"),
        *(("--user=root",) if os.geteuid() == 0 else ()),
        timeout_s=120,
    )
    if code != 0:
        raise UnavailableError(f"mariadb-install-db failed: {output[-2000:].strip()}")
    port = free_port()
    process = await place.run(
        "mariadbd", programs["mariadbd"], f"--defaults-file={file}", f"--port={port}"
    )
    await process.answer(lambda: _greets(port))
    return port, password


def _configure(directory: Path, password: str, more: str) -> Path:
    # Names are not resolved, so the address has to be named.
    (directory / "users.sql").write_text(
        f"CREATE USER IF NOT EXISTS '{USER}'@'127.0.0.1' IDENTIFIED BY '{password}';\n"
        f"GRANT ALL PRIVILEGES ON *.* TO '{USER}'@'127.0.0.1' WITH GRANT OPTION;\n"
    )
    if os.geteuid() == 0:
        more += "user=root\n"
    file = directory / "my.cnf"
    file.write_text(_OPTIONS.format(directory=directory, more=more))
    return file


async def _greets(port: int) -> bool:
    """Whether the server sends the greeting of protocol version 10."""
    async with asyncio.timeout(2):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            return (await reader.readexactly(5))[4] == 10
        finally:
            writer.close()
