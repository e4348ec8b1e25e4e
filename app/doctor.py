"""What works here: database, bus, provider, and what each sandbox driver enforces."""

import asyncio
import os
import platform
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.config import Settings
from app.database import head, revision
from models.database import Database
from sandbox.base import Capabilities
from sandbox.select import choose, report
from services.events import open_bus
from services.sandboxes.clusters import kubernetes_options

_PROBE_S = 15.0


@dataclass(slots=True)
class Report:
    """Findings, as data and as text. `is_healthy` is False when the server would not work."""

    data: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    is_healthy: bool = True

    @property
    def text(self) -> str:
        """The findings for people."""
        return "\n".join(self.lines)

    def add(self, name: str, finding: str, *, is_fine: bool = True) -> None:
        """Note one finding."""
        self.data[name] = {"ok": is_fine, "finding": finding}
        self.lines.append(f"{'ok ' if is_fine else 'BAD'}  {name:<10} {finding}")
        self.is_healthy = self.is_healthy and is_fine


async def examine(settings: Settings) -> Report:
    """Try every part on its own. Changes nothing, and needs no running server."""
    found = Report()
    found.add("python", f"{platform.python_version()} on {platform.platform()}")
    await _try(found, "database", lambda: _database(settings))
    await _try(found, "bus", lambda: _bus(settings))
    provider = settings.llm_base_url or ("api key" if settings.llm_api_key else "embedded")
    found.add("assistant", f"{provider} {settings.llm_model}".strip())
    await _sandboxes(settings, found)
    return found


async def _try(found: Report, name: str, probe: Callable[[], Awaitable[str]]) -> None:
    try:
        async with asyncio.timeout(_PROBE_S):
            found.add(name, await probe())
    except Exception as error:  # noqa: BLE001 - a probe's failure is its finding.
        found.add(name, f"{type(error).__name__}: {error}".splitlines()[0], is_fine=False)


async def _database(settings: Settings) -> str:
    database = Database(settings.database, is_read_only=True)
    shown = database.url.render_as_string(hide_password=True)
    place = database.url.database
    try:
        if database.is_sqlite and place and not await asyncio.to_thread(Path(place).exists):
            # To look into it would make it.
            await asyncio.to_thread(_require_writable, Path(place).parent)
            return f"{shown}, not there yet: `serve` and `migrate` make it"
        await database.ping()
        at = await revision(database)
    finally:
        await database.aclose()
    if at == head():
        return f"{shown}, up to date ({at})"
    return f"{shown}, at {at or 'nothing'}; `python -m app migrate` brings it to {head()}"


def _require_writable(folder: Path) -> None:
    """Raise PermissionError unless a folder can be written, or made."""
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} cannot be written")


async def _bus(settings: Settings) -> str:
    if not settings.redis_url:
        return "in-process: one server process; set NOOSPHERE_REDIS_URL for more"
    bus = open_bus(settings.redis_url, settings.data_dir, f"{settings.node}-doctor"[:48])
    try:
        await bus.start()
        await bus.ping()
    finally:
        await bus.aclose()
    return "Redis answers"


async def _sandboxes(settings: Settings, found: Report) -> None:
    if await asyncio.to_thread(settings.data_dir.exists):
        await _drivers(settings, found, settings.data_dir / "sandboxes")
        return
    # Drivers make the folder they are tried in.
    folder = await asyncio.to_thread(tempfile.TemporaryDirectory)
    try:
        await _drivers(settings, found, Path(folder.name) / "sandboxes")
    finally:
        await asyncio.to_thread(folder.cleanup)


async def _drivers(settings: Settings, found: Report, state_dir: Path) -> None:
    docker_url = settings.docker_url or None
    kubernetes = kubernetes_options(settings.options())
    drivers = await report(
        docker_url=docker_url,
        state_dir=state_dir,
        docker_runtime=settings.sandbox_runtime,
        kubernetes=kubernetes if settings.sandbox_driver == "kubernetes" else None,
    )
    driver, reason = await choose(
        settings.sandbox_driver,
        docker_image=settings.sandbox_image,
        docker_url=docker_url,
        state_dir=state_dir,
        docker_runtime=settings.sandbox_runtime,
        disk=settings.sandbox_disk,
        kubernetes=kubernetes,
    )
    if driver is not None:
        # It has proved to work, and knows more than it did before.
        known = await driver.capabilities()
        drivers = [known if each.driver == known.driver else each for each in drivers]
        await driver.aclose()
    is_fine = driver is not None or settings.sandbox_driver in ("auto", "off")
    found.add("sandboxes", reason, is_fine=is_fine)
    found.data["drivers"] = {c.driver: _as_data(c) for c in drivers}
    for capabilities in drivers:
        verb = "enforces here:" if capabilities.items else "does not work here."
        found.lines.append(f"\n{capabilities.driver} {verb}")
        width = max((len(name) for name in capabilities.items), default=0)
        found.lines += [
            f"  {name:<{width}}  {state.value}" for name, state in capabilities.items.items()
        ]
        found.lines += [f"  {note}" for note in capabilities.notes]


def _as_data(capabilities: Capabilities) -> dict[str, Any]:
    return {
        "enforcement": {name: state.value for name, state in capabilities.items.items()},
        "notes": list(capabilities.notes),
    }
