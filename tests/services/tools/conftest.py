import pytest

from services import tools
from services.base import work
from tests.services.small_world import person, process


@pytest.fixture
async def deps(tmp_path):
    async with process(tmp_path / "test.db") as made:
        async with work(made) as unit:
            await tools.seed(unit)
        yield made


@pytest.fixture
async def ann(deps):
    return await person(deps, "ann")


@pytest.fixture
async def admin(deps):
    return await person(deps, "root", role="admin")
