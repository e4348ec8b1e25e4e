"""The field of a subscription, called without the detours of an executor.

Who subscribes again after a deploy sends the document everybody sends. What graphql-core and
Strawberry work out about it for each of them (the fields it collects, the types of variables and
arguments, the names they have in Python) is worked out once per operation here, where it is plain:
one root field, and variables and arguments that are strings, numbers or flags. All else goes their
way.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from graphql import (
    FieldNode,
    GraphQLBoolean,
    GraphQLField,
    GraphQLFloat,
    GraphQLID,
    GraphQLInt,
    GraphQLNonNull,
    GraphQLResolveInfo,
    GraphQLSchema,
    GraphQLString,
    OperationDefinitionNode,
    OperationType,
    Undefined,
    VariableNode,
    type_from_ast,
    value_from_ast,
)
from graphql.pyutils import Path, is_awaitable

_PLAIN = (GraphQLString, GraphQLID, GraphQLInt, GraphQLFloat, GraphQLBoolean)


class ArgumentsError(Exception):
    """An argument that must be given is not, or is null."""


class _Argument(NamedTuple):
    """An argument given: its name in Python, and a variable's name or else a value."""

    name: str
    variable: str | None
    value: Any
    is_required: bool
    default: Any


def _unwrapped(type_: Any) -> tuple[Any, bool]:
    """Give a type without its `!`, and whether it had one."""
    if isinstance(type_, GraphQLNonNull):
        return type_.of_type, True
    return type_, False


def _is_int(value: Any) -> bool:
    return type(value) is int and -(2**31) <= value < 2**31


def _is_flag(value: Any) -> bool:
    return type(value) is bool


def _is_text(value: Any) -> bool:
    return type(value) is str


# Values that are what graphql-core would make of them.
_AS_THEY_ARE: dict[Any, Callable[[Any], bool]] = {
    GraphQLString: _is_text,
    GraphQLID: _is_text,
    GraphQLInt: _is_int,
    GraphQLBoolean: _is_flag,
}


class PlainVariables:
    """Coerces the variables of an operation that are all texts, ids, whole numbers or flags."""

    __slots__ = ("_known",)

    def __init__(self, known: Sequence[tuple[str, Callable[[Any], bool], bool]]) -> None:
        self._known = tuple(known)

    @classmethod
    def of(
        cls, schema: GraphQLSchema, operation: OperationDefinitionNode
    ) -> "PlainVariables | None":
        """Give what coerces an operation's variables; None if they are of other types."""
        known = []
        for definition in operation.variable_definitions:
            type_, is_required = _unwrapped(type_from_ast(schema, definition.type))
            is_plain = _AS_THEY_ARE.get(type_)
            if is_plain is None or definition.default_value is not None:
                return None
            known.append((definition.variable.name.value, is_plain, is_required))
        return cls(known)

    def coerced(self, given: Mapping[str, Any]) -> dict[str, Any] | None:
        """Give the values; None if anything is wrong with them, or not plain."""
        values: dict[str, Any] = {}
        for name, is_plain, is_required in self._known:
            if name in given:
                value = given[name]
                if not is_plain(value) and (value is not None or is_required):
                    return None
                values[name] = value
            elif is_required:
                return None
        return values


class Root:
    """The one field of a subscription, with what its resolver is called with."""

    def __init__(
        self,
        schema: GraphQLSchema,
        node: FieldNode,
        field: GraphQLField,
        arguments: list[_Argument],
    ) -> None:
        self.nodes = [node]
        self.key = node.alias.value if node.alias else node.name.value
        self._schema = schema
        self._field = field
        self._arguments = arguments
        definition = field.extensions["strawberry-definition"]
        self._definition = definition
        self._info_class = schema.extensions["strawberry-definition"].config.info_class
        self._resolver: Callable[..., Any] = definition.base_resolver
        self._takes_self = definition.base_resolver.self_parameter is not None
        parameter = definition.base_resolver.info_parameter
        self._info_name = parameter.name if parameter is not None else None

    @classmethod
    def of(cls, schema: GraphQLSchema, operation: OperationDefinitionNode) -> "Root | None":
        """Give the field of a valid operation; None if it takes an executor to call it."""
        root, selections = schema.subscription_type, operation.selection_set.selections
        if root is None or operation.operation is not OperationType.SUBSCRIPTION:
            return None
        if len(selections) != 1 or not isinstance(selections[0], FieldNode):
            return None
        node = selections[0]
        field = root.fields.get(node.name.value)
        if field is None or node.directives or not _is_plain(field):
            return None
        arguments = _arguments(node, field)
        return None if arguments is None else cls(schema, node, field, arguments)

    def call(
        self,
        operation: OperationDefinitionNode,
        fragments: dict[str, Any],
        variables: dict[str, Any],
        context: Any,
    ) -> Any:
        """Call the resolver; gives what it gives, mostly an awaitable. Raises what it raises.

        Raises ArgumentsError if an executor must say what is wrong with the arguments.
        """
        values: dict[str, Any] = {}
        for argument in self._arguments:
            value = argument.value
            if argument.variable is not None:
                value = variables.get(argument.variable, argument.default)
            if argument.is_required and (value is None or value is Undefined):
                raise ArgumentsError
            if value is not Undefined:
                values[argument.name] = value
        if self._info_name is not None:
            values[self._info_name] = self._info(operation, fragments, variables, context)
        return self._resolver(None, **values) if self._takes_self else self._resolver(**values)

    def _info(
        self,
        operation: OperationDefinitionNode,
        fragments: dict[str, Any],
        variables: dict[str, Any],
        context: Any,
    ) -> Any:
        root = self._schema.subscription_type
        assert root is not None  # noqa: S101 - the field is one of its fields.
        info = GraphQLResolveInfo(
            self.nodes[0].name.value,
            self.nodes,
            self._field.type,
            root,
            Path(None, self.key, root.name),
            self._schema,
            fragments,
            None,
            operation,
            variables,
            context,
            is_awaitable,
        )
        return self._info_class(_raw_info=info, _field=self._definition)


def _is_plain(field: GraphQLField) -> bool:
    """Tell whether a field is a resolver's and nothing more."""
    definition = field.extensions.get("strawberry-definition")
    resolver = getattr(definition, "base_resolver", None)
    return (
        definition is not None
        and resolver is not None
        and not definition.extensions
        and not definition.permission_classes
        and resolver.parent_parameter is None
        and resolver.root_parameter is None
    )


def _arguments(node: FieldNode, field: GraphQLField) -> list[_Argument] | None:
    definition = field.extensions["strawberry-definition"]
    names = {argument.python_name for argument in definition.arguments}
    given = {argument.name.value: argument.value for argument in node.arguments}
    arguments = []
    for key, argument in field.args.items():
        type_, is_required = _unwrapped(argument.type)
        python = argument.out_name or key
        own = argument.extensions.get("strawberry-definition")
        if own is not None:
            python = own.python_name
        if type_ not in _PLAIN or python not in names:
            return None
        default = argument.default_value
        value = given.get(key)
        if isinstance(value, VariableNode):
            name = value.name.value
            arguments.append(_Argument(python, name, Undefined, is_required, default))
        elif value is None:
            arguments.append(_Argument(python, None, default, is_required, default))
        else:
            literal = value_from_ast(value, argument.type)
            arguments.append(_Argument(python, None, literal, is_required, default))
    return arguments
