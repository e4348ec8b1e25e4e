"""What sandboxes are made from."""

from datetime import datetime

import strawberry

from models import sandboxes as tables
from resolvers import sandboxes
from resolvers.base import Info, PageArgs
from schema.base import After, Before, Connection, First, Last, Node, attr


@strawberry.type(description="What sandboxes are made from: an image with Python 3.")
class SandboxTemplate(Node, row=tables.SandboxTemplate):
    name: str = attr("Unique name; the default one is `python`.")
    description: str | None = attr("What is in it.")
    language: str = attr("The language it is for.")
    image_name: str = attr("Name of the image.")
    image_tag: str = attr("Tag of the image.")
    created_at: datetime = attr("When it was added.")
    updated_at: datetime = attr("When it was last changed.")


@strawberry.type
class SandboxTemplatesQuery:
    @strawberry.field(description="What sandboxes can be made from, by name; none when anonymous.")
    async def sandbox_templates(
        self,
        info: Info,
        first: First = None,
        after: After = None,
        last: Last = None,
        before: Before = None,
    ) -> Connection[SandboxTemplate]:
        page = PageArgs(first, after, last, before)
        return await sandboxes.templates(info, page)  # type: ignore[return-value]
