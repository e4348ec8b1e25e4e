"""What happens to the files of sandboxes, and what scans find in them."""

from collections.abc import AsyncGenerator
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import strawberry

from models import sandboxes as tables
from resolvers import sandbox_files
from resolvers.base import Info
from schema.base import BigInt, Node, arg, attr, described_enum, field
from schema.live import live, shared
from services.errors import RequestError, UserError
from services.sandboxes import file_events

if TYPE_CHECKING:
    from schema.sandboxes.core import Sandbox

described_enum(
    file_events.FileChange,
    "What became of a file or directory.",
    {
        file_events.FileChange.CREATED: "It is there now.",
        file_events.FileChange.MODIFIED: "Its content was written, or replaced as a whole.",
        file_events.FileChange.REMOVED: "It is gone, with all that was below it.",
        file_events.FileChange.RENAMED: "It has another path, as has all that is below it.",
    },
    name="SandboxFileChangeKind",
)


@strawberry.type(
    description="A file that a scan took for harmful. Its bytes are in quarantine on the server."
)
class SandboxFinding(Node, row=tables.SandboxFinding):
    path: str = attr("Where it was, or was to be, relative to the workspace.")
    rule: str = attr("The rule or signature that it matched.")
    engine: str = attr("What found it: `yara` or `clamav`.")
    sha256: str = attr("SHA-256 of its content, in hexadecimal.")
    size_bytes: BigInt = attr("Its size.")
    created_at: datetime = attr("When it was found.")
    sandbox: Annotated["Sandbox", strawberry.lazy("schema.sandboxes.core")] | None = field(
        sandbox_files.finding_sandbox, "Whose file it was."
    )


@strawberry.interface(description="Something that happened to the files of a sandbox.")
class SandboxFileEvent:
    cursor: str = attr("Give it as `after` to go on from here.")


@strawberry.type(
    description="A file or directory changed. Changes of one path within a moment come as one."
)
class SandboxFileChanged(SandboxFileEvent):
    kind: file_events.FileChange = attr("What became of it.")
    path: str = attr("Its path, relative to the workspace.")
    old_path: str | None = attr("What its path was; for RENAMED alone.")
    is_directory: bool = attr("Whether it is a directory.")
    size_bytes: BigInt = attr("Its size a moment after; 0 for what is no regular file.")


@strawberry.type(
    description="A file was taken for harmful and is in quarantine; it is not in the sandbox."
)
class SandboxFileQuarantined(SandboxFileEvent):
    finding: SandboxFinding = attr("What was found.")


@strawberry.type(
    description="List the files now, as by the `files` of this sandbox: what changed before is "
    "not told, what changes from now on is."
)
class SandboxFilesReset(SandboxFileEvent):
    sandbox: Annotated["Sandbox", strawberry.lazy("schema.sandboxes.core")] = attr("The sandbox.")


def _event(item: file_events.Item) -> SandboxFileEvent:
    if isinstance(item, file_events.Changed):
        return SandboxFileChanged(
            cursor=item.cursor,
            kind=item.kind,
            path=item.path,
            old_path=item.old_path,
            is_directory=item.is_directory,
            size_bytes=BigInt(item.size_bytes),
        )
    if isinstance(item, file_events.Quarantined):
        return SandboxFileQuarantined(cursor=item.cursor, finding=item.finding)  # type: ignore[arg-type]
    return SandboxFilesReset(cursor=item.cursor, sandbox=item.sandbox)  # type: ignore[arg-type]


@strawberry.type
class SandboxFilesSubscription:
    @strawberry.subscription(
        description="What happens to the files of a live sandbox, whoever does it, until it has "
        "ended. It begins with a SandboxFilesReset, or with what `after` misses as far as that is "
        "kept; a SandboxFilesReset comes again whenever changes were lost. Writes to memory that "
        "programs share with a file are not seen."
    )
    async def sandbox_file_events(
        self,
        info: Info,
        sandbox_id: Annotated[strawberry.ID, arg("Id of the sandbox.")],
        path: Annotated[
            str, arg("A directory (with all below it) or file, relative to the workspace.")
        ] = ".",
        after: Annotated[str | None, arg("The cursor of the last event you have.")] = None,
    ) -> AsyncGenerator[SandboxFileEvent, None]:
        context = info.context
        try:
            follower = await shared(
                context,
                ("sandbox files", sandbox_id, path),
                lambda: file_events.follower(context.deps, context.viewer, sandbox_id, path),
            )
        except UserError as error:
            raise RequestError("BAD_USER_INPUT", error.message) from error
        return live(context, follower, after, _event)
