"""What the tests of the API share: a world that the tests of a module look at together."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from app.runtime import running
from tests.api.access.world import World, build
from tests.fixtures import settings_for


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(
    shared_database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    """People, and one of everything for each of them; nothing runs in the background."""
    settings = settings_for(tmp_path_factory.mktemp("process"), database_url=shared_database_url)
    async with running(settings) as deps:
        yield await build(deps)
