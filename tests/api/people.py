"""People signed in without the cost of hashing a password, and a look at all that is stored."""

from typing import Any

from sqlalchemy import select

from models.accounts import User
from models.base import Record
from services.accounts import roles, sessions
from services.accounts.sessions import Client
from services.base import Deps, work
from tests.fixtures import Person

CLIENT = Client("127.0.0.1", "tests")


async def sign_up(deps: Deps, name: str, *given: str) -> Person:
    """Give somebody with an account and roles (`user` by default), signed in."""
    async with work(deps) as unit:
        user = User(
            username=name, email=f"{name}@example.org", password_hash="-", display_name=name
        )
        unit.session.add(user)
        await unit.session.flush()
        await roles.grant(unit, user.id, list(given or ("user",)))
        credentials = await sessions.open_session(unit, user.id, CLIENT)
    viewer = await sessions.authenticate(deps, credentials.token)
    return Person(viewer, credentials.token, credentials.refresh_token)


async def renewed(deps: Deps, person: Person, *given: str) -> Person:
    """Give somebody other roles and read what they may do now."""
    async with work(deps) as unit:
        await roles.grant(unit, person.id, list(given))
    viewer = await sessions.authenticate(deps, person.token)
    return Person(viewer, person.token, person.refresh_token)


async def everything_stored(deps: Deps) -> dict[str, list[tuple[Any, ...]]]:
    """Give all rows of all tables, so that before and after can be compared."""
    stored: dict[str, list[tuple[Any, ...]]] = {}
    async with deps.db.reading() as connection:
        for table in Record.metadata.sorted_tables:
            rows = await connection.execute(select(table).order_by(*table.primary_key.columns))
            stored[table.name] = [tuple(map(repr, row)) for row in rows]
    return stored
