"""Static limits on a document, checked once per document, before validation."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionSetNode,
)

_LIST_SIZES = {
    "Message.entities": 50,
    "MessageContext.messages": 30,
    "Plan.steps": 100,
    "PlanExecution.steps": 100,
    "PlanStep.dependsOn": 20,
    "Sandbox.files": 100,
}
"""Lists without pages that may well be longer than `Limits.list_size`."""

_DEAR = {
    "__schema": 500,
    "__type": 20,
    "Mutation.memoryCreate": 10,
    "Mutation.memoryUpdate": 10,
    "Mutation.messageRetry": 100,
    "Mutation.messageSend": 100,
    "Mutation.planExecute": 50,
    "Mutation.sandboxCreate": 100,
    "Mutation.sandboxExecute": 50,
    "Mutation.sandboxFileUpload": 20,
    "Mutation.sandboxFileWrite": 10,
    "Mutation.sandboxResume": 50,
    "Mutation.sandboxSnapshot": 100,
    "Mutation.sandboxStart": 100,
    "Mutation.sandboxTemplateCreate": 200,
    "Mutation.sandboxTemplateUpdate": 200,
    "Mutation.sessionCreate": 50,
    "Mutation.userChangePassword": 50,
    "Mutation.userRegister": 50,
    "Query.memorySearch": 50,
    "Query.sandboxFile": 10,
    "Sandbox.files": 10,
    "Sandbox.processes": 10,
    "SandboxFile.content": 10,
}
"""Points of fields that cost more than their objects: they search, hash passwords, ask a model, or
ask the host of a sandbox. About a point for each tenth of a millisecond."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a document may be. Counts are taken with every fragment spread written out."""

    max_depth: int = 15
    """Levels of fields."""
    max_aliases: int = 50
    """Aliased fields per operation."""
    max_root_fields: int = 30
    """Fields at the top of an operation."""
    max_directives: int = 50
    """Directives per operation."""
    max_fragments: int = 200
    """Fragment definitions per document."""
    max_tokens: int = 5000
    """Lexical tokens per document; comments count as tokens."""
    max_document_bytes: int = 100_000
    """Bytes of the document's text as UTF-8."""
    max_introspection_depth: int = 20
    """Levels of fields from `__schema` or `__type` down (GraphiQL asks for 15)."""
    max_introspection_aliases: int = 5
    """Aliases at and below `__schema` and `__type`: each repeats the dearest answer there is."""
    max_selections: int = 1500
    """Fields, fragment spreads and inline fragments per document."""
    max_repeats: int = 10_000
    """Pairs of fields of one response name, or of spreads, at one place: all are compared."""
    max_values: int = 10_000
    """Values among an operation's variables, at every depth: each is coerced by itself."""
    max_objects: int = 50_000
    """Objects an operation may ask for, ten plain values counting as one (see `cost`)."""
    max_pieces: int = 500
    """Deferred fragments and streamed lists of one answer; with more of them it comes whole."""
    default_page: int = 20
    """Items of a connection when neither `first` nor `last` is given."""
    max_page: int = 100
    """Most items a page or a list of ids may have."""
    list_size: int = 10
    """Items a list without pages is thought to have."""
    list_sizes: Mapping[str, int] = field(default_factory=lambda: _LIST_SIZES)
    """Items of such lists by `Type.field`, where it is known better."""
    dear: Mapping[str, int] = field(default_factory=lambda: _DEAR)
    """Points a field costs beyond its objects, by `Type.field`; introspection by its bare name."""


@dataclass(slots=True)
class _Size:
    depth: int = 0
    aliases: int = 0
    directives: int = 0
    root_fields: int = 0
    introspection_depth: int = 0
    introspection_aliases: int = 0

    def add(self, other: "_Size") -> None:
        self.depth = max(self.depth, other.depth)
        self.aliases += other.aliases
        self.directives += other.directives
        self.root_fields += other.root_fields
        self.introspection_depth = max(self.introspection_depth, other.introspection_depth)
        self.introspection_aliases += other.introspection_aliases


def exceeded(message: str) -> GraphQLError:
    """Give the error for a limit."""
    return GraphQLError(message, extensions={"code": "LIMIT"})


def check_text(query: str, limits: Limits) -> list[GraphQLError]:
    """Check what can be told before parsing."""
    # A character has at most 4 bytes, so the common case needs no encoding.
    size = len(query) if len(query) * 4 <= limits.max_document_bytes else len(query.encode())
    if size <= limits.max_document_bytes:
        return []
    return [
        exceeded(
            f"The document has {size} bytes; the limit is {limits.max_document_bytes}. "
            "Pass data as variables and split the document."
        )
    ]


def count_values(given: Mapping[str, Any] | Sequence[Any], most: int) -> int:
    """Count the values in a tree of maps and lists, those within others included.

    Stops at the first map or list that makes them more than `most`, so that it costs little to be
    told of a million.
    """
    count = 0
    ahead: list[Any] = [given]
    while ahead and count <= most:
        here = ahead.pop()
        count += len(here)
        if count <= most:
            # Lists first: to tell a map of any kind takes longer than all the rest.
            values = here if isinstance(here, list) else _values(here)
            ahead.extend([value for value in values if isinstance(value, dict | list)])
    return count


def _values(given: Mapping[str, Any] | Sequence[Any]) -> Iterable[Any]:
    return given.values() if isinstance(given, dict | Mapping) else given


def check_variables(given: Mapping[str, Any], limits: Limits) -> str | None:
    """Say what is wrong with the variables of an operation before they are coerced."""
    if count_values(given, limits.max_values) <= limits.max_values:
        return None
    return (
        f"The variables have more than {limits.max_values:,} values, lists and maps counted with "
        "all that is in them; that is the limit. Send less at a time, in several requests."
    )


def check_document(document: DocumentNode, limits: Limits) -> list[GraphQLError]:
    """Measure every operation of a parsed document; give one error per limit exceeded.

    Safe on documents not validated yet: unknown fragments count as nothing, cycles are cut (the
    validation reports both), and the time is linear in the document's size.
    """
    fragments = {
        definition.name.value: definition
        for definition in document.definitions
        if isinstance(definition, FragmentDefinitionNode)
    }
    if len(fragments) > limits.max_fragments:
        return [
            exceeded(
                f"The document has {len(fragments)} fragments; the limit is "
                f"{limits.max_fragments}. Inline some of them."
            )
        ]
    measure = _Measure(fragments)
    errors: list[GraphQLError] = []
    for definition in document.definitions:
        if not isinstance(definition, OperationDefinitionNode):
            continue
        try:
            size = measure.operation(definition)
        except RecursionError:
            size = None
        if size is None:
            return [exceeded("The document nests its fragments too deeply. Inline some of them.")]
        errors.extend(_compare(size, limits))
    return errors or _check_repeats(document, fragments, limits)


def _compare(size: _Size, limits: Limits) -> list[GraphQLError]:
    split = "Split it into several operations"
    rows: Sequence[tuple[str, int, str, int, str]] = (
        ("nests", size.depth, "levels of fields", limits.max_depth, "Select fewer levels"),
        ("has", size.aliases, "aliases", limits.max_aliases, split),
        ("has", size.root_fields, "fields at its root", limits.max_root_fields, split),
        ("has", size.directives, "directives", limits.max_directives, "Use fewer of them"),
        (
            "nests",
            size.introspection_depth,
            "levels of introspection",
            limits.max_introspection_depth,
            "Select fewer levels",
        ),
        (
            "has",
            size.introspection_aliases,
            "aliases in introspection",
            limits.max_introspection_aliases,
            split,
        ),
    )
    return [_over(*row) for row in rows if row[1] > row[3]]


def _over(verb: str, value: int, what: str, limit: int, advice: str) -> GraphQLError:
    # Written-out counts grow exponentially with nested fragments: do not print them in full.
    count = str(value) if value < 1_000_000 else "over a million"
    return exceeded(f"The operation {verb} {count} {what}; the limit is {limit}. {advice}.")


def _check_repeats(
    document: DocumentNode, fragments: Mapping[str, FragmentDefinitionNode], limits: Limits
) -> list[GraphQLError]:
    repeats = _Repeats(fragments, limits)
    roots = [d for d in document.definitions if isinstance(d, OperationDefinitionNode)]
    for root in (*roots, *fragments.values()):
        # Fragments no operation reaches are validated as well.
        if isinstance(root, FragmentDefinitionNode) and root.name.value in repeats.reached:
            continue
        repeats.add(root.selection_set)
        if repeats.selections > limits.max_selections:
            return [
                exceeded(
                    f"The document has more than {limits.max_selections} fields and fragments, "
                    "with every fragment written out, which is the limit. Select fewer fields, "
                    "or split the document."
                )
            ]
        if repeats.pairs > limits.max_repeats:
            return [
                exceeded(
                    "The document selects the same field too often at one place "
                    f"(over {limits.max_repeats} pairs to compare, which is the limit). "
                    "Select each field once."
                )
            ]
    return []


_Level = list[tuple[SelectionSetNode, frozenset[str]]]
"""Selection sets that answer one place together, and the fragments each stands in."""


class _Repeats:
    """Counts what validation compares pairwise: fields that share their place in the answer.

    Stops as soon as a limit is exceeded, so its own work is bounded by the limits.
    """

    def __init__(self, fragments: Mapping[str, FragmentDefinitionNode], limits: Limits) -> None:
        self._fragments = fragments
        self._limits = limits
        self.reached: set[str] = set()
        self.selections = 0
        self.pairs = 0

    @property
    def _is_over(self) -> bool:
        limits = self._limits
        return self.selections > limits.max_selections or self.pairs > limits.max_repeats

    def add(self, root: SelectionSetNode) -> None:
        levels: list[_Level] = [[(root, frozenset())]]
        while levels and not self._is_over:
            below, counts = self._level(levels.pop())
            self.pairs += sum(count * (count - 1) // 2 for count in counts.values())
            levels.extend(below.values())

    def _level(self, level: _Level) -> tuple[dict[str, _Level], dict[str, int]]:
        below: dict[str, _Level] = {}
        counts: dict[str, int] = {}
        while level:
            node, inside = level.pop()
            self.selections += len(node.selections)
            if self._is_over:
                break
            for selection in node.selections:
                match selection:
                    case FieldNode():
                        key = (selection.alias or selection.name).value
                        counts[key] = counts.get(key, 0) + 1
                        if selection.selection_set:
                            below.setdefault(key, []).append((selection.selection_set, inside))
                    case InlineFragmentNode():
                        level.append((selection.selection_set, inside))
                    case FragmentSpreadNode():
                        name = selection.name.value
                        counts["..."] = counts.get("...", 0) + 1
                        fragment = self._fragments.get(name)
                        if fragment is not None and name not in inside:
                            self.reached.add(name)
                            level.append((fragment.selection_set, inside | {name}))
        return below, counts


class _Measure:
    """Sizes of selection sets, each fragment measured once."""

    def __init__(self, fragments: Mapping[str, FragmentDefinitionNode]) -> None:
        self._fragments = fragments
        self._sizes: dict[tuple[str, bool], _Size] = {}

    def operation(self, node: OperationDefinitionNode) -> _Size:
        size = self._selections(node.selection_set, is_introspection=False)
        size.directives += len(node.directives)
        return size

    def _selections(self, node: SelectionSetNode, *, is_introspection: bool) -> _Size:
        size = _Size()
        for selection in node.selections:
            size.directives += len(selection.directives)
            match selection:
                case FieldNode():
                    size.add(self._field(selection, is_introspection))
                case InlineFragmentNode():
                    size.add(
                        self._selections(selection.selection_set, is_introspection=is_introspection)
                    )
                case FragmentSpreadNode():
                    size.add(self._fragment(selection.name.value, is_introspection))
        return size

    def _field(self, node: FieldNode, is_introspection: bool) -> _Size:
        inside = is_introspection or node.name.value in ("__schema", "__type")
        below = (
            self._selections(node.selection_set, is_introspection=inside)
            if node.selection_set
            else _Size()
        )
        alias = 1 if node.alias else 0
        if inside:
            return _Size(
                depth=0 if is_introspection else 1,
                directives=below.directives,
                root_fields=1,
                introspection_depth=below.introspection_depth + 1,
                introspection_aliases=below.introspection_aliases + alias,
            )
        return _Size(
            depth=below.depth + 1,
            aliases=below.aliases + alias,
            directives=below.directives,
            root_fields=1,
            introspection_depth=below.introspection_depth,
            introspection_aliases=below.introspection_aliases,
        )

    def _fragment(self, name: str, is_introspection: bool) -> _Size:
        key = (name, is_introspection)
        size = self._sizes.get(key)
        if size is None:
            fragment = self._fragments.get(name)
            self._sizes[key] = _Size()  # What a cycle meets.
            if fragment is None:
                return self._sizes[key]
            size = self._selections(fragment.selection_set, is_introspection=is_introspection)
            size.directives += len(fragment.directives)
            self._sizes[key] = size
        return size
