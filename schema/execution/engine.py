"""Executes operations of one schema with graphql-core, without going through its front door.

graphql-core parses, validates and coerces anew on every call, and again per event of a stream; here
a document is read once, variables are coerced once per request, the events of a subscription share
their operation's collected fields, and readers who ask the same share its events.
"""

import asyncio
import inspect
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Protocol

from graphql import ExecutionContext, GraphQLError, GraphQLSchema, located_error
from graphql.execution.collect_fields import collect_fields
from graphql.execution.subscribe import execute_subscription

from schema.execution.division import DividingPlanner
from schema.execution.documents import DocumentCache, ParsedDocument
from schema.execution.errors import (
    ErrorDict,
    execution_failures,
    failure,
    out_of_time,
    refusals,
    request_failure,
    request_id_of,
)
from schema.execution.feeds import Feeds
from schema.execution.levels import Settled
from schema.execution.limits import Limits, check_text
from schema.execution.live import Live
from schema.execution.plan import NotCoveredError, Plan, Planner, conditions
from schema.execution.prepared import Prepared, choose, execution_of
from schema.execution.reader import Reader, is_small
from schema.execution.result import Result, extensions_of
from schema.execution.roots import ArgumentsError, Root
from schema.execution.selections import Selections
from schema.execution.settling import Settle, settled
from schema.execution.sharing import cursor_variables, kind_of
from schema.execution.stream import Stream
from schema.execution.subscription import Subscription

_PLANS = 32
"""Plans a document keeps: one for each choice of what `@skip` and `@include` leave."""

Admit = Callable[[Prepared, Any], Awaitable[None] | None]
"""Admits an operation, or gives what is to be awaited for that."""


class Watch(Protocol):
    """Executes an operation, an event or what is left of an answer, and takes note of it."""

    def __call__(
        self,
        prepared: Prepared,
        plan: Plan | str,
        execution: ExecutionContext,
        settle: Settle = settled,
    ) -> Awaitable[Settled]:
        """Execute by `settle`."""


Trace = Callable[[Prepared, Any, Callable[[], Awaitable[Any]]], Coroutine[Any, Any, Any]]
"""Runs an operation from its admission on, or opens a subscription, and takes note of it."""


class Engine:
    """Prepares and executes operations of `schema`.

    The context given to `execute` and `subscribe` goes to the resolvers as it is. Three of its
    attributes are used where they exist: `request_id` (text in logs and masked errors),
    `extensions` (a map sent with the answer) and `begin_event()` (called before each event of a
    stream is executed, to drop loaders' memory).

    `admit` is called once before an operation starts, for costs and rate limits, and what it gives
    is awaited; a RequestError it raises refuses the operation.
    """

    def __init__(
        self,
        schema: GraphQLSchema,
        *,
        limits: Limits | None = None,
        cache_bytes: int = 16 * 1024 * 1024,
        admit: Admit | None = None,
        is_compiling: bool = True,
    ) -> None:
        self.schema = schema
        self._is_compiling = is_compiling
        # How often operations and events ran on which executor; why, where it was graphql-core.
        self.executed: Counter[tuple[str, str]] = Counter()
        # Whoever looks on while operations and events are executed.
        self.watch: Watch | None = None
        self.trace: Trace | None = None
        # What became of deferred fragments and streamed lists; why answers with them were whole.
        self.pieces: Counter[tuple[str, str]] = Counter()
        self.undivided: Counter[str] = Counter()
        self.limits = limits or Limits()
        self.documents = DocumentCache(schema, self.limits, cache_bytes)
        self.feeds = Feeds()
        self._reader = Reader(schema, self.limits)
        self._admit = admit

    def prepare(
        self, query: str, operation_name: str | None = None, variables: Any = None
    ) -> Prepared | list[ErrorDict]:
        """Read a document, choose its operation and coerce its variables.

        Gives formatted errors otherwise, `extensions.code` being GRAPHQL_PARSE_FAILED, LIMIT,
        GRAPHQL_VALIDATION_FAILED, OPERATION_RESOLUTION_FAILURE or BAD_USER_INPUT.
        """
        document = self.documents.load(query)
        if not isinstance(document, ParsedDocument):
            return document
        return choose(self.schema, document, operation_name, variables, self.limits)

    async def prepare_async(
        self, query: str, operation_name: str | None = None, variables: Any = None
    ) -> Prepared | list[ErrorDict]:
        """Do as `prepare`, reading large documents never seen before off the event loop.

        When too many of them wait to be read, the error is UNAVAILABLE.
        """
        documents = self.documents
        known = documents.known(query)
        if known is not None:
            return choose(self.schema, known, operation_name, variables, self.limits)
        if is_small(query) or documents.known_refusal(query):
            return self.prepare(query, operation_name, variables)
        too_large = check_text(query, self.limits)
        if too_large:
            return refusals(too_large, "LIMIT")
        documents.misses += 1
        document = await self._reader.read(query)
        if not isinstance(document, ParsedDocument):
            if document[0]["extensions"]["code"] != "UNAVAILABLE":
                documents.remember(query, document)
            return document
        documents.remember(query, document)
        return choose(self.schema, document, operation_name, variables, self.limits)

    def execute(
        self,
        prepared: Prepared,
        context: Any,
        *,
        timeout_s: float | None = None,
        undivided: str = "not accepted",
    ) -> Coroutine[Any, Any, Result]:
        """Run a query or mutation. Failures are in the result; only cancellation rises.

        After `timeout_s` seconds the resolvers are cancelled and the error is TIMED_OUT.
        `undivided` is why `@defer` and `@stream` are as if absent, for the metrics.
        """
        if prepared.document.is_divisible:
            self.undivided["mutation" if prepared.type == "mutation" else undivided] += 1
        if self.trace is not None:
            work = partial(self._execute, prepared, context, timeout_s)
            return self.trace(prepared, context, work)
        return self._execute(prepared, context, timeout_s)

    async def _execute(self, prepared: Prepared, context: Any, timeout_s: float | None) -> Result:
        refusal = await self.admitted(prepared, context)
        if refusal is not None:
            return refusal
        execution = execution_of(self.schema, prepared, context, None)
        if timeout_s is None:
            return await self._run(prepared, execution, context)
        try:
            async with asyncio.timeout(timeout_s) as deadline:
                return await self._run(prepared, execution, context)
        except TimeoutError:
            if not deadline.expired():
                raise
            return self.timed_out(context, timeout_s)

    def timed_out(self, context: Any, timeout_s: float | None) -> Result:
        """Give the answer to an operation that took longer than it may."""
        return Result(None, [out_of_time(timeout_s)], extensions_of(context))

    async def subscribe(
        self, prepared: Prepared, context: Any, *, timeout_s: float | None = None
    ) -> Stream | AsyncGenerator[Result, None] | Result:
        """Open a subscription; give its events, or a result with the errors that prevented it.

        A `Live` source gives a `Stream`, shared with whoever asks the same with the same rights;
        any other source is iterated for this reader alone. `timeout_s` bounds the opening, not the
        stream. A source that fails ends the stream with a result whose `is_executed` is False.
        Closing the stream, or cancelling the task that waits for its next event, closes the source
        at once.
        """
        if self.trace is not None:
            work = partial(self._subscribe, prepared, context, timeout_s)
            return await self.trace(prepared, context, work)  # type: ignore[no-any-return]
        return await self._subscribe(prepared, context, timeout_s)

    async def _subscribe(
        self, prepared: Prepared, context: Any, timeout_s: float | None
    ) -> Stream | AsyncGenerator[Result, None] | Result:
        refusal = await self.admitted(prepared, context)
        if refusal is not None:
            return refusal
        document, operation = prepared.document, prepared.operation
        undecided = [name for name in _conditions(prepared) if prepared.variables.get(name) is None]
        if undecided:
            # Every event would fail for it.
            told = f"${undecided[0]} decides what is selected: it must be true or false, not null."
            return Result.refused([failure("BAD_USER_INPUT", told)], extensions_of(context))
        root = document.derived("root", operation, partial(Root.of, self.schema, operation))
        if root is None and not _selects_anything(self.schema, prepared):
            nothing = "The subscription selects nothing: its field is skipped. Leave that out."
            return Result.refused([failure("BAD_USER_INPUT", nothing)], extensions_of(context))
        try:
            async with asyncio.timeout(timeout_s) as deadline:
                source = await self._source(root, prepared, context)
        except TimeoutError:
            if not deadline.expired():
                raise
            return Result.refused([out_of_time(timeout_s)], extensions_of(context))
        except GraphQLError as error:
            errors = execution_failures([error], request_id_of(context))
            return Result.refused(errors, extensions_of(context))
        if isinstance(source, Live):
            return self._share(source, prepared, context)
        if not hasattr(source, "__aiter__"):
            wrong = TypeError(f"Subscription {prepared.name} gave no async iterable.")
            return Result.refused([request_failure(wrong, request_id_of(context))])
        execution = execution_of(self.schema, prepared, context, None)
        return self._events(aiter(source), prepared, context, execution)

    async def _source(self, root: Root | None, prepared: Prepared, context: Any) -> Any:
        """Call the field of a subscription. Raises GraphQLError, saying where."""
        if root is not None:
            fragments, variables = prepared.document.fragments, prepared.variables
            try:
                source = root.call(prepared.operation, fragments, variables, context)
                return await source if inspect.isawaitable(source) else source
            except ArgumentsError:
                # The executor says what is wrong with them.
                pass
            except Exception as error:
                raise located_error(error, root.nodes, [root.key]) from error
        return await execute_subscription(execution_of(self.schema, prepared, context, None))

    def _share(self, live: Live, prepared: Prepared, context: Any) -> Stream:
        plans = prepared.document.plans
        cursor = ("cursor", prepared.name)
        if cursor not in plans:
            plans[cursor] = cursor_variables(prepared.document, prepared.operation)
        subscription = Subscription(
            live,
            kind_of(prepared, live, plans[cursor]),
            context,
            partial(Selections, self.schema, prepared),
            partial(self._execute_event, prepared),
        )
        return self.feeds.open(subscription)

    async def _execute_event(self, prepared: Prepared, context: Any, event: Any) -> Result:
        context.begin_event()
        return await self._run(
            prepared, execution_of(self.schema, prepared, context, event), context
        )

    async def _events(
        self,
        source: AsyncIterator[Any],
        prepared: Prepared,
        context: Any,
        first: ExecutionContext,
    ) -> AsyncGenerator[Result, None]:
        begin_event = getattr(context, "begin_event", None)
        end_event = getattr(context, "end_event", None)
        try:
            while True:
                try:
                    payload = await anext(source)
                except StopAsyncIteration:
                    return
                except Exception as error:  # noqa: BLE001 - masked and logged as any other bug.
                    failed = request_failure(error, request_id_of(context))
                    yield Result.refused([failed], extensions_of(context))
                    return
                if begin_event is not None:
                    begin_event()
                execution = execution_of(self.schema, prepared, context, payload)
                # Collected once: the selections of an operation do not change between events.
                execution._subfields_cache = first._subfields_cache
                result = await self._run(prepared, execution, context)
                result.cursor = getattr(payload, "cursor", None)
                if end_event is not None:
                    # Before the event is sent: a slow reader must not hold what it was read with.
                    await end_event()
                yield result
        finally:
            if end_event is not None:
                await end_event()
            aclose = getattr(source, "aclose", None)
            if aclose is not None:
                await aclose()

    async def admitted(self, prepared: Prepared, context: Any) -> Result | None:
        """Spend what an operation costs; gives the refusal if it may not run."""
        if self._admit is None:
            return None
        try:
            waiting = self._admit(prepared, context)
            if waiting is not None:
                await waiting
        except Exception as error:  # noqa: BLE001 - masked and logged as any other bug.
            failed = request_failure(error, request_id_of(context))
            return Result.refused([failed], extensions_of(context))
        return None

    async def _run(self, prepared: Prepared, execution: ExecutionContext, context: Any) -> Result:
        plan = self.plan(prepared)
        self.executed[prepared.type, "" if isinstance(plan, Plan) else plan] += 1
        if self.watch is None:
            data, errors = await settled(plan, execution)
        else:
            data, errors = await self.watch(prepared, plan, execution)
        if not errors:
            return Result(data, (), extensions_of(context))
        ordered = execution.build_response(None, errors).errors
        return Result(
            data, execution_failures(ordered, request_id_of(context)), extensions_of(context)
        )

    def plan(
        self, prepared: Prepared, *, is_divided: bool = False, is_whole: bool = False
    ) -> Plan | str:
        """Give the plan of an operation, made once; or a word for why it has none.

        `is_divided` and `is_whole`: see `division`.
        """
        if not self._is_compiling:
            return "turned off"
        if prepared.type == "mutation":
            return "mutation"
        document, variables = prepared.document, prepared.variables
        chosen: dict[str, Any] = {}
        for name in _conditions(prepared):
            if name in variables:
                chosen[name] = variables[name]
        key = ("plan", prepared.name, is_divided, is_whole, tuple(chosen.items()))
        plan = document.plans.get(key)
        if plan is None:
            plan = self._new_plan(prepared, self._planner(prepared, chosen, is_divided, is_whole))
            if sum(kind == "plan" for kind, *_ in document.plans) >= _PLANS:
                # Conditions in every combination: what is made for them all is not kept.
                return plan
            document.plans[key] = plan
            if isinstance(plan, Plan):
                self.documents.grew(document, plan.size_bytes)
        return plan  # type: ignore[no-any-return]

    def _planner(
        self, prepared: Prepared, chosen: dict[str, Any], is_divided: bool, is_whole: bool
    ) -> Planner:
        fragments = prepared.document.fragments
        if is_divided:
            return DividingPlanner(self.schema, fragments, chosen, is_whole=is_whole)
        return Planner(self.schema, fragments, chosen)

    def _new_plan(self, prepared: Prepared, planner: Planner) -> Plan | str:
        try:
            return planner.plan(prepared.operation)
        except NotCoveredError as reason:
            return str(reason)
        except (GraphQLError, RecursionError):
            # graphql-core says what is wrong.
            return "invalid"


def _conditions(prepared: Prepared) -> tuple[str, ...]:
    plans = prepared.document.plans
    names: tuple[str, ...] | None = plans.get(("conditions", prepared.name))
    if names is None:
        names = conditions(prepared.operation, prepared.document.fragments)
        plans["conditions", prepared.name] = names
    return names


def _selects_anything(schema: GraphQLSchema, prepared: Prepared) -> bool:
    root = schema.subscription_type
    return root is None or bool(
        collect_fields(
            schema,
            prepared.document.fragments,
            prepared.variables,
            root,
            prepared.operation.selection_set,
        )
    )
