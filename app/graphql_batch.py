"""Several operations in one request, answered by a list in their order."""

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from starlette.types import Receive

from app import graphql_metrics
from app.graphql_body import CancelOnDisconnect
from app.graphql_reply import Reply
from app.graphql_request import BadRequestError, RequestInfo, read_params
from schema.execution import Prepared, Result, count_values, failure

if TYPE_CHECKING:
    from app.graphql_http import GraphQLHTTP

_Ready = tuple[Prepared, Any]


class Batch:
    """A list of operations. Each costs what it would alone, and each is refused by itself."""

    def __init__(
        self, endpoint: "GraphQLHTTP", items: list[Any], info: RequestInfo, most: int
    ) -> None:
        self._endpoint = endpoint
        self._items = items
        self._info = info
        self._most = most

    async def answer(self, receive: Receive, reply: Reply) -> None:
        """Run the operations: queries side by side; with a mutation, one after the other.

        Raises BadRequestError for none and for too many, and ClientGoneError.
        """
        if not self._items:
            raise BadRequestError("The list of operations is empty.")
        if len(self._items) > self._most:
            raise BadRequestError(
                f"The request has {len(self._items)} operations; the limit is {self._most}. "
                "Send several requests.",
                code="LIMIT",
            )
        self._check_values()
        first = await self._endpoint.context(self._info)
        if isinstance(first, Result):
            graphql_metrics.record("unknown", "http", graphql_metrics.outcome(first))
            await reply.result(first)
            return
        ready = [await self._ready(number, item) for number, item in enumerate(self._items)]
        objects = sum(one[0].objects for one in ready if not isinstance(one, Result))
        if objects > self._endpoint.max_objects:
            raise BadRequestError(
                f"The operations ask for up to {objects:,} objects together; the limit is "
                f"{self._endpoint.max_objects:,}. Send several requests.",
                code="LIMIT",
            )
        await reply.results(await self._run(ready, receive))

    def _check_values(self) -> None:
        """Hold the variables of all operations to what one may have, for they come at once."""
        limit = self._endpoint.max_values
        given = [item["variables"] for item in self._items if _has_variables(item)]
        if count_values(given, limit + len(given)) > limit + len(given):
            raise BadRequestError(
                f"The variables of the operations have more than {limit:,} values together; that "
                "is the limit. Send several requests.",
                code="LIMIT",
            )

    async def _ready(self, number: int, item: Any) -> _Ready | Result:
        info = replace(self._info, request_id=f"{self._info.request_id}-{number}")
        try:
            params = read_params(item)
        except BadRequestError as error:
            return Result.refused([failure(error.code, error.message)])
        # A context of its own, for each operation has its own loads.
        context = await self._endpoint.context(info)
        if isinstance(context, Result):
            return context
        prepared = await self._endpoint.prepare(params, context, info.request_id)
        if isinstance(prepared, Result):
            return prepared
        if prepared.type == "subscription":
            alone = "A subscription cannot be one of several operations: send it alone."
            return Result.refused([failure("SUBSCRIPTION_NOT_SUPPORTED", alone)])
        return prepared, context

    async def _run(self, ready: list[_Ready | Result], receive: Receive) -> list[Result]:
        types = {one[0].type for one in ready if not isinstance(one, Result)}
        if "mutation" in types:
            return [await self._execute(one) for one in ready]
        async with CancelOnDisconnect(receive), asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._execute(one)) for one in ready]
        return [task.result() for task in tasks]

    async def _execute(self, one: _Ready | Result) -> Result:
        return one if isinstance(one, Result) else await self._endpoint.execute(*one)


def _has_variables(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(item.get("variables"), dict)
