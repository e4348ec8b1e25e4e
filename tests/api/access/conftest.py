"""One world for the tests of a module on each kind of database: they must not change it."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from app.runtime import running
from tests.api.access.world import World, build
from tests.fixtures import settings_for


@pytest.fixture(scope="module", params=["sqlite", pytest.param("mysql", marks=pytest.mark.mysql)])
def shared_database_url(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """A database that the tests of a module share."""
    if request.param == "mysql":
        return str(request.getfixturevalue("mysql_module_url"))
    return f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('access') / 'noosphere.sqlite3'}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(
    shared_database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    """People, and one of everything for each of them."""
    settings = settings_for(tmp_path_factory.mktemp("process"), database_url=shared_database_url)
    async with running(settings) as deps:
        yield await build(deps)
