"""What was told of an answer in pieces, and what may be told next.

A piece is the data of one part at one place. Deferred fragments, and streamed lists, are promises:
each is announced once the place it belongs to was told, kept when all its pieces are there, and
broken by an error that no null within it could take. Nobody waits here; see `pieces`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from schema.execution.division import Usage
from schema.execution.errors import ErrorDict

Place = tuple[str | int, ...]
"""Keys and indexes from the root of the answer."""


class State(Enum):
    """Where a piece is on its way."""

    RUNNING = auto()
    READY = auto()
    TOLD = auto()
    # Nobody is to be told: what it belongs to came to nothing.
    DROPPED = auto()


@dataclass(slots=True, eq=False)
class Piece:
    """The data of one part at one place: `data` of an object, or `items` of a list."""

    place: Place
    promises: "list[Promise]"
    # The piece that holds its place; None for what was told at first.
    container: "Piece | None"
    state: State = State.RUNNING
    data: dict[str, Any] | None = None
    items: list[Any] | None = None
    errors: list[ErrorDict] = field(default_factory=list)
    # What nothing within could be null for.
    fatal: list[ErrorDict] = field(default_factory=list)

    @property
    def is_at_hand(self) -> bool:
        """Whether the place it belongs to was told."""
        return self.container is None or self.container.state is State.TOLD

    def can_be_told_for(self, promise: "Promise") -> bool:
        """Whether it is there, and so is its place once all pieces of a promise are told."""
        if self.state is State.RUNNING:
            return False
        container = self.container
        return self.is_at_hand or (
            container is not None
            and promise in container.promises
            and container.can_be_told_for(promise)
        )


@dataclass(slots=True, eq=False)
class Promise:
    """A deferred fragment at one place, or the rest of a list."""

    label: str | None
    place: Place
    # The promise it is nested in, which is kept first.
    parent: "Promise | None" = None
    # For a list: the index of the first item that comes.
    start: int | None = None
    pieces: list[Piece] = field(default_factory=list)
    # Given when it is announced.
    id: str | None = None
    is_done: bool = False
    is_broken: bool = False

    @property
    def kind(self) -> str:
        """`defer` or `stream`, for the metrics."""
        return "defer" if self.start is None else "stream"

    @property
    def live(self) -> list[Piece]:
        """Its pieces, but for those that nobody is to be told."""
        return [piece for piece in self.pieces if piece.state is not State.DROPPED]


@dataclass(slots=True)
class Update:
    """What is told together: announced, given, and kept or broken."""

    announced: list[Promise] = field(default_factory=list)
    # With each piece, the promise it is told for.
    given: list[tuple[Promise, Piece]] = field(default_factory=list)
    # With the errors of those that are broken.
    done: list[tuple[Promise, list[ErrorDict]]] = field(default_factory=list)
    has_next: bool = True

    def __bool__(self) -> bool:
        return bool(self.announced or self.given or self.done)


class Delivery:
    """Keeps the books of one operation."""

    def __init__(self) -> None:
        # In the order they were made.
        self._open: dict[Promise, None] = {}
        self._known: dict[tuple[Usage, Place], Promise] = {}
        self._announced = 0

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to tell."""
        return not self._open

    def expect(self, usages: Sequence[Usage], place: Place, container: Piece | None) -> Piece:
        """Expect a piece of an object, for all deferred fragments it belongs to."""
        promises = [self._promise(usage, place) for usage in usages]
        return self._piece(place, promises, container)

    def expect_items(
        self, label: str | None, place: Place, start: int, container: Piece | None
    ) -> Piece:
        """Expect the items of a list from an index on."""
        promise = Promise(label, place, start=start)
        self._open[promise] = None
        return self._piece(place, [promise], container)

    def _piece(self, place: Place, promises: list[Promise], container: Piece | None) -> Piece:
        piece = Piece(place, promises, container)
        for promise in promises:
            promise.pieces.append(piece)
        return piece

    def _promise(self, usage: Usage, place: Place) -> Promise:
        own = _prefix(place, usage.depth)
        promise = self._known.get((usage, own))
        if promise is None:
            promise = Promise(usage.label, own, self._above(usage, own))
            self._known[usage, own] = promise
            self._open[promise] = None
        return promise

    def _above(self, usage: Usage, place: Place) -> Promise | None:
        """Find the promise that one is nested in; fragments that promise nothing are not asked."""
        above = usage.parent
        while above is not None:
            promise = self._known.get((above, _prefix(place, above.depth)))
            if promise is not None:
                return promise
            above = above.parent
        return None

    def take(self) -> Update:
        """Give what can be told now, which is then told."""
        update = Update()
        while sum(self._advance(promise, update) for promise in tuple(self._open)):
            pass
        update.has_next = bool(self._open)
        return update

    def give_up(self, error: ErrorDict) -> Update:
        """Break all that was promised and not kept."""
        update = Update(has_next=False)
        for promise in self._open:
            promise.is_done = promise.is_broken = True
            if promise.id is not None:
                update.done.append((promise, [error]))
        self._open.clear()
        return update

    def _advance(self, promise: Promise, update: Update) -> bool:
        """Do what can be done for a promise; tell whether that may be of use to others."""
        if promise.is_done:
            return False
        live, parent = promise.live, promise.parent
        if (parent is not None and parent.is_broken) or not live:
            self._close(promise, update, [])
            return True
        if parent is not None and not parent.is_done:
            return False
        if promise.id is None:
            if not any(piece.is_at_hand for piece in live):
                return False
            promise.id = str(self._announced)
            self._announced += 1
            update.announced.append(promise)
        fatal = [error for piece in live for error in piece.fatal]
        if fatal and promise.start is None:
            self._close(promise, update, fatal)
            return True
        if not all(piece.can_be_told_for(promise) for piece in live):
            return False
        for piece in live:
            if piece.state is State.READY:
                piece.state = State.TOLD
                update.given.append((_nearest(piece, promise), piece))
        self._close(promise, update, fatal)
        return True

    def _close(self, promise: Promise, update: Update, fatal: list[ErrorDict]) -> None:
        told = [piece for piece in promise.pieces if piece.state is State.TOLD]
        promise.is_done = True
        promise.is_broken = bool(fatal) or not told
        if promise.id is not None:
            update.done.append((promise, fatal))
        del self._open[promise]
        for piece in promise.live:
            if piece.state is not State.TOLD and all(one.is_done for one in piece.promises):
                piece.state = State.DROPPED
                self._drop_below(piece)

    def _drop_below(self, container: Piece) -> None:
        """Drop what belongs to a place that nobody is told of."""
        for promise in self._open:
            for piece in promise.live:
                if piece.container is container:
                    piece.state = State.DROPPED
                    self._drop_below(piece)


def _nearest(piece: Piece, kept: Promise) -> Promise:
    """Give the promise whose place is nearest to a piece's, of those it can be told for."""
    able = [one for one in piece.promises if one.id is not None and not one.is_done]
    return max(able, key=lambda promise: (len(promise.place), promise is kept))


def _prefix(place: Place, depth: int) -> Place:
    """Give the place so many fields below the root that another lies at or under."""
    fields = 0
    for index, key in enumerate(place):
        if isinstance(key, str):
            if fields == depth:
                return place[:index]
            fields += 1
    return place


def kinds(promises: Iterable[tuple[Promise, list[ErrorDict]]]) -> list[tuple[str, str]]:
    """Name promises and what became of them, for the metrics."""
    return [(promise.kind, "broken" if fatal else "kept") for promise, fatal in promises]
