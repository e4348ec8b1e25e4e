"""`@defer` and `@stream`, by the draft of incremental delivery; graphql-core 3.2 has neither."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from graphql import (
    DirectiveLocation,
    DocumentNode,
    FieldNode,
    FragmentSpreadNode,
    GraphQLArgument,
    GraphQLBoolean,
    GraphQLDirective,
    GraphQLInt,
    GraphQLNonNull,
    GraphQLSchema,
    GraphQLString,
    InlineFragmentNode,
    TokenKind,
    get_directive_values,
)

_IF = "Whether it is done; as if the directive were absent otherwise."
_LABEL = "What the pieces of it are called in the answer: no two in a document alike."

DEFER = GraphQLDirective(
    "defer",
    [DirectiveLocation.FRAGMENT_SPREAD, DirectiveLocation.INLINE_FRAGMENT],
    {
        "if": GraphQLArgument(GraphQLNonNull(GraphQLBoolean), True, _IF),
        "label": GraphQLArgument(GraphQLString, description=_LABEL),
    },
    description="The fragment may be answered later than what it stands in, to clients that "
    "accept answers in parts (multipart/mixed).",
)

STREAM = GraphQLDirective(
    "stream",
    [DirectiveLocation.FIELD],
    {
        "if": GraphQLArgument(GraphQLNonNull(GraphQLBoolean), True, _IF),
        "label": GraphQLArgument(GraphQLString, description=_LABEL),
        "initialCount": GraphQLArgument(
            GraphQLNonNull(GraphQLInt), 0, "Items of the list that are not to come later."
        ),
    },
    description="The items of the list may be answered later than what it stands in, to clients "
    "that accept answers in parts (multipart/mixed).",
)


class Deferred(NamedTuple):
    """A `@defer` that is on."""

    label: str | None


class Streamed(NamedTuple):
    """A `@stream` that is on."""

    label: str | None
    initial_count: int


def add_to(schema: GraphQLSchema) -> None:
    """Declare the directives in a schema that was built without them."""
    schema.directives = (*schema.directives, DEFER, STREAM)


def deferred(
    node: FragmentSpreadNode | InlineFragmentNode, variables: Mapping[str, Any]
) -> Deferred | None:
    """Tell how a fragment is deferred; None if it is not. Raises GraphQLError for wrong values."""
    values = _values(DEFER, node, variables)
    return None if values is None else Deferred(values.get("label"))


def streamed(node: FieldNode, variables: Mapping[str, Any]) -> Streamed | None:
    """Tell how a list is streamed; None if it is not. Raises GraphQLError for wrong values."""
    values = _values(STREAM, node, variables)
    if values is None:
        return None
    return Streamed(values.get("label"), max(0, values["initialCount"]))


def _values(
    directive: GraphQLDirective, node: Any, variables: Mapping[str, Any]
) -> dict[str, Any] | None:
    if not node.directives:
        return None
    values = get_directive_values(directive, node, dict(variables))
    return values if values is not None and values["if"] else None


def uses_any(text: str, document: DocumentNode) -> bool:
    """Tell whether either directive stands anywhere in a document that was read from a text."""
    if "defer" not in text and "stream" not in text:
        return False
    token = document.loc.start_token if document.loc else None
    while token is not None:
        if token.kind is TokenKind.AT and token.next and token.next.value in ("defer", "stream"):
            return True
        token = token.next
    return False
