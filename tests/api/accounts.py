"""Operations on accounts and sign-ins."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from app.auth import connect as sign_in_socket
from app.graphql_protocol import ConnectionState
from services.accounts import sessions
from tests.fixtures import Api, Person

REGISTER = """
mutation($input: UserRegisterInput!) { userRegister(input: $input) {
  session { id token refreshToken expiresAt refreshExpiresAt }
  user { id username displayName email roles { name } } errors { code message path } } }
"""
SIGN_IN = """
mutation($login: String!, $password: String!) {
  sessionCreate(input: {login: $login, password: $password}) {
    session { id token refreshToken } user { id } errors { code message path } } }
"""
REFRESH = """
mutation($t: String!) { sessionRefresh(refreshToken: $t) {
  session { id token refreshToken } errors { code message path } } }
"""
REVOKE = "mutation($id: ID) { sessionRevoke(id: $id) { errors { code message path } } }"
SESSIONS = "{ viewer { sessions { nodes { id isCurrent isExpired userAgent ipAddress } } } }"
CHANGE_PASSWORD = """
mutation($old: String!, $new: String!) {
  userChangePassword(input: {currentPassword: $old, newPassword: $new}) {
    errors { code message path } } }
"""
SET_ROLES = """
mutation($id: ID!, $roles: [String!]!) { userRolesSet(input: {userId: $id, roles: $roles}) {
  user { id roles { name } } errors { code message path } } }
"""
VIEWER = "{ viewer { id username roles { name } } }"


def someone(name: str, **more: Any) -> dict[str, Any]:
    return {"username": name, "email": f"{name}@example.org", "password": "correct horse"} | more


def codes(payload: dict[str, Any]) -> list[tuple[str, str]]:
    return [(error["code"], ".".join(error["path"])) for error in payload["errors"]]


async def as_token(api: Api, token: str) -> Person:
    return Person(await sessions.authenticate(api.deps, token), token, "")


@asynccontextmanager
async def socket(api: Api, token: str) -> AsyncIterator[tuple[ConnectionState, Any]]:
    """Sign a socket in as the server does; the second value ends when it must be closed."""
    scope = {"type": "websocket", "headers": [], "client": ("127.0.0.1", 1)}
    state = await sign_in_socket(api.deps, scope, {"Authorization": f"Bearer {token}"})
    assert state.revoked is not None
    ending = asyncio.ensure_future(state.revoked.wait())
    try:
        yield state, ending
    finally:
        ending.cancel()
        await asyncio.gather(ending, return_exceptions=True)
