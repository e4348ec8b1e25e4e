"""Calling resolvers without the wrapper that Strawberry puts around each of them.

The wrapper converts arguments, adds `info`, runs field extensions and looks for handlers of errors,
and works all of that out anew for every call. What a call takes is known from the document; here it
is put together once, and a call is that of the function itself.
"""

from collections.abc import Callable, Sequence
from inspect import isfunction
from typing import Any

from graphql import (
    FieldNode,
    GraphQLArgument,
    GraphQLField,
    Undefined,
    VariableNode,
    is_non_null_type,
    value_from_ast,
)
from strawberry.types.base import (
    StrawberryList,
    StrawberryMaybe,
    StrawberryOptional,
    has_object_definition,
)
from strawberry.types.field import StrawberryField
from strawberry.types.lazy_type import LazyType


class Call:
    """One field's call of its resolver's function.

    `info_name` is the parameter that takes Strawberry's `info`, if it wants it.
    """

    __slots__ = ("_constants", "_variables", "declared", "function", "info_name")

    def __init__(
        self,
        declared: StrawberryField,
        constants: dict[str, Any],
        variables: Sequence[tuple[str, str, Any, bool]],
    ) -> None:
        resolver = declared.base_resolver
        assert resolver is not None  # noqa: S101 - `direct` looks.
        info = resolver.info_parameter
        self.declared = declared
        function: Any = resolver.wrapped_func
        # Where one call answers for all parents, it takes them in the place of one.
        self.function: Callable[..., Any] = getattr(function, "batch", function)
        self.info_name = None if info is None else info.name
        self._constants = constants
        self._variables = variables

    def arguments(self, variables: dict[str, Any]) -> dict[str, Any] | None:
        """Give the arguments of an execution; None where graphql-core has something to object."""
        given = self._constants.copy()
        for name, variable, default, is_required in self._variables:
            value = variables.get(variable, default)
            if value is None and is_required:
                return None
            if value is not Undefined:
                given[name] = value
        return given


def direct(definition: GraphQLField, node: FieldNode) -> Call | None:
    """Give how to call a field's function; None if that takes more than passing values on."""
    declared = definition.extensions.get("strawberry-definition")
    if not isinstance(declared, StrawberryField) or declared.base_resolver is None:
        return None
    resolver = declared.base_resolver
    # What a subscription resolves is the event; its resolver gave the stream.
    if declared.is_subscription or declared.extensions or resolver.self_parameter is None:
        return None
    if not isfunction(resolver.wrapped_func):
        return None
    if resolver.parent_parameter is not None or resolver.root_parameter is not None:
        return None
    given = {argument.name.value: argument.value for argument in node.arguments}
    constants: dict[str, Any] = {}
    variables: list[tuple[str, str, Any, bool]] = []
    for (name, accepted), argument in zip(definition.args.items(), declared.arguments, strict=True):
        value, python_name = given.get(name), argument.python_name
        if value is None and accepted.default_value in (None, Undefined):
            if accepted.default_value is None:
                constants[python_name] = None
            continue
        if not _is_passed_on(argument.type):
            return None
        if isinstance(value, VariableNode):
            is_required = is_non_null_type(accepted.type)
            variables.append((python_name, value.name.value, accepted.default_value, is_required))
            continue
        constant = _constant(accepted, value)
        if constant is Undefined:
            return None
        constants[python_name] = constant
    return Call(declared, constants, variables)


def _constant(accepted: GraphQLArgument, value: Any) -> Any:
    return accepted.default_value if value is None else value_from_ast(value, accepted.type)


def _is_passed_on(type_: Any) -> bool:
    """Tell whether values reach the function as graphql-core gives them: those of leaves do."""
    if isinstance(type_, StrawberryOptional) and not isinstance(type_, StrawberryMaybe):
        type_ = type_.of_type
    return not (
        isinstance(type_, StrawberryMaybe | StrawberryOptional | StrawberryList | LazyType)
        or has_object_definition(type_)
    )
