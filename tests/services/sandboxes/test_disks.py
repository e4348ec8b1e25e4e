"""Workspaces on disk instead of in memory, where the configuration says so."""

import asyncio

import pytest

from models.states import ExecutionReason
from services.errors import UserError
from services.sandboxes import lifecycle
from services.sandboxes.wishes import Resources
from tests.servers import require
from tests.services.sandboxes.conftest import Launch, ran

MIB = 1024 * 1024
pytestmark = pytest.mark.bubblewrap


async def test_a_workspace_on_disk_may_be_larger_than_the_memory(launch: Launch) -> None:
    await asyncio.to_thread(require, "ext4")
    server = await launch("bubblewrap", sandbox_disk="image")
    if server.host._node is None:
        pytest.skip(server.host._why)
    ada = await server.person("ada")
    wish = Resources(memory_bytes=192 * MIB, disk_bytes=400 * MIB)
    box = await lifecycle.create(server.deps, ada, resources=wish)
    done = await ran(server.deps, ada, box.id, "head -c 300000000 /dev/zero > big; ls -s big")
    assert (done.exit_code, done.reason) == (0, ExecutionReason.EXITED)
    done = await ran(server.deps, ada, box.id, "head -c 300000000 /dev/zero > more")
    assert "No space left" in (done.stderr or "")


async def test_a_workspace_in_memory_may_not(launch: Launch) -> None:
    server = await launch("bubblewrap")
    ada = await server.person("ada")
    wish = Resources(memory_bytes=192 * MIB, disk_bytes=400 * MIB)
    with pytest.raises(UserError, match="files count as memory"):
        await lifecycle.create(server.deps, ada, resources=wish)
