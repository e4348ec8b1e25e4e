"""Connections of a sign-in, and the watch that they hold."""

import asyncio
from collections.abc import Callable
from typing import Any

from sqlalchemy import update

from app.auth import connect
from app.graphql_protocol import ConnectionState
from models.accounts import AuthSession
from services.accounts import sessions
from services.base import Deps, work
from tests.api.people import CLIENT
from tests.fixtures import Person

SCOPE: dict[str, Any] = {"type": "websocket", "headers": [], "client": ("127.0.0.1", 1)}


async def socket(deps: Deps, token: str) -> ConnectionState:
    return await connect(deps, SCOPE, {"Authorization": f"Bearer {token}"})


class Holder:
    """A connection that waits for the end of its sign-in."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.ended = asyncio.Event()
        self.release: Callable[[], None] | None = None

    def on_end(self, reason: str) -> None:
        assert self.reason is None, "told twice"
        self.reason = reason
        self.ended.set()

    async def until_ended(self) -> str | None:
        async with asyncio.timeout(60):
            await self.ended.wait()
        return self.reason


async def holding(deps: Deps, token: str) -> tuple[ConnectionState, Holder]:
    state, holder = await socket(deps, token), Holder()
    holder.release = state.on_end(holder.on_end)
    return state, holder


def taps(deps: Deps) -> int:
    return deps.bus.stats.taps


async def refreshed(deps: Deps, person: Person) -> Person:
    credentials = await sessions.refresh(deps, refresh_token=person.refresh_token, client=CLIENT)
    return Person(person.viewer, credentials.token, credentials.refresh_token)


async def in_database(deps: Deps, person: Person, **values: Any) -> None:
    """Change a session behind everybody's back."""
    async with work(deps) as unit:
        chosen = AuthSession.id == person.viewer.session_id
        await unit.session.execute(update(AuthSession).where(chosen).values(**values))


async def until(condition: Callable[[], object]) -> None:
    """Wait for what tells nobody of itself."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - it comes of what others do in between.
            await asyncio.sleep(0.001)
