"""Sign-ins in use end everywhere at once, whatever is away."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from websockets.asyncio.client import connect

from app import session_watch, session_watches
from app.auth import watches
from app.runtime import running
from app.session_watch import CHANGED, EXPIRED, REVOKED
from app.session_watches import SessionWatches
from models.accounts import User
from models.base import now
from services.accounts import roles, sessions
from services.base import Deps, work
from services.errors import UnauthenticatedError
from services.events.base import BusUnavailableError
from tests.api.holding import holding, in_database, socket, until
from tests.api.people import sign_up
from tests.api.serving import served
from tests.fixtures import Statements, settings_for

# ---- how sign-ins end


async def test_a_token_that_ends_unrenewed_ends_its_connections(deps: Deps) -> None:
    ann = await sign_up(deps, "ann")
    await in_database(deps, ann, expires_at=now() + timedelta(seconds=1))
    state, holder = await holding(deps, ann.token)
    assert await holder.until_ended() == EXPIRED
    assert state.expires_at is not None
    assert state.expires_at <= now()
    with pytest.raises(UnauthenticatedError):
        await socket(deps, ann.token)


async def test_a_renewal_nobody_heard_of_is_found_when_the_token_ends(deps: Deps) -> None:
    ann = await sign_up(deps, "ann")
    soon = now() + timedelta(seconds=0.5)
    await in_database(deps, ann, expires_at=soon)
    state, holder = await holding(deps, ann.token)
    later = soon + timedelta(hours=1)
    await in_database(deps, ann, expires_at=later)
    await until(lambda: state.expires_at == later)
    assert holder.reason is None


async def test_who_signs_out_over_a_socket_hears_that_it_is_done(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        ann = await sign_up(server.deps, "ann")
        async with connect(
            server.url.replace("http", "ws") + "/graphql",
            subprotocols=["graphql-transport-ws"],  # type: ignore[list-item]
        ) as client:
            init = {"type": "connection_init", "payload": {"authorization": f"Bearer {ann.token}"}}
            await client.send(json.dumps(init))
            assert json.loads(await client.recv())["type"] == "connection_ack"
            payload = {"query": "mutation { sessionRevoke { errors { code } } }"}
            await client.send(json.dumps({"id": "1", "type": "subscribe", "payload": payload}))
            answer = json.loads(await client.recv())
            assert answer["payload"]["data"] == {"sessionRevoke": {"errors": []}}
            assert json.loads(await client.recv()) == {"id": "1", "type": "complete"}
            await client.wait_closed()
            assert client.close_code == 4403


async def test_a_change_of_rights_ends_connections_and_another_role_of_the_same_does_not(
    deps: Deps,
) -> None:
    admin, ann = await sign_up(deps, "admin", "admin"), await sign_up(deps, "ann")
    _, holder = await holding(deps, ann.token)
    _, untouched = await holding(deps, admin.token)
    async with deps.bus.attach(f"viewer:{ann.id}") as tap:
        await roles.assign(deps, admin.viewer, user_id=ann.id, roles=["user"])
        assert await tap.get(60) is not None
    await roles.assign(deps, admin.viewer, user_id=ann.id, roles=["user", "viewer"])
    assert await holder.until_ended() == CHANGED
    assert untouched.reason is None
    state, again = await holding(deps, ann.token)
    assert (await state.make_context("x")).viewer.roles == {"user", "viewer"}
    assert again.reason is None


async def test_what_was_never_announced_is_found_by_looking_again(
    deps: Deps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_watch, "_RECHECK_S", 0.05)
    ann, bob = await sign_up(deps, "ann"), await sign_up(deps, "bob")
    _, first = await holding(deps, ann.token)
    _, second = await holding(deps, bob.token)
    await in_database(deps, ann, revoked_at=now())
    assert await first.until_ended() == REVOKED
    async with work(deps) as unit:
        chosen = User.id == bob.id
        await unit.session.execute(update(User).where(chosen).values(is_active=False))
    assert await second.until_ended() == REVOKED


async def test_news_of_other_kinds_cost_nothing(deps: Deps, statements: Statements) -> None:
    ann = await sign_up(deps, "ann")
    _, holder = await holding(deps, ann.token)
    statements.sent.clear()
    async with deps.bus.attach(f"viewer:{ann.id}") as tap:
        for number in range(20):
            await deps.bus.publish(f"viewer:{ann.id}", {"seq": number, "type": "renamed"})
            assert await tap.get(60) is not None
        await deps.bus.append(f"viewer:{ann.id}", {"revoked": True})
        assert await tap.get(60) is not None
    await socket(deps, ann.token)
    assert statements.sent == []
    assert holder.reason is None


async def test_news_that_were_lost_are_made_good_by_reading(deps: Deps) -> None:
    ann = await sign_up(deps, "ann")
    _, holder = await holding(deps, ann.token)
    await in_database(deps, ann, revoked_at=now())
    deps.bus._hub.lose()  # type: ignore[attr-defined]
    assert await holder.until_ended() == REVOKED


# ---- when parts are away


async def test_a_bus_or_database_that_is_away_drops_nobody_and_is_waited_for(
    deps: Deps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_watch, "_RETRY_S", 0.01)
    monkeypatch.setattr(session_watches, "_SETTLE_S", 0.05)
    ann = await sign_up(deps, "ann")
    attach, tried = deps.bus.attach, asyncio.Event()

    @asynccontextmanager
    async def away(*_topics: str, **_bounds: Any) -> AsyncIterator[Any]:
        tried.set()
        raise BusUnavailableError("Redis is away.")
        yield

    monkeypatch.setattr(deps.bus, "attach", away)
    _, first = await holding(deps, ann.token)
    _, second = await holding(deps, ann.token)
    await asyncio.wait_for(tried.wait(), 60)
    monkeypatch.setattr(deps.bus, "attach", attach)
    read, failed = sessions.standing, asyncio.Event()

    async def broken(deps: Deps, session_id: str, *, is_active: bool = False) -> Any:
        failed.set()
        raise OSError("The database is away.")

    monkeypatch.setattr(sessions, "standing", broken)
    await asyncio.wait_for(failed.wait(), 60)
    assert first.reason is second.reason is None
    monkeypatch.setattr(sessions, "standing", read)
    await sessions.revoke(deps, ann.viewer)
    assert await first.until_ended() == await second.until_ended() == REVOKED


async def test_a_token_ends_even_while_nothing_can_be_read(
    deps: Deps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_watches, "_SETTLE_S", 0.05)
    ann = await sign_up(deps, "ann")
    await in_database(deps, ann, expires_at=now() + timedelta(seconds=3))

    async def broken(deps: Deps, session_id: str, *, is_active: bool = False) -> Any:
        raise OSError("The database is away.")

    monkeypatch.setattr(sessions, "standing", broken)
    _, holder = await holding(deps, ann.token)
    assert await holder.until_ended() == EXPIRED


async def test_watches_end_with_the_bus_and_when_they_are_closed(tmp_path: Path) -> None:
    async with running(settings_for(tmp_path)) as deps:
        ann, bob = await sign_up(deps, "ann"), await sign_up(deps, "bob")
        _, holder = await holding(deps, ann.token)
        own = SessionWatches(deps)
        own.watch(bob.viewer)
        await own.aclose()
        assert len(own) == 0
        tasks = set(watches(deps)._tasks.values())
        assert len(tasks) == 1
    async with asyncio.timeout(60):
        await asyncio.wait(tasks)
    assert holder.reason is None
