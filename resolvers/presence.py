"""Computed fields of who is looking at a conversation."""

import asyncio
from collections.abc import Sequence
from typing import Any

from models.accounts import User
from models.conversations import Conversation
from resolvers.base import Info
from services.conversations import presence
from services.conversations.presence import Audience


async def of_conversations(
    conversations: Sequence[Conversation], info: Info
) -> list[Audience | None]:
    """Who looks at conversations now; asked for together, and None while nobody can tell."""
    async with asyncio.TaskGroup() as group:
        looks = [
            group.create_task(presence.look(info.context.deps, conversation.id))
            for conversation in conversations
        ]
    return [look.result() for look in looks]


async def user(viewers: Sequence[Any], info: Info) -> list[User | None]:
    """The people who look; None for those one may not see."""
    return await info.context.load.one(User, User.id, [viewer.user_id for viewer in viewers])
