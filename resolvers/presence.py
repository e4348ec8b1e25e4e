"""Computed fields of who is looking at a conversation."""

from collections.abc import Sequence
from typing import Any

from models.accounts import User
from resolvers.base import Info


async def user(viewers: Sequence[Any], info: Info) -> list[User | None]:
    """The people who look; None for those one may not see."""
    return await info.context.load.one(User, User.id, [viewer.user_id for viewer in viewers])
