"""Workspaces with something in them, and what is kept of them."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from models.sandboxes import (
    SandboxWorkspace,
)
from services.sandboxes import (
    keeping,
)
from tests.services.sandboxes.conftest import Launch, Server

MIB = 1_048_576


def archives(server: Server) -> list[Path]:
    folder = keeping.folder(server.deps)
    return sorted(folder.iterdir()) if folder.is_dir() else []


@pytest.fixture
async def own(launch: Launch, tmp_path: Path) -> Server:
    """A server whose data lie in a directory of the test's own."""
    return await launch(data_dir=tmp_path / "data")


async def kept(server: Server, sandbox_id: str) -> str | None:
    async with server.deps.db.reading() as connection:
        found: str | None = await connection.scalar(
            select(SandboxWorkspace.snapshot_id).where(SandboxWorkspace.sandbox_id == sandbox_id)
        )
        return found


FILL = "mkdir -p a/b && echo one >a/b/f && ln -s f a/b/l && chmod 750 a && echo 한 >'n m'"


# A name that is no UTF-8.
FILL += " && echo odd >a/$(printf 'n\\377')"


LOOK = "cat a/b/l 'n m' a/$(printf 'n\\377') && stat -c '%a %F' a a/b/l"


SEEN = "one\n한\nodd\n750 directory\n777 symbolic link\n"


HOLES = "echo one >f; truncate -s 1T t"


def endless(monkeypatch: pytest.MonkeyPatch, client: Any) -> tuple[asyncio.Event, asyncio.Event]:
    """Let packing never end; gives when it has begun, and when it was ended."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def pack(*_: Any, **__: Any) -> Any:
        try:
            yield b"x"
            begun.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    monkeypatch.setattr(client.files, "pack", pack)
    return begun, ended
