"""Changes of state that people ask for, at the same time as others or as long ones.

Who asks for what another has asked for joins the change under way. A change that takes longer than
a request may goes on; its caller is given the sandbox as it stands, and its owner an event when it
is over.
"""

import asyncio
from typing import TYPE_CHECKING, Any

from sqlalchemy import update

from models.base import now
from models.sandboxes import Sandbox
from models.states import SandboxStatus
from services.base import Deps, work
from services.errors import UserError, UserErrorCode
from services.events.base import Json
from services.sandboxes import rows
from services.sandboxes.operations import operation

if TYPE_CHECKING:
    from services.sandboxes.node import Node

_ENDS = frozenset({SandboxStatus.STOPPED, SandboxStatus.FAILED, SandboxStatus.DELETED})


async def reach(
    deps: Deps, row: Sandbox, change: str, goal: SandboxStatus | None, **arguments: Any
) -> Sandbox:
    """Let its host bring a sandbox to a state, and give it as it is then.

    After `Options.change_wait_s` it is given as it stands, while the change goes on. Raises
    UserError CONFLICT when it is in another state than the `goal` by then, because of another
    request or because its time is over (None: any will do), and what `SandboxHost.ask` does.
    """
    try:
        async with asyncio.timeout(deps.options.change_wait_s):
            await deps.sandboxes.ask(row, change, **arguments)
    except TimeoutError:
        if goal is SandboxStatus.STOPPED:
            await _note_stop(deps, row.id)
        return await rows.sandbox(deps, row.id) or row
    present = await rows.sandbox(deps, row.id) or row
    ends = _ENDS if goal is SandboxStatus.STOPPED else frozenset({goal})
    if goal is not None and present.status not in ends:
        raise UserError(
            UserErrorCode.CONFLICT,
            f"The sandbox was changed again at the same time; it is {present.status} now.",
            ("id",),
        )
    return present


async def _note_stop(deps: Deps, sandbox_id: str) -> None:
    """Let the row say that the end was asked for: whoever hosts the sandbox brings it about."""
    async with work(deps) as unit:
        await unit.session.execute(
            update(Sandbox)
            .where(
                Sandbox.id == sandbox_id,
                Sandbox.status.in_(rows.LIVE),
                Sandbox.stop_requested_at.is_(None),
            )
            .values(stop_requested_at=now())
        )


@operation("await")
async def _await(node: "Node", sandbox_id: str, request: Json) -> None:
    await node.created(sandbox_id)
