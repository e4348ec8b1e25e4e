"""Computed fields of tools and their executions."""

from collections.abc import Sequence

from models.accounts import User
from models.states import RunState
from models.tools import Tool, ToolExecution, ToolParameter
from resolvers.base import Info, Order, Page, PageArgs, reads
from services.errors import RequestError


async def one(info: Info, id_: str | None, name: str | None) -> Tool | None:
    """Give a tool by its id or by its name, or None.

    Raises RequestError BAD_USER_INPUT unless exactly one of the two is given.
    """
    if (id_ is None) == (name is None):
        raise RequestError("BAD_USER_INPUT", "Give `id` or `name`, and not both.")
    load = info.context.load
    if id_ is not None:
        return (await load.one(Tool, Tool.id, [id_]))[0]
    # Names are short words; what is none need not be asked for.
    return (await load.one(Tool, Tool.name, [name]))[0] if name and name.isascii() else None


async def listed(info: Info, page: PageArgs, is_enabled: bool | None) -> Page[Tool]:
    """Give a page of tools, by name."""
    where = [] if is_enabled is None else [Tool.enabled.is_(is_enabled)]
    return await info.context.load.list(Tool, page, order=Order(("name",)), where=where)


async def one_execution(info: Info, id_: str) -> ToolExecution | None:
    """Give an execution the viewer may see, or None."""
    return (await info.context.load.one(ToolExecution, ToolExecution.id, [id_]))[0]


async def executions(info: Info, page: PageArgs, status: RunState | None) -> Page[ToolExecution]:
    """Give a page of the viewer's own executions, the newest first."""
    where = []
    if status is not None:
        where.append(ToolExecution.status == status)
    return await info.context.load.list(
        ToolExecution,
        page,
        order=Order(is_descending=True),
        owner=ToolExecution.user_id,
        where=where,
    )


@reads(rows=("required",))
async def parameters(tools: Sequence[Tool], info: Info) -> list[list[ToolParameter]]:
    """Parameters of tools, the required ones first, then by name."""
    groups = await info.context.load.many(
        ToolParameter,
        ToolParameter.tool_id,
        [tool.id for tool in tools],
        order_by=ToolParameter.name,
    )
    return [sorted(group, key=lambda item: not item.required) for group in groups]


@reads("tool_id")
async def tool(executions: Sequence[ToolExecution], info: Info) -> list[Tool | None]:
    """The tools that were executed."""
    return await info.context.load.one(Tool, Tool.id, [item.tool_id for item in executions])


@reads("user_id")
async def user(executions: Sequence[ToolExecution], info: Info) -> list[User | None]:
    """For whom tools were executed."""
    return await info.context.load.one(User, User.id, [item.user_id for item in executions])
