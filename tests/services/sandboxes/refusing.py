"""What verbs refuse, and what is left behind."""

import re
from collections.abc import Awaitable
from typing import Any

import pytest
from sqlalchemy import func, select

from services.errors import UserError, UserErrorCode, UserErrors
from services.sandboxes.live import INSTALLATION_LABEL, installation
from tests.services.sandboxes.conftest import Server

Found = list[tuple[UserErrorCode, tuple[str, ...]]]
INVALID, LIMIT, REQUIRED = UserErrorCode.INVALID, UserErrorCode.LIMIT, UserErrorCode.REQUIRED
NOT_FOUND, CONFLICT, QUOTA = UserErrorCode.NOT_FOUND, UserErrorCode.CONFLICT, UserErrorCode.QUOTA


async def refusal(verb: Awaitable[object]) -> Found:
    """Give codes and paths of what a verb refuses, in words that a person can use."""
    with pytest.raises((UserError, UserErrors)) as caught:
        await verb
    error = caught.value
    errors = error.errors if isinstance(error, UserErrors) else [error]
    for each in errors:
        assert re.fullmatch(r"[A-Z`].{8,}[.?]", each.message, re.DOTALL), each.message
        assert not re.search(
            r"/(?:var|root|proc|tmp|usr|run)/|Traceback|0x[0-9a-f]{6}", each.message
        )
    return [(each.code, each.path) for each in errors]


async def count(server: Server, table: Any) -> int:
    async with server.deps.db.reading() as connection:
        return await connection.scalar(select(func.count()).select_from(table)) or 0


async def held_by_driver(server: Server) -> set[str]:
    node = await server.host.node()
    labels = {INSTALLATION_LABEL: installation(server.deps)}
    return {info.sandbox_id for info in await node.driver.list(labels)}
