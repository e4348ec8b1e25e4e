"""The tools of this server: seeded from the code, switched by administrators, told to models."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select, true
from sqlalchemy.sql.elements import ColumnElement

from models.tools import Tool, ToolExecution, ToolParameter
from services import access
from services.base import Deps, Viewer, Work, work
from services.errors import UserError, UserErrorCode, UserErrors
from services.llm.base import ToolSpec
from services.tools import arguments as args
from services.tools.base import BuiltIn
from services.tools.builtin import BUILT_IN, BY_NAME


@access.rule(Tool)
def _tools(viewer: Viewer) -> ColumnElement[bool]:
    return true()


@access.rule(ToolParameter)
def _parameters(viewer: Viewer) -> ColumnElement[bool]:
    return true()


@access.rule(ToolExecution)
def _executions(viewer: Viewer) -> ColumnElement[bool]:
    return ToolExecution.user_id == viewer.user_id


@dataclass(frozen=True, slots=True)
class Found:
    """A tool of the table and, for one this version can run, its code."""

    id: str
    is_enabled: bool
    built_in: BuiltIn | None


async def seed(unit: Work) -> None:
    """Bring the table in line with the tools in the code; whether one is enabled stays as it is."""
    session = unit.session
    rows = {tool.name: tool for tool in await session.scalars(select(Tool))}
    for built_in in BUILT_IN:
        row = rows.get(built_in.name)
        if row is None:
            row = Tool(name=built_in.name, input_schema={})
            session.add(row)
        for name, value in _columns(built_in).items():
            # Only a difference is written, so that a second start changes nothing.
            if getattr(row, name) != value:
                setattr(row, name, value)
        await session.flush()
        await _seed_parameters(unit, row.id, built_in)


def _columns(tool: BuiltIn) -> dict[str, Any]:
    return {
        "description": tool.description,
        "category": tool.category,
        "version": tool.version,
        "exec_env": tool.environment,
        "input_schema": tool.input_schema,
        "timeout_s": tool.timeout_s,
    }


async def _seed_parameters(unit: Work, tool_id: str, tool: BuiltIn) -> None:
    session = unit.session
    rows = {
        row.name: row
        for row in await session.scalars(
            select(ToolParameter).where(ToolParameter.tool_id == tool_id)
        )
    }
    gone = [row.id for name, row in rows.items() if name not in tool.properties]
    if gone:
        await session.execute(delete(ToolParameter).where(ToolParameter.id.in_(gone)))
    for name, schema in tool.properties.items():
        row = rows.get(name)
        if row is None:
            row = ToolParameter(tool_id=tool_id, name=name)
            session.add(row)
        default = schema.get("default")
        values = {
            "description": schema["description"],
            "type": schema["type"],
            "required": name in tool.required,
            "default_value": default
            if default is None or isinstance(default, str)
            else json.dumps(default),
        }
        for column, value in values.items():
            if getattr(row, column) != value:
                setattr(row, column, value)


async def specs(deps: Deps) -> list[ToolSpec]:
    """Give the enabled tools as a model is told of them, in a fixed order."""
    async with deps.db.reading() as connection:
        enabled = set(await connection.scalars(select(Tool.name).where(Tool.enabled)))
    return [
        ToolSpec(tool.name, tool.description, tool.input_schema)
        for tool in BUILT_IN
        if tool.name in enabled
    ]


async def find(deps: Deps, name: str) -> tuple[Found | None, list[str]]:
    """Give the tool `name`, or None, and the names of all tools that can be used."""
    async with deps.db.reading() as connection:
        rows = (await connection.execute(select(Tool.id, Tool.name, Tool.enabled))).all()
    names = sorted(row.name for row in rows if row.enabled and row.name in BY_NAME)
    for row in rows:
        if row.name == name:
            return Found(row.id, row.enabled, BY_NAME.get(name)), names
    return None, names


def refusal(found: Found | None, name: str, names: Sequence[str]) -> UserError:
    """Say why a tool cannot be used (absent, switched off, without code), naming those that can."""
    if found is None:
        code, why = UserErrorCode.NOT_FOUND, "does not exist"
    elif not found.is_enabled:
        code, why = UserErrorCode.FORBIDDEN, "is switched off"
    else:
        code, why = UserErrorCode.UNAVAILABLE, "cannot be run by this version"
    others = ", ".join(names) or "none"
    return UserError(code, f"The tool {name[:100]!r} {why}; there are {others}.", ("tool",))


async def check_arguments(deps: Deps, name: str, arguments: Mapping[str, Any]) -> list[UserError]:
    """Check a call that is planned for later, and give what is wrong with it.

    The paths begin with `tool` or `arguments`. References to earlier steps such as
    `{{steps.0.output}}` are accepted for what they may turn out to be.
    """
    found, names = await find(deps, name)
    if found is None or found.built_in is None or not found.is_enabled:
        return [refusal(found, name, names)]
    try:
        await asyncio.to_thread(
            args.check,
            name,
            found.built_in.input_schema,
            args.read(arguments, ("arguments",)),
            path=("arguments",),
            allows_references=True,
        )
    except UserErrors as errors:
        return list(errors.errors)
    except UserError as error:
        return [error]
    return []


async def update(deps: Deps, viewer: Viewer, *, tool_id: str, is_enabled: bool | None) -> Tool:
    """Switch a tool on or off for everybody; None leaves it.

    Raises UserError FORBIDDEN without `tools:manage`, NOT_FOUND for an unknown tool.
    """
    viewer.require("tools:manage")
    async with work(deps) as unit:
        tool = await unit.lock(Tool, tool_id)
        if tool is None:
            raise UserError(UserErrorCode.NOT_FOUND, "There is no such tool.", ("id",))
        if is_enabled is not None and tool.enabled != is_enabled:
            tool.enabled = is_enabled
        await unit.session.flush()
        return tool.frozen()
