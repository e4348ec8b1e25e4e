"""Tools the assistant and plans can use, and their executions."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import strawberry
from strawberry.scalars import JSON

from models import tools as tables
from models.states import RunState, ToolEnvironment
from resolvers import tools
from resolvers.base import Info, PageArgs, reads
from schema.base import (
    After,
    Before,
    Connection,
    First,
    Last,
    Node,
    Payload,
    answer,
    arg,
    attr,
    described_enum,
    field,
    mutation,
)
from services import tools as service

if TYPE_CHECKING:
    from schema.accounts import User

described_enum(
    ToolEnvironment,
    "Where a tool runs.",
    {
        ToolEnvironment.HOST: "In the server.",
        ToolEnvironment.SANDBOX: "In a sandbox.",
        ToolEnvironment.BOTH: "In either.",
    },
)


@strawberry.type(description="One parameter of a tool, as people read it.")
class ToolParameter(Node, row=tables.ToolParameter):
    name: str = attr("Its name.")
    description: str | None = attr("What it means.")
    type: str = attr("Its JSON type.")
    required: bool = attr("Whether a call must give it.", name="isRequired")
    default_value: str | None = attr("What holds when it is left out.")


@strawberry.type(description="Something the assistant and plans can use.")
class Tool(Node, row=tables.Tool):
    name: str = attr("Unique name, as models and plans use it.")
    description: str | None = attr("What it does, as models are told.")
    category: str | None = attr("What it is about.")
    version: str = attr("Its version.")
    enabled: bool = attr("Whether it may be used.", name="isEnabled")
    exec_env: ToolEnvironment = attr("Where it runs.", name="environment")
    input_schema: JSON = attr("JSON Schema of its arguments.")
    timeout_s: int = attr("How many seconds a run may take.", name="timeoutSeconds")
    created_at: datetime = attr("When it was added.")
    updated_at: datetime = attr("When it was last changed.")
    parameters: list[ToolParameter] = field(
        tools.parameters, "Its parameters, required ones first."
    )


@strawberry.type(description="One use of a tool.")
class ToolExecution(Node, row=tables.ToolExecution):
    parameters: JSON | None = attr("The arguments; null when they could not be read.")
    result: JSON | None = attr("What the tool gave, or `{error: {code, message}}`.")
    status: RunState = attr("Where it stands.")
    error_code: str | None = attr("Kind of its error.")
    error_message: str | None = attr("Its error, in words.")
    created_at: datetime = attr("When it was asked for.")
    started_at: datetime | None = attr("When it began; null when it was refused.")
    completed_at: datetime | None = attr("When it ended.")
    tool: Tool | None = field(tools.tool, "The tool.")
    user: Annotated["User", strawberry.lazy("schema.accounts")] | None = field(
        tools.user, "For whom it ran."
    )


@strawberry.type
class ToolsQuery:
    @strawberry.field(description="Tools, by name; none when anonymous.")
    @reads()
    async def tools(
        self,
        info: Info,
        first: First = None,
        after: After = None,
        last: Last = None,
        before: Before = None,
        is_enabled: Annotated[bool | None, arg("Only those that may, or may not, be used.")] = None,
    ) -> Connection[Tool]:
        page = PageArgs(first, after, last, before)
        return await tools.listed(info, page, is_enabled)  # type: ignore[return-value]

    @strawberry.field(description="A tool by its id or its name; null when there is no such.")
    @reads()
    async def tool(
        self,
        info: Info,
        id: Annotated[strawberry.ID | None, arg("Id of the tool.")] = None,
        name: Annotated[str | None, arg("Name of the tool, instead of its id.")] = None,
    ) -> Tool | None:
        return await tools.one(info, id, name)  # type: ignore[return-value]

    @strawberry.field(description="An execution of yours; null when there is no such.")
    @reads()
    async def tool_execution(
        self, info: Info, id: Annotated[strawberry.ID, arg("Id of the execution.")]
    ) -> ToolExecution | None:
        return await tools.one_execution(info, id)  # type: ignore[return-value]

    @strawberry.field(description="Your executions of tools, newest first; none when anonymous.")
    @reads()
    async def tool_executions(
        self,
        info: Info,
        first: First = None,
        after: After = None,
        last: Last = None,
        before: Before = None,
        status: Annotated[RunState | None, arg("Only those that stand so.")] = None,
    ) -> Connection[ToolExecution]:
        page = PageArgs(first, after, last, before)
        return await tools.executions(info, page, status)  # type: ignore[return-value]


@strawberry.input(description="Changes to a tool; what is left out stays.")
class ToolUpdateInput:
    is_enabled: strawberry.Maybe[bool] = attr("Whether it may be used.")


@strawberry.type(description="Answer to `toolUpdate`.")
class ToolUpdatePayload(Payload):
    tool: Tool | None = answer("The changed tool.")


async def _update(
    info: Info,
    id: Annotated[strawberry.ID, arg("Which tool.")],
    input: ToolUpdateInput,
) -> dict[str, object]:
    tool = await service.update(
        info.context.deps,
        info.context.viewer,
        tool_id=id,
        is_enabled=input.is_enabled.value if input.is_enabled else None,
    )
    return {"tool": tool}


@strawberry.type
class ToolsMutation:
    tool_update = mutation(ToolUpdatePayload, "Switch a tool on or off for everybody (admin).")(
        _update
    )
