"""Sign-ins in use: watched once for all their connections; and who is let in."""

import asyncio
from typing import Any

import pytest
from starlette.datastructures import Headers

from app import session_watches
from app.auth import connect, context_of_request, hold, watches
from app.graphql_request import request_info
from app.session_watch import REVOKED
from models.base import now
from resolvers.base import Context
from services.accounts import sessions
from services.base import Deps, work
from services.errors import UnauthenticatedError
from tests.api.holding import SCOPE, Holder, holding, in_database, refreshed, socket, taps, until
from tests.api.people import CLIENT, sign_up
from tests.fixtures import Statements

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
