"""Files of sandboxes."""

import dataclasses
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Any, TypeVar

import strawberry

from models.states import FileVerdict
from resolvers import sandbox_files, sandboxes
from resolvers.base import Info
from schema.base import BigInt, Payload, Upload, answer, arg, attr, described_enum, field, mutation
from services.sandboxes import files, transfers
from services.sandboxes.files import FileEncoding

R = TypeVar("R")

described_enum(
    FileEncoding,
    "How the bytes of a file stand in text.",
    {
        FileEncoding.UTF8: "As they are; for text.",
        FileEncoding.BASE64: "In base64; for anything.",
    },
    name="SandboxFileEncoding",
)


described_enum(
    FileVerdict,
    "What is known of a file being harmful.",
    {
        FileVerdict.CLEAN: "Nothing was found in it.",
        FileVerdict.INFECTED: "Something was found in it; see `finding`.",
        FileVerdict.UNSCANNED: "It was not scanned, or not since it was last written: it may be "
        "too large, or its turn has not come.",
    },
    name="SandboxFileVerdict",
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
    verdict: FileVerdict = field(
        sandbox_files.verdict, "What the last scan said of it, if it was not written since."
    )
    finding: str | None = field(
        sandbox_files.finding, "The rule by which that scan found something; null: nothing."
    )
    scanned_at: datetime | None = field(
        sandbox_files.scanned_at, "When that scan was; null: it was not scanned."
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
    content: str = attr(
        "Its content. The file may have 10 MiB (NOOSPHERE_FILE_MAX_BYTES), and the body that "
        "carries it, base64 and all, 2 MiB (NOOSPHERE_MAX_BODY_BYTES), unless the operator says "
        "otherwise. Larger files go up by HTTP: PUT /sandboxes/{id}/files/{path}."
    )
    encoding: FileEncoding = attr("How the content stands in the text.", default=FileEncoding.UTF8)


@strawberry.input(description="A file to bring into a sandbox.")
class SandboxFileUploadInput:
    sandbox_id: strawberry.ID = attr("Where.")
    path: str = attr("Its path, relative to the workspace, at most 255 characters.")
    file: Upload = attr(
        "The file, of any size the sandbox's disk has room for unless the operator says otherwise "
        "(NOOSPHERE_SANDBOX_UPLOAD_MAX_BYTES)."
    )


@strawberry.input(description="A file to remove.")
class SandboxFileRemoveInput:
    sandbox_id: strawberry.ID = attr("Where.")
    path: str = attr("Its path, relative to the workspace.")
    is_recursive: bool = attr("Whether a directory goes with all that is in it.", default=False)


@strawberry.input(description="A directory to make.")
class SandboxFileMakeDirectoryInput:
    sandbox_id: strawberry.ID = attr("Where.")
    path: str = attr("Its path, relative to the workspace, at most 255 characters.")


@strawberry.input(description="A file or directory to give another path.")
class SandboxFileRenameInput:
    sandbox_id: strawberry.ID = attr("Where.")
    path: str = attr("Its path, relative to the workspace.")
    new_path: str = attr("Its new path, relative to the workspace, at most 255 characters.")


@strawberry.type(description="Answer to `sandboxFileWrite`.")
class SandboxFileWritePayload(Payload):
    file: SandboxFile | None = answer("The file.")


@strawberry.type(description="Answer to `sandboxFileUpload`.")
class SandboxFileUploadPayload(Payload):
    file: SandboxFile | None = answer("The file.")


@strawberry.type(description="Answer to `sandboxFileRemove`.")
class SandboxFileRemovePayload(Payload):
    file: SandboxFile | None = answer("The file as it was.")


@strawberry.type(description="Answer to `sandboxFileMakeDirectory`.")
class SandboxFileMakeDirectoryPayload(Payload):
    file: SandboxFile | None = answer("The directory.")


@strawberry.type(description="Answer to `sandboxFileRename`.")
class SandboxFileRenamePayload(Payload):
    file: SandboxFile | None = answer("The file or directory, at its new path.")


async def _perform(info: Info, verb: Callable[..., Awaitable[R]], input: Any) -> R:
    """Do what a verb does for the viewer, with the fields of an input as its arguments."""
    given = {each.name: getattr(input, each.name) for each in dataclasses.fields(input)}
    return await verb(info.context.deps, info.context.viewer, **given)


async def _write(info: Info, input: SandboxFileWriteInput) -> dict[str, object]:
    return {"file": await _perform(info, files.write, input)}


async def _upload(info: Info, input: SandboxFileUploadInput) -> dict[str, object]:
    context = info.context
    entry, _ = await transfers.upload(
        context.deps,
        context.viewer,
        sandbox_id=input.sandbox_id,
        path=input.path,
        chunks=transfers.bounded(
            input.file.chunks, context.deps.options.sandbox_upload_max_bytes or None
        ),
    )
    return {"file": entry}


async def _remove(info: Info, input: SandboxFileRemoveInput) -> dict[str, object]:
    return {"file": await _perform(info, files.remove, input)}


async def _make_directory(info: Info, input: SandboxFileMakeDirectoryInput) -> dict[str, object]:
    return {"file": await _perform(info, files.make_directory, input)}


async def _rename(info: Info, input: SandboxFileRenameInput) -> dict[str, object]:
    return {"file": await _perform(info, files.rename, input)}


@strawberry.type
class SandboxFilesMutation:
    sandbox_file_write = mutation(
        SandboxFileWritePayload, "Write a file as a whole, with the directories above it."
    )(_write)
    sandbox_file_upload = mutation(
        SandboxFileUploadPayload,
        "Bring a file of any size, with the directories above it: a form carries it "
        "(multipart/form-data), with a header such as `X-GraphQL-Preflight: 1`.",
    )(_upload)
    sandbox_file_remove = mutation(SandboxFileRemovePayload, "Remove a file or directory.")(_remove)
    sandbox_file_make_directory = mutation(
        SandboxFileMakeDirectoryPayload,
        "Make a directory, with those above it; one that is there already stays as it is.",
    )(_make_directory)
    sandbox_file_rename = mutation(
        SandboxFileRenamePayload,
        "Give a file or directory another path, replacing a file that stands there.",
    )(_rename)
