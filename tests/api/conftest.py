"""What the tests of the API share: a world that the tests of a module look at together."""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from argon2 import PasswordHasher

from app.runtime import running
from services.accounts import passwords
from tests.api.access.world import World, build
from tests.fixtures import settings_for


@pytest.fixture(scope="module")
def quick_passwords() -> Iterator[None]:
    """Hash passwords with argon2id as ever, at the least cost it takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passwords, "_hasher", PasswordHasher(1, 8, 1))
        passwords._unknown.cache_clear()
        yield
    passwords._unknown.cache_clear()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(
    shared_database_url: str, tmp_path_factory: pytest.TempPathFactory, quick_passwords: None
) -> AsyncIterator[World]:
    """People, and one of everything for each of them; nothing runs in the background."""
    settings = settings_for(tmp_path_factory.mktemp("process"), database_url=shared_database_url)
    async with running(settings) as deps:
        yield await build(deps)
