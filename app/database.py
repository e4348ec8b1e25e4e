"""Bringing the database up to date.

Alembic takes a tenth of a second to load, so it is loaded only when there is something to migrate:
revisions are numbered (`0001_core.py`), so the files' names tell which there are.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text

from models.database import Database

if TYPE_CHECKING:
    from alembic.config import Config

ROOT = Path(__file__).resolve().parent.parent
_LOCK_NAME = "noosphere-migrations"
_LOCK_WAIT_S = 120


class MigrationError(Exception):
    """The database cannot be brought up to date; the message says why."""


def _config() -> "Config":
    from alembic.config import Config

    config = Config(ROOT / "alembic.ini")
    config.set_main_option("script_location", str(ROOT / "migrations"))
    return config


def revisions() -> list[str]:
    """Give the revisions this code knows, oldest first."""
    files = sorted((ROOT / "migrations" / "versions").glob("[0-9]*_*.py"))
    return [file.name.split("_", maxsplit=1)[0] for file in files]


def head() -> str:
    """Give the newest revision this code knows."""
    return revisions()[-1]


async def revision(database: Database) -> str | None:
    """Give the revision a database is at; None for an empty one."""

    def read(connection: Connection) -> str | None:
        if not inspect(connection).has_table("alembic_version"):
            return None
        found = connection.scalar(text("SELECT version_num FROM alembic_version"))
        return None if found is None else str(found)

    async with database.reading() as connection:
        return await connection.run_sync(read)


async def migrate(database: Database, target: str = "head") -> None:
    """Bring a database to `target`, one process at a time.

    Raises MigrationError when the database is newer than this code, the target is unknown, or
    another process migrates for more than two minutes.
    """
    known = revisions()
    current = await revision(database)
    if current is not None and current not in known:
        raise MigrationError(
            f"the database is at revision {current}, which this version does not know; "
            "start a newer version"
        )
    if target not in ("head", "base", *known):
        raise MigrationError(
            f"there is no revision {target}; expected head, base, or one of {', '.join(known)}"
        )
    if target == "head" and current == head():
        return
    is_down = target == "base" or (
        current is not None and target in known and known.index(target) < known.index(current)
    )
    await _run(database, lambda config: _move(config, target, is_down=is_down))


def _move(config: "Config", target: str, *, is_down: bool) -> None:
    from alembic import command

    (command.downgrade if is_down else command.upgrade)(config, target)


async def _run(database: Database, action: "Callable[[Config], None]") -> None:
    def run(connection: Connection) -> None:
        config = _config()
        config.attributes["connection"] = connection
        action(config)

    engine = database.engine.execution_options(noosphere_begin="BEGIN IMMEDIATE")
    async with engine.connect() as connection:
        if not database.is_sqlite:
            taken = await connection.scalar(
                text("SELECT GET_LOCK(:name, :wait)"), {"name": _LOCK_NAME, "wait": _LOCK_WAIT_S}
            )
            if taken != 1:
                raise MigrationError("another process is migrating the database")
        try:
            await connection.run_sync(run)
            await connection.commit()
        finally:
            if not database.is_sqlite:
                await asyncio.shield(
                    connection.execute(text("SELECT RELEASE_LOCK(:name)"), {"name": _LOCK_NAME})
                )
