"""Bringing the database up to date."""

import asyncio
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from models.database import Database

ROOT = Path(__file__).resolve().parent.parent
_LOCK_NAME = "noosphere-migrations"
_LOCK_WAIT_S = 120


class MigrationError(Exception):
    """The database cannot be brought up to date; the message says why."""


def _config() -> Config:
    config = Config(ROOT / "alembic.ini")
    config.set_main_option("script_location", str(ROOT / "migrations"))
    return config


def head() -> str:
    """Give the newest revision this code knows."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    if revision is None:
        raise MigrationError("there are no migrations")
    return revision


async def revision(database: Database) -> str | None:
    """Give the revision a database is at; None for an empty one."""
    async with database.reading() as connection:
        return await connection.run_sync(
            lambda sync: MigrationContext.configure(sync).get_current_revision()
        )


async def migrate(database: Database, target: str = "head") -> None:
    """Bring a database to `target`, one process at a time.

    Raises MigrationError when the database is newer than this code or another process migrates for
    more than two minutes.
    """
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    current = await revision(database)
    if current is not None and current not in known:
        raise MigrationError(
            f"the database is at revision {current}, which this version does not know; "
            "start a newer version"
        )
    if target == "head" and current == head():
        return
    await _run(database, lambda config: _move(config, target, known))


def _move(config: Config, target: str, known: set[str]) -> None:
    if target == "base" or (target in known and target != head()):
        command.downgrade(config, target)
    else:
        command.upgrade(config, target)


async def _run(database: Database, action: Any) -> None:
    def run(connection: Connection) -> None:
        config = _config()
        config.attributes["connection"] = connection
        action(config)

    engine = database.engine.execution_options(noosphere_write=True)
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
