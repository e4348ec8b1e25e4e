"""Leaves of a selection: functions that make answers of rows, one generated for each selection set.

What a value mostly is (a text where a text belongs) is recognised by its exact type and goes out as
it is; everything else takes the way graphql-core takes, so that answers and errors are the same.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from enum import Enum
from typing import Any, NamedTuple

from graphql import (
    GraphQLBoolean,
    GraphQLEnumType,
    GraphQLID,
    GraphQLLeafType,
    GraphQLString,
    Undefined,
)
from graphql.pyutils import inspect

from schema.execution.failures import Failure, null_failure

Complete = Callable[[Any], Any]
Make = Callable[[Sequence[Any]], list[dict[str, Any]]]


class Leaf(NamedTuple):
    """A field that is an attribute of the row: its key in the answer, and what it may be."""

    key: str
    attribute: str
    type: GraphQLLeafType
    is_required: bool
    # Type and field, as errors name them.
    place: str


def completion(type_: GraphQLLeafType) -> Complete:
    """Give what turns a value that is there into its form in the answer.

    It raises what graphql-core would report: what the type's `serialize` raises, and TypeError
    where that gives nothing.
    """
    serialize = type_.serialize

    def complete(value: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        serialized = serialize(value)
        if serialized is None or serialized is Undefined:
            raise TypeError(
                f"Expected `{inspect(type_)}.serialize({inspect(value)})`"
                f" to return non-nullable value, returned: {inspect(serialized)}"
            )
        return serialized

    return complete


def _names(type_: GraphQLLeafType) -> dict[Any, str] | None:
    """Give the names of an enumeration's members, by identity of type and value."""
    if not isinstance(type_, GraphQLEnumType):
        return None
    kind = getattr(type_, "wrapped_cls", None)
    if not (isinstance(kind, type) and issubclass(kind, Enum)):
        return None
    return {member: type_.serialize(member) for member in kind}


def makers(type_name: str, leaves: Sequence[Leaf | tuple[str, Any]]) -> tuple[Make, Make]:
    """Put together the functions that make answers of rows, keys in the order given.

    An entry is a leaf, or a key with a constant (a `__typename`, or the place of what is filled in
    later). The first function raises when anything fails; the second, slower one keeps what fails
    in the answer as a Failure.
    """
    scope: dict[str, Any] = {"datetime": datetime}
    parts = []
    for number, entry in enumerate(leaves):
        if not isinstance(entry, Leaf):
            key, value = entry
            parts.append(f"{key!r}: {value!r}")
            continue
        parts.append(f"{entry.key!r}: {_expression(number, entry, scope)}")
    source = f"def make(rows):\n    return [{{{', '.join(parts)}}} for row in rows]\n"
    exec(compile(source, f"<selection of {type_name}>", "exec"), scope)  # noqa: S102 - names are identifiers of ours, keys are quoted.
    return scope["make"], _careful(leaves)


def _expression(number: int, leaf: Leaf, scope: dict[str, Any]) -> str:
    """Give the expression for one leaf; it raises where the careful way is to be taken."""
    complete, names = completion(leaf.type), _names(leaf.type)
    scope[f"complete{number}"] = (
        _required(complete, leaf) if leaf.is_required else _nullable(complete)
    )
    value, otherwise = f"row.{leaf.attribute}", f"complete{number}(v)"
    if leaf.type in (GraphQLString, GraphQLID):
        return f"v if type(v := {value}) is str else {otherwise}"
    if leaf.type is GraphQLBoolean:
        return f"v if type(v := {value}) is bool else {otherwise}"
    if names is not None:
        scope[f"kind{number}"] = type(next(iter(names)))
        scope[f"names{number}"] = names
        return f"names{number}[v] if type(v := {value}) is kind{number} else {otherwise}"
    if leaf.type.name == "DateTime":
        return f"v.isoformat() if type(v := {value}) is datetime else {otherwise}"
    return f"complete{number}({value})"


def _nullable(complete: Complete) -> Complete:
    return lambda value: None if value is None or value is Undefined else complete(value)


def _required(complete: Complete, leaf: Leaf) -> Complete:
    def required(value: Any) -> Any:
        if value is None or value is Undefined:
            raise TypeError(f"{leaf.place} is null")
        return complete(value)

    return required


def _careful(leaves: Sequence[Leaf | tuple[str, Any]]) -> Make:
    """Make answers value by value, keeping what fails."""
    steps = [
        (entry.key, entry, completion(entry.type))
        if isinstance(entry, Leaf)
        else (entry[0], None, entry[1])
        for entry in leaves
    ]

    def make(rows: Sequence[Any]) -> list[dict[str, Any]]:
        return [
            {
                key: _value(row, leaf, found) if leaf is not None else found
                for key, leaf, found in steps
            }
            for row in rows
        ]

    return make


def _value(row: Any, leaf: Leaf, complete: Complete) -> Any:
    try:
        value = getattr(row, leaf.attribute)
        if value is None or value is Undefined:
            return null_failure(leaf.place) if leaf.is_required else None
        return complete(value)
    except Exception as error:  # noqa: BLE001 - told at its place in the answer.
        return Failure(error)
