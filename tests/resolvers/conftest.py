"""A hundred people with one of everything, shared by the tests of a module."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import event, insert, select

from app.runtime import running
from models.accounts import AuthSession, Role, User, UserRole
from models.base import new_id, now
from services.base import Deps, work
from tests.api.access.belongings import Ids, belongings
from tests.api.access.world import shared_ids
from tests.api.people import sign_up
from tests.fixtures import Api, Person, Statements, settings_for

PEOPLE = 100


@dataclass
class Crowd:
    """An administrator who sees all, one person who owns much, and everybody's ids."""

    api: Api
    admin: Person
    owner: Person
    people: list[Ids]
    owned: list[Ids]
    shared: Ids

    def ids(self, type_: str, count: int) -> list[str]:
        """Give the ids of so many objects of a type, of as many people."""
        if type_ in self.shared:
            return [self.shared[type_]] * count
        return [of[type_] for of in self.people[:count]]

    @contextmanager
    def counting(self) -> Iterator[Statements]:
        """Record the statements sent meanwhile."""
        counted, engine = Statements(), self.api.deps.db.engine.sync_engine

        def note(_c: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
            counted.sent.append(statement)

        event.listen(engine, "before_cursor_execute", note)
        try:
            yield counted
        finally:
            event.remove(engine, "before_cursor_execute", note)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def crowd(
    shared_database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Crowd]:
    """A hundred people, and a hundred of everything for one of them; nothing runs."""
    settings = settings_for(tmp_path_factory.mktemp("process"), database_url=shared_database_url)
    async with running(settings) as deps:
        admin, owner = await sign_up(deps, "admin", "admin"), await sign_up(deps, "owner")
        shared = await shared_ids(deps)
        people = await _people(deps, shared)
        async with work(deps) as unit:
            own = {"User": owner.id, "Session": owner.viewer.session_id or ""}
            owned = [await belongings(unit, dict(own), shared, "own") for _ in range(PEOPLE)]
        api = Api(deps)
        # Statements are counted here.
        api.core = None
        yield Crowd(api, admin, owner, people, owned, shared)


async def _people(deps: Deps, shared: Ids) -> list[Ids]:
    ids = [{"User": new_id("usr"), "Session": new_id("ses")} for _ in range(PEOPLE)]
    async with work(deps) as unit:
        role = await unit.session.scalar(select(Role.id).where(Role.name == "user"))
        rows: list[tuple[Any, list[dict[str, Any]]]] = [
            (
                User,
                [
                    {
                        "id": of["User"],
                        "username": f"p{n}",
                        "email": f"p{n}@example.org",
                        "display_name": f"P {n}",
                        "password_hash": "-",
                    }
                    for n, of in enumerate(ids)
                ],
            ),
            (UserRole, [{"user_id": of["User"], "role_id": role} for of in ids]),
            (
                AuthSession,
                [
                    {
                        "id": of["Session"],
                        "user_id": of["User"],
                        "token_hash": of["Session"],
                        "expires_at": now(),
                    }
                    for of in ids
                ],
            ),
        ]
        for table, values in rows:
            await unit.session.execute(insert(table), values)
        return [await belongings(unit, of, shared, "theirs") for of in ids]
