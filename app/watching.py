"""Whoever looks on while operations are executed: tracing, and the log of slow ones."""

from collections.abc import Awaitable
from math import inf
from time import perf_counter
from typing import TYPE_CHECKING

from graphql import ExecutionContext

from app.slow_operations import SlowOperations
from models.journal import Journal, journal
from schema.execution import Prepared
from schema.execution.levels import Run, Settled
from schema.execution.plan import Plan
from schema.execution.settling import MakeRun, Settle, settled

if TYPE_CHECKING:
    from app.spans import Tracing


class Watch:
    """Keeps a journal of each execution's statements."""

    def __init__(self, slow: SlowOperations | None, tracing: "Tracing | None") -> None:
        self._slow = slow
        self._slow_from_s = inf if slow is None else slow.from_s
        self._tracing = tracing

    def __call__(
        self,
        prepared: Prepared,
        plan: Plan | str,
        execution: ExecutionContext,
        settle: Settle = settled,
    ) -> Awaitable[Settled]:
        """Execute an operation, an event of a subscription or what is left of an answer."""
        if self._tracing is None:
            return self._noted(prepared, plan, execution, Journal(), Run, settle)
        return self._traced(self._tracing, prepared, plan, execution, settle)

    async def _traced(
        self,
        tracing: "Tracing",
        prepared: Prepared,
        plan: Plan | str,
        execution: ExecutionContext,
        settle: Settle,
    ) -> Settled:
        with tracing.execution(prepared, plan, execution.context_value) as (noted, run):
            data, errors = await self._noted(prepared, plan, execution, noted, run, settle)
            if errors:
                noted.has_errors()
            return data, errors

    async def _noted(
        self,
        prepared: Prepared,
        plan: Plan | str,
        execution: ExecutionContext,
        noted: Journal,
        run: MakeRun,
        settle: Settle,
    ) -> Settled:
        token = journal.set(noted)
        outcome, began = "canceled", perf_counter()
        try:
            data, errors = await settle(plan, execution, run)
            outcome = "error" if errors else "ok"
            return data, errors
        finally:
            took = perf_counter() - began
            journal.reset(token)
            noted.is_open = False
            if took >= self._slow_from_s and self._slow is not None:
                request_id = str(getattr(execution.context_value, "request_id", ""))
                self._slow.tell(prepared, plan, request_id, noted, took, outcome)
