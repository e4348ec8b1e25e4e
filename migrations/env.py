"""Alembic's environment: runs on the connection it is given, or on the configured database."""

import asyncio
import importlib
import pkgutil
from typing import Any, Literal

from alembic import context
from sqlalchemy import Connection, Enum

import models
from models import base, system
from models.base import Record

for module in pkgutil.iter_modules(models.__path__, "models."):
    importlib.import_module(module.name)


def compare_type(
    _context: Any, _column: Any, _metadata_column: Any, database_type: Any, model_type: Any
) -> bool | None:
    """Ask the dialect; JSON is LONGTEXT on MariaDB and no difference."""
    if type(model_type).__name__ == "JSON" and type(database_type).__name__ == "LONGTEXT":
        return False
    return None


def render_item(kind: str, item: Any, autogen_context: Any) -> str | Literal[False]:
    """Write column types by the names of `migrations.columns`."""
    if kind != "type":
        return False
    known = (
        (base.Id, "ID"),
        (system.TopicName, "TOPIC"),
        (base.LongText, "LONG_TEXT"),
        (base.BigId, "BIG_ID"),
        (base.Blob, "BLOB"),
    )
    name = next((name for type_, name in known if item is type_), None)
    if isinstance(item, base.UtcDateTime):
        name = "TIME"
    if isinstance(item, Enum):
        autogen_context.imports.add("from migrations import columns")
        return f"columns.enum({', '.join(repr(value) for value in (item.name, *item.enums))})"
    if name is None:
        return False
    autogen_context.imports.add("from migrations import columns")
    return f"columns.{name}"


def run(connection: Connection) -> None:
    """Run the migrations on an open connection."""
    context.configure(
        connection=connection,
        target_metadata=Record.metadata,
        compare_type=compare_type,
        render_item=render_item,
        render_as_batch=connection.dialect.name == "sqlite",
    )
    with context.begin_transaction():
        context.run_migrations()


async def run_configured() -> None:
    """Run the migrations on the configured database."""
    from app.config import load
    from models.database import Database

    settings = load()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    database = Database(settings.database)
    engine = database.engine.execution_options(noosphere_begin="BEGIN IMMEDIATE")
    async with engine.begin() as connection:
        await connection.run_sync(run)
    await database.aclose()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    asyncio.run(run_configured())
