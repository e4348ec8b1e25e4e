"""Commands beside a running server leave its sandboxes as they are."""

import os
from pathlib import Path

import pytest
from sqlalchemy import insert, select
from sqlalchemy.exc import DBAPIError

from app.beside import looking, seed
from app.config import Settings
from app.errors import ConfigurationError
from app.explain import explain
from models.accounts import User
from models.sandboxes import Sandbox
from models.states import SandboxStatus
from services.base import Deps, work
from services.errors import UserError, UserErrorCode
from tests.fixtures import Api, settings_for

_QUERY = "{ viewer { username } sandboxes(first: 2) { nodes { id status } } }"


@pytest.fixture
async def running_id(api: Api) -> str:
    """A live sandbox of the server's node."""
    person = await api.person("ada")
    async with work(api.deps) as unit:
        sandbox = Sandbox(
            user_id=person.id,
            status=SandboxStatus.RUNNING,
            driver="bubblewrap",
            node_id=api.deps.bus.node_id,
            image_name="python",
        )
        unit.session.add(sandbox)
        await unit.session.flush()
        return sandbox.id


async def _status(deps: Deps, sandbox_id: str) -> SandboxStatus | None:
    async with deps.db.reading() as connection:
        return await connection.scalar(select(Sandbox.status).where(Sandbox.id == sandbox_id))


def _settings(tmp_path: Path, deps: Deps, **values: str) -> Settings:
    url = deps.db.url.render_as_string(hide_password=False)
    return settings_for(tmp_path, data_dir=tmp_path / "other", database_url=url, **values)


async def _explain(settings: Settings, username: str) -> str:
    return await explain(
        settings, _QUERY, source="q", operation=None, variables={}, username=username
    )


@pytest.mark.parametrize(
    "values",
    [{}, {"node_id": "local", "redis_url": "redis://127.0.0.1:1/0"}],
    ids=["as it is", "with the node's name and Redis"],
)
async def test_explain_ends_no_sandbox(
    deps: Deps, running_id: str, tmp_path: Path, values: dict[str, str]
) -> None:
    settings = _settings(tmp_path, deps, **values)
    told = await _explain(settings, "ada")
    assert "FROM sandboxes" in told
    assert "error" not in told
    assert await _status(deps, running_id) is SandboxStatus.RUNNING
    assert not settings.data_dir.exists()
    with pytest.raises(ConfigurationError, match="no such user"):
        await _explain(settings, "nobody")


async def test_seed_ends_no_sandbox(deps: Deps, running_id: str, tmp_path: Path) -> None:
    if deps.db.is_sqlite:
        # The server holds the database, wherever the data of others are.
        with pytest.raises(ConfigurationError, match="in use by another process"):
            await seed(_settings(tmp_path, deps))
    else:
        # The server holds the database; `seed` is for when it does not, or for Redis.
        await seed(_settings(tmp_path, deps, redis_url="redis://127.0.0.1:1/0"))
    assert await _status(deps, running_id) is SandboxStatus.RUNNING


async def test_what_only_looks_cannot_write_and_reaches_no_sandbox(
    deps: Deps, running_id: str, tmp_path: Path
) -> None:
    async with looking(_settings(tmp_path, deps)) as reader:
        with pytest.raises(DBAPIError, match=r"(?i)read.?only"):
            async with reader.db.engine.begin() as connection:
                await connection.execute(
                    insert(User).values(username="eve", email="eve@example.org", password_hash="x")
                )
        async with reader.db.reading() as connection:
            row = (await connection.execute(select(Sandbox.__table__))).one()
        with pytest.raises(UserError, match="only reads") as refused:
            await reader.sandboxes.ask(Sandbox(**row._mapping), "stop")
        assert refused.value.code is UserErrorCode.UNAVAILABLE
    assert await _status(deps, running_id) is SandboxStatus.RUNNING


async def test_a_database_is_neither_made_nor_migrated_by_looking(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, data_dir=tmp_path / "data")
    with pytest.raises(ConfigurationError, match="there is no database"):
        await _explain(settings, "ada")
    assert os.listdir(tmp_path) == []
    settings.data_dir.mkdir()
    (settings.data_dir / "noosphere.sqlite3").touch()
    with pytest.raises(ConfigurationError, match="not up to date"):
        await _explain(settings, "ada")
