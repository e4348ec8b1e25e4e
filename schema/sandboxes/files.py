"""Files of sandboxes."""

from datetime import datetime
from typing import Annotated

import strawberry

from resolvers import sandboxes
from resolvers.base import Info
from schema.base import BigInt, Payload, arg, attr, described_enum, field, mutation
from schema.sandboxes.shared import answer
from services.sandboxes import files
from services.sandboxes.files import FileEncoding

described_enum(
    FileEncoding,
    "How the bytes of a file stand in text.",
    {
        FileEncoding.UTF8: "As they are; for text.",
        FileEncoding.BASE64: "In base64; for anything.",
    },
    name="SandboxFileEncoding",
)


@strawberry.type(description="A file or directory of a sandbox's workspace.")
class SandboxFile:
    path: str = attr("Its path, relative to the workspace.")
    name: str = attr("Its name: the last part of the path.")
    is_directory: bool = attr("Whether it is a directory.")
    size_bytes: BigInt = attr("Its size.")
    modified_at: datetime = attr("When it was last written.")
    mime_type: str | None = attr("What its name says of its content.")
    content_hash: str | None = attr(
        "SHA-256 of what was written through the API, in hexadecimal; null when it is not known."
    )
    content: str | None = field(
        sandboxes.content,
        "Its content. Null for a directory, in a sandbox that does not run, for a file too large, "
        "and with UTF8 for what is no text: ask for BASE64.",
    )


@strawberry.type
class SandboxFilesQuery:
    @strawberry.field(description="A file of a running sandbox of yours; null when there is none.")
    async def sandbox_file(
        self,
        info: Info,
        sandbox_id: Annotated[strawberry.ID, arg("Which sandbox.")],
        path: Annotated[str, arg("Its path, relative to the workspace.")],
    ) -> SandboxFile | None:
        return await sandboxes.file(info, sandbox_id, path)  # type: ignore[return-value]


@strawberry.input(description="A file to write.")
class SandboxFileWriteInput:
    sandbox_id: strawberry.ID = attr("Where.")
    path: str = attr("Its path, relative to the workspace, at most 255 characters.")
    content: str = attr("Its content, at most 10 MiB.")
    encoding: FileEncoding = strawberry.field(
        default=FileEncoding.UTF8, description="How the content stands in the text."
    )


@strawberry.input(description="A file to remove.")
class SandboxFileRemoveInput:
    sandbox_id: strawberry.ID = attr("Where.")
    path: str = attr("Its path, relative to the workspace.")
    is_recursive: bool = strawberry.field(
        default=False, description="Whether a directory goes with all that is in it."
    )


@strawberry.type(description="Answer to `sandboxFileWrite`.")
class SandboxFileWritePayload(Payload):
    file: SandboxFile | None = answer("The file.")


@strawberry.type(description="Answer to `sandboxFileRemove`.")
class SandboxFileRemovePayload(Payload):
    file: SandboxFile | None = answer("The file as it was.")


async def _write(info: Info, input: SandboxFileWriteInput) -> dict[str, object]:
    file = await files.write(
        info.context.deps,
        info.context.viewer,
        sandbox_id=input.sandbox_id,
        path=input.path,
        content=input.content,
        encoding=input.encoding,
    )
    return {"file": file}


async def _remove(info: Info, input: SandboxFileRemoveInput) -> dict[str, object]:
    file = await files.remove(
        info.context.deps,
        info.context.viewer,
        sandbox_id=input.sandbox_id,
        path=input.path,
        is_recursive=input.is_recursive,
    )
    return {"file": file}


@strawberry.type
class SandboxFilesMutation:
    sandbox_file_write = mutation(
        SandboxFileWritePayload, "Write a file as a whole, with the directories above it."
    )(_write)
    sandbox_file_remove = mutation(SandboxFileRemovePayload, "Remove a file or directory.")(_remove)
