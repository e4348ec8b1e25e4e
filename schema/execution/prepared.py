"""Operations ready to run: chosen from their document, with their variables coerced."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from graphql import (
    ExecutionContext,
    GraphQLError,
    GraphQLSchema,
    OperationDefinitionNode,
    default_field_resolver,
    default_type_resolver,
    get_variable_values,
)
from graphql.execution.execute import CollectedErrors

from schema.execution.cost import cost_of, over_budget
from schema.execution.documents import ParsedDocument
from schema.execution.errors import ErrorDict, failure, refusals
from schema.execution.limits import Limits, check_variables
from schema.execution.roots import PlainVariables


@dataclass(slots=True, eq=False)
class Prepared:
    """An operation ready to run: a valid document, the chosen operation, coerced variables.

    `type` is `query`, `mutation` or `subscription`, `name` the operation's if it has one. `objects`
    is the most objects it (for a subscription: each event) asks for, `points` what it costs.
    """

    document: ParsedDocument
    operation: OperationDefinitionNode
    type: str
    name: str | None
    variables: dict[str, Any]
    objects: int = 0
    points: int = 1


class _Chosen(NamedTuple):
    """An operation of a document, with what is the same for each request of it."""

    node: OperationDefinitionNode
    type: str
    name: str | None
    plain: PlainVariables | None

    @classmethod
    def of(cls, schema: GraphQLSchema, node: OperationDefinitionNode) -> "_Chosen":
        name = node.name.value if node.name else None
        return cls(node, node.operation.value, name, PlainVariables.of(schema, node))


def choose(
    schema: GraphQLSchema,
    document: ParsedDocument,
    operation_name: str | None,
    variables: Any,
    limits: Limits,
) -> Prepared | list[ErrorDict]:
    """Choose the operation of a document and coerce its variables.

    Gives formatted errors otherwise, `extensions.code` being OPERATION_RESOLUTION_FAILURE,
    BAD_USER_INPUT or LIMIT.
    """
    # Only names of operations there are become keys.
    chosen: _Chosen | None = document.plans.get(("chosen", operation_name))
    if chosen is None:
        operation = document.operation(operation_name)
        if isinstance(operation, GraphQLError):
            return refusals([operation], "OPERATION_RESOLUTION_FAILURE")
        chosen = document.plans["chosen", operation_name] = _Chosen.of(schema, operation)
    if variables is None:
        variables = {}
    elif not isinstance(variables, dict):
        return [failure("BAD_USER_INPUT", "`variables` must be a map of names to values.")]
    too_many = check_variables(variables, limits) if variables else None
    if too_many:
        return [failure("LIMIT", too_many)]
    coerced = _coerced(schema, chosen, variables)
    if isinstance(coerced, list):
        return refusals(coerced, "BAD_USER_INPUT")
    cost = cost_of(schema, document, chosen.node, coerced, limits)
    if cost.objects > limits.max_objects:
        return [failure("LIMIT", over_budget(cost.objects, limits))]
    return Prepared(
        document, chosen.node, chosen.type, chosen.name, coerced, cost.objects, cost.points
    )


def _coerced(
    schema: GraphQLSchema, chosen: _Chosen, given: dict[str, Any]
) -> dict[str, Any] | list[GraphQLError]:
    values = None if chosen.plain is None else chosen.plain.coerced(given)
    if values is not None:
        return values
    return get_variable_values(schema, chosen.node.variable_definitions, given, max_errors=50)


def execution_of(
    schema: GraphQLSchema, prepared: Prepared, context: Any, root_value: Any
) -> ExecutionContext:
    """Give what executors run an operation, or one event, with; `root_value` is the event."""
    return ExecutionContext(
        schema,
        prepared.document.fragments,
        root_value,
        context,
        prepared.operation,
        prepared.variables,
        default_field_resolver,
        default_type_resolver,
        default_field_resolver,
        CollectedErrors(),
        None,
        None,
    )
