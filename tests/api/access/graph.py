"""The schema as the tests walk it."""

from graphql import GraphQLField, GraphQLObjectType

import schema
from schema.base import ROW_TYPES

GRAPH = schema.build()._schema
NODE_TYPES = sorted(
    type_.__strawberry_definition__.name  # type: ignore[attr-defined]
    for type_ in ROW_TYPES.values()
)


def object_type(name: str) -> GraphQLObjectType:
    found = GRAPH.type_map[name]
    assert isinstance(found, GraphQLObjectType)
    return found


def root(kind: str) -> dict[str, GraphQLField]:
    found = getattr(GRAPH, f"{kind}_type")
    assert found is not None
    return dict(found.fields)
