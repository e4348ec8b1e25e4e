"""Sign-ins in use: watched once for all their connections, and ended everywhere at once."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from starlette.datastructures import Headers

from app import session_watch, session_watches
from app.auth import connect, context_of_request, hold, watches
from app.graphql_protocol import ConnectionState
from app.graphql_request import request_info
from app.runtime import running
from app.session_watch import CHANGED, EXPIRED, REVOKED
from app.session_watches import SessionWatches
from models.accounts import AuthSession, User
from models.base import now
from resolvers.base import Context
from services.accounts import roles, sessions
from services.base import Deps, work
from services.errors import UnauthenticatedError
from services.events.base import BusUnavailableError
from tests.api.people import CLIENT, sign_up
from tests.fixtures import Person, Statements, settings_for

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


# ---- one watch for all


async def test_a_thousand_connections_of_one_session_share_one_watch(
    deps: Deps, statements: Statements
) -> None:
    ann = await sign_up(deps, "ann")
    before, tasks = taps(deps), len(asyncio.all_tasks())
    statements.sent.clear()

    connections = await asyncio.gather(*(holding(deps, ann.token) for _ in range(1000)))

    # To know who it is, and once more after attaching, for nothing to be missed in between.
    assert len(statements.reads()) == 2
    assert taps(deps) == before + 1
    # One watches the session, one looks for revocations that nobody could announce.
    assert len(asyncio.all_tasks()) == tasks + 2
    assert len(watches(deps)) == 1
    statements.sent.clear()
    contexts = [await state.make_context("x") for state, _ in connections[:10]]
    assert {context.viewer.user_id for context in contexts} == {ann.id}
    assert statements.sent == []

    await sessions.revoke(deps, ann.viewer)
    assert {await holder.until_ended() for _, holder in connections} == {REVOKED}
    await until(lambda: taps(deps) == before and not len(watches(deps)))


async def test_sessions_of_one_user_are_watched_apart(deps: Deps) -> None:
    ann, bob = await sign_up(deps, "ann"), await sign_up(deps, "bob")
    async with work(deps) as unit:
        other = await sessions.open_session(unit, ann.id, CLIENT)
    (_, first), (_, second), (_, third) = [
        await holding(deps, token) for token in (ann.token, other.token, bob.token)
    ]
    assert len(watches(deps)) == 3
    await sessions.revoke(deps, ann.viewer)
    assert await first.until_ended() == REVOKED
    assert second.reason is third.reason is None


async def test_streams_and_sockets_share_the_watch(deps: Deps, statements: Statements) -> None:
    ann = await sign_up(deps, "ann")
    _, on_socket = await holding(deps, ann.token)
    statements.sent.clear()
    scope = {"type": "http", "headers": [(b"authorization", f"Bearer {ann.token}".encode())]}
    info = request_info(scope, Headers(scope=scope), "r1", is_stream=True, resume_after="c")
    context = await context_of_request(deps, info)
    assert (context.viewer.user_id, context.resume_after) == (ann.id, "c")
    assert statements.sent == []
    on_stream = Holder()
    hold(context, on_stream.on_end)
    await sessions.revoke(deps, ann.viewer)
    assert await on_stream.until_ended() == await on_socket.until_ended() == REVOKED


async def test_nobody_needs_no_watch(deps: Deps) -> None:
    state = await connect(deps, SCOPE, None)
    assert (state.viewer_id, state.expires_at, state.revoked) == (None, None, None)
    assert state.on_end(lambda _: None) is None
    hold(Context(deps), lambda _: None)()
    assert len(watches(deps)) == 0


async def test_a_watch_lasts_a_moment_longer_than_it_is_held(
    deps: Deps, statements: Statements, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = await sign_up(deps, "ann")
    before = taps(deps)
    _, holder = await holding(deps, ann.token)
    assert holder.release is not None
    holder.release()
    holder.release()
    # Whoever comes back soon is known still.
    statements.sent.clear()
    monkeypatch.setattr(session_watches, "_LINGER_S", 0.01)
    _, holder = await holding(deps, ann.token)
    assert statements.sent == []
    assert holder.release is not None
    holder.release()
    await until(lambda: taps(deps) == before and not len(watches(deps)))
    assert holder.reason is None
    await socket(deps, ann.token)  # Nobody ever holds this one.
    await until(lambda: taps(deps) == before and not len(watches(deps)))
    _, held = await holding(deps, ann.token)
    await sessions.revoke(deps, ann.viewer)
    assert await held.until_ended() == REVOKED


async def test_a_state_whose_watch_was_given_up_gets_another(
    deps: Deps, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = await sign_up(deps, "ann")
    monkeypatch.setattr(session_watches, "_LINGER_S", 0.0)
    state, holder = await socket(deps, ann.token), Holder()
    await until(lambda: not len(watches(deps)))
    state.on_end(holder.on_end)
    await sessions.revoke(deps, ann.viewer)
    assert await holder.until_ended() == REVOKED
    late = Holder()
    state.on_end(late.on_end)
    assert late.reason == REVOKED


# ---- who is let in


async def test_a_token_that_was_replaced_is_refused_at_once(
    deps: Deps, statements: Statements
) -> None:
    ann = await sign_up(deps, "ann")
    state, holder = await holding(deps, ann.token)
    before = state.expires_at
    assert before is not None

    ann_now = await refreshed(deps, ann)

    with pytest.raises(UnauthenticatedError):
        await socket(deps, ann.token)
    await until(lambda: state.expires_at is not None and state.expires_at > before)
    assert holder.reason is None
    await socket(deps, ann_now.token)
    statements.sent.clear()
    await socket(deps, ann_now.token)
    assert statements.sent == []
    with pytest.raises(UnauthenticatedError):
        await socket(deps, ann.token)


async def test_a_token_that_was_revoked_is_refused_at_once(deps: Deps) -> None:
    ann = await sign_up(deps, "ann")
    await holding(deps, ann.token)
    await sessions.revoke(deps, ann.viewer)
    for _ in range(2):
        with pytest.raises(UnauthenticatedError):
            await socket(deps, ann.token)
    with pytest.raises(UnauthenticatedError):
        await socket(deps, "nonsense")


async def test_a_revocation_between_reading_and_watching_is_seen(
    deps: Deps, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = await sign_up(deps, "ann")
    read = sessions.authenticate

    async def too_early(deps: Deps, token: str) -> Any:
        viewer = await read(deps, token)
        # What is announced now is heard by nobody.
        await in_database(deps, ann, revoked_at=now())
        return viewer

    monkeypatch.setattr(sessions, "authenticate", too_early)
    with pytest.raises(UnauthenticatedError):
        await socket(deps, ann.token)


async def test_one_who_gives_up_while_signing_in_does_not_stop_the_others(
    deps: Deps, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = await sign_up(deps, "ann")
    read, entered, gate = sessions.authenticate, asyncio.Event(), asyncio.Event()

    async def slow(deps: Deps, token: str) -> Any:
        entered.set()
        await gate.wait()
        return await read(deps, token)

    monkeypatch.setattr(sessions, "authenticate", slow)
    impatient = asyncio.ensure_future(socket(deps, ann.token))
    await asyncio.wait_for(entered.wait(), 60)
    patient = asyncio.ensure_future(socket(deps, ann.token))
    impatient.cancel()
    await asyncio.wait([impatient])
    assert impatient.cancelled()
    gate.set()
    async with asyncio.timeout(60):
        assert (await patient).viewer_id == ann.id


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
