"""Requests of signed-in viewers: read once, known while they come again, refused once revoked."""

from datetime import timedelta

import pytest
from sqlalchemy import select

from app import session_watch, session_watches
from app.auth import context_known, context_of_request, watches
from app.graphql_request import RequestHeaders, RequestInfo, request_info
from models.accounts import AuthSession
from models.base import now
from services.accounts import sessions
from services.base import Deps
from services.errors import UnauthenticatedError
from tests.api.holding import in_database, refreshed, until
from tests.api.people import sign_up
from tests.fixtures import Person, Statements


def asking(token: str) -> RequestInfo:
    header = (b"authorization", f"Bearer {token}".encode())
    scope = {"type": "http", "headers": [header], "client": ("127.0.0.1", 1)}
    return request_info(scope, RequestHeaders(scope), "r")


async def known(deps: Deps, person: Person) -> RequestInfo:
    """Ask until the sign-in needs no database."""
    info = asking(person.token)
    for _ in range(2):
        assert (await context_of_request(deps, info)).viewer.user_id == person.id
    await until(lambda: context_known(deps, info) is not None)
    return info


async def test_a_request_alone_is_read_once_and_not_watched(
    deps: Deps, statements: Statements
) -> None:
    ann = await sign_up(deps, "ann")
    statements.sent.clear()
    await context_of_request(deps, asking(ann.token))
    assert len(statements.reads()) == 1
    assert len(watches(deps)) == 0


async def test_who_comes_again_is_known_without_the_database(
    deps: Deps, statements: Statements
) -> None:
    ann = await sign_up(deps, "ann")
    info = await known(deps, ann)
    statements.sent.clear()
    for _ in range(10):
        context = await context_of_request(deps, info)
        assert context.viewer.user_id == ann.id
        assert context.viewer.session_id == ann.viewer.session_id
    assert statements.sent == []


async def test_a_revoked_sign_in_is_refused_by_the_next_request(deps: Deps) -> None:
    ann = await sign_up(deps, "ann")
    info = await known(deps, ann)
    await sessions.revoke(deps, ann.viewer)
    assert context_known(deps, info) is None
    with pytest.raises(UnauthenticatedError):
        await context_of_request(deps, info)


async def test_the_token_before_a_renewal_is_refused_by_the_next_request(deps: Deps) -> None:
    ann = await sign_up(deps, "ann")
    info = await known(deps, ann)
    renewed = await refreshed(deps, ann)
    with pytest.raises(UnauthenticatedError):
        await context_of_request(deps, info)
    assert (await context_of_request(deps, asking(renewed.token))).viewer.user_id == ann.id


async def test_a_token_that_expires_is_refused(deps: Deps, monkeypatch: pytest.MonkeyPatch) -> None:
    ann = await sign_up(deps, "ann")
    info = await known(deps, ann)
    watch = watches(deps).watch(ann.viewer)
    monkeypatch.setattr(watch, "_expires_at_s", now().timestamp() - 1)
    assert context_known(deps, info) is None


async def test_who_stays_away_is_watched_no_more(
    deps: Deps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_watches, "_LINGER_S", 0.05)
    await known(deps, await sign_up(deps, "ann"))
    await until(lambda: len(watches(deps)) == 0)
    assert watches(deps)._sessions == {}


async def test_requests_keep_their_watch(deps: Deps) -> None:
    ann = await sign_up(deps, "ann")
    info = await known(deps, ann)
    found = watches(deps)
    (watch,) = found._watches.values()
    for _ in range(3):
        # Its time is up, and it was used since.
        assert context_known(deps, info) is not None
        found._leave(watch)
        assert len(found) == 1
    found._leave(watch)
    assert len(found) == 0


async def test_activity_of_known_sign_ins_is_written_down(
    deps: Deps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_watch, "_RECHECK_S", 0.05)
    ann = await sign_up(deps, "ann")
    info = await known(deps, ann)
    long_ago = now() - timedelta(hours=1)
    await in_database(deps, ann, last_active_at=long_ago)
    assert context_known(deps, info) is not None

    async def last_active_at() -> object:
        async with deps.db.reading() as connection:
            chosen = AuthSession.id == ann.viewer.session_id
            return await connection.scalar(select(AuthSession.last_active_at).where(chosen))

    while await last_active_at() == long_ago:
        assert context_known(deps, info) is not None
    assert await last_active_at() > now() - timedelta(minutes=5)  # type: ignore[operator]


async def test_headers_are_found_whatever_their_case_and_the_first_counts() -> None:
    scope = {"type": "http", "headers": [(b"a", b"1"), (b"b", b"\xe9"), (b"a", b"2")]}
    headers = RequestHeaders(scope)
    assert headers.get("A") == headers["a"] == "1"
    assert headers.getlist("a") == ["1", "2"]
    assert headers.get("b") == "é"
    assert headers.get("c") is None
    assert headers.get("c", "") == ""
    assert "B" in headers
    assert "c" not in headers
