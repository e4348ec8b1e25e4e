"""The application inside the test's own event loop: dependencies, people, and operations."""

import asyncio
import atexit
import functools
import shutil
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from argon2 import PasswordHasher
from sqlalchemy import event

import schema
from app.config import Settings
from app.database import migrate
from app.runtime import running
from app.worker import working
from models.database import Database
from resolvers.base import Context
from schema.execution import Engine, Prepared, Result
from services.accounts import passwords, sessions, users
from services.accounts.sessions import Client
from services.base import ANONYMOUS, Deps, Viewer, work
from tests.schema.differential.comparing import difference
from tests.servers import require
from tests.servers.databases import MadeDatabases
from tests.witness import witnessed


@pytest.fixture(params=["sqlite", pytest.param("mysql", marks=pytest.mark.mysql)])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh database without any table, of each kind the product supports."""
    if request.param == "mysql":
        return str(request.getfixturevalue("mysql_url"))
    return _sqlite_url(tmp_path / "noosphere.sqlite3")


@pytest.fixture(params=["sqlite", pytest.param("mysql", marks=pytest.mark.mysql)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database at the newest revision with nothing in it, of each kind the product supports."""
    if request.param == "mysql":
        return str(request.getfixturevalue("migrated_mysql_url"))
    place = tmp_path / "noosphere.sqlite3"
    shutil.copyfile(migrated_sqlite(), place)
    return _sqlite_url(place)


@pytest.fixture(scope="module", params=["sqlite", pytest.param("mysql", marks=pytest.mark.mysql)])
def shared_database_url(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """Such a database that the tests of a module share."""
    if request.param == "mysql":
        return str(request.getfixturevalue("migrated_mysql_module_url"))
    place = tmp_path_factory.mktemp("shared") / "noosphere.sqlite3"
    shutil.copyfile(migrated_sqlite(), place)
    return _sqlite_url(place)


@pytest.fixture(scope="session")
def migrated_mysql() -> Iterator[MadeDatabases]:
    """Databases at the newest revision, emptied after each use."""
    made = MadeDatabases(require("mysql")["NOOSPHERE_TEST_MYSQL_URL"], _migrate)
    yield made
    made.close()


@pytest.fixture
def migrated_mysql_url(migrated_mysql: MadeDatabases) -> Iterator[str]:
    """The URL (`mysql+aiomysql://`) of a database at the newest revision for this test alone."""
    with migrated_mysql.one() as url:
        yield url


@pytest.fixture(scope="module")
def migrated_mysql_module_url(migrated_mysql: MadeDatabases) -> Iterator[str]:
    """The URL of such a database that the tests of a module share."""
    with migrated_mysql.one() as url:
        yield url


@functools.cache
def migrated_sqlite() -> Path:
    """Give a database at the newest revision, to be copied."""
    folder = TemporaryDirectory(prefix="noosphere-migrated-")
    atexit.register(folder.cleanup)
    place = Path(folder.name) / "noosphere.sqlite3"
    _migrate(_sqlite_url(place))
    return place


def _sqlite_url(place: Path) -> str:
    return f"sqlite+aiosqlite:///{place}"


def _migrate(url: str) -> None:
    async def run() -> None:
        database = Database(url)
        try:
            await migrate(database)
        finally:
            await database.aclose()

    # A loop may run in this thread already.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, run()).result()


@pytest.fixture(scope="session", autouse=True)
def hasher() -> Iterator[PasswordHasher]:
    """Hash passwords with argon2id as ever, at the least cost it takes; give the product's hasher.

    Its tenth of a second for each password would be the most that many tests take.
    """
    own = passwords._hasher
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passwords, "_hasher", PasswordHasher(1, 8, 1))
        passwords._unknown.cache_clear()
        yield own
    passwords._unknown.cache_clear()


def settings_for(tmp_path: Path, **values: Any) -> Settings:
    """Give settings that touch nothing outside a directory: fast answers, no sandboxes.

    The embedded database is there already, at the newest revision, unless they say where data are.
    """
    if values.keys().isdisjoint(("data_dir", "database_url")):
        place = tmp_path / "data" / "noosphere.sqlite3"
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            shutil.copyfile(migrated_sqlite(), place)
    defaults: dict[str, Any] = {
        "data_dir": tmp_path / "data",
        "sandbox_driver": "off",
        "embedded_word_delay_ms": 0,
        "sign_in_attempts": 1000,
    }
    return Settings(**defaults | values)


@dataclass(frozen=True)
class Person:
    """Somebody with an account, signed in."""

    viewer: Viewer
    token: str
    refresh_token: str

    @property
    def id(self) -> str:
        """The user's id."""
        return self.viewer.id


class Api:
    """Runs operations as a viewer, the way a transport would."""

    def __init__(self, deps: Deps) -> None:
        self.deps = deps
        self.engine = Engine(schema.build()._schema)
        # Queries run on graphql-core as well, and must be answered alike.
        self.core: Engine | None = Engine(schema.build()._schema, is_compiling=False)

    async def person(self, name: str, *roles: str) -> Person:
        """Register somebody; `roles` replace those a new account gets."""
        credentials, user = await users.register(
            self.deps,
            username=name,
            email=f"{name}@example.org",
            password="correct horse",
            display_name=None,
            client=Client("127.0.0.1", "tests"),
        )
        if roles:
            from services.accounts.roles import grant

            async with work(self.deps) as unit:
                await grant(unit, user.id, list(roles))
        viewer = await sessions.authenticate(self.deps, credentials.token)
        return Person(viewer, credentials.token, credentials.refresh_token)

    def _viewer(self, who: Person | None) -> Viewer:
        return ANONYMOUS if who is None else who.viewer

    async def raw(self, query: str, who: Person | None = None, /, **variables: Any) -> Any:
        """Run a query or mutation and give the whole answer."""
        prepared = self.engine.prepare(query, None, variables)
        if isinstance(prepared, list):
            return {"errors": prepared}
        answer = await self._execute(self.engine, prepared, who)
        if self.core is not None and prepared.type == "query":
            expected = await self._execute(self.core, prepared, who)
            if (found := difference(expected, answer)) is not None:
                # What changes from one moment to the next is nobody's mistake.
                again = await self._execute(self.engine, prepared, who)
                assert difference(again, answer) is not None, (found, expected, answer)
        return answer

    async def _execute(self, engine: Engine, prepared: Prepared, who: Person | None) -> Any:
        context = Context(self.deps, self._viewer(who), "test", Client("127.0.0.1", "tests"))
        return (await engine.execute(prepared, context)).payload()

    async def run(self, query: str, who: Person | None = None, /, **variables: Any) -> Any:
        """Run an operation that must have no top-level errors; give its only root field."""
        answer = await self.raw(query, who, **variables)
        assert not answer.get("errors"), answer["errors"]
        values = list(answer["data"].values())
        return values[0] if len(values) == 1 else answer["data"]

    @asynccontextmanager
    async def subscribe(
        self, query: str, who: Person | None = None, /, **variables: Any
    ) -> AsyncIterator["Stream"]:
        """Open a subscription; a refusal is in `refusal`."""
        prepared = self.engine.prepare(query, None, variables)
        assert not isinstance(prepared, list), prepared
        context = Context(self.deps, self._viewer(who), "test", Client("127.0.0.1", "tests"))
        source = await self.engine.subscribe(prepared, context)
        if isinstance(source, Result):
            yield Stream(None, source.payload()["errors"])
            return
        try:
            yield Stream(source, [])
        finally:
            await source.aclose()


class Stream:
    """The events of a subscription."""

    def __init__(self, source: Any, refusal: list[dict[str, Any]]) -> None:
        self._source = source
        self.refusal = refusal
        self.seen: list[dict[str, Any]] = []

    async def next(self, within_s: float = 30.0) -> dict[str, Any] | None:
        """Give the next event's only field; None at the end. Errors are in `refusal`."""
        if self._source is None:
            return None
        async with asyncio.timeout(within_s):
            try:
                payload = (await anext(self._source)).payload()
            except StopAsyncIteration:
                return None
            except asyncio.CancelledError:
                # Silence is a symptom: say where everybody waits.
                for task in asyncio.all_tasks():
                    task.print_stack(limit=8)
                raise
        if payload.get("errors"):
            self.refusal = payload["errors"]
            return None
        (value,) = payload["data"].values()
        self.seen.append(value)
        return dict(value)

    async def until(self, kind: str, within_s: float = 30.0) -> dict[str, Any]:
        """Read until an event of a kind and give it."""
        while True:
            found = await self.next(within_s)
            assert found is not None, (self.refusal, self.seen)
            if found["__typename"] == kind:
                return found


@pytest.fixture
async def deps(tmp_path: Path, database_url: str) -> AsyncIterator[Deps]:
    """Everything a process works with, over a fresh database; no worker.

    On SQLite every transaction is held to what it tells of people's things.
    """
    settings = settings_for(tmp_path, database_url=database_url)
    async with running(settings) as deps, witnessed(deps):
        yield deps


@pytest.fixture
async def api(deps: Deps) -> Api:
    """Operations without a worker: what is asked for stays PENDING."""
    return Api(deps)


@pytest.fixture
async def live(deps: Deps) -> AsyncIterator[Api]:
    """Operations with a worker beside them."""
    async with working(deps):
        yield Api(deps)


class Statements:
    """SQL statements sent to a database while counting."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def reads(self) -> list[str]:
        """Give the SELECTs."""
        return [s for s in self.sent if s.lstrip("( ").upper().startswith(("SELECT", "WITH"))]


@pytest.fixture
def statements(deps: Deps) -> Iterator[Statements]:
    """Record every statement of the application's database."""
    counted = Statements()
    engine = deps.db.engine.sync_engine

    def note(_c: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        counted.sent.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield counted
    finally:
        event.remove(engine, "before_cursor_execute", note)
