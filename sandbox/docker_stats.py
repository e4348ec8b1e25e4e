"""What a container uses: from the files of its cgroups where it runs on this machine."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import aiodocker

from sandbox import cgroup_detect, cgroups, records
from sandbox.base import WORKSPACE, ResourceUsage
from sandbox.docker_engine import answers
from sandbox.filesystems import use_of


@dataclass(frozen=True, slots=True)
class Place:
    """Where a container runs on this machine: its first process and that one's groups."""

    pid: int
    start: str
    group: cgroups.Group

    @property
    def is_there(self) -> bool:
        return bool(self.start) and records.start_time(self.pid) == self.start


def find(shown: Mapping[str, Any]) -> Place | None:
    """Where a running container is, or None: the engine is elsewhere, or has hidden it."""
    pid = int(shown["State"].get("Pid") or 0)
    if pid <= 0:
        return None
    group = cgroup_detect.groups_of(pid, str(shown["Id"]))
    return None if group is None else Place(pid, records.start_time(pid), group)


async def read(place: Place) -> ResourceUsage:
    """Totals of the groups, and use of the workspace where this process may look at it."""
    return await asyncio.to_thread(_read, place)


def _read(place: Place) -> ResourceUsage:
    usage = place.group.usage()
    try:
        # The root filesystem of a sandbox is read-only, so no link can stand in the way.
        disk_bytes, inodes = use_of(f"/proc/{place.pid}/root{WORKSPACE}")
    except OSError:
        return usage
    return replace(usage, disk_bytes=disk_bytes, inodes=inodes)


async def working_set(engine: aiodocker.Docker, container_id: str) -> int | None:
    """Bytes that no reclaim could free; None where the engine does not tell."""
    memory = (await _stats(engine, container_id)).get("memory_stats") or {}
    details: dict[str, int] = memory.get("stats") or {}
    if "usage" not in memory:
        return None
    # Version 1 counts a group with those below it in names of their own.
    prefix = "total_" if "total_active_file" in details else ""
    files = [details.get(f"{prefix}{state}_file", 0) for state in ("active", "inactive")]
    return int(memory["usage"]) - sum(files)


async def ask(engine: aiodocker.Docker, container_id: str) -> ResourceUsage:
    """One reading by the engine, without its sampling of a second; it counts less than we do."""
    stats = await _stats(engine, container_id)
    memory = stats.get("memory_stats") or {}
    cpu = stats.get("cpu_stats") or {}
    total = (cpu.get("cpu_usage") or {}).get("total_usage")
    throttled = (cpu.get("throttling_data") or {}).get("throttled_time")
    return ResourceUsage(
        cpu_ms=None if total is None else total / 1e6,
        memory_bytes=memory.get("usage"),
        memory_peak_bytes=memory.get("max_usage"),
        pids=(stats.get("pids_stats") or {}).get("current"),
        cpu_throttled_ms=None if throttled is None else throttled / 1e6,
    )


async def _stats(engine: aiodocker.Docker, container_id: str) -> dict[str, Any]:
    async with answers("measure the sandbox"):
        return dict(
            await engine._query_json(
                f"containers/{container_id}/stats", params={"stream": "0", "one-shot": "1"}
            )
        )
