"""What there is of sandboxes on this machine, this server's and those of dead ones."""

import asyncio
import signal
from collections.abc import Mapping
from datetime import datetime

from sandbox import cgroup_detect, cgroups
from sandbox.base import SandboxInfo, SandboxState
from sandbox.bubblewrap_box import Box, remove_group, send
from sandbox.errors import ConflictError
from sandbox.records import Records

IMAGE = "host"


def listing(
    records: Records,
    hierarchies: cgroups.Hierarchies | None,
    owned: Mapping[str, Box],
    labels: Mapping[str, str],
) -> list[SandboxInfo]:
    """Sandboxes by their records; groups without a record too, if no label is asked for."""
    found: dict[str, SandboxInfo] = {}
    for record in records.all():
        if not labels.items() <= record.labels.items():
            continue
        own = owned.get(record.sandbox_id)
        alive = SandboxState.RUNNING if record.is_alive else SandboxState.STOPPED
        found[record.sandbox_id] = SandboxInfo(
            sandbox_id=record.sandbox_id,
            state=own.state if own else alive,
            labels=record.labels,
            image=IMAGE,
            created_at=_moment(record.created_at),
            owned=own is not None or record.server_is_alive,
        )
    if hierarchies is not None and not labels:
        for name in hierarchies.names():
            if name not in found and not name.startswith(cgroup_detect.PROBE):
                found[name] = SandboxInfo(
                    name, SandboxState.STOPPED, {}, IMAGE, None, name in owned
                )
    return list(found.values())


async def remove(
    records: Records, hierarchies: cgroups.Hierarchies | None, sandbox_id: str
) -> None:
    """Clear what an earlier server left; a sandbox of a living one is left to it.

    Raises ConflictError for that, TimeoutError_ where processes do not end.
    """
    if "/" in sandbox_id or sandbox_id in ("", ".", ".."):
        return
    record = await asyncio.to_thread(records.read, sandbox_id)
    if record is not None and record.is_alive:
        if record.server_is_alive:
            raise ConflictError("The sandbox belongs to another server.", state="running")
        send(record.pid, signal.SIGKILL)
    if hierarchies is not None:
        group = hierarchies.group(sandbox_id)
        if group.exists():
            group.kill()
            await remove_group(group)
    await asyncio.to_thread(records.remove, sandbox_id)


def _moment(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None
