"""Files that come with an operation, as their transport hands them to resolvers."""

from collections.abc import AsyncIterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class UploadedFile:
    """A file under way: its content can be read once, as it comes.

    `name` is what the client calls it. Reading raises RequestError when it ends early.
    """

    name: str
    content_type: str | None
    chunks: AsyncIterator[bytes]
