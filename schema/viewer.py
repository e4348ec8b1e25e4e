"""What becomes of the viewer's things: everything that lists of them need."""

from collections.abc import AsyncGenerator, Callable
from typing import Annotated

import strawberry

from resolvers import viewer
from resolvers.base import Info
from schema.accounts import User
from schema.base import arg, attr, described_enum, field
from schema.conversations import Conversation
from schema.live import live_topic
from schema.memories import Memory
from schema.plans import Plan
from schema.sandboxes import Sandbox
from services import changes, streams
from services.accounts import events

ChangeKind = changes.ChangeKind
described_enum(
    ChangeKind,
    "What became of a thing.",
    {
        changes.ChangeKind.CREATED: "It is new.",
        changes.ChangeKind.UPDATED: "It changed.",
        changes.ChangeKind.DELETED: "It was deleted.",
    },
)


@strawberry.interface(description="Something that became of your things.")
class ViewerEvent:
    cursor: str = attr("Give it as `after` to go on from here.")


@strawberry.type(
    description="A conversation was begun, deleted, renamed, archived or taken up again, or got a "
    "message. The pieces of an answer that is being written are told by `conversationEvents`."
)
class ConversationChanged(ViewerEvent):
    id: strawberry.ID = attr("Id of the conversation.")
    change: ChangeKind = attr("What became of it.")
    conversation: Conversation | None = field(
        viewer.conversation, "The conversation as it is now; null when it was deleted."
    )


@strawberry.type(
    description="A plan was made or deleted, or a run of it was begun, went on or ended. Its steps "
    "are told by `planExecutionEvents`."
)
class PlanChanged(ViewerEvent):
    id: strawberry.ID = attr("Id of the plan.")
    change: ChangeKind = attr("What became of it.")
    plan: Plan | None = field(viewer.plan, "The plan as it is now; null when it was deleted.")


@strawberry.type(
    description="A sandbox was asked for, is running, was paused, resumed, given more time, other "
    "limits or another network, is being stopped or was deleted, or it ended. That it is used "
    "(`lastActiveAt`) is not told."
)
class SandboxChanged(ViewerEvent):
    id: strawberry.ID = attr("Id of the sandbox.")
    change: ChangeKind = attr("What became of it.")
    sandbox: Sandbox | None = field(
        viewer.sandbox, "The sandbox as it is now; null when it was deleted."
    )


@strawberry.type(
    description="A memory was kept, changed, superseded or deleted, by you or by the assistant. "
    "That it is used (`accessCount`, `lastAccessedAt`) is not told."
)
class MemoryChanged(ViewerEvent):
    id: strawberry.ID = attr("Id of the memory.")
    change: ChangeKind = attr("What became of it.")
    memory: Memory | None = field(
        viewer.memory, "The memory as it is now; null when it was deleted."
    )


@strawberry.type(
    description="Begin anew from this snapshot: at the start, and when the cursor is unknown or "
    "too old."
)
class ViewerReset(ViewerEvent):
    viewer: User | None = field(
        viewer.owner, "You, with everything that is yours, at this very cursor."
    )


_EVENTS: dict[str, Callable[..., ViewerEvent]] = {
    "ConversationChanged": ConversationChanged,
    "PlanChanged": PlanChanged,
    "SandboxChanged": SandboxChanged,
    "MemoryChanged": MemoryChanged,
}


def _event(item: streams.Item) -> ViewerEvent:
    if isinstance(item, streams.Restarted):
        return ViewerReset(cursor=item.cursor)
    assert isinstance(item, streams.Happened)  # noqa: S101 - nothing grows here.
    return _EVENTS[item.type](
        cursor=item.cursor,
        id=item.payload["id"],
        change=changes.ChangeKind(item.payload["change"]),
    )


@strawberry.type
class ViewerSubscription:
    @strawberry.subscription(
        description="What becomes of your conversations, plans, sandboxes and memories: first a "
        "ViewerReset with its snapshot, or, with `after`, what you missed; then everything as it "
        "happens. Needs a sign-in."
    )
    async def viewer_events(
        self,
        info: Info,
        after: Annotated[str | None, arg("The cursor of the last event you have.")] = None,
    ) -> AsyncGenerator[ViewerEvent, None]:
        context = info.context
        return live_topic(context, events.source(context.viewer), after, _event)
