"""What an operation may ask for, told from its document and variables before it runs.

Pages multiply along a path: three connections of 100 inside one another are a million objects, in a
document of a hundred characters. The estimate is an upper bound but for lists of unknown length.
Points are objects, and more for what is dear beyond its objects: searches, models, passwords.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

from graphql import (
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLCompositeType,
    GraphQLField,
    GraphQLSchema,
    InlineFragmentNode,
    IntValueNode,
    ListValueNode,
    OperationDefinitionNode,
    SelectionSetNode,
    Undefined,
    ValueNode,
    VariableNode,
    get_named_type,
    is_composite_type,
    is_list_type,
    type_from_ast,
)

from schema.execution.documents import ParsedDocument
from schema.execution.limits import Limits

_OBJECT = 10
"""Weight of an object; a plain value weighs 1, for it costs about a tenth to resolve and encode."""

_KNOWN = 64
"""Costs remembered of an operation, one for each choice of page sizes."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The most an operation (for a subscription: each event) asks for."""

    objects: int
    points: int


@dataclass(slots=True)
class _Costs:
    """What an operation costs by the values of the variables that sizes are taken from."""

    variables: tuple[str, ...]
    known: dict[tuple[Any, ...], Cost] = dataclass_field(default_factory=dict)


_PIECE = 10**15
"""Weight of a piece where pieces are counted: all else together weighs less than one."""


@dataclass(frozen=True, slots=True)
class _Weight:
    """Weight of a selection set: once, and again for each item of the connection it is on."""

    once: int = 0
    per_item: int = 0


def cost_of(
    schema: GraphQLSchema,
    document: ParsedDocument,
    operation: OperationDefinitionNode,
    variables: Mapping[str, Any],
    limits: Limits,
) -> Cost:
    """Give what a valid operation asks for, ten plain values counting as one object.

    Takes time linear in the document the first time, and then for other page sizes only. Fields
    under `@skip` and `@include` count. Introspection has no objects, for its own limits bound it,
    but points.
    """
    key = ("cost", operation.name.value if operation.name else None)
    costs: _Costs | None = document.plans.get(key)
    sizes = None if costs is None else _sizes(costs.variables, variables)
    known = None if costs is None or sizes is None else costs.known.get(sizes)
    if known is not None:
        return known
    root = schema.get_root_type(operation.operation)
    if root is None:
        return Cost(0, 1)
    estimate = _Estimate(schema, document.fragments, variables, limits, {})
    objects = -(-estimate.of(operation.selection_set, root).once // _OBJECT)
    dear = _Estimate(schema, document.fragments, variables, limits, limits.dear)
    points = max(1, -(-dear.of(operation.selection_set, root).once // _OBJECT))
    cost = Cost(objects, points)
    if costs is None:
        costs = document.plans[key] = _Costs(tuple(sorted(estimate.read)))
    if len(costs.known) < _KNOWN:
        costs.known[_sizes(costs.variables, variables)] = cost
    return cost


def pieces_of(
    schema: GraphQLSchema,
    document: ParsedDocument,
    operation: OperationDefinitionNode,
    variables: Mapping[str, Any],
    limits: Limits,
) -> int:
    """Give how many deferred fragments and streamed lists a valid operation may ask for."""
    root = schema.get_root_type(operation.operation)
    if root is None:
        return 0
    estimate = _PiecesEstimate(schema, document.fragments, variables, limits, {})
    return estimate.of(operation.selection_set, root).once // _PIECE


def _sizes(names: tuple[str, ...], variables: Mapping[str, Any]) -> tuple[Any, ...]:
    sizes = []
    for name in names:
        value = variables.get(name, "")
        sizes.append(len(value) if isinstance(value, list) else value)
    return tuple(sizes)


def over_budget(objects: int, limits: Limits) -> str:
    """Give what to tell whoever asks for too many objects."""
    count = f"{objects:,}" if objects < 1_000_000_000 else "over a billion"
    return (
        f"The operation asks for up to {count} objects; the limit is {limits.max_objects:,}. "
        "Ask for smaller pages (`first` or `last`), or nest fewer lists."
    )


class _Estimate:
    """Weights of selection sets, each fragment weighed once."""

    def __init__(
        self,
        schema: GraphQLSchema,
        fragments: Mapping[str, FragmentDefinitionNode],
        variables: Mapping[str, Any],
        limits: Limits,
        dear: Mapping[str, int],
    ) -> None:
        self.read: set[str] = set()
        self._dear = dear
        self._schema = schema
        self._fragments = fragments
        self._variables = variables
        self._limits = limits
        self._weights: dict[str, _Weight] = {}

    def of(self, node: SelectionSetNode, parent: GraphQLCompositeType) -> _Weight:
        once = per_item = 0
        for selection in node.selections:
            match selection:
                case FieldNode():
                    weight = self._field(selection, parent)
                case InlineFragmentNode(type_condition=condition):
                    inner = type_from_ast(self._schema, condition) if condition else parent
                    weight = self.of(selection.selection_set, inner)  # type: ignore[arg-type]
                case FragmentSpreadNode():
                    weight = self._fragment(selection.name.value)
                case _:
                    continue
            once += weight.once
            per_item += weight.per_item
        return _Weight(once, per_item)

    def _fragment(self, name: str) -> _Weight:
        weight = self._weights.get(name)
        if weight is None:
            fragment = self._fragments[name]
            inner = type_from_ast(self._schema, fragment.type_condition)
            weight = self.of(fragment.selection_set, inner)  # type: ignore[arg-type]
            self._weights[name] = weight
        return weight

    def _field(self, node: FieldNode, parent: GraphQLCompositeType) -> _Weight:
        name = node.name.value
        if name.startswith("__"):
            return _Weight(1 if name == "__typename" else self._dear.get(name, 0) * _OBJECT)
        # A valid document selects no fields of unions.
        field: GraphQLField = parent.fields[name]  # type: ignore[union-attr]
        named = get_named_type(field.type)
        is_list = is_list_type(getattr(field.type, "of_type", field.type)) or is_list_type(
            field.type
        )
        place = f"{parent.name}.{name}"
        dear = self._dear.get(place, 0) * _OBJECT
        weight = _Weight(1)
        if node.selection_set and is_composite_type(named):
            below = self.of(node.selection_set, named)  # type: ignore[arg-type]
            page = self._page(node, field) if below.per_item else 0
            weight = _Weight(_OBJECT + below.once + page * below.per_item)
        if not is_list:
            return _Weight(weight.once + dear, weight.per_item)
        if parent.name.endswith("Connection"):
            return _Weight(dear, weight.once)
        return _Weight(dear + weight.once * self._length(node, field, place))

    def _page(self, node: FieldNode, field: GraphQLField) -> int:
        """Give the size of the page a connection is asked for."""
        size = self._size(node, field)
        return self._limits.default_page if size is None else size

    def _length(self, node: FieldNode, field: GraphQLField, place: str) -> int:
        """Give how long a list is to be thought."""
        ids = self._argument(node, field, "ids")
        if isinstance(ids, list):
            return min(len(ids), self._limits.max_page)
        size = self._size(node, field)
        if size is not None:
            return size
        return self._limits.list_sizes.get(place, self._limits.list_size)

    def _size(self, node: FieldNode, field: GraphQLField) -> int | None:
        sizes = [self._argument(node, field, name) for name in ("first", "last")]
        known = [size for size in sizes if isinstance(size, int)]
        return min(max(0, *known), self._limits.max_page) if known else None

    def _argument(self, node: FieldNode, field: GraphQLField, name: str) -> Any:
        """Give a number, a list (of values or of nodes), or None."""
        definition = field.args.get(name)
        if definition is None:
            return None
        default = None if definition.default_value is Undefined else definition.default_value
        for argument in node.arguments:
            if argument.name.value == name:
                return self._value(argument.value, default)
        return default

    def _value(self, node: ValueNode, default: Any) -> Any:
        match node:
            case VariableNode():
                self.read.add(node.name.value)
                return self._variables.get(node.name.value, default)
            case IntValueNode():
                return int(node.value)
            case ListValueNode():
                return list(node.values)
        return None


class _PiecesEstimate(_Estimate):
    """Weights that count deferred fragments and streamed lists."""

    def of(self, node: SelectionSetNode, parent: GraphQLCompositeType) -> _Weight:
        weight = super().of(node, parent)
        pieces = sum(
            directive.name.value in ("defer", "stream")
            for selection in node.selections
            for directive in selection.directives
        )
        return _Weight(weight.once + pieces * _PIECE, weight.per_item)
