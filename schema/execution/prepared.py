"""Operations ready to run: chosen from their document, with their variables coerced."""

from dataclasses import dataclass
from functools import partial
from typing import Any

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

    `objects` is the most objects it (for a subscription: each event) asks for, `points` what it
    costs.
    """

    document: ParsedDocument
    operation: OperationDefinitionNode
    variables: dict[str, Any]
    objects: int = 0
    points: int = 1

    @property
    def type(self) -> str:
        """`query`, `mutation` or `subscription`."""
        return self.operation.operation.value

    @property
    def name(self) -> str | None:
        """Name of the operation, if it has one."""
        return self.operation.name.value if self.operation.name else None


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
    operation = document.operation(operation_name)
    if isinstance(operation, GraphQLError):
        return refusals([operation], "OPERATION_RESOLUTION_FAILURE")
    if variables is None:
        variables = {}
    elif not isinstance(variables, dict):
        return [failure("BAD_USER_INPUT", "`variables` must be a map of names to values.")]
    too_many = check_variables(variables, limits)
    if too_many:
        return [failure("LIMIT", too_many)]
    coerced = _coerced(schema, document, operation, variables)
    if isinstance(coerced, list):
        return refusals(coerced, "BAD_USER_INPUT")
    cost = cost_of(schema, document, operation, coerced, limits)
    too_many = over_budget(cost.objects, limits)
    if too_many:
        return [failure("LIMIT", too_many)]
    return Prepared(document, operation, coerced, cost.objects, cost.points)


def _coerced(
    schema: GraphQLSchema,
    document: ParsedDocument,
    operation: OperationDefinitionNode,
    given: dict[str, Any],
) -> dict[str, Any] | list[GraphQLError]:
    if not operation.variable_definitions:
        return {}
    plain = document.derived("variables", operation, partial(PlainVariables.of, schema, operation))
    values = None if plain is None else plain.coerced(given)
    if values is not None:
        return values
    return get_variable_values(schema, operation.variable_definitions, given, max_errors=50)


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
