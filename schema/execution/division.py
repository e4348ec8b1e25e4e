"""Plans of answers given in pieces: which fields of an object are told later, and together.

There are two ways, for the two forms in which clients want pieces. In the draft of today a field is
told once: where it stands in several fragments, with whatever of them comes first, and those that
stand in the same deferred fragments make a part of their own. In the form of August 2022 every
deferred fragment is a part by itself, and told whole. Either way a part is a selection of the same
objects as what it was taken from: it is run over the rows at hand, which have all columns it needs.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count
from typing import Any

from graphql import (
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLField,
    GraphQLObjectType,
    GraphQLSchema,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionSetNode,
    print_ast,
)
from graphql.execution.collect_fields import (
    does_fragment_condition_match,
    get_field_entry_key,
    should_include_node,
)

from schema.execution.directives import deferred, streamed
from schema.execution.plan import Field, NotCoveredError, Plan, Planner, Selection, _joined


@dataclass(slots=True, eq=False)
class Usage:
    """A deferred fragment as it was met in a selection."""

    label: str | None
    # Fields from the root to the object it stands in.
    depth: int
    # Its place among all that were met, for an order that is always the same.
    number: int
    # The deferred fragment it stands in, where a field may belong to both.
    parent: "Usage | None" = None

    def is_in(self, others: Iterable["Usage"]) -> bool:
        """Tell whether it stands in one of others, at whatever depth."""
        known, above = set(others), self.parent
        while above is not None:
            if above in known:
                return True
            above = above.parent
        return False


@dataclass(slots=True, eq=False)
class Part:
    """What is told later of a selection's objects, and the deferred fragments it belongs to."""

    usages: tuple[Usage, ...]
    selection: Selection


Within = frozenset[Usage]
"""The deferred fragments that a part belongs to; none for what is told at once."""

_Sets = Iterable[tuple[SelectionSetNode, Usage | None]]


class _Nodes(list[FieldNode]):
    """The nodes of one response key, with the deferred fragment that each stands in."""

    def __init__(self, within: Within, depth: int) -> None:
        super().__init__()
        self.usages: list[Usage | None] = []
        self.within = within
        # Fields from the root to the object.
        self.depth = depth

    def add(self, node: FieldNode, usage: Usage | None) -> None:
        self.append(node)
        self.usages.append(usage)


_Found = dict[str, _Nodes]


class DividingPlanner(Planner):
    """Works out the selections of an operation whose answer is given in pieces.

    `is_whole`: every deferred fragment is told whole, rather than each field once.
    """

    def __init__(
        self,
        schema: GraphQLSchema,
        fragments: dict[str, FragmentDefinitionNode],
        variables: dict[str, Any],
        *,
        is_whole: bool,
    ) -> None:
        super().__init__(schema, fragments, variables)
        self._is_whole = is_whole
        self._usages = count()

    def plan(self, operation: OperationDefinitionNode) -> Plan:
        """Work out an operation. Raises NotCoveredError, and GraphQLError for wrong labels."""
        root = self._schema.get_root_type(operation.operation)
        if root is None:
            raise NotCoveredError("no root")
        return Plan(self._divided(root, [(operation.selection_set, None)], frozenset(), 0), self)

    def below(self, field_: Field, type_: GraphQLObjectType) -> Selection:
        """Work out what a field selects of objects of a type. Raises NotCoveredError."""
        nodes = field_.nodes
        assert isinstance(nodes, _Nodes)  # noqa: S101 - this planner makes no others.
        sets = [
            (node.selection_set, usage)
            for node, usage in zip(nodes, nodes.usages, strict=True)
            if node.selection_set
        ]
        return self._divided(type_, sets, nodes.within, nodes.depth + 1)

    def _field(
        self,
        parent: GraphQLObjectType,
        key: str,
        nodes: list[FieldNode],
        definition: GraphQLField,
    ) -> Field:
        planned = super()._field(parent, key, nodes, definition)
        planned.question = (
            parent.name,
            planned.name,
            *sorted(map(print_ast, nodes[0].arguments)),
        )
        if planned.shape.item is not None:
            planned.stream = streamed(nodes[0], self._variables)
        return planned

    def _divided(
        self, type_: GraphQLObjectType, sets: _Sets, within: Within, depth: int
    ) -> Selection:
        if self._is_whole:
            return self._with_whole(type_, [node for node, _ in sets], depth)
        found = _Collection(self, type_, depth).of(sets)
        own: _Found = {}
        later: dict[Within, _Found] = {}
        for key, nodes in found.items():
            nodes.within = _belongs_to(nodes.usages)
            if nodes.within == within:
                own[key] = nodes
            else:
                later.setdefault(nodes.within, {})[key] = nodes
        selection = self._selection(type_, own)
        selection.parts = [
            Part(
                tuple(sorted(usages, key=lambda usage: usage.number)),
                self._selection(type_, fields),
            )
            for usages, fields in later.items()
        ]
        _share(selection)
        return selection

    def _with_whole(
        self, type_: GraphQLObjectType, sets: Iterable[SelectionSetNode], depth: int
    ) -> Selection:
        collection = _Collection(self, type_, depth)
        selection = self._selection(type_, collection.of((one, None) for one in sets))
        selection.parts = [
            Part((usage,), self._with_whole(type_, [inner], depth))
            for inner, usage in collection.apart
        ]
        _share(selection)
        return selection


class _Collection:
    """Collects the fields of an object of one type.

    Of fragments that are told whole, it keeps apart what they select.
    """

    def __init__(self, planner: DividingPlanner, type_: GraphQLObjectType, depth: int) -> None:
        self._schema = planner._schema
        self._fragments = planner._fragments
        self._variables = planner._variables
        self._is_whole = planner._is_whole
        self._usages = planner._usages
        self._type = type_
        self._depth = depth
        self._seen: set[tuple[str, Usage | None]] = set()
        self._found: _Found = {}
        self.apart: list[tuple[SelectionSetNode, Usage]] = []

    def of(self, sets: _Sets) -> _Found:
        for node, usage in sets:
            self._add(node, usage)
        return self._found

    def _add(self, set_: SelectionSetNode, usage: Usage | None) -> None:
        for node in set_.selections:
            if not should_include_node(self._variables, node):  # type: ignore[arg-type]
                continue
            match node:
                case FieldNode():
                    key = get_field_entry_key(node)
                    nodes = self._found.get(key)
                    if nodes is None:
                        nodes = self._found[key] = _Nodes(frozenset(), self._depth)
                    nodes.add(node, usage)
                case InlineFragmentNode():
                    if self._matches(node):
                        self._fragment(node, node.selection_set, usage, None)
                case FragmentSpreadNode():
                    name = node.name.value
                    fragment = self._fragments.get(name)
                    if fragment is not None and self._matches(fragment):
                        self._fragment(node, fragment.selection_set, usage, name)

    def _matches(self, fragment: FragmentDefinitionNode | InlineFragmentNode) -> bool:
        return does_fragment_condition_match(self._schema, fragment, self._type)

    def _fragment(
        self,
        node: FragmentSpreadNode | InlineFragmentNode,
        inner: SelectionSetNode,
        usage: Usage | None,
        name: str | None,
    ) -> None:
        told = deferred(node, self._variables)
        if told is not None:
            own = Usage(told.label, self._depth, next(self._usages), usage)
            if self._is_whole:
                self.apart.append((inner, own))
            else:
                self._add(inner, own)
            return
        if name is not None:
            if (name, usage) in self._seen:
                return
            self._seen.add((name, usage))
        self._add(inner, usage)


def _belongs_to(usages: Iterable[Usage | None]) -> Within:
    """Give the outermost deferred fragments that nodes stand in; none if one stands in none."""
    known = dict.fromkeys(usages)
    if None in known:
        return frozenset()
    found = [usage for usage in known if usage is not None]
    return frozenset(usage for usage in found if not usage.is_in(found))


def _share(selection: Selection) -> None:
    """Let what is asked in several parts be loaded once, with what they all need."""
    if not selection.parts:
        return
    asked: dict[Any, list[Field]] = {}
    _each(selection, lambda field_: asked.setdefault(field_.question, []).append(field_))
    for fields in asked.values():
        wanted = _joined([one.wanted for one in fields])
        for one in fields:
            one.wanted = wanted


def _each(selection: Selection, tell: Callable[[Field], Any]) -> None:
    for together in selection.computed:
        tell(together[0])
    for part in selection.parts:
        _each(part.selection, tell)
