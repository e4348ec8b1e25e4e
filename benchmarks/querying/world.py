"""The databases with their data, made when a server first needs them, and what is right to answer.

What the product answers is expected of all others; its own answers are compared among its drivers.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from benchmarks.querying import data
from benchmarks.querying.data import PASSWORD, USERNAME, Shape
from benchmarks.querying.databases import MariaDb, PostgreSql
from benchmarks.querying.operations import Operation
from services.accounts.passwords import hash_password
from tests.product import ROOT
from tests.servers import redis
from tests.servers.base import Place

if TYPE_CHECKING:
    from benchmarks.querying.servers import Kind

_SEED_S = 120
_SIGN_IN = """mutation($login: String!, $password: String!) {
  sessionCreate(input: {login: $login, password: $password}) {
    session { token } errors { message } } }"""
_SETTINGS = {
    "NOOSPHERE_SANDBOX_DRIVER": "off",
    # As long as any run takes; renewing would be one more request in a day.
    "NOOSPHERE_ACCESS_TOKEN_TTL": "86400",
    # Counted as ever, but one person asks for thousands.
    "NOOSPHERE_POINTS_PER_MINUTE": "2000000000",
}


class World:
    """Everything around the servers. Used as a context manager, which ends it."""

    def __init__(self, directory: Path, shape: Shape, say: Callable[[str], None]) -> None:
        self.directory, self.shape = directory, shape
        self._say = say
        self._stack = AsyncExitStack()
        self._mariadb: MariaDb | None = None
        self._postgres: PostgreSql | None = None
        self._sqlite: Path | None = None
        self._filled: set[str] = set()
        self._redis_url: str | None = None
        self._files: dict[str, Path] = {}
        self._password_hash = ""
        self._tokens: dict[str, str] = {}
        self._expected: dict[str, list[Any]] = {}

    async def __aenter__(self) -> "World":
        """Write the data down."""
        self._password_hash = await hash_password(PASSWORD)
        folder = self.directory / "rows"
        folder.mkdir(parents=True)
        # The databases read the files as users of their own.
        self._files = await asyncio.to_thread(
            data.write_files, self.shape, folder, self._password_hash
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        """End what was started."""
        await self._stack.aclose()

    def log(self, name: str) -> Path:
        """Give the file that a server writes to."""
        return self.directory / f"{name}.log"

    def data_directory(self, kind: "Kind", number: int | None) -> Path:
        """Give the data directory of a process of the product."""
        name = kind.name if number is None else f"{kind.name}-{number}"
        return self.directory / "data" / name

    def _place(self, name: str) -> Place:
        folder = self.directory / name
        folder.mkdir()
        place = Place(folder, self._say)
        self._stack.push_async_callback(place.aclose)
        return place

    async def mariadb(self) -> MariaDb:
        """Give the MariaDB. Raises UnavailableError where it cannot be had."""
        if self._mariadb is None:
            self._mariadb = await MariaDb(self._place("mariadb")).start()
        return self._mariadb

    async def _mysql_url(self, driver: str) -> str:
        # Two servers on one database would need a Redis between them.
        database = "second" if driver == "mysql+aiomysql" else "first"
        found = await self.mariadb()
        if database not in self._filled:
            self._say(f"filling a database of MariaDB ({database})")
            found.create(database)
            await self._seed({"NOOSPHERE_DATABASE_URL": found.url("mysql+aiomysql", database)})
            with found.connect(database) as connection:
                await asyncio.to_thread(data.fill_mysql, connection, self.shape, self._files)
            self._filled.add(database)
        return found.url(driver, database)

    async def postgres(self) -> PostgreSql:
        """Give the PostgreSQL, filled. Raises UnavailableError where it cannot be had."""
        if self._postgres is None:
            self._say("filling PostgreSQL")
            found = await PostgreSql(self._place("postgres")).start()
            await found.run(data.postgres_script(self._files))
            self._postgres = found
        return self._postgres

    async def sqlite(self) -> Path:
        """Give the SQLite database, filled."""
        if self._sqlite is None:
            self._say("filling SQLite")
            path = self.directory / "noosphere.sqlite3"
            await self._seed({"NOOSPHERE_DATABASE_URL": f"sqlite+aiosqlite:///{path}"})
            await asyncio.to_thread(data.fill_sqlite, path, self.shape, self._password_hash)
            self._sqlite = path
        return self._sqlite

    async def url(self, driver: str) -> str:
        """Give the URL of the database that a driver is for."""
        if driver == "postgres":
            return (await self.postgres()).url
        if driver.startswith("sqlite"):
            return f"{driver}:///{await self.sqlite()}"
        return await self._mysql_url(driver)

    async def environment(self, driver: str, *, is_shared: bool) -> dict[str, str]:
        """Give the product's settings; several processes share a Redis."""
        found = {**_SETTINGS, "NOOSPHERE_DATABASE_URL": await self.url(driver)}
        if is_shared:
            if self._redis_url is None:
                started = await redis.start(self._place("redis"))
                self._redis_url = started["NOOSPHERE_TEST_REDIS_URL"]
            found["NOOSPHERE_REDIS_URL"] = self._redis_url
        return found

    async def _seed(self, environment: dict[str, str]) -> None:
        others = {k: v for k, v in os.environ.items() if not k.startswith("NOOSPHERE_")}
        directory = str(self.directory / "data" / "seed")
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "app", "seed"],
            cwd=ROOT,
            env={**others, **_SETTINGS, **environment, "NOOSPHERE_DATA_DIR": directory},
            capture_output=True,
            check=False,
            timeout=_SEED_S,
        )
        if done.returncode != 0:
            raise AssertionError(f"seeding failed: {done.stderr.decode()[-2000:]}")

    async def sign_in(self, kind: "Kind", url: str) -> None:
        """Sign the viewer in, once for each database."""
        if kind.driver in self._tokens:
            return
        variables = {"login": USERNAME, "password": PASSWORD}
        async with httpx.AsyncClient(timeout=60) as client:
            answer = await client.post(
                f"{url}/graphql", json={"query": _SIGN_IN, "variables": variables}
            )
        payload = answer.json()["data"]["sessionCreate"]
        assert payload["errors"] == [], payload
        self._tokens[kind.driver] = payload["session"]["token"]

    def headers(self, kind: "Kind") -> dict[str, str]:
        """Give the headers that sign the viewer in."""
        return {"Authorization": f"Bearer {self._tokens[kind.driver]}"}

    def expected(self, operation: Operation) -> list[Any]:
        """Give what is to be answered to each request of an operation."""
        return self._expected[operation.name]

    async def learn(self, operation: Operation, kind: "Kind", url: str) -> None:
        """Ask the product what it answers; what is known stays as it is."""
        if operation.name in self._expected:
            return
        found = []
        async with httpx.AsyncClient(timeout=60, headers=self.headers(kind)) as client:
            for variables in operation.variables(self.shape):
                body = {"query": operation.text, "variables": variables}
                answer = (await client.post(f"{url}/graphql", json=body)).json()
                assert "errors" not in answer, answer
                assert str(answer).count(f"'{USERNAME}'") >= operation.authors, answer
                found.append(answer["data"])
        self._expected[operation.name] = found
