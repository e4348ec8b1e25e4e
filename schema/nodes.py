"""Any object by its id."""

from typing import Annotated

import strawberry

from resolvers import nodes
from resolvers.base import Info
from schema.base import Node, arg


@strawberry.type
class NodesQuery:
    @strawberry.field(description="The object with this id; null when there is no such.")
    async def node(
        self, info: Info, id: Annotated[strawberry.ID, arg("Id of any object.")]
    ) -> Node | None:
        return (await nodes.by_ids(info, [id]))[0]  # type: ignore[return-value]

    @strawberry.field(
        description="The objects with these ids, in their order; null for absent ones."
    )
    async def nodes(
        self, info: Info, ids: Annotated[list[strawberry.ID], arg("Ids of objects, at most 100.")]
    ) -> list[Node | None]:
        return await nodes.by_ids(info, ids)  # type: ignore[return-value]
