"""Documents parsed and validated once, kept in a cache bounded by bytes."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from graphql import (
    DocumentNode,
    FragmentDefinitionNode,
    GraphQLError,
    GraphQLSchema,
    GraphQLSyntaxError,
    OperationDefinitionNode,
    parse,
    validate,
)

from schema.execution.directive_rules import RULES
from schema.execution.directives import uses_any
from schema.execution.errors import ErrorDict, refusals
from schema.execution.limits import Limits, check_document, check_text, exceeded

_BYTES_PER_TOKEN = 700
"""Measured with tracemalloc on graphql-core 3.2: tokens, nodes and locations, rounded up."""

T = TypeVar("T")

_REFUSALS = 256
_REFUSAL_CHARS = 4000
"""Invalid documents remembered, and characters the messages of each may have."""


@dataclass(slots=True, eq=False)
class ParsedDocument:
    """A valid document. `plans` holds what executors derive from it, by their own keys."""

    text: str
    node: DocumentNode
    operations: tuple[OperationDefinitionNode, ...]
    fragments: dict[str, FragmentDefinitionNode]
    size_bytes: int
    # Whether `@defer` or `@stream` stands in it.
    is_divisible: bool = False
    plans: dict[Any, Any] = field(default_factory=dict)

    def derived(self, kind: str, operation: OperationDefinitionNode, make: Callable[[], T]) -> T:
        """Give what `make` derives from an operation of this document, made once."""
        key = (kind, operation.name.value if operation.name else None)
        if key not in self.plans:
            self.plans[key] = make()
        found: T = self.plans[key]
        return found

    def operation(self, name: str | None) -> OperationDefinitionNode | GraphQLError:
        """Give the operation to execute, or why there is none, in graphql-core's words."""
        if not name:
            if len(self.operations) == 1:
                return self.operations[0]
            return GraphQLError(
                "Must provide an operation."
                if not self.operations
                else "Must provide operation name if query contains multiple operations."
            )
        for operation in self.operations:
            if operation.name and operation.name.value == name:
                return operation
        return GraphQLError(f"Unknown operation named '{name[:1000]}'.")


class DocumentCache:
    """Parses and validates; remembers valid documents, least recently used dropped first.

    What is wrong with the newest invalid ones is kept apart, so that a flood of them cannot push
    out the good ones.
    """

    def __init__(self, schema: GraphQLSchema, limits: Limits, max_bytes: int) -> None:
        self._schema = schema
        self._limits = limits
        self._max_bytes = max_bytes
        self._documents: OrderedDict[str, ParsedDocument] = OrderedDict()
        self._refused: OrderedDict[bytes, list[ErrorDict]] = OrderedDict()
        self.size_bytes = 0
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._documents)

    def __contains__(self, query: str) -> bool:
        return query in self._documents

    def known(self, query: str) -> ParsedDocument | None:
        """Give a document seen before, or None."""
        document = self._documents.get(query)
        if document is not None:
            self._documents.move_to_end(query)
            self.hits += 1
        return document

    def known_refusal(self, query: str) -> list[ErrorDict] | None:
        """Give what was wrong with a document refused before, or None."""
        errors = self._refused.get(_digest(query)) if self._refused else None
        return None if errors is None else list(errors)

    def load(self, query: str) -> ParsedDocument | list[ErrorDict]:
        """Give the document for this text, or what is wrong with it."""
        known = self.known(query) or self.known_refusal(query)
        if known is not None:
            return known
        self.misses += 1
        read = read_document(query, self._schema, self._limits)
        self.remember(query, read)
        return read

    def remember(self, query: str, read: ParsedDocument | list[ErrorDict]) -> None:
        """Keep what was read from a text for the next time, within the room there is."""
        if isinstance(read, ParsedDocument):
            self._keep(read)
        elif sum(len(error["message"]) for error in read) <= _REFUSAL_CHARS:
            self._refused[_digest(query)] = read
            if len(self._refused) > _REFUSALS:
                self._refused.popitem(last=False)

    def _keep(self, document: ParsedDocument) -> None:
        """Keep a document, unless it alone would take an eighth of the room."""
        if document.size_bytes > self._max_bytes // 8 or document.text in self._documents:
            return
        self._documents[document.text] = document
        self.size_bytes += document.size_bytes
        self._make_room()

    def grew(self, document: ParsedDocument, size_bytes: int) -> None:
        """Count what an executor has derived from a document and keeps in its `plans`."""
        document.size_bytes += size_bytes
        if self._documents.get(document.text) is document:
            self.size_bytes += size_bytes
            self._make_room()

    def _make_room(self) -> None:
        while self.size_bytes > self._max_bytes:
            _, dropped = self._documents.popitem(last=False)
            self.size_bytes -= dropped.size_bytes


def _digest(query: str) -> bytes:
    return hashlib.sha256(query.encode("utf-8", "surrogatepass")).digest()


def read_document(
    query: str, schema: GraphQLSchema, limits: Limits
) -> ParsedDocument | list[ErrorDict]:
    """Parse, measure and validate. Touches no shared state: safe in any thread."""
    too_large = check_text(query, limits)
    if too_large:
        return refusals(too_large, "LIMIT")
    try:
        node = parse(query, max_tokens=limits.max_tokens)
    except GraphQLSyntaxError as error:
        return refusals([_syntax_error(error, limits)], "GRAPHQL_PARSE_FAILED")
    errors = check_document(node, limits)
    if errors:
        return refusals(errors, "LIMIT")
    try:
        errors = validate(schema, node, max_errors=10)
        if not errors and uses_any(query, node):
            # By themselves: they trust that no fragment stands in itself.
            errors = validate(schema, node, RULES, max_errors=10)
    except GraphQLError as error:
        # Raised where graphql-core counts a subscription's fields before it knows any variable.
        skipped = "Whether a subscription has its field cannot depend on a variable."
        errors = [GraphQLError(skipped, error.nodes, original_error=error)]
    if errors:
        return refusals(map(_explained, errors), "GRAPHQL_VALIDATION_FAILED")
    return _document(query, node)


def _document(query: str, node: DocumentNode) -> ParsedDocument:
    tokens = 0
    token = node.loc.start_token if node.loc else None
    while token is not None:
        tokens += 1
        token = token.next
    return ParsedDocument(
        text=query,
        node=node,
        operations=tuple(d for d in node.definitions if isinstance(d, OperationDefinitionNode)),
        fragments={
            d.name.value: d for d in node.definitions if isinstance(d, FragmentDefinitionNode)
        },
        size_bytes=1000 + 2 * len(query.encode()) + _BYTES_PER_TOKEN * tokens,
        is_divisible=uses_any(query, node),
    )


def _syntax_error(error: GraphQLSyntaxError, limits: Limits) -> GraphQLError:
    if "Parsing aborted" not in error.message:
        return error
    if "tokens" in error.message:
        return exceeded(
            f"The document has more than {limits.max_tokens} tokens, which is the limit. "
            "Pass data as variables and split the document."
        )
    return exceeded("The document nests too deeply to be read. Select fewer levels.")


def _explained(error: GraphQLError) -> GraphQLError:
    """Give graphql-core's bare "Validation aborted." and introspection guard a code and advice."""
    if error.message == "Validation aborted.":
        return exceeded("The document nests its fragments too deeply. Inline some of them.")
    if error.message == "Maximum introspection depth exceeded":
        return exceeded(
            "The introspection nests lists of fields, arguments or types too deeply. "
            "Use the standard introspection query, or select fewer levels."
        )
    return error
