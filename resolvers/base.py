"""What resolvers work with: the context of one operation, and loads that answer for all parents.

A resolver is `async (parents, info, **arguments) -> list`, one answer per parent, in order. Under
graphql-core the schema puts an aiodataloader around it; a compiled plan calls it as it is.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import strawberry
from aiodataloader import DataLoader

from models.accounts import AuthSession
from models.base import Record
from models.statements import fetch
from resolvers.loads import Loads
from resolvers.pages import DEFAULT_PAGE, MAX_PAGE, Order, Page, PageArgs
from services.accounts.sessions import Client, viewer_of
from services.base import ANONYMOUS, Deps, Viewer
from services.streams import Snapshot

R = TypeVar("R", bound=Record)
F = TypeVar("F", bound=Callable[..., Any])
BatchResolver = Callable[..., Awaitable[Sequence[Any]]]
# Concurrent batches of one operation take at most this many connections.
_CONNECTIONS_PER_OPERATION = 4
# Tables whose rows are nodes of the graph; filled by the schema.
NODE_RECORDS: set[type[Record]] = set()


@dataclass(slots=True)
class Context:
    """One operation: who asks, what the process offers, and the loads under way.

    Every operation has a context of its own; in a subscription `begin_event` gives each event fresh
    loads, and `end_event` returns a pinned snapshot.
    """

    deps: Deps
    viewer: Viewer = ANONYMOUS
    request_id: str = ""
    client: Client = field(default_factory=Client)
    # A cursor the transport was given (`Last-Event-ID`): it comes before the argument `after`.
    resume_after: str | None = None
    # Whether the answer is this client's own though nobody is signed in: nobody may keep it then.
    depends_on_client: bool = False
    # Sent with the answer.
    extensions: dict[str, Any] = field(default_factory=dict)
    # Ids of rows read by the viewer's rights, of tables that others follow; see `access.follows`.
    seen: dict[type[Record], set[str]] = field(default_factory=dict)
    # What resolvers keep until the operation ends, by a name of theirs.
    kept: dict[str, Any] = field(default_factory=dict)
    _loaders: dict[Hashable, DataLoader[Any, Any]] = field(default_factory=dict)
    _slots: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(_CONNECTIONS_PER_OPERATION)
    )
    _pinned: Snapshot | None = None

    # The table of which no more than these columns are loaded.
    _narrow: tuple[type[Record] | None, frozenset[str]] = (None, frozenset())

    @property
    def load(self) -> Loads:
        """The ways to read rows.

        Made when asked for: kept, the two would hold each other, for the collector to find.
        """
        return Loads(self, *self._narrow)

    @property
    def is_pinned(self) -> bool:
        """Whether everything is answered from a snapshot."""
        return self._pinned is not None

    def is_busy(self) -> bool:
        """Tell whether its next select waits for others of the same operation."""
        return self._slots.locked()

    def batch(
        self, resolver: BatchResolver, info: Any, arguments: dict[str, Any]
    ) -> DataLoader[Any, Any]:
        """Give the loader that gathers the parents of one field with the same arguments."""
        key = (resolver, _freeze(arguments))
        loader = self._loaders.get(key)
        if loader is None:

            async def answer(parents: list[Any]) -> list[Any]:
                return list(await resolver(parents, info, **arguments))

            loader = DataLoader(answer, get_cache_key=_identity)
            self._loaders[key] = loader
        return loader

    def narrowed(self, record: type[Record], columns: frozenset[str]) -> "Context":
        """Give the same context, of which rows of a table are loaded with no more than these."""
        narrow = _copied(self)
        narrow._narrow = record, columns
        return narrow

    async def sign_in(self, session: AuthSession) -> None:
        """Answer the rest of the operation as the owner of a sign-in it has just begun."""
        viewer = await viewer_of(self.deps, session.user_id, session.id)
        if viewer is not None:
            self.viewer = viewer
            self.seen.clear()

    def begin_event(self) -> None:
        """Forget earlier loads, so that the next event is answered from the present state."""
        self._loaders.clear()
        self.seen.clear()

    async def end_event(self) -> None:
        """Return the snapshot the event was answered from, if there was one."""
        pinned, self._pinned = self._pinned, None
        if pinned is not None:
            await pinned.release()

    async def pin(self, snapshot: Snapshot) -> None:
        """Answer everything from a snapshot until `end_event`, which releases it."""
        await self.end_event()
        self._pinned = snapshot

    async def select(self, text: str, values: Sequence[Any]) -> Sequence[Any]:
        """Run one select of `models.statements`, from the snapshot if there is one."""
        pinned = self._pinned
        if pinned is not None:
            # One connection runs one statement at a time.
            async with pinned.lock:
                return await fetch(pinned.connection, text, values)
        async with self._slots:
            return await self.deps.db.select(text, values)


def _copier() -> Callable[[Context], Context]:
    """Give what copies a context: `copy` takes longer than all else that a load needs."""
    copies = "".join(f"    new.{name} = old.{name}\n" for name in Context.__slots__)
    scope: dict[str, Any] = {"make": object.__new__, "Context": Context}
    exec(f"def copy(old):\n    new = make(Context)\n{copies}    return new\n", scope)  # noqa: S102 - names of ours alone.
    return cast("Callable[[Context], Context]", scope["copy"])


_copied = _copier()
Info = strawberry.Info[Context, None]


class Parents:
    """All parents of a field at once, in the place of one.

    A compiled plan gives them to a batch field, which then answers for all.
    """

    __slots__ = ("rows",)

    def __init__(self, rows: Sequence[Any]) -> None:
        self.rows = rows


def known_by(attribute: str) -> Callable[[F], F]:
    """Mark a resolver whose node's id is an attribute of the parent, and surely exists.

    An answer that asks for no more than the id can be made from the parent.
    """

    def mark(resolver: F) -> F:
        resolver.known_by = attribute  # type: ignore[attr-defined]
        return resolver

    return mark


def reads(*columns: str, rows: Sequence[str] = ()) -> Callable[[F], F]:
    """Say which columns of its parents a batch resolver reads, beside the id.

    And that of the rows it gives it reads only `rows`: whatever else the operation does not select
    of them need not be loaded. A resolver that does not say is given whole rows, and loads them.
    """

    def mark(resolver: F) -> F:
        resolver.reads, resolver.reads_rows = frozenset(columns), frozenset(rows)  # type: ignore[attr-defined]
        return resolver

    return mark


def by_id_alone(record: type[R], ids: Sequence[str], info: Info) -> list[R | None] | None:
    """Give rows that hold nothing but their ids, if the operation asks for no more than those.

    For events that come many times a second and are seen to be the viewer's already: what is known
    needs no reading. None when more is asked for.
    """
    for node in info._raw_info.field_nodes:
        for selection in node.selection_set.selections if node.selection_set else ():
            name = getattr(selection, "name", None)
            if selection.kind != "field" or name is None or name.value not in ("id", "__typename"):
                return None
    row = record.Row
    empty = dict.fromkeys(row._fields)  # type: ignore[attr-defined]
    return [cast("R", row(**empty | {"id": id_})) for id_ in ids]


class _Same:
    """A parent without an id: equal to itself alone, and kept as long as its answer.

    Its address would not do: it is given to another object once the parent is gone.
    """

    __slots__ = ("parent",)

    def __init__(self, parent: Any) -> None:
        self.parent = parent

    def __hash__(self) -> int:
        return id(self.parent)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.parent is other.parent


def _identity(parent: Any) -> Hashable:
    return (type(parent), parent.id) if hasattr(parent, "id") else _Same(parent)


def _freeze(value: Any) -> Hashable:
    if isinstance(value, dict):
        return tuple(sorted((key, _freeze(item)) for key, item in value.items()))
    if isinstance(value, list | tuple):
        return tuple(_freeze(item) for item in value)
    return cast("Hashable", value)


__all__ = [
    "DEFAULT_PAGE",
    "MAX_PAGE",
    "BatchResolver",
    "Context",
    "Info",
    "Loads",
    "Order",
    "Page",
    "PageArgs",
    "Parents",
    "by_id_alone",
    "known_by",
    "reads",
]
