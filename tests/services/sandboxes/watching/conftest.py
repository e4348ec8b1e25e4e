"""A sandbox whose files are followed, indexed and scanned."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from typing import Any

import pytest
from sqlalchemy import select

from models.sandboxes import Sandbox, SandboxFile, SandboxFinding
from models.states import FileVerdict
from services.base import Viewer
from services.sandboxes import (
    file_events,
    lifecycle,
)
from services.sandboxes.file_events import Changed, FileChange, Reset
from tests.servers.clamd import EICAR
from tests.services.sandboxes.conftest import Server

WAIT_S = 60


EICAR_TEXT = EICAR.decode()


@pytest.fixture
async def box(server: Server, ada: Viewer) -> Sandbox:
    return await lifecycle.create(server.deps, ada)


class Following:
    """The events of one follower."""

    def __init__(self, items: AsyncIterator[file_events.Item]) -> None:
        self._items = items
        self.cursor = ""

    async def next(self) -> file_events.Item:
        async with asyncio.timeout(WAIT_S):
            item = await anext(self._items)
        self.cursor = item.cursor
        return item

    async def change(self, path: str, kind: FileChange | None = None) -> Changed:
        """The next change of a path, of any kind unless one is wanted."""
        while True:
            item = await self.next()
            if isinstance(item, Changed) and item.path == path and kind in (None, item.kind):
                return item

    async def over(self) -> None:
        async with asyncio.timeout(WAIT_S):
            async for _ in self._items:
                pass


Follow = Callable[..., Awaitable[Following]]


@pytest.fixture
async def follow() -> AsyncIterator[Follow]:
    async with AsyncExitStack() as stack:

        async def start(server: Server, viewer: Viewer, box: Sandbox, **more: Any) -> Following:
            items = file_events.follow(server.deps, viewer, box.id, **more)
            following = Following(await stack.enter_async_context(aclosing(items)))
            if "after" not in more:
                first = await following.next()
                assert isinstance(first, Reset)
                assert first.sandbox.id == box.id
            return following

        yield start


async def row(server: Server, sandbox_id: str, path: str) -> SandboxFile | None:
    async with server.deps.db.reading() as connection:
        found = await connection.execute(
            select(SandboxFile.__table__).where(
                SandboxFile.sandbox_id == sandbox_id, SandboxFile.path == path
            )
        )
        first = found.first()
        return None if first is None else SandboxFile(**first._asdict())


async def until(condition: Callable[[], Awaitable[Any]]) -> Any:
    """Look until something is so; what is looked at tells nobody of itself."""
    async with asyncio.timeout(WAIT_S):
        while not (found := await condition()):  # noqa: ASYNC110 - the database tells nobody.
            await asyncio.sleep(0.02)
        return found


async def indexed(
    server: Server, box: Sandbox, path: str, size: int, verdict: FileVerdict | None = None
) -> SandboxFile:
    async def look() -> SandboxFile | None:
        found = await row(server, box.id, path)
        is_so = found is not None and found.size_bytes == size
        return found if is_so and found and verdict in (None, found.verdict) else None

    found: SandboxFile = await until(look)
    return found


async def paths(server: Server, box: Sandbox) -> list[str]:
    async with server.deps.db.reading() as connection:
        return list(
            await connection.scalars(
                select(SandboxFile.path)
                .where(SandboxFile.sandbox_id == box.id)
                .order_by(SandboxFile.path)
            )
        )


async def equals(found: Awaitable[Any], wanted: Any) -> bool:
    return bool(await found == wanted)


# Findings.


async def found_rows(server: Server) -> list[Any]:
    async with server.deps.db.reading() as connection:
        return list(
            await connection.execute(select(SandboxFinding.__table__).order_by(SandboxFinding.id))
        )


def quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
