"""Tokens of sign-ins: renewed, used twice, stored and revoked."""

import asyncio

import pytest
from sqlalchemy import select

from models.accounts import AuthRefreshToken, AuthSession
from services.accounts import sessions
from services.errors import UnauthenticatedError
from tests.api.accounts import (
    CHANGE_PASSWORD,
    REFRESH,
    REGISTER,
    REVOKE,
    SESSIONS,
    SIGN_IN,
    as_token,
    codes,
    socket,
    someone,
)
from tests.api.people import sign_up
from tests.fixtures import Api

# ---- refreshing


async def test_a_refresh_gives_new_tokens_and_ends_the_old(api: Api) -> None:
    ann = await sign_up(api.deps, "ann")

    first = (await api.run(REFRESH, t=ann.refresh_token))["session"]
    second = (await api.run(REFRESH, t=first["refreshToken"]))["session"]

    assert len({ann.token, first["token"], second["token"]}) == 3
    assert first["id"] == second["id"] == ann.viewer.session_id
    assert (await as_token(api, second["token"])).id == ann.id
    for token in (ann.token, first["token"]):
        with pytest.raises(UnauthenticatedError):
            await sessions.authenticate(api.deps, token)


async def test_a_reused_refresh_token_ends_its_whole_family_and_no_other(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    ann = await sign_up(api.deps, "ann")
    other = await sign_up(api.deps, "eve")
    latest = (await api.run(REFRESH, t=ann.refresh_token))["session"]
    async with socket(api, latest["token"]) as (_, ending):
        reused = await api.run(REFRESH, t=ann.refresh_token)

        assert reused["session"] is None
        assert codes(reused) == [("INVALID", "refreshToken")]
        async with asyncio.timeout(20):
            await ending
    with pytest.raises(UnauthenticatedError):
        await sessions.authenticate(api.deps, latest["token"])
    # The thief's newest token is dead as well, though it was never used.
    assert codes(await api.run(REFRESH, t=latest["refreshToken"])) == [("INVALID", "refreshToken")]
    assert (await as_token(api, other.token)).id == other.id
    assert "reused" in caplog.text
    assert ann.refresh_token not in caplog.text


async def test_of_many_refreshes_with_one_token_at_once_at_most_one_succeeds(api: Api) -> None:
    ann = await sign_up(api.deps, "ann")

    answers = await asyncio.gather(*(api.run(REFRESH, t=ann.refresh_token) for _ in range(6)))

    assert sum(answer["session"] is not None for answer in answers) == 1
    winner = next(answer["session"] for answer in answers if answer["session"])
    with pytest.raises(UnauthenticatedError):
        await sessions.authenticate(api.deps, winner["token"])


async def test_no_token_is_stored_as_it_is(api: Api) -> None:
    ann = await sign_up(api.deps, "ann")
    async with api.deps.db.reading() as connection:
        tokens = set(await connection.scalars(select(AuthSession.token_hash)))
        refresh = set(await connection.scalars(select(AuthRefreshToken.token_hash)))

    assert not {ann.token, ann.refresh_token} & (tokens | refresh)
    assert all(len(value) == 64 for value in tokens | refresh)


# ---- sign-ins


async def test_one_sees_and_ends_ones_own_sign_ins(api: Api) -> None:
    await api.run(REGISTER, input=someone("ann"))
    made = [
        (await api.run(SIGN_IN, login="ann", password="correct horse"))["session"] for _ in range(2)
    ]
    ann = await as_token(api, made[1]["token"])

    listed = (await api.run(SESSIONS, ann))["sessions"]["nodes"]
    assert [s["isCurrent"] for s in listed] == [True, False, False]
    assert listed[0] == {
        "id": made[1]["id"],
        "isCurrent": True,
        "isExpired": False,
        "userAgent": "tests",
        "ipAddress": "127.0.0.1",
    }
    async with socket(api, made[0]["token"]) as (_, ending), socket(api, ann.token) as (_, own):
        assert (await api.run(REVOKE, ann, id=made[0]["id"]))["errors"] == []
        async with asyncio.timeout(20):
            await ending
        assert not own.done()
        # Ending it twice is no error.
        assert (await api.run(REVOKE, ann, id=made[0]["id"]))["errors"] == []
        with pytest.raises(UnauthenticatedError):
            await sessions.authenticate(api.deps, made[0]["token"])

        assert (await api.run(REVOKE, ann))["errors"] == []
        async with asyncio.timeout(20):
            await own
    with pytest.raises(UnauthenticatedError):
        await sessions.authenticate(api.deps, ann.token)
    assert codes(await api.run(REFRESH, t=made[1]["refreshToken"])) == [("INVALID", "refreshToken")]


async def test_changing_the_password_ends_all_other_sign_ins(api: Api) -> None:
    made = await api.run(REGISTER, input=someone("ann"))
    other = (await api.run(SIGN_IN, login="ann", password="correct horse"))["session"]
    ann = await as_token(api, made["session"]["token"])
    async with socket(api, other["token"]) as (_, ending), socket(api, ann.token) as (_, own):
        wrong = await api.run(CHANGE_PASSWORD, ann, old="wrong horse", new="new donkey 1")
        assert codes(wrong) == [("INVALID", "input.currentPassword")]
        assert not ending.done()

        done = await api.run(CHANGE_PASSWORD, ann, old="correct horse", new="new donkey 1")

        assert done["errors"] == []
        async with asyncio.timeout(20):
            await ending
        assert not own.done()
    for token in (other["token"],):
        with pytest.raises(UnauthenticatedError):
            await sessions.authenticate(api.deps, token)
    assert codes(await api.run(REFRESH, t=other["refreshToken"])) == [("INVALID", "refreshToken")]
    assert (await as_token(api, ann.token)).id == ann.id
    old = await api.run(SIGN_IN, login="ann", password="correct horse")
    assert codes(old) == [("INVALID", "input.password")]
    assert (await api.run(SIGN_IN, login="ann", password="new donkey 1"))["errors"] == []


async def test_a_refresh_lengthens_an_open_sockets_life(api: Api) -> None:
    ann = await sign_up(api.deps, "ann")
    async with socket(api, ann.token) as (state, _):
        before = state.expires_at
        assert before is not None
        async with api.deps.bus.attach(f"session:{ann.viewer.session_id}") as tap:
            await api.run(REFRESH, t=ann.refresh_token)
            assert (await tap.get(20)) is not None
        async with asyncio.timeout(20):
            while state.expires_at == before:
                assert await sessions.standing(api.deps, ann.viewer.session_id or "")
        assert state.expires_at is not None
        assert state.expires_at > before
