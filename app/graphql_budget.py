"""What operations cost their viewers, whatever transport they come by."""

import math
from collections.abc import Awaitable
from typing import Any

from resolvers.base import Context
from schema.execution import Prepared
from services.accounts import rate_limits

_REFUSED_POINTS = 10
"""Points of a document that cannot be run."""

_FREE_CHARS, _CHARS_PER_POINT = 1_000, 10
"""Documents never seen before cost by their length: parsing and validation take a millisecond or
two for a thousand characters of the dearest kinds."""


def check(context: Any) -> None:
    """Raise RateLimitedError, before anything is read, for whoever is known to have nothing left.

    Asks no other process.
    """
    if isinstance(context, Context):
        rate_limits.require_some(context.deps, context.viewer, context.client.ip_address)


def may_run_anything(context: Any) -> bool:
    """Tell whether a viewer may run documents that are not trusted."""
    return isinstance(context, Context) and context.viewer.may("everything:manage")


def admit(prepared: Prepared, context: Context) -> Awaitable[None] | None:
    """Spend what an operation costs, and tell of it in `extensions.cost`.

    Gives what is to be awaited for that, or None where it is done at once. Raises RateLimitedError
    and RequestError LIMIT. A subscription is paid for when it begins, as one event; its events tell
    of no cost, for readers share them.
    """
    budget = rate_limits.spend_at_once(
        context.deps, context.viewer, context.client.ip_address, prepared.points
    )
    if budget is False:
        return _admit(prepared, context)
    _tell(prepared, context, budget)
    return None


async def _admit(prepared: Prepared, context: Context) -> None:
    budget = await rate_limits.spend(
        context.deps, context.viewer, context.client.ip_address, prepared.points
    )
    _tell(prepared, context, budget)


def _tell(prepared: Prepared, context: Context, budget: rate_limits.Budget | None) -> None:
    if prepared.type == "subscription":
        return
    cost: dict[str, Any] = {"requested": prepared.points}
    if budget is not None:
        cost["limit"] = budget.limit
        cost["spent"] = budget.spent
        cost["left"] = budget.left
        cost["resetAfter"] = math.ceil(budget.reset_s)
    context.extensions["cost"] = cost


async def charge_reading(context: Any, text: str, *, is_new: bool, is_refused: bool) -> None:
    """Spend what it cost to read a document, whether or not that is left."""
    points = _REFUSED_POINTS if is_refused else 0
    if is_new and len(text) > _FREE_CHARS:
        points += (len(text) - _FREE_CHARS) // _CHARS_PER_POINT
    if points and isinstance(context, Context):
        await rate_limits.charge(context.deps, context.viewer, context.client.ip_address, points)
