"""What a change of the contract would break for clients that are out there."""

from graphql import GraphQLSchema, build_schema
from graphql.utilities import find_breaking_changes


def breaking_changes(before: str, after: str | GraphQLSchema) -> list[str]:
    """Give in words what a client of the schema `before` could not do any more, sorted."""
    newer = build_schema(after) if isinstance(after, str) else after
    return sorted(
        change.description for change in find_breaking_changes(build_schema(before), newer)
    )
