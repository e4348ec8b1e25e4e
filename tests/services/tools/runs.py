"""Runs of tools as they are stored."""

from sqlalchemy import select

from models.tools import Tool, ToolExecution


async def row_of(deps, outcome):
    async with deps.db.reading() as connection:
        return (
            await connection.execute(
                select(*ToolExecution.__table__.c, Tool.name.label("tool_name"))
                .join(Tool, Tool.id == ToolExecution.tool_id)
                .where(ToolExecution.id == outcome.execution_id)
            )
        ).one()


async def executions(deps):
    async with deps.db.reading() as connection:
        return (await connection.execute(select(*ToolExecution.__table__.c))).all()
