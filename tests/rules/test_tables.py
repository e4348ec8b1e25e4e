"""Tables: who may see them is stated, and the migrations make exactly what the models say."""

import importlib
import pkgutil
from collections.abc import AsyncIterator
from typing import Any

import pytest
from alembic import command
from sqlalchemy import Connection, inspect

import models
import services
from app.database import _run, head, migrate, revision
from models.base import PREFIXES, Record
from models.database import Database
from services import access

for package in (models, services):
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(found.name)
TABLES = sorted((mapper.class_ for mapper in Record.registry.mappers), key=lambda t: t.__name__)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.__name__)
def test_every_table_has_an_access_rule(table: type[Record]) -> None:
    assert access.has_rule(table)


def test_every_table_with_a_type_id_has_a_prefix_of_three_letters() -> None:
    for table in TABLES:
        if table.prefix:
            assert PREFIXES[table.prefix] is table
            assert len(table.prefix) == 3


def test_secrets_and_blobs_are_read_only_when_asked_for() -> None:
    revealed = [
        f"{table.__name__}.{name}"
        for table in TABLES
        for name in table.Row._fields
        if name.endswith(("_hash", "embedding")) and name != "content_hash"
    ]
    assert revealed == []


@pytest.fixture
async def database(empty_database_url: str) -> AsyncIterator[Database]:
    opened = Database(empty_database_url)
    try:
        yield opened
    finally:
        await opened.aclose()


def described(connection: Connection) -> dict[str, Any]:
    """Give all that a database knows of the application's tables, in a fixed order."""
    looked = inspect(connection)
    shape: dict[str, Any] = {}
    for table in looked.get_table_names():
        if table == "alembic_version":
            continue
        columns = looked.get_columns(table)
        shape[table] = {
            "columns": {
                c["name"]: (str(c["type"]), c["nullable"], str(c["default"])) for c in columns
            },
            "key": sorted(looked.get_pk_constraint(table)["constrained_columns"]),
            "indexes": sorted(
                (str(i["name"]), [str(c) for c in i["column_names"]], bool(i["unique"]))
                for i in looked.get_indexes(table)
            ),
            "uniques": sorted(
                (str(u["name"]), u["column_names"]) for u in looked.get_unique_constraints(table)
            ),
            "references": sorted(
                (
                    str(f["name"]),
                    f["constrained_columns"],
                    f["referred_table"],
                    f["referred_columns"],
                    sorted(f["options"].items()),
                )
                for f in looked.get_foreign_keys(table)
            ),
            "checks": sorted(
                (str(c["name"]), " ".join(str(c["sqltext"]).split()))
                for c in looked.get_check_constraints(table)
                # MariaDB's own check of its JSON columns.
                if "json_valid" not in str(c["sqltext"])
            ),
        }
    return shape


async def shape_of(database: Database) -> dict[str, Any]:
    async with database.reading() as connection:
        return await connection.run_sync(described)


async def test_migrations_go_up_and_down_and_up_again(database: Database) -> None:
    assert await revision(database) is None

    await migrate(database)
    first = await shape_of(database)
    assert await revision(database) == head()
    assert set(first) == {table.__tablename__ for table in TABLES}

    await migrate(database, "base")
    assert await shape_of(database) == {}
    assert await revision(database) is None

    await migrate(database)
    assert await shape_of(database) == first


async def test_the_migrations_make_what_the_models_say(database: Database) -> None:
    await migrate(database)
    # Raises with the differences when there are any.
    await _run(database, command.check)
    migrated = await shape_of(database)
    await migrate(database, "base")
    async with database.engine.begin() as connection:
        await connection.run_sync(Record.metadata.create_all)
    stated = await shape_of(database)

    assert set(migrated) == set(stated)
    for table, shape in stated.items():
        assert migrated[table] == shape, table


async def test_migrating_twice_changes_nothing(database: Database) -> None:
    await migrate(database)
    before = await shape_of(database)

    await migrate(database)

    assert await shape_of(database) == before
