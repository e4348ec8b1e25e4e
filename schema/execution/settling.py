"""Having an operation, or an event, answered: by its plan, or by graphql-core."""

import inspect
from collections.abc import Awaitable, Callable

from graphql import ExecutionContext, GraphQLError

from schema.execution.levels import Run, Settled
from schema.execution.plan import Plan

MakeRun = Callable[[Plan, ExecutionContext], Run]
Settle = Callable[[Plan | str, ExecutionContext, MakeRun], Awaitable[Settled]]


def settled(
    plan: Plan | str, execution: ExecutionContext, run: MakeRun = Run
) -> Awaitable[Settled]:
    """Give data and errors; `plan` is a word for why there is none where graphql-core is to run."""
    if isinstance(plan, Plan):
        return run(plan, execution).answer()
    return _interpreted(execution)


async def _interpreted(execution: ExecutionContext) -> Settled:
    """Run an operation on graphql-core."""
    collected = execution.collected_errors
    try:
        data = execution.execute_operation(execution.operation, execution.root_value)
        if inspect.isawaitable(data):
            data = await data
    except GraphQLError as error:
        # A non-null field of the root failed: the whole of `data` is null.
        collected.add(error, None)
        data = None
    return data, collected.errors
