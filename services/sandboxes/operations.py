"""What a node does for the others: operations by name, and what is attached to each node.

Modules of this package register theirs where the verb is, so that nobody has to know them all:

    @operations.operation("stat")
    async def _stat(node: Node, sandbox_id: str, request: Json) -> Mapping[str, Any]: ...

    @operations.attachment
    @asynccontextmanager
    async def _watching(node: Node) -> AsyncIterator[None]: ...
"""

import importlib
import pkgutil
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

from services.events.base import Json

if TYPE_CHECKING:
    from services.sandboxes.node import Node

Operation = Callable[["Node", str, Json], Awaitable[Mapping[str, Any] | None]]
Attachment = Callable[["Node"], AbstractAsyncContextManager[None]]

OPERATIONS: dict[str, Operation] = {}
ATTACHMENTS: list[Attachment] = []


def operation(name: str) -> Callable[[Operation], Operation]:
    """Register what `SandboxHost.ask(row, name, …)` does on the node that hosts the sandbox.

    It is given the node, the sandbox's id and the whole request; what it gives, and is given, is
    JSON. It may raise UserError and SandboxError, which reach the caller as UserError.
    """

    def register(action: Operation) -> Operation:
        if name in OPERATIONS:
            raise TypeError(f"there is an operation {name} already")
        OPERATIONS[name] = action
        return action

    return register


def attachment(enter: Attachment) -> Attachment:
    """Register a context entered for every node before it takes up its sandboxes.

    It adds to the node's hooks, and runs what it needs in a TaskGroup or TaskSet of its own. It is
    left, in the task that entered it, before the node is closed.
    """
    ATTACHMENTS.append(enter)
    return enter


def load() -> None:
    """Import every module of this package: what they register is there afterwards."""
    package = importlib.import_module("services.sandboxes")
    for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if not found.ispkg:
            importlib.import_module(found.name)
