"""Who is looking at a conversation now."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from typing import Annotated

import strawberry

from resolvers import presence
from resolvers.base import Info
from schema.accounts import User
from schema.base import arg, attr, field
from services.conversations import presence as service


@strawberry.type(description="Somebody who is looking at a conversation.")
class ConversationViewer:
    user_id: strawberry.Private[str]
    joined_at: datetime = attr("Since when, on the device that has looked for longest.")
    device_count: int = attr("Through how many sign-ins. Many tabs of one sign-in are one.")
    user: User | None = field(presence.user, "Who it is; null when you may not see them.")


@strawberry.type(
    description="Who is looking at a conversation: whoever follows its `conversationPresence`."
)
class ConversationPresence:
    viewers: list[ConversationViewer] = attr(
        "Those who look, the first to come first; at most 100 of them. You are one."
    )
    total_count: int = attr("How many people look.")


@strawberry.type
class PresenceSubscription:
    @strawberry.subscription(
        description="Look at a conversation, and know who else does: all of them at once, and "
        "again whenever somebody comes or goes. You are seen by them until you unsubscribe. "
        "Nothing of it is kept, so there is no cursor: subscribe again after a break."
    )
    async def conversation_presence(
        self,
        info: Info,
        conversation_id: Annotated[strawberry.ID, arg("Id of the conversation.")],
    ) -> AsyncGenerator[ConversationPresence, None]:
        context = info.context
        audiences = service.follow(context.deps, context.viewer, conversation_id)
        async with aclosing(audiences):
            async for audience in audiences:
                yield ConversationPresence(
                    viewers=[
                        ConversationViewer(
                            user_id=viewer.user_id,
                            joined_at=viewer.joined_at,
                            device_count=viewer.device_count,
                        )
                        for viewer in audience.viewers
                    ],
                    total_count=audience.total_count,
                )
