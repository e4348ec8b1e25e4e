"""What the incremental delivery draft asks of documents that use `@defer` and `@stream`.

The words are those of graphql-js 17, whose rules these are.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from graphql import (
    ArgumentNode,
    ASTValidationRule,
    BooleanValueNode,
    DirectiveNode,
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLObjectType,
    InlineFragmentNode,
    IntValueNode,
    OperationDefinitionNode,
    SelectionSetNode,
    StringValueNode,
    ValidationContext,
    ValidationRule,
    VariableNode,
    get_nullable_type,
    is_list_type,
    print_ast,
)

_NAMES = ("defer", "stream")


def _argument(node: DirectiveNode, name: str) -> ArgumentNode | None:
    return next((one for one in node.arguments if one.name.value == name), None)


class LabelsRule(ASTValidationRule):
    """Labels are texts, and no two alike."""

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._known: dict[str, DirectiveNode] = {}

    def enter_directive(self, node: DirectiveNode, *_: Any) -> None:
        """Check a label."""
        if node.name.value not in _NAMES:
            return
        argument = _argument(node, "label")
        if argument is None:
            return
        if isinstance(argument.value, VariableNode):
            told = f"Argument '@{node.name.value}(label:)' must be a static string."
            self.report_error(GraphQLError(told, node))
        elif isinstance(argument.value, StringValueNode):
            earlier = self._known.setdefault(argument.value.value, node)
            if earlier is not node:
                told = "Value for arguments 'defer(label:)' and 'stream(label:)' must be unique "
                told += "across all Defer/Stream directive usages."
                self.report_error(GraphQLError(told, [earlier, node]))


class PlacesRule(ValidationRule):
    """Only lists are streamed, from an item on; roots of mutations are told as a whole."""

    context: ValidationContext

    def enter_directive(self, node: DirectiveNode, *_: Any) -> None:
        """Check where a directive stands."""
        name, parent = node.name.value, self.context.get_parent_type()
        if name not in _NAMES or parent is None:
            return
        schema = self.context.schema
        for kind, root in (
            ("mutation", schema.mutation_type),
            ("subscription", schema.subscription_type),
        ):
            if parent is root and isinstance(parent, GraphQLObjectType):
                self.report_error(
                    GraphQLError(
                        f"{name.capitalize()} directive cannot be used on root {kind} type "
                        f"'{parent.name}'.",
                        node,
                    )
                )
        if name == "stream":
            self._check_list(node, parent)

    def _check_list(self, node: DirectiveNode, parent: Any) -> None:
        field = self.context.get_field_def()
        if field is None:
            return
        if not is_list_type(get_nullable_type(field.type)):  # type: ignore[arg-type]
            name = next((n for n, found in parent.fields.items() if found is field), "?")
            told = f"Directive '@stream' cannot be used on non-list field '{parent.name}.{name}'."
            self.report_error(GraphQLError(told, node))
        count = _argument(node, "initialCount")
        value = None if count is None else count.value
        if isinstance(value, IntValueNode) and int(value.value) < 0:
            told = "Argument '@stream(initialCount:)' must not be negative."
            self.report_error(GraphQLError(told, node))


class OperationsRule(ASTValidationRule):
    """An event of a subscription is told as a whole."""

    def enter_operation_definition(self, node: OperationDefinitionNode, *_: Any) -> None:
        """Check all that a subscription selects."""
        if node.operation.value != "subscription":
            return
        fragments = {
            one.name.value: one
            for one in self.context.document.definitions
            if isinstance(one, FragmentDefinitionNode)
        }
        seen: set[str] = set()
        sets = [node.selection_set]
        while sets:
            for selection in sets.pop().selections:
                self._check(selection.directives)
                below = getattr(selection, "selection_set", None)
                if isinstance(selection, FragmentSpreadNode):
                    name = selection.name.value
                    if name in seen or name not in fragments:
                        continue
                    seen.add(name)
                    below = fragments[name].selection_set
                if below is not None:
                    sets.append(below)

    def _check(self, directives: Sequence[DirectiveNode]) -> None:
        for node in directives:
            if node.name.value not in _NAMES:
                continue
            condition = _argument(node, "if")
            value = None if condition is None else condition.value
            if isinstance(value, VariableNode):
                continue
            if isinstance(value, BooleanValueNode) and not value.value:
                continue
            told = (
                f"{node.name.value.capitalize()} directive not supported on subscription "
                "operations. Disable `@" + node.name.value + "` by setting the `if` argument to "
                "`false`."
            )
            self.report_error(GraphQLError(told, node))


class SameStreamsRule(ASTValidationRule):
    """Fields that answer one place stream alike.

    The limits on what is compared pairwise bound this as well.
    """

    def leave_document(self, node: DocumentNode, *_: Any) -> None:
        """Check every operation."""
        fragments = {
            one.name.value: one
            for one in node.definitions
            if isinstance(one, FragmentDefinitionNode)
        }
        for definition in node.definitions:
            if isinstance(definition, OperationDefinitionNode):
                self._check(definition.selection_set, fragments)

    def _check(
        self, root: SelectionSetNode, fragments: Mapping[str, FragmentDefinitionNode]
    ) -> None:
        levels = [[root]]
        while levels:
            found: dict[str, list[FieldNode]] = {}
            _gather(levels.pop(), fragments, found)
            for key, nodes in found.items():
                first = _stream(nodes[0])
                other = next((one for one in nodes if _stream(one) != first), None)
                if other is not None:
                    self.report_error(
                        GraphQLError(
                            f"Fields '{key}' conflict because they have differing stream "
                            "directives. Use different aliases on the fields to fetch both if "
                            "this was intentional.",
                            [nodes[0], other],
                        )
                    )
                    return
                below = [one.selection_set for one in nodes if one.selection_set]
                if below:
                    levels.append(below)


def _gather(
    sets: Sequence[SelectionSetNode],
    fragments: Mapping[str, FragmentDefinitionNode],
    found: dict[str, list[FieldNode]],
) -> None:
    waiting, seen = list(sets), set[str]()
    while waiting:
        for selection in waiting.pop().selections:
            match selection:
                case FieldNode():
                    key = (selection.alias or selection.name).value
                    found.setdefault(key, []).append(selection)
                case InlineFragmentNode():
                    waiting.append(selection.selection_set)
                case FragmentSpreadNode():
                    name = selection.name.value
                    if name not in seen and name in fragments:
                        seen.add(name)
                        waiting.append(fragments[name].selection_set)


def _stream(node: FieldNode) -> tuple[str, ...] | None:
    for directive in node.directives:
        if directive.name.value == "stream":
            return tuple(sorted(map(print_ast, directive.arguments)))
    return None


RULES = (LabelsRule, PlacesRule, OperationsRule, SameStreamsRule)
