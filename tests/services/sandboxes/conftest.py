"""A real driver over a database and a bus of each test's own."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from models.accounts import User
from models.base import Record
from models.database import Database
from models.sandboxes import SandboxExecution
from sandbox import select as drivers
from sandbox.base import SandboxDriver
from services import sandboxes
from services.base import Deps, Viewer, work
from services.events.base import Bus
from services.events.local import LocalBus
from services.options import Options
from services.sandboxes import executions, output
from services.sandboxes.host import SandboxHost

PERMISSIONS = frozenset({"sandboxes:write", "sandboxes:execute"})


def _skip(marker: str, reason: str) -> None:
    if marker in os.environ.get("NOOSPHERE_TEST_REQUIRE", "").split(","):
        pytest.fail(f"NOOSPHERE_TEST_REQUIRE names {marker}: {reason}")
    pytest.skip(reason)


@pytest.fixture(
    params=[
        pytest.param("bubblewrap", marks=pytest.mark.bubblewrap),
        pytest.param("docker", marks=pytest.mark.docker),
    ]
)
async def any_kind(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each driver that works here, by name."""
    kind = cast("str", request.param)
    await _require(kind, tmp_path)
    return kind


@pytest.fixture
async def bubblewrap(tmp_path: Path) -> str:
    """bubblewrap's name, where it works."""
    await _require("bubblewrap", tmp_path)
    return "bubblewrap"


IMAGE = os.environ.get("NOOSPHERE_TEST_SANDBOX_IMAGE", "noosphere-sandbox:test")


_reasons: dict[str, str] = {}


async def _require(kind: str, folder: Path) -> None:
    """Skip, or fail, the test unless the driver works here; tried once a process."""
    if kind not in _reasons:
        driver, reason = await drivers.choose(
            cast("Any", kind),
            docker_image=IMAGE,
            docker_url=None,
            state_dir=folder / "probe",
            pull_timeout_s=0.1,
        )
        _reasons[kind] = reason if driver is None else ""
        if driver is not None:
            await driver.aclose()
    if _reasons[kind]:
        _skip(kind, _reasons[kind])


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
async def launch(tmp_path: Path) -> AsyncIterator[Launch]:
    """Start servers over the same folder, one after the other."""
    servers: list[Server] = []

    async def start(
        kind: str | SandboxDriver = "bubblewrap", *, bus: Bus | None = None, **options: Any
    ) -> Server:
        db = Database(f"sqlite+aiosqlite:///{tmp_path / 'noosphere.db'}")
        async with db.engine.begin() as connection:
            await connection.run_sync(Record.metadata.create_all)
        if bus is None:
            bus = LocalBus(tmp_path / "bus.sqlite")
            await bus.start()
        chosen = Options(**{"sandbox_template_image": IMAGE, "text_checkpoint_s": 0.05, **options})
        host = SandboxHost(driver=kind, state_dir=tmp_path / "sandboxes")
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
async def server(launch: Launch, bubblewrap: str) -> Server:
    """A server with the embedded driver."""
    return await launch(bubblewrap)


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


async def ran(
    deps: Deps, viewer: Viewer, sandbox_id: str, command: str, **more: Any
) -> SandboxExecution:
    """Execute a command and wait for its end."""
    made = await executions.execute(deps, viewer, sandbox_id=sandbox_id, command=command, **more)
    return await finished(deps, viewer, made.id)
