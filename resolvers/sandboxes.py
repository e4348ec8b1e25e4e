"""Computed fields of sandboxes, their executions and files."""

import asyncio
import base64
from collections.abc import Sequence
from typing import Annotated

import strawberry

from models.accounts import User
from models.conversations import Conversation
from models.sandboxes import (
    Sandbox,
    SandboxExecution,
    SandboxPort,
    SandboxRemoval,
    SandboxResources,
    SandboxSecurityPolicy,
    SandboxSnapshot,
    SandboxTemplate,
    SandboxTemplateVersion,
    SandboxWorkspace,
)
from models.states import SandboxStatus
from resolvers.base import Info, Order, Page, PageArgs
from services.access import READ_EVERYTHING
from services.errors import RequestError, UserError, UserErrorCode
from services.sandboxes import files as service
from services.sandboxes import quotas
from services.sandboxes.files import Entry, FileEncoding
from services.sandboxes.quotas import Standing

# Contents of one operation are all in memory at once, and once more in the answer.
_CONTENT_BYTES = 32 * 1024 * 1024
_NEWEST = Order(is_descending=True)


async def one(info: Info, id_: str) -> Sandbox | None:
    """Give a sandbox the viewer may see, or None."""
    return (await info.context.load.one(Sandbox, Sandbox.id, [id_]))[0]


async def listed(info: Info, page: PageArgs, status: SandboxStatus | None) -> Page[Sandbox]:
    """Give a page of the viewer's own sandboxes, the newest first; deleted ones are left out."""
    where = Sandbox.status != SandboxStatus.DELETED if status is None else Sandbox.status == status
    return await info.context.load.list(
        Sandbox, page, order=_NEWEST, owner=Sandbox.user_id, where=[where]
    )


async def one_execution(info: Info, id_: str) -> SandboxExecution | None:
    """Give an execution the viewer may see, or None."""
    return (await info.context.load.one(SandboxExecution, SandboxExecution.id, [id_]))[0]


async def templates(info: Info, page: PageArgs) -> Page[SandboxTemplate]:
    """Give a page of the templates, by name."""
    return await info.context.load.list(SandboxTemplate, page, order=Order(("name",)))


async def template_versions(
    templates: Sequence[SandboxTemplate], info: Info, page: PageArgs
) -> list[Page[SandboxTemplateVersion]]:
    """What templates stood for, the newest first."""
    return await info.context.load.page(
        SandboxTemplateVersion,
        SandboxTemplateVersion.template_id,
        [template.id for template in templates],
        page,
        order=_NEWEST,
    )


async def removals(info: Info, page: PageArgs) -> Page[SandboxRemoval]:
    """Give a page of what was cleared away, the newest first."""
    return await info.context.load.list(SandboxRemoval, page, order=_NEWEST)


async def file(info: Info, sandbox_id: str, path: str) -> Entry | None:
    """Give a file of a running sandbox, or None. Raises RequestError for a path that cannot be."""
    context = info.context
    try:
        return await service.stat(context.deps, context.viewer, sandbox_id=sandbox_id, path=path)
    except UserError as error:
        if error.code in (UserErrorCode.NOT_FOUND, UserErrorCode.CONFLICT):
            return None
        is_away = error.code is UserErrorCode.UNAVAILABLE
        raise RequestError("UNAVAILABLE" if is_away else "BAD_USER_INPUT", error.message) from error


async def of_users(users: Sequence[User], info: Info, page: PageArgs) -> list[Page[Sandbox]]:
    """Sandboxes of users, the newest first; deleted ones are left out."""
    return await info.context.load.page(
        Sandbox,
        Sandbox.user_id,
        [user.id for user in users],
        page,
        order=_NEWEST,
        where=[Sandbox.status != SandboxStatus.DELETED],
    )


async def quota(users: Sequence[User], info: Info) -> list[Standing | None]:
    """What users' sandboxes may have and have; None for those whose sandboxes are not shown."""
    viewer = info.context.viewer
    may_see = viewer.may(READ_EVERYTHING)
    seen = [user.id for user in users if may_see or user.id == viewer.user_id]
    found = await quotas.of_users(info.context.deps, list(dict.fromkeys(seen))) if seen else {}
    return [found.get(user.id) for user in users]


async def user(sandboxes: Sequence[Sandbox], info: Info) -> list[User | None]:
    """Owners of sandboxes."""
    return await info.context.load.one(User, User.id, [s.user_id for s in sandboxes])


async def conversation(sandboxes: Sequence[Sandbox], info: Info) -> list[Conversation | None]:
    """Conversations sandboxes belong to."""
    ids = [sandbox.conversation_id for sandbox in sandboxes]
    return await info.context.load.one(Conversation, Conversation.id, ids)


async def template(sandboxes: Sequence[Sandbox], info: Info) -> list[SandboxTemplate | None]:
    """What sandboxes were made from."""
    ids = [sandbox.template_id for sandbox in sandboxes]
    return await info.context.load.one(SandboxTemplate, SandboxTemplate.id, ids)


async def workspace(sandboxes: Sequence[Sandbox], info: Info) -> list[SandboxWorkspace | None]:
    """Workspaces of sandboxes."""
    ids = [sandbox.id for sandbox in sandboxes]
    return await info.context.load.one(SandboxWorkspace, SandboxWorkspace.sandbox_id, ids)


async def resources(sandboxes: Sequence[Sandbox], info: Info) -> list[SandboxResources | None]:
    """Limits of sandboxes."""
    ids = [sandbox.id for sandbox in sandboxes]
    return await info.context.load.one(SandboxResources, SandboxResources.sandbox_id, ids)


async def security(sandboxes: Sequence[Sandbox], info: Info) -> list[SandboxSecurityPolicy | None]:
    """Policies of sandboxes."""
    return await info.context.load.one(
        SandboxSecurityPolicy, SandboxSecurityPolicy.sandbox_id, [s.id for s in sandboxes]
    )


async def ports(sandboxes: Sequence[Sandbox], info: Info) -> list[list[SandboxPort]]:
    """Ports of sandboxes."""
    return await info.context.load.many(
        SandboxPort,
        SandboxPort.sandbox_id,
        [sandbox.id for sandbox in sandboxes],
        order_by=SandboxPort.container_port,
    )


async def snapshots(
    sandboxes: Sequence[Sandbox], info: Info, page: PageArgs
) -> list[Page[SandboxSnapshot]]:
    """Snapshots of the workspaces of sandboxes, the newest first."""
    return await info.context.load.page(
        SandboxSnapshot,
        SandboxSnapshot.sandbox_id,
        [sandbox.id for sandbox in sandboxes],
        page,
        order=_NEWEST,
    )


async def own_snapshots(info: Info, page: PageArgs) -> Page[SandboxSnapshot]:
    """Give a page of the viewer's own snapshots, the newest first."""
    return await info.context.load.list(
        SandboxSnapshot, page, order=_NEWEST, owner=SandboxSnapshot.user_id
    )


async def snapshot_sandbox(
    snapshots: Sequence[SandboxSnapshot], info: Info
) -> list[Sandbox | None]:
    """Sandboxes that snapshots were taken of."""
    ids = [snapshot.sandbox_id for snapshot in snapshots]
    return await info.context.load.one(Sandbox, Sandbox.id, ids)


async def execution_sandbox(
    executions: Sequence[SandboxExecution], info: Info
) -> list[Sandbox | None]:
    """Sandboxes of executions."""
    ids = [execution.sandbox_id for execution in executions]
    return await info.context.load.one(Sandbox, Sandbox.id, ids)


async def execution_user(executions: Sequence[SandboxExecution], info: Info) -> list[User | None]:
    """Who asked for executions."""
    return await info.context.load.one(User, User.id, [e.user_id for e in executions])


async def files(
    sandboxes: Sequence[Sandbox],
    info: Info,
    path: Annotated[
        str, strawberry.argument(description="A directory, relative to the workspace.")
    ] = ".",
    first: Annotated[
        int | None,
        strawberry.argument(
            description="At most so many, up to 10,000; a directory of more is given in pages only."
        ),
    ] = None,
    after: Annotated[
        str | None, strawberry.argument(description="The name of the last one you have.")
    ] = None,
) -> list[list[Entry] | None]:
    """Files of sandboxes: told by those that run, else as last written; None for no directory.

    Raises RequestError BAD_USER_INPUT, and LIMIT for a directory that is given in pages only.
    """
    deps = info.context.deps
    try:
        service.inside(path)
        service.check_page(first)
    except UserError as error:
        raise RequestError("BAD_USER_INPUT", error.message) from error
    still = [s for s in sandboxes if s.status is not SandboxStatus.RUNNING]
    indexed = await service.indexed(deps, still, path, first=first, after=after) if still else {}
    too_many: list[UserError] = []

    async def tell(sandbox: Sandbox) -> list[Entry] | None:
        if sandbox.id in indexed:
            return indexed[sandbox.id]
        try:
            return await service.listing(deps, sandbox, path, first=first, after=after)
        except UserError as error:
            if error.code is UserErrorCode.LIMIT:
                too_many.append(error)
            # No such directory, or the sandbox ended since its row was read.
            return None

    async with asyncio.TaskGroup() as group:
        told = [group.create_task(tell(sandbox)) for sandbox in sandboxes]
    if too_many:
        raise RequestError("LIMIT", too_many[0].message)
    return [task.result() for task in told]


async def content(
    entries: Sequence[Entry],
    info: Info,
    encoding: Annotated[
        FileEncoding, strawberry.argument(description="How the bytes shall stand in the text.")
    ] = FileEncoding.UTF8,
) -> list[str | None]:
    """Contents of files, one after the other; raises RequestError LIMIT beyond 32 MiB in all."""
    most = info.context.deps.options.file_max_bytes
    sizes = [e.size_bytes for e in entries if e.host is not None and not e.is_directory]
    # Told before anything is read; larger files are not given anyway.
    _spend(info, sum(size for size in sizes if size <= most))
    return [await _content(info, entry, encoding) for entry in entries]


def _spend(info: Info, size: int) -> None:
    """Count bytes of content against what one operation may hold."""
    kept = info.context.kept
    spent = kept["bytes of contents"] = kept.get("bytes of contents", 0) + size
    if spent > _CONTENT_BYTES:
        raise RequestError(
            "LIMIT",
            f"The files have {spent:,} bytes in all; one operation gives at most "
            f"{_CONTENT_BYTES:,}. Ask for their contents one by one.",
        )


async def _content(info: Info, entry: Entry, encoding: FileEncoding) -> str | None:
    if entry.is_directory or entry.host is None:
        return None
    try:
        data = await service.content(info.context.deps, entry.host, entry.path)
    except UserError:
        return None
    # A file may have grown since it was listed.
    _spend(info, max(0, len(data) - entry.size_bytes))
    if encoding is FileEncoding.BASE64:
        return base64.b64encode(data).decode("ascii")
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None
