"""Accounts: who becomes what, who signs in, and what roles change."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from app.graphql_protocol import ConnectionState
from app.runtime import running
from models.accounts import User
from services.base import Deps
from tests.api import operations as op
from tests.api.accounts import (
    REGISTER,
    SET_ROLES,
    SIGN_IN,
    VIEWER,
    as_token,
    codes,
    socket,
    someone,
)
from tests.api.people import sign_up
from tests.fixtures import Api, settings_for

# ---- registration


async def test_the_first_to_register_becomes_administrator_and_the_log_says_so(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="noosphere.accounts"):
        first = await api.run(REGISTER, input=someone("Ann", displayName="Ann A."))
    said = [r.getMessage() for r in caplog.records if r.name == "noosphere.accounts"]
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="noosphere.accounts"):
        second = await api.run(REGISTER, input=someone("bob"))

    assert first["errors"] == second["errors"] == []
    assert first["user"]["roles"] == [{"name": "admin"}]
    assert second["user"]["roles"] == [{"name": "user"}]
    assert first["user"]["username"] == "ann"
    assert (first["user"]["displayName"], second["user"]["displayName"]) == ("Ann A.", "bob")
    assert len(said) == 1
    assert "admin" in said[0]
    assert "ann" in said[0]
    assert not [r for r in caplog.records if r.name == "noosphere.accounts"]
    found = await api.run(VIEWER, await as_token(api, first["session"]["token"]))
    assert found["username"] == "ann"


async def test_of_many_first_registrations_at_once_one_becomes_administrator(api: Api) -> None:
    answers = await asyncio.gather(
        *(api.run(REGISTER, input=someone(f"person{n}")) for n in range(8))
    )

    assert all(answer["errors"] == [] for answer in answers)
    roles = sorted(answer["user"]["roles"][0]["name"] for answer in answers)
    assert roles == ["admin"] + ["user"] * 7


async def test_a_name_or_address_can_be_taken_once_whatever_its_spelling(api: Api) -> None:
    await api.run(REGISTER, input=someone("ann"))

    taken = await api.run(REGISTER, input=someone("ANN", email="Other@Example.org"))
    address = await api.run(REGISTER, input=someone("eve", email="ANN@example.org"))
    both = await api.run(REGISTER, input=someone("Ann"))
    # A name that is somebody's address would let two people sign in with one login.
    racing = await asyncio.gather(*(api.run(REGISTER, input=someone("twin")) for _ in range(4)))

    assert codes(taken) == [("CONFLICT", "input.username")]
    assert codes(address) == [("CONFLICT", "input.email")]
    assert codes(both) == [("CONFLICT", "input.username"), ("CONFLICT", "input.email")]
    assert sorted(len(answer["errors"]) == 0 for answer in racing) == [False, False, False, True]
    assert {code for answer in racing for code, _ in codes(answer)} == {"CONFLICT"}
    async with api.deps.db.reading() as connection:
        assert await connection.scalar(select(func.count(User.id))) == 2


IMPOSSIBLE = [
    ({"username": "a"}, "username"),
    ({"username": "a b"}, "username"),
    ({"username": "x" * 51}, "username"),
    ({"username": "ann@home"}, "username"),
    ({"email": "nobody"}, "email"),
    ({"email": "a@b@c"}, "email"),
    ({"password": "short"}, "password"),
    ({"password": "x" * 201}, "password"),
    ({"displayName": "a\nb"}, "displayName"),
]


async def test_an_account_that_cannot_be_is_refused(api: Api) -> None:
    for change, path in IMPOSSIBLE:
        answer = await api.run(REGISTER, input=someone("ann") | change)

        assert [p for _, p in codes(answer)] == [f"input.{path}"]
        assert answer["session"] is None
        assert "short" not in answer["errors"][0]["message"]
    async with api.deps.db.reading() as connection:
        assert await connection.scalar(select(func.count(User.id))) == 0


async def test_all_that_is_wrong_is_told_at_once(api: Api) -> None:
    answer = await api.run(REGISTER, input={"username": "", "email": "x", "password": "x"})

    assert [path for _, path in codes(answer)] == [
        "input.username",
        "input.email",
        "input.password",
    ]


async def test_where_registration_is_closed_nobody_registers(
    tmp_path: Path, database_url: str
) -> None:
    settings = settings_for(tmp_path, database_url=database_url, registration="closed")
    async with running(settings) as deps:
        answer = await Api(deps).run(REGISTER, input=someone("ann"))

        assert codes(answer) == [("FORBIDDEN", "")]
        async with deps.db.reading() as connection:
            assert await connection.scalar(select(func.count(User.id))) == 0


# ---- signing in


async def test_a_person_signs_in_by_name_or_address(api: Api) -> None:
    made = await api.run(REGISTER, input=someone("ann"))
    for login in ("ann", "ANN", " ann ", "ann@example.org", "Ann@Example.ORG"):
        answer = await api.run(SIGN_IN, login=login, password="correct horse")
        assert answer["errors"] == [], login
        assert answer["user"]["id"] == made["user"]["id"]


async def test_an_unknown_user_and_a_wrong_password_get_the_same_answer(api: Api) -> None:
    await api.run(REGISTER, input=someone("ann"))

    wrong = await api.raw(SIGN_IN, login="ann", password="wrong horse")
    unknown = await api.raw(SIGN_IN, login="nobody", password="wrong horse")

    assert wrong == unknown
    assert codes(wrong["data"]["sessionCreate"]) == [("INVALID", "input.password")]


@pytest.fixture
async def strict(tmp_path: Path, database_url: str) -> AsyncIterator[Api]:
    """A server that allows three attempts to sign in."""
    settings = settings_for(
        tmp_path, database_url=database_url, sign_in_attempts=3, sign_in_window=120
    )
    async with running(settings) as deps:
        yield Api(deps)


async def test_too_many_attempts_are_throttled_for_that_login_alone(strict: Api) -> None:
    for name in ("ann", "bob"):
        await strict.run(REGISTER, input=someone(name))
    for login in ("ann", "ANN", "nobody"):
        for _ in range(3 if login == "nobody" else 1):
            answer = await strict.run(SIGN_IN, login=login, password="wrong horse")
            assert codes(answer) == [("INVALID", "input.password")]
    await strict.run(SIGN_IN, login="ann ", password="wrong horse")

    for login in ("ann", "nobody"):
        refused = await strict.raw(SIGN_IN, login=login, password="correct horse")
        (error,) = refused["errors"]
        assert error["extensions"]["code"] == "RATE_LIMITED"
        assert 0 < error["extensions"]["retryAfter"] <= 120
        assert refused["data"] is None
    other = await strict.run(SIGN_IN, login="bob", password="correct horse")
    assert other["errors"] == []


async def test_a_successful_sign_in_clears_the_count(strict: Api) -> None:
    await strict.run(REGISTER, input=someone("ann"))
    for _ in range(3):
        for _ in range(2):
            await strict.run(SIGN_IN, login="ann", password="wrong horse")
        assert (await strict.run(SIGN_IN, login="ann", password="correct horse"))["errors"] == []


# ---- roles


async def test_an_administrator_gives_and_takes_roles(api: Api) -> None:
    admin = await sign_up(api.deps, "admin", "admin")
    ann = await sign_up(api.deps, "ann")

    unknown = await api.run(SET_ROLES, admin, id=ann.id, roles=["user", "king"])
    answer = await api.run(SET_ROLES, admin, id=ann.id, roles=["viewer", "user", "viewer"])

    assert codes(unknown) == [("INVALID", "input.roles")]
    assert "king" in unknown["errors"][0]["message"]
    assert answer["errors"] == []
    assert answer["user"]["roles"] == [{"name": "user"}, {"name": "viewer"}]


async def test_the_last_administrator_cannot_be_demoted(api: Api) -> None:
    admin = await sign_up(api.deps, "admin", "admin")
    ann = await sign_up(api.deps, "ann")

    refused = await api.run(SET_ROLES, admin, id=admin.id, roles=["user"])
    assert codes(refused) == [("CONFLICT", "input.roles")]
    assert (await api.run(VIEWER, admin))["roles"] == [{"name": "admin"}]

    assert (await api.run(SET_ROLES, admin, id=ann.id, roles=["admin"]))["errors"] == []
    assert (await api.run(SET_ROLES, admin, id=admin.id, roles=["user"]))["errors"] == []


async def test_two_administrators_cannot_demote_each_other_at_once(api: Api) -> None:
    people = [await sign_up(api.deps, name, "admin") for name in ("ann", "bob")]

    answers = await asyncio.gather(
        api.run(SET_ROLES, people[0], id=people[1].id, roles=["user"]),
        api.run(SET_ROLES, people[1], id=people[0].id, roles=["user"]),
    )

    assert sorted(len(answer["errors"]) for answer in answers) == [0, 1]


async def test_a_change_of_roles_ends_what_was_begun_with_the_old_ones(
    api: Api, deps: Deps
) -> None:
    admin = await sign_up(deps, "admin", "admin")
    ann = await sign_up(deps, "ann", "viewer")

    async def create(state: ConnectionState) -> Any:
        context = await state.make_context("test")
        prepared = api.engine.prepare(op.CREATE_CONVERSATION, None, {})
        assert not isinstance(prepared, list)
        answer = (await api.engine.execute(prepared, context)).payload()
        return [e["code"] for e in answer["data"]["conversationCreate"]["errors"]]

    async with socket(api, ann.token) as (state, ending), socket(api, admin.token) as (_, other):
        assert await create(state) == ["FORBIDDEN"]
        await api.run(SET_ROLES, admin, id=ann.id, roles=["user"])
        async with asyncio.timeout(20):
            assert await ending == "Rights changed"
        assert not other.done()
    async with socket(api, ann.token) as (state, ending):
        assert await create(state) == []
        await api.run(SET_ROLES, admin, id=ann.id, roles=["viewer"])
        async with asyncio.timeout(20):
            assert await ending == "Rights changed"
        assert await create(state) == ["FORBIDDEN"]
