"""Snapshots of workspaces."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import strawberry

from models import sandboxes as tables
from resolvers import sandboxes
from resolvers.base import Info, PageArgs, reads
from schema.base import (
    After,
    Before,
    BigInt,
    Connection,
    First,
    Id,
    Last,
    Node,
    Payload,
    answer,
    attr,
    field,
    mutation,
)
from services.sandboxes import snapshots

if TYPE_CHECKING:
    from schema.sandboxes.core import Sandbox


@strawberry.type(description="A workspace as it was at some time.")
class SandboxSnapshot(Node, row=tables.SandboxSnapshot):
    name: str | None = attr("What it is called.")
    size_bytes: BigInt = attr("Size of its archive; it counts as disk.")
    content_bytes: BigInt = attr("Size of what is in it.")
    entries: int = attr("How many files and directories are in it.")
    sha256: str = attr("SHA-256 of its archive, in hexadecimal.")
    is_automatic: bool = attr("Whether it was taken because a persistent sandbox was stopped.")
    created_at: datetime = attr("When it was taken.")
    expires_at: datetime | None = attr("When it goes; null: when it is deleted.")
    sandbox: Annotated["Sandbox", strawberry.lazy("schema.sandboxes")] | None = field(
        sandboxes.snapshot_sandbox, "What it was taken of."
    )


@strawberry.type
class SandboxSnapshotsQuery:
    @strawberry.field(description="Your snapshots of workspaces, newest first.")
    @reads()
    async def sandbox_snapshots(
        self,
        info: Info,
        first: First = None,
        after: After = None,
        last: Last = None,
        before: Before = None,
    ) -> Connection[SandboxSnapshot]:
        page = PageArgs(first, after, last, before)
        return await sandboxes.own_snapshots(info, page)  # type: ignore[return-value]


@strawberry.input(description="A snapshot to take.")
class SandboxSnapshotInput:
    sandbox_id: strawberry.ID = attr("Of which running sandbox.")
    name: str | None = attr("What to call it, at most 100 characters.", default=None)


@strawberry.type(description="Answer to `sandboxSnapshot`.")
class SandboxSnapshotPayload(Payload):
    snapshot: SandboxSnapshot | None = answer("The snapshot.")


@strawberry.type(description="Answer to `sandboxSnapshotDelete`.")
class SandboxSnapshotDeletePayload(Payload):
    snapshot: SandboxSnapshot | None = answer("The snapshot as it was.")


async def _take(info: Info, input: SandboxSnapshotInput) -> dict[str, object]:
    context = info.context
    snapshot = await snapshots.take(
        context.deps, context.viewer, sandbox_id=input.sandbox_id, name=input.name
    )
    return {"snapshot": snapshot}


async def _delete(info: Info, id: Id) -> dict[str, object]:
    context = info.context
    return {"snapshot": await snapshots.delete(context.deps, context.viewer, snapshot_id=id)}


@strawberry.type
class SandboxSnapshotsMutation:
    sandbox_snapshot = mutation(
        SandboxSnapshotPayload,
        "Keep the workspace of a running sandbox as it is; `sandboxCreate` makes others of it.",
    )(_take)
    sandbox_snapshot_delete = mutation(
        SandboxSnapshotDeletePayload, "Take a snapshot away; sandboxes made of it stay."
    )(_delete)
