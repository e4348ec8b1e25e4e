"""Operations answered in pieces, in the form a client wants them.

There are two forms. That of August 2022, which most clients ask for, tells with each piece where it
belongs; the draft of today announces pieces, and tells them by the ids it announced them with.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from enum import Enum
from functools import partial
from typing import Any

from graphql import GraphQLError

from schema.execution.cost import pieces_of
from schema.execution.delivery import Promise, Update, kinds
from schema.execution.encoding import encode
from schema.execution.engine import Engine
from schema.execution.errors import ErrorDict, execution_failures, out_of_time, request_id_of
from schema.execution.levels import Settled
from schema.execution.pieces import Pieces
from schema.execution.plan import Plan
from schema.execution.prepared import Prepared, execution_of
from schema.execution.result import Result, extensions_of
from schema.execution.settling import Settle


class Form(Enum):
    """A form of answers in pieces, by what clients call it."""

    BY_PATH = "deferSpec=20220824"
    BY_ID = "incrementalSpec=v0.2"


class Payload:
    """One message of an answer in pieces."""

    __slots__ = ("_content", "cursor", "errors")

    is_executed = True

    def __init__(self, content: dict[str, Any]) -> None:
        self.cursor: str | None = None
        self.errors: list[ErrorDict] = []
        self._content = content

    def json(self) -> bytes:
        """Give it as JSON. Raises TypeError as `Result.json` does."""
        return encode(self._content)


class Divided:
    """An answer in pieces: iterate over its messages, the first of which is there.

    `result` has the data of the first, and the errors of all that were told. It must be closed.
    """

    def __init__(
        self,
        result: Result,
        update: Update,
        pieces: Pieces,
        form: Form,
        counts: "Counter[tuple[str, str]]",
    ) -> None:
        self.result = result
        self._first: Update | None = update
        self._pieces = pieces
        self._form = form
        self._counts = counts

    def __aiter__(self) -> "Divided":
        return self

    async def __anext__(self) -> Payload:
        """Give the next message."""
        first, self._first = self._first, None
        if first is not None:
            return Payload(_first(self.result, first, self._form))
        update = await anext(self._pieces)
        self._counts.update(kinds(update.done))
        for _, piece in update.given:
            self.result.errors += piece.errors
        for _, errors in update.done:
            self.result.errors += errors
        return Payload(_next(update, self._form))

    async def aclose(self) -> None:
        """Cancel what is left."""
        await self._pieces.aclose()


class Divider:
    """Runs operations so that their answers come in pieces, where that can be."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def execute(
        self, prepared: Prepared, context: Any, form: Form, *, timeout_s: float | None = None
    ) -> Result | Divided:
        """Run a query whose client accepts pieces; an answer of one piece is a plain result.

        What cannot be divided runs as if it had no `@defer` and `@stream`. `timeout_s` bounds the
        whole: what is not told by then is told to be TIMED_OUT.
        """
        engine = self._engine
        plan = self._plan(prepared, form)
        if isinstance(plan, str):
            return await engine.execute(prepared, context, timeout_s=timeout_s, undivided=plan)
        work = partial(self._execute, prepared, plan, context, form, timeout_s)
        if engine.trace is not None:
            return await engine.trace(prepared, context, work)  # type: ignore[no-any-return]
        return await work()

    async def _execute(
        self, prepared: Prepared, plan: Plan, context: Any, form: Form, timeout_s: float | None
    ) -> Result | Divided:
        engine = self._engine
        refusal = await engine.admitted(prepared, context)
        if refusal is not None:
            return refusal
        id_ = request_id_of(context)
        deadline = None
        if timeout_s is not None:
            deadline = asyncio.get_running_loop().time() + timeout_s
        execution = execution_of(engine.schema, prepared, context, None)
        pieces = Pieces(
            plan, execution, id_, deadline=deadline, late=lambda: out_of_time(timeout_s)
        )
        engine.executed[prepared.type, ""] += 1
        watch = None if engine.watch is None else partial(engine.watch, prepared, plan, execution)
        try:
            async with asyncio.timeout_at(deadline) as limit:
                data, found, update = await _watched_first(pieces, watch)
        except TimeoutError:
            if not limit.expired():
                raise
            return Result(None, [out_of_time(timeout_s)], extensions_of(context))
        errors = execution.build_response(None, found).errors
        result = Result(data, execution_failures(errors, id_), extensions_of(context))
        if not update.has_next:
            return result
        pieces.begin(None if watch is None else partial(_watched_rest, pieces, watch))
        return Divided(result, update, pieces, form, engine.pieces)

    def _plan(self, prepared: Prepared, form: Form) -> Plan | str:
        """Give the plan of an operation; or a word for why its answer comes as a whole."""
        engine = self._engine
        if prepared.type != "query":
            return prepared.type
        most = engine.limits.max_pieces
        count = pieces_of(
            engine.schema, prepared.document, prepared.operation, prepared.variables, engine.limits
        )
        if count > most:
            return "too many"
        return engine.plan(prepared, is_divided=True, is_whole=form is Form.BY_PATH)


_Watch = Callable[[Settle], Awaitable[Settled]]


async def _watched_first(
    pieces: Pieces, watch: _Watch | None
) -> tuple[dict[str, Any] | None, list[GraphQLError], Update]:
    if watch is None:
        return await pieces.first()
    updates: list[Update] = []

    async def settle(*_: Any) -> Settled:
        data, errors, update = await pieces.first()
        updates.append(update)
        return data, errors

    data, errors = await watch(settle)
    return data, errors, updates[0]


async def _watched_rest(pieces: Pieces, watch: _Watch, work: Callable[[], Awaitable[None]]) -> None:
    async def settle(*_: Any) -> Settled:
        await work()
        if pieces.is_late:
            # The client was told; whoever watches is to know that it was stopped.
            raise TimeoutError
        return None, pieces.errors

    with suppress(TimeoutError):
        await watch(settle)


def _first(result: Result, update: Update, form: Form) -> dict[str, Any]:
    payload = result.payload()
    extensions = payload.pop("extensions", None)
    if form is Form.BY_ID:
        payload["pending"] = [_announced(promise) for promise in update.announced]
    payload["hasNext"] = update.has_next
    if extensions is not None:
        payload["extensions"] = extensions
    return payload


def _next(update: Update, form: Form) -> dict[str, Any]:
    payload: dict[str, Any] = {}
    if form is Form.BY_PATH:
        payload["incremental"] = list(_by_path(update))
    else:
        payload["pending"] = [_announced(promise) for promise in update.announced]
        payload["incremental"] = list(_by_id(update))
        payload["completed"] = [
            {"id": promise.id} | ({"errors": errors} if errors else {})
            for promise, errors in update.done
        ]
    return {key: value for key, value in payload.items() if value} | {"hasNext": update.has_next}


def _announced(promise: Promise) -> dict[str, Any]:
    told: dict[str, Any] = {"id": promise.id, "path": promise.place}
    return told if promise.label is None else told | {"label": promise.label}


def _by_id(update: Update) -> Iterator[dict[str, Any]]:
    for promise, piece in update.given:
        told: dict[str, Any] = {"id": promise.id}
        below = piece.place[len(promise.place) :]
        if below:
            told["subPath"] = below
        if piece.items is None:
            told["data"] = piece.data
        elif piece.items or piece.errors:
            told["items"] = piece.items
        else:
            continue
        yield told | ({"errors": piece.errors} if piece.errors else {})


def _by_path(update: Update) -> Iterator[dict[str, Any]]:
    for promise, piece in update.given:
        told: dict[str, Any]
        if promise.start is None:
            told = {"data": piece.data, "path": promise.place}
        elif piece.items:
            told = {"items": piece.items, "path": (*promise.place, promise.start)}
        else:
            continue
        yield _labelled(told, promise, piece.errors)
    for promise, errors in update.done:
        if not errors:
            continue
        if promise.start is None:
            yield _labelled({"data": None, "path": promise.place}, promise, errors)
            continue
        start = promise.start + sum(len(piece.items or ()) for piece in promise.pieces)
        yield _labelled({"items": None, "path": (*promise.place, start)}, promise, errors)


def _labelled(told: dict[str, Any], promise: Promise, errors: list[ErrorDict]) -> dict[str, Any]:
    if promise.label is not None:
        told["label"] = promise.label
    if errors:
        told["errors"] = errors
    return told
