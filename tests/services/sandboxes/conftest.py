"""A real driver over a database and a bus of each test's own."""

import asyncio
import importlib
import pkgutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import update

import models
import schema
from models.accounts import User
from models.base import Record
from models.database import Database
from models.sandboxes import Sandbox, SandboxExecution
from sandbox.base import SandboxDriver
from schema.execution import Engine
from services import sandboxes
from services.base import Deps, Viewer, work
from services.events.base import Bus
from services.events.local import LocalBus
from services.options import Options
from services.sandboxes import executions, output, rows
from services.sandboxes.host import SandboxHost

for _module in pkgutil.iter_modules(models.__path__):
    # Tables refer to each other: all must be known before they are made.
    importlib.import_module(f"models.{_module.name}")

PERMISSIONS = frozenset({"sandboxes:write", "sandboxes:execute"})


BOTH_DATABASES = pytest.mark.parametrize(
    "where", ["sqlite", pytest.param("mysql", marks=pytest.mark.mysql)], indirect=True
)


@pytest.fixture(
    params=[
        pytest.param("bubblewrap", marks=pytest.mark.bubblewrap),
        pytest.param("docker", marks=pytest.mark.docker),
    ]
)
def any_kind(request: pytest.FixtureRequest) -> str:
    """Each driver, by name."""
    return cast("str", request.param)


@pytest.fixture(scope="module")
def engine() -> Engine:
    """The graph, without HTTP before it."""
    return Engine(schema.build()._schema)


@pytest.fixture
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without rows: SQLite, unless BOTH_DATABASES asks for both."""
    if getattr(request, "param", "sqlite") == "mysql":
        return str(request.getfixturevalue("migrated_mysql_url"))
    return f"sqlite+aiosqlite:///{tmp_path / 'noosphere.db'}"


@dataclass
class Server:
    """One process: its dependencies, and people who use it."""

    deps: Deps
    options: Options
    folder: Path
    kind: str
    people: dict[str, Viewer] = field(default_factory=dict)

    @property
    def host(self) -> SandboxHost:
        return self.deps.sandboxes

    async def person(self, name: str, *permissions: str) -> Viewer:
        """Add a user with the permissions of an ordinary one, and more."""
        async with work(self.deps) as unit:
            user = User(username=name, email=f"{name}@x.test", display_name=name, password_hash="-")
            unit.session.add(user)
            await unit.session.flush()
            viewer = Viewer(user.id, username=name, permissions=PERMISSIONS | set(permissions))
        self.people[name] = viewer
        return viewer

    async def crash(self) -> None:
        """Lose the process as SIGKILL would: nothing is settled, sandboxes of its own end."""
        host = self.host
        await host._tasks.aclose()
        await host._attending.aclose()
        node = host._node
        assert node is not None
        await node._tasks.aclose()
        node.live.clear()
        host._is_closed = True
        await node.driver.aclose()
        await self.deps.bus.aclose()
        await self.deps.db.aclose()


Launch = Callable[..., Awaitable[Server]]


@pytest.fixture
async def launch(
    request: pytest.FixtureRequest, tmp_path: Path, where: str
) -> AsyncIterator[Launch]:
    """Start servers over the same folder and database, one after the other."""
    servers: list[Server] = []

    async def start(
        kind: str | SandboxDriver = "bubblewrap",
        *,
        bus: Bus | None = None,
        folder: str = "sandboxes",
        **options: Any,
    ) -> Server:
        docker_url = None
        if kind == "docker":
            docker_url = request.getfixturevalue("docker_url")
            options["sandbox_template_image"] = request.getfixturevalue("docker_image")
        db = Database(where)
        async with db.engine.begin() as connection:
            await connection.run_sync(Record.metadata.create_all)
        if bus is None:
            bus = LocalBus(tmp_path / "bus.sqlite")
            await bus.start()
        own = {"text_checkpoint_s": 0.05, "data_dir": tmp_path / "data"}
        chosen = Options(**{**own, **options})
        host = SandboxHost(driver=kind, docker_url=docker_url, state_dir=tmp_path / folder)
        deps = Deps(chosen, db, bus, cast("Any", None), cast("Any", None), host)
        async with work(deps) as unit:
            await sandboxes.seed(unit)
        await host.start(deps)
        server = Server(deps, chosen, tmp_path, str(kind))
        servers.append(server)
        return server

    yield start
    for server in servers:
        await server.host.aclose()
        await server.deps.bus.aclose()
        await server.deps.db.aclose()


@pytest.fixture
async def server(launch: Launch) -> Server:
    """A server with the embedded driver."""
    return await launch("bubblewrap")


@pytest.fixture
async def ada(server: Server) -> Viewer:
    return await server.person("ada")


async def collect(
    deps: Deps, viewer: Viewer, execution_id: str, after: str | None = None
) -> list[output.Item]:
    """Follow an execution to its end."""
    async with (
        asyncio.timeout(60),
        aclosing(output.follow(deps, viewer, execution_id, after)) as items,
    ):
        return [item async for item in items]


async def finished(deps: Deps, viewer: Viewer, execution_id: str) -> SandboxExecution:
    """Wait for the end of an execution."""
    last = (await collect(deps, viewer, execution_id))[-1]
    assert isinstance(last, output.Exited)
    return last.execution


async def present(server: Server, sandbox_id: str) -> Sandbox:
    """Give the row of a sandbox that there is."""
    row = await rows.sandbox(server.deps, sandbox_id)
    assert row is not None
    return row


async def recorded(server: Server, execution_id: str) -> SandboxExecution:
    """Give the row of an execution that there is."""
    row = await rows.execution(server.deps, execution_id)
    assert row is not None
    return row


async def put(server: Server, sandbox_id: str, **values: Any) -> None:
    """Move a sandbox in time."""
    async with work(server.deps) as unit:
        await unit.session.execute(update(Sandbox).where(Sandbox.id == sandbox_id).values(**values))


async def ran(
    deps: Deps, viewer: Viewer, sandbox_id: str, command: str, **more: Any
) -> SandboxExecution:
    """Execute a command and wait for its end."""
    made = await executions.execute(deps, viewer, sandbox_id=sandbox_id, command=command, **more)
    return await finished(deps, viewer, made.id)


async def first_chunk(server: Server, viewer: Viewer, execution_id: str) -> output.Item:
    """Wait for the first that an execution writes."""
    async with (
        asyncio.timeout(60),
        aclosing(output.follow(server.deps, viewer, execution_id)) as items,
    ):
        return await anext(items)
