"""Spans of operations, their levels and statements, and of tasks, by OpenTelemetry's conventions.

They hold no values of variables, no text of documents, and nothing of who asks.
"""

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from time import perf_counter
from typing import Any, TypeVar

from graphql import ExecutionContext
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from sqlalchemy import URL, Dialect

from app import graphql_metrics
from app.cli import VERSION
from app.graphql_documents import hash_of
from app.slow_operations import shortened
from models.journal import Journal, journal
from models.system import Task
from schema.execution import Divided, Prepared, Result
from schema.execution.levels import Run
from schema.execution.plan import Field, Plan
from schema.execution.settling import MakeRun

T = TypeVar("T")
Attributes = Mapping[str, str | int | bool | float]
_W3C = TraceContextTextMapPropagator()
_UNNAMED = "GraphQL Operation"
_TABLE = re.compile(r"\b(?:FROM|INTO|UPDATE|TABLE)\s+[`\"]?(\w+)", re.IGNORECASE)


class Noted(Journal):
    """A journal that makes a span of each statement, below whichever span is under way."""

    __slots__ = ("outcome", "span", "tracing")

    def __init__(self, tracing: "Tracing", span: Span) -> None:
        super().__init__()
        self.tracing = tracing
        self.span = span
        self.outcome = "refused"

    def begin(self, dialect: Dialect, text: str) -> Any:
        """Begin a span."""
        span = None
        if self.is_open and self.span.is_recording():
            span = self.tracing.statement(dialect, text)
        return perf_counter(), span

    def end(self, begun: Any, text: str, rows: int | None, error: BaseException | None) -> None:
        """End the span, with the number of rows."""
        started, span = begun
        super().end(started, text, rows, error)
        if span is None:
            return
        if rows is not None:
            span.set_attribute("db.response.returned_rows", rows)
        if error is not None:
            _failed(span, type(error).__name__)
        span.end()

    def traceparent(self) -> str | None:
        """Name the span under way."""
        if not self.is_open:
            return None
        carrier: dict[str, str] = {}
        _W3C.inject(carrier)
        return carrier.get("traceparent")

    def told(self, answer: Any) -> None:
        """Note how an operation ended, or that a stream of answers was opened."""
        self.outcome = "ok"
        if isinstance(answer, Divided):
            # What comes of the rest is told by its own failures.
            answer = answer.result
        if isinstance(answer, Result):
            self.outcome = graphql_metrics.outcome(answer)
            codes = sorted(code for code in answer.codes() if code)
            if codes:
                self.span.set_attribute("error.type", codes[0])
            if self.outcome in ("error", "timed_out"):
                self.span.set_status(Status(StatusCode.ERROR))

    def has_errors(self) -> None:
        """Note that an execution was answered with errors."""
        self.span.set_status(Status(StatusCode.ERROR))

    def close(self) -> None:
        """End the span of the operation; what still runs is noted no more."""
        if self.is_open:
            self.is_open = False
            self.span.set_attribute("noosphere.outcome", self.outcome)
            self.span.end()


class Levels(Run):
    """Runs a plan with a span for each level: the field, and what is below it."""

    def __init__(self, tracer: Tracer, plan: Plan, execution: ExecutionContext) -> None:
        super().__init__(plan, execution)
        self._tracer = tracer

    async def _fields(
        self, fields: Sequence[Field], rows: Sequence[Any], answers: Sequence[dict[str, Any]]
    ) -> None:
        first = fields[0]
        if not first.is_awaited:
            # It only leads on to what is below.
            await super()._fields(fields, rows, answers)
            return
        with self._tracer.start_as_current_span(
            first.place,
            attributes={"noosphere.level.parents": len(rows), "noosphere.level.key": first.key},
            record_exception=False,
            set_status_on_exception=False,
        ):
            await super()._fields(fields, rows, answers)


class Tracing:
    """Makes spans."""

    def __init__(self, provider: TracerProvider, database: URL) -> None:
        self._tracer = provider.get_tracer("noosphere", VERSION)
        self._database: dict[str, str | int] = {}
        if database.host:
            self._database |= {
                "db.namespace": database.database or "",
                "server.address": database.host,
                "server.port": database.port or 3306,
            }

    @contextmanager
    def caller(self, headers: Mapping[str, str]) -> Iterator[None]:
        """Take what begins in the block for a part of the caller's trace, if they say of one."""
        remote = trace.get_current_span(_remote(headers))
        with trace.use_span(remote, end_on_exit=False):
            yield

    async def operation(self, work: Callable[[], Awaitable[T]], attributes: Attributes) -> T:
        """Trace an operation from before its sign-in."""
        with self._operation(attributes):
            return await work()

    async def called(
        self,
        work: Callable[[], Awaitable[T]],
        headers: Mapping[str, str],
        attributes: Attributes,
    ) -> T:
        """Do as `operation`, for a caller who may say of a trace."""
        with self.caller(headers):
            return await self.operation(work, attributes)

    @contextmanager
    def _operation(self, attributes: Attributes) -> Iterator[Noted]:
        span = self._tracer.start_span(_UNNAMED, kind=SpanKind.SERVER, attributes=attributes)
        noted = Noted(self, span)
        token = journal.set(noted)
        try:
            with _current(span):
                yield noted
        finally:
            journal.reset(token)
            noted.close()

    async def trace(self, prepared: Prepared, context: Any, work: Callable[[], Awaitable[T]]) -> T:
        """Trace the execution of an operation, or the opening of a subscription."""
        noted = journal.get()
        if not isinstance(noted, Noted) or not noted.is_open:
            # One of several in a request.
            with self._operation({"noosphere.transport": "http"}):
                return await self.trace(prepared, context, work)
        noted.outcome = "canceled"
        if noted.span.is_recording():
            noted.span.update_name(prepared.type)
            noted.span.set_attributes(_described(prepared, context))
        answer = await work()
        noted.told(answer)
        if prepared.type == "subscription":
            # Its events have spans of their own.
            noted.close()
        return answer

    @contextmanager
    def execution(
        self, prepared: Prepared, plan: Plan | str, context: Any
    ) -> Iterator[tuple[Noted, MakeRun]]:
        """Trace an operation's execution, or that of an event of a subscription.

        An event begins a trace of its own, linked with the subscription: that may last for days.
        """
        if prepared.type != "subscription":
            span = trace.get_current_span()
            yield self._noted(span, plan)
            return
        attributes = {**_described(prepared, context), "noosphere.event": True}
        span = self._apart(prepared.type, SpanKind.INTERNAL, attributes)
        try:
            with _current(span):
                yield self._noted(span, plan)
        finally:
            span.end()

    def _noted(self, span: Span, plan: Plan | str) -> tuple[Noted, MakeRun]:
        if not span.is_recording():
            return Noted(self, span), Run
        if isinstance(plan, Plan):
            span.set_attribute("noosphere.executor", "plan")
        else:
            span.set_attributes({"noosphere.executor": "graphql-core", "noosphere.reason": plan})
        return Noted(self, span), partial(Levels, self._tracer)

    def statement(self, dialect: Dialect, text: str) -> Span:
        """Begin the span of a statement, below the one under way."""
        name, attributes = _statement(shortened(text))
        system = "mariadb" if getattr(dialect, "is_mariadb", False) else dialect.name
        return self._tracer.start_span(
            name or system,
            kind=SpanKind.CLIENT,
            attributes={"db.system.name": system, **self._database, **attributes},
        )

    async def task(self, work: Callable[[], Awaitable[T]], task: Task) -> T:
        """Trace the run of a task, linked with the operation that wrote it."""
        attributes: Attributes = {
            "noosphere.task.id": task.id,
            "noosphere.task.type": task.task_type,
            "noosphere.task.retries": task.retry_count,
        }
        origin = task.payload.get("traceparent")
        cause = _remote({"traceparent": origin}) if isinstance(origin, str) else None
        span = self._apart(f"process {task.task_type}", SpanKind.CONSUMER, attributes, cause)
        noted = Noted(self, span)
        token = journal.set(noted)
        try:
            with _current(span):
                answer = await work()
            noted.outcome = "ok"
            return answer
        except BaseException as error:
            noted.outcome = "error"
            _failed(span, type(error).__name__)
            raise
        finally:
            journal.reset(token)
            noted.close()

    def _apart(
        self, name: str, kind: SpanKind, attributes: Attributes, cause: Context | None = None
    ) -> Span:
        """Begin a trace of its own, linked with its cause or else with what is under way."""
        found = trace.get_current_span(cause).get_span_context()
        links = [Link(found)] if found.is_valid else []
        return self._tracer.start_span(
            name, Context(), kind=kind, attributes=attributes, links=links
        )


def _failed(span: Span, type_: str) -> None:
    span.set_attribute("error.type", type_)
    span.set_status(Status(StatusCode.ERROR))


@contextmanager
def _current(span: Span) -> Iterator[None]:
    with trace.use_span(
        span, end_on_exit=False, record_exception=False, set_status_on_exception=False
    ):
        yield


def _remote(headers: Mapping[str, str]) -> Context:
    names = ("traceparent", "tracestate")
    given = {name: headers[name] for name in names if isinstance(headers.get(name), str)}
    return _W3C.extract(given, Context())


def _described(prepared: Prepared, context: Any) -> dict[str, str | int | bool]:
    described: dict[str, str | int | bool] = {
        "graphql.operation.type": prepared.type,
        "graphql.document.hash": prepared.document.derived(
            "hash", prepared.operation, lambda: f"sha256:{hash_of(prepared.document.text)}"
        ),
        "noosphere.points": prepared.points,
        "noosphere.request_id": str(getattr(context, "request_id", "")),
    }
    if prepared.name:
        described["graphql.operation.name"] = prepared.name
    return described


@lru_cache(maxsize=512)
def _statement(text: str) -> tuple[str, dict[str, str]]:
    """Give the name of a statement's span, and what the text tells."""
    operation = text.partition(" ")[0].upper()
    table = _TABLE.search(text)
    summary = operation if table is None else f"{operation} {table[1]}"
    told = {
        "db.query.text": text,
        "db.query.summary": summary,
        "db.operation.name": operation,
    }
    if table is not None:
        told["db.collection.name"] = table[1]
    return summary, told
