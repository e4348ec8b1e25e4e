"""What a live subscription field gives: something to follow, and how its items become events."""

from collections.abc import AsyncIterator, Callable, Hashable
from dataclasses import dataclass
from typing import Any

from services.events.base import Bus
from services.streams import Follower


@dataclass(frozen=True, slots=True, eq=False)
class Live:
    """A source that many readers may share, and each may go on with from its own cursor.

    `follower(cursor)` makes a follower, at a snapshot if the cursor is None; `event(item)` makes
    the root value of an item. `after` is the cursor the client gave. `scope` stands for everything
    an answer depends on beside the operation and its variables, so for the viewer with all rights:
    readers of unequal scopes never share an execution.
    """

    bus: Bus
    follower: Callable[[str | None], Follower[Any]]
    event: Callable[[Any], Any]
    scope: Hashable
    after: str | None = None

    def __post_init__(self) -> None:
        """Refuse a bad cursor before anything begins. Raises RequestError BAD_USER_INPUT."""
        self.follower(self.after)

    def __aiter__(self) -> AsyncIterator[Any]:
        """Fail: the engine opens it. (graphql-core asks whether a source can be iterated.)"""
        raise TypeError("A live source is opened by the engine.")
