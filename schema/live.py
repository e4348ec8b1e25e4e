"""How a subscription field gives what it follows."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable
from typing import Any, TypeVar, cast

from resolvers.base import Context
from schema.execution.live import Live
from services.streams import Follower, Item, Source, TopicFollower, position
from services.turns import turns

E = TypeVar("E")
S = TypeVar("S")


def _scope(context: Context) -> Hashable:
    """Give all that a viewer is and may do; when their sign-in ends is no part of it."""
    viewer = context.viewer
    return (viewer.user_id, viewer.session_id, viewer.username, viewer.roles, viewer.permissions)


async def shared(context: Context, key: Hashable, find: Callable[[], Awaitable[S]]) -> S:
    """Find what is followed, once for all who ask for it now with the same rights.

    Raises what `find` raises, and UnauthenticatedError for an anonymous viewer: who forgot to sign
    in is told so, whether what they ask for exists or not.
    """
    _ = context.viewer.id
    return await turns(context.deps).share((_scope(context), key), find)


def live(
    context: Context,
    follower: Callable[[str | None], Follower[Any]],
    after: str | None,
    event: Callable[[Any], E],
) -> AsyncGenerator[E, None]:
    """Follow something from the cursor `after`; `event` makes the root value of each item.

    Readers share it as long as they are of one sign-in with the same rights: what a field answers
    may depend on either. Raises RequestError BAD_USER_INPUT for what is not a cursor.
    """
    source = Live(context.deps.bus, follower, event, _scope(context), context.resume_after or after)
    # Strawberry reads the event's type from this annotation; the engine knows a Live by itself.
    return cast("AsyncGenerator[E, None]", source)


def live_topic(
    context: Context, source: Source, after: str | None, event: Callable[[Item], E]
) -> AsyncGenerator[E, None]:
    """Follow a topic from the cursor `after`, or from a snapshot; see `live`."""

    def follower(cursor: str | None) -> TopicFollower:
        return TopicFollower(context.deps, source, position(cursor))

    return live(context, follower, after, event)
