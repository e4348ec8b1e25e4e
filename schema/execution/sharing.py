"""Tells which subscriptions are answered the same, and may share an execution."""

from collections import Counter
from collections.abc import Hashable
from typing import Any

from graphql import (
    FieldNode,
    OperationDefinitionNode,
    VariableNode,
    Visitor,
    visit,
)

from schema.execution.documents import ParsedDocument
from schema.execution.live import Live
from schema.execution.prepared import Prepared


def kind_of(prepared: Prepared, live: Live, cursors: frozenset[str]) -> Hashable:
    """Give what is equal for subscriptions that may share an execution."""
    variables = {name: v for name, v in prepared.variables.items() if name not in cursors}
    text = repr(sorted(variables.items())) if variables else ""
    return (prepared.document.text, prepared.name, text, live.scope)


def cursor_variables(
    document: ParsedDocument, operation: OperationDefinitionNode
) -> frozenset[str]:
    """Give the variables that do nothing but give a subscription's field the cursor to begin at.

    Readers that differ in them alone are told the same once they have caught up.
    """
    names = {
        argument.value.name.value
        for field in operation.selection_set.selections
        if isinstance(field, FieldNode)
        for argument in field.arguments
        if argument.name.value == "after" and isinstance(argument.value, VariableNode)
    }
    uses = _Uses()
    for node in (operation, *document.fragments.values()):
        visit(node, uses)
    # Where it is defined, and where it is used.
    return frozenset(name for name in names if uses.counts[name] == 2)


class _Uses(Visitor):
    """Counts where variables are named."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def enter_variable(self, node: VariableNode, *_: Any) -> None:
        self.counts[node.name.value] += 1
