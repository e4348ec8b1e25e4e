"""Computed fields of what runs in sandboxes."""

import asyncio
from collections.abc import Sequence
from typing import Annotated

import strawberry

from models.sandboxes import Sandbox, SandboxExecution
from models.states import RunState, SandboxStatus
from resolvers.base import Info, Order, Page, PageArgs
from services.errors import UserError
from services.sandboxes import processes as service
from services.sandboxes.processes import Process

_NEWEST = Order(is_descending=True)


async def executions(
    sandboxes: Sequence[Sandbox],
    info: Info,
    page: PageArgs,
    status: Annotated[
        RunState | None, strawberry.argument(description="Only those with this status.")
    ] = None,
) -> list[Page[SandboxExecution]]:
    """Executions in sandboxes, the newest first."""
    return await info.context.load.page(
        SandboxExecution,
        SandboxExecution.sandbox_id,
        [sandbox.id for sandbox in sandboxes],
        page,
        order=_NEWEST,
        where=[SandboxExecution.status == status] if status is not None else (),
    )


async def processes(sandboxes: Sequence[Sandbox], info: Info) -> list[list[Process] | None]:
    """What runs in sandboxes at this moment; None for those that do not run or answer."""
    deps = info.context.deps

    async def tell(sandbox: Sandbox) -> list[Process] | None:
        if sandbox.status is not SandboxStatus.RUNNING:
            return None
        try:
            return await service.listing(deps, sandbox)
        except UserError:
            # It ended since its row was read, or its host is away.
            return None

    async with asyncio.TaskGroup() as group:
        told = [group.create_task(tell(sandbox)) for sandbox in sandboxes]
    return [task.result() for task in told]


async def process_execution(
    processes: Sequence[Process], info: Info
) -> list[SandboxExecution | None]:
    """Executions that processes belong to."""
    ids = [process.execution_id for process in processes]
    return await info.context.load.one(SandboxExecution, SandboxExecution.id, ids)
