import pytest

from tests.services.small_world import person, process


@pytest.fixture
async def deps(tmp_path):
    async with process(tmp_path / "test.db") as made:
        yield made


@pytest.fixture
async def ann(deps):
    return await person(deps, "ann")


@pytest.fixture
async def bob(deps):
    return await person(deps, "bob")
