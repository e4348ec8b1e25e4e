"""What commands work with that must leave a running server's sandboxes and tasks alone."""

import secrets
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from app.config import Settings
from app.errors import ConfigurationError
from app.runtime import (
    bring_up_to_date,
    close,
    prepare,
    provider_of,
    sole_owner,
    sole_user,
)
from models.database import Database
from services import system
from services.base import Deps
from services.events import open_bus
from services.language.embeddings import Embedder
from services.sandboxes.host import SandboxHost


@asynccontextmanager
async def looking(settings: Settings) -> AsyncIterator[Deps]:
    """Open what queries read, the database alone: nothing is changed, made, taken up or announced.

    Raises ConfigurationError when there is no database, or none of the newest revision.
    """
    database = Database(settings.database, is_read_only=True)
    if database.is_sqlite:
        _require(Path(database.url.database or ""))
    async with _apart(settings, database) as deps:
        await bring_up_to_date(database, may_migrate=False)
        yield deps


def _require(place: Path) -> None:
    if not place.exists():
        raise ConfigurationError(
            f"there is no database at {place}: run `python -m app migrate`, or start the server"
        )


async def seed(settings: Settings) -> None:
    """Bring the database up to date and add the built-in rows that are missing.

    Raises ConfigurationError as `running` does.
    """
    prepare(settings.data_dir)
    database = Database(settings.database)
    with sole_owner(settings):
        async with _apart(settings, database) as deps, sole_user(database, settings):
            await bring_up_to_date(database, may_migrate=settings.migrate_on_start)
            await system.seed(deps)


@asynccontextmanager
async def _apart(settings: Settings, database: Database) -> AsyncIterator[Deps]:
    """Lend dependencies with a bus of their own, under a name that no row of the database knows."""
    with tempfile.TemporaryDirectory() as folder:
        embedder = Embedder()
        deps = Deps(
            settings.options(),
            database,
            open_bus(None, Path(folder), f"beside-{secrets.token_hex(4)}"),
            provider_of(settings, embedder),
            embedder,
            SandboxHost(driver="off", state_dir=Path(folder) / "sandboxes"),
        )
        deps.sandboxes.stand_aside(deps)
        try:
            await deps.bus.start()
            yield deps
        finally:
            await close(deps)
