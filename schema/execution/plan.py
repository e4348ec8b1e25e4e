"""Plans: what an operation selects, worked out once, so that running it only reads and copies.

A plan is a tree of selections, one for each object type and selection set. Fields that are plain
attributes of a row are made by one generated function for the whole selection; each other field
says how its values are had (for all parents at once, where its resolver is a batch) and what shape
they take. Selections under interfaces and unions are worked out when a type is first met.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from operator import attrgetter
from typing import TYPE_CHECKING, Any, cast

from graphql import (
    FieldNode,
    FragmentDefinitionNode,
    GraphQLEnumType,
    GraphQLField,
    GraphQLList,
    GraphQLNamedOutputType,
    GraphQLNonNull,
    GraphQLObjectType,
    GraphQLOutputType,
    GraphQLScalarType,
    GraphQLSchema,
    OperationDefinitionNode,
    VariableNode,
    Visitor,
    print_ast,
    visit,
)
from graphql.execution.collect_fields import collect_fields, collect_sub_fields
from graphql.pyutils import Path

from schema.execution.calls import Call, direct
from schema.execution.leaves import Complete, Leaf, Make, completion, makers

if TYPE_CHECKING:
    from schema.execution.directives import Streamed
    from schema.execution.division import Part

Wanted = tuple[type[Any], frozenset[str]]
_BYTES_PER_FIELD = 2_000
"""Measured with tracemalloc: a field with its share of the generated function, rounded up."""


class NotCoveredError(Exception):
    """The operation is left to graphql-core. The message is a word for the metrics."""


class Source(Enum):
    """How the values of a field are had."""

    ATTRIBUTE = auto()
    # One call answers for all parents.
    BATCH = auto()
    # One call for each parent.
    CALL = auto()


@dataclass(slots=True, eq=False)
class Shape:
    """What a value must be: required or not, a list of a shape, a leaf, or an object."""

    is_required: bool
    type: GraphQLNamedOutputType
    item: "Shape | None" = None
    complete: Complete | None = None

    @property
    def is_leaf(self) -> bool:
        """Whether it holds no objects."""
        return self.complete is not None


@dataclass(slots=True, eq=False)
class Field:
    """One response key of a selection, and every node of the document that asks for it."""

    key: str
    name: str
    attribute: str
    nodes: list[FieldNode]
    definition: GraphQLField
    parent: GraphQLObjectType
    source: Source
    shape: Shape
    # Whether having its own values may take waiting.
    is_awaited: bool
    # What is selected of its objects, where their type is known beforehand.
    selection: "Selection | None" = None
    # Those met so far of an interface or union, by the class of the value.
    selections: dict[type, "Selection"] = field(default_factory=dict)
    # The table whose rows it gives, and all that is needed of them, where that is known.
    wanted: Wanted | None = None
    # How its resolver's function is called; None where that is left to Strawberry.
    call: Call | None = None
    # In answers given in pieces: how its items are, and what is equal where the same is asked.
    stream: "Streamed | None" = None
    question: Hashable = None
    # The value of its attribute, of a row.
    get: Callable[[Any], Any] = field(init=False)
    # As far as resolvers are told: the levels above are many objects at once.
    path: Path = field(init=False)

    def __post_init__(self) -> None:
        """Work out what follows from the rest."""
        self.get = attrgetter(self.attribute)
        self.path = Path(None, self.key, self.parent.name)

    @property
    def place(self) -> str:
        """Type and field, as errors name them."""
        return f"{self.parent.name}.{self.name}"

    @property
    def waits(self) -> bool:
        """Whether having its values, with all below them, may take waiting."""
        if self.is_awaited:
            return True
        if self.shape.is_leaf:
            return False
        return self.selection is None or self.selection.waits


@dataclass(slots=True, eq=False)
class Selection:
    """What is selected of the objects of one type."""

    object_type: GraphQLObjectType
    make: Make
    make_carefully: Make
    # Every field but `__typename`, in the order of the answer.
    fields: list[Field]
    # Those not made by `make`; together, those that ask for the same under several names.
    computed: list[list[Field]]
    waits: bool
    # Whether values of a class are of the type, by class.
    known: dict[type, bool] = field(default_factory=dict)
    # In answers given in pieces: what is told of the same objects later.
    parts: "Sequence[Part]" = ()
    # Of those computed: what can be told at once, and what may take waiting.
    ready: list[list[Field]] = field(init=False)
    waiting: list[list[Field]] = field(init=False)

    def __post_init__(self) -> None:
        """Part what may take waiting from the rest."""
        self.ready, self.waiting = [], []
        for fields in self.computed:
            found = self.waiting if any(one.waits for one in fields) else self.ready
            found.append(fields)

    @property
    def all_fields(self) -> list[Field]:
        """Every field that reads the objects, now or later."""
        found = list(self.fields)
        for part in self.parts:
            found += part.selection.all_fields
        return found


@dataclass(slots=True, eq=False)
class Plan:
    """An operation's selections, for one choice of what `@skip` and `@include` leave."""

    root: Selection
    planner: "Planner"

    @property
    def size_bytes(self) -> int:
        """About how much memory it takes."""
        return self.planner.size_bytes


class Planner:
    """Works out the selections of one operation."""

    def __init__(
        self,
        schema: GraphQLSchema,
        fragments: dict[str, FragmentDefinitionNode],
        variables: dict[str, Any],
    ) -> None:
        self._schema = schema
        self._fragments = fragments
        # Only those that conditions depend on may be looked at: the plan outlives the others.
        self._variables = variables
        self._shapes: dict[int, Shape] = {}
        self.size_bytes = 0

    def plan(self, operation: OperationDefinitionNode) -> Plan:
        """Work out an operation. Raises NotCoveredError."""
        root = self._schema.get_root_type(operation.operation)
        if root is None:
            raise NotCoveredError("no root")
        found = collect_fields(
            self._schema, self._fragments, self._variables, root, operation.selection_set
        )
        return Plan(self._selection(root, found), self)

    def below(self, field_: Field, type_: GraphQLObjectType) -> Selection:
        """Work out what a field selects of objects of a type. Raises NotCoveredError."""
        found = collect_sub_fields(
            self._schema, self._fragments, self._variables, type_, field_.nodes
        )
        return self._selection(type_, found)

    def _selection(
        self, type_: GraphQLObjectType, found: Mapping[str, list[FieldNode]]
    ) -> Selection:
        leaves: list[Leaf | tuple[str, Any]] = []
        fields: list[Field] = []
        computed: dict[Hashable, list[Field]] = {}
        for key, nodes in found.items():
            name = nodes[0].name.value
            if name == "__typename":
                leaves.append((key, type_.name))
                continue
            definition = type_.fields.get(name)
            if definition is None:
                raise NotCoveredError("introspection")
            planned = self._field(type_, key, nodes, definition)
            fields.append(planned)
            if planned.source is Source.ATTRIBUTE and _is_plain(planned.shape):
                leaves.append(_leaf(planned))
            else:
                leaves.append((key, None))
                computed.setdefault(_question(planned), []).append(planned)
        for together in computed.values():
            # What they need is loaded at once, for all.
            together[0].wanted = _joined([one.wanted for one in together])
        self.size_bytes += _BYTES_PER_FIELD * (1 + len(leaves))
        waits = any(one.waits for one in fields)
        made = makers(type_.name, leaves)
        return Selection(type_, *made, fields, list(computed.values()), waits)

    def _field(
        self, parent: GraphQLObjectType, key: str, nodes: list[FieldNode], definition: GraphQLField
    ) -> Field:
        declared = definition.extensions.get("strawberry-definition")
        if declared is None or definition.resolve is None:
            raise NotCoveredError("a field of another making")
        wrapped = getattr(declared.base_resolver, "wrapped_func", None)
        is_awaited = False
        if getattr(definition.resolve, "_is_default", False):
            source = Source.ATTRIBUTE
        elif hasattr(wrapped, "batch"):
            source, is_awaited = Source.BATCH, True
        else:
            # A subscription's field gives the event as it is.
            source, is_awaited = Source.CALL, declared.is_async and not declared.is_subscription
        shape = self._shape(definition.type)
        planned = Field(
            key,
            nodes[0].name.value,
            declared.python_name,
            nodes,
            definition,
            parent,
            source,
            shape,
            is_awaited,
            call=None if source is Source.ATTRIBUTE else direct(definition, nodes[0]),
        )
        named = shape.type
        if isinstance(named, GraphQLObjectType):
            planned.selection = self.below(planned, named)
            planned.wanted = _wanted(planned)
        return planned

    def _shape(self, type_: GraphQLOutputType) -> Shape:
        known = self._shapes.get(id(type_))
        if known is None:
            known = self._shapes[id(type_)] = self._new_shape(type_)
        return known

    def _new_shape(self, type_: GraphQLOutputType) -> Shape:
        if isinstance(type_, GraphQLNonNull):
            inner = self._new_shape(type_.of_type)
            inner.is_required = True
            return inner
        if isinstance(type_, GraphQLList):
            item = self._new_shape(type_.of_type)
            return Shape(False, item.type, item, item.complete)
        if isinstance(type_, GraphQLScalarType | GraphQLEnumType):
            return Shape(False, type_, None, completion(type_))
        return Shape(False, cast("GraphQLNamedOutputType", type_))


def _resolver(planned: Field) -> Any:
    return planned.definition.extensions["strawberry-definition"].base_resolver.wrapped_func


def _wanted(planned: Field) -> Wanted | None:
    """Tell what is needed of the rows that a field gives; None if all of it may be."""
    if planned.source is Source.ATTRIBUTE or not hasattr(_resolver(planned), "reads_rows"):
        return None
    objects = _entries(planned)
    needed = set(_resolver(planned).reads_rows)
    record = None
    for selection in objects:
        own = _needed(selection)
        definition = selection.object_type.extensions.get("strawberry-definition")
        record = getattr(getattr(definition, "origin", None), "row", None)
        if own is None or record is None:
            return None
        needed |= own
    return None if record is None else (record, frozenset(needed))


def _joined(wanted: Sequence[Wanted | None]) -> Wanted | None:
    known = [one for one in wanted if one is not None]
    if len(known) < len(wanted):
        return None
    return known[0][0], frozenset().union(*(columns for _, columns in known))


def _entries(planned: Field) -> list[Selection]:
    """Give the selections of a field's rows: its own, or those of a connection's entries."""
    selection = planned.selection
    if selection is None or not selection.object_type.name.endswith("Connection"):
        return [] if selection is None else [selection]
    found = []
    for field_ in selection.all_fields:
        if field_.name == "nodes" and field_.selection is not None:
            found.append(field_.selection)
        elif field_.name == "edges" and field_.selection is not None:
            below = field_.selection.all_fields
            found += [edge.selection for edge in below if edge.selection is not None]
    return found


def _needed(selection: Selection) -> set[str] | None:
    """Name the attributes of rows that a selection takes; None if that cannot be told."""
    needed = set()
    for field_ in selection.all_fields:
        if field_.source is Source.ATTRIBUTE:
            needed.add(field_.attribute)
        elif field_.source is Source.BATCH and hasattr(_resolver(field_), "reads"):
            needed |= _resolver(field_).reads
        else:
            return None
    return needed


def _question(planned: Field) -> Hashable:
    """Give what is equal for fields whose resolvers would be asked the same."""
    if planned.source is not Source.BATCH:
        return planned.key
    return (planned.name, *sorted(map(print_ast, planned.nodes[0].arguments)))


def _is_plain(shape: Shape) -> bool:
    return shape.is_leaf and shape.item is None


def _leaf(planned: Field) -> Leaf:
    shape = planned.shape
    return Leaf(
        planned.key,
        planned.attribute,
        shape.type,  # type: ignore[arg-type]
        shape.is_required,
        planned.place,
    )


def conditions(
    operation: OperationDefinitionNode, fragments: Mapping[str, FragmentDefinitionNode]
) -> tuple[str, ...]:
    """Name the variables that decide, in `@skip` and `@include`, what is selected."""
    found = _Conditions()
    for node in (operation, *fragments.values()):
        visit(node, found)
    return tuple(sorted(found.names))


class _Conditions(Visitor):
    """Gathers the variables in directives."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def enter_directive(self, node: Any, *_: Any) -> None:
        self.names.update(
            argument.value.name.value
            for argument in node.arguments
            if isinstance(argument.value, VariableNode)
        )
