"""What operations cost their viewers, whatever transport they come by."""

import math
from typing import Any

from resolvers.base import Context
from schema.execution import Prepared
from services.accounts import rate_limits

_REFUSED_POINTS = 10
"""Points of a document that cannot be run: it was read all the same."""


def check(context: Any) -> None:
    """Raise RateLimitedError, before anything is read, for whoever is known to have nothing left.

    Asks no other process.
    """
    if isinstance(context, Context):
        rate_limits.require_some(context.deps, context.viewer, context.client.ip_address)


def may_run_anything(context: Any) -> bool:
    """Tell whether a viewer may run documents that are not trusted."""
    return isinstance(context, Context) and context.viewer.may("everything:manage")


async def admit(prepared: Prepared, context: Context) -> None:
    """Spend what an operation costs, and tell of it in `extensions.cost`.

    Raises RateLimitedError and RequestError LIMIT. A subscription is paid for when it begins, as
    one event; its events tell of no cost, for readers share them.
    """
    budget = await rate_limits.spend(
        context.deps, context.viewer, context.client.ip_address, prepared.points
    )
    if prepared.type == "subscription":
        return
    cost: dict[str, Any] = {"requested": prepared.points}
    if budget is not None:
        cost |= {
            "limit": budget.limit,
            "spent": budget.spent,
            "left": budget.left,
            "resetAfter": math.ceil(budget.reset_s),
        }
    context.extensions["cost"] = cost


async def charge_refused(context: Any) -> None:
    """Spend what reading a document costs that cannot be run."""
    if isinstance(context, Context):
        await rate_limits.charge(
            context.deps, context.viewer, context.client.ip_address, _REFUSED_POINTS
        )
