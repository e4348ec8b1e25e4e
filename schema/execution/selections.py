"""Answers to events that need no reading, made without an executor.

An event such as `MessageDelta` comes many times a second to many readers, and what they select of
it mostly lies in the event itself: plain attributes, and the id of the node it is about. For such
selections a function is put together once per operation and type of event; it gives the same bytes
as the executor. All other selections are left to the executor.
"""

from collections.abc import Callable
from operator import attrgetter
from typing import Any, Protocol

from graphql import (
    FieldNode,
    GraphQLBoolean,
    GraphQLEnumType,
    GraphQLError,
    GraphQLField,
    GraphQLID,
    GraphQLInt,
    GraphQLNonNull,
    GraphQLObjectType,
    GraphQLScalarType,
    GraphQLSchema,
    GraphQLString,
    OperationDefinitionNode,
)
from graphql.execution.collect_fields import collect_fields, collect_sub_fields

from schema.execution.documents import ParsedDocument
from schema.execution.encoding import encode

Getter = Callable[[Any], Any]
Answer = Callable[[Any], bytes | None]

_KINDS: dict[Any, type] = {
    GraphQLString: str,
    GraphQLID: str,
    GraphQLInt: int,
    GraphQLBoolean: bool,
}
"""What plain values are in Python when they are told as they are."""

_INT_END = 2**31


class Operation(Protocol):
    """What is compiled: `prepared.Prepared`."""

    document: ParsedDocument
    operation: OperationDefinitionNode
    variables: dict[str, Any]


class NotCoveredError(Exception):
    """The selection needs the executor."""


class Selections:
    """The events of one operation, answered from themselves where their selection allows it."""

    def __init__(self, schema: GraphQLSchema, prepared: Operation) -> None:
        self._schema = schema
        self._fragments = prepared.document.fragments
        self._variables = prepared.variables
        self._root_type = schema.subscription_type
        self._root = prepared.operation.selection_set
        self._known: dict[type, Answer | None] = {}
        document = prepared.document
        if "@" not in document.text:
            # Without directives no variable makes a difference, so that all who send this document
            # share what was put together for it.
            name = prepared.operation.name
            key = ("answers", name.value if name else None)
            self._known = document.plans.setdefault(key, self._known)

    def answer(self, event: Any) -> bytes | None:
        """Give the payload of an event as JSON, or None if that takes an executor."""
        kind = type(event)
        try:
            make = self._known[kind]
        except KeyError:
            make = self._known[kind] = self._compile(kind)
        return None if make is None else make(event)

    def covers(self, kind: type) -> bool:
        """Tell whether events of a type are answered without an executor."""
        if kind not in self._known:
            self._known[kind] = self._compile(kind)
        return self._known[kind] is not None

    def _compile(self, kind: type) -> Answer | None:
        definition = getattr(kind, "__strawberry_definition__", None)
        object_type = self._schema.type_map.get(getattr(definition, "name", ""))
        if self._root_type is None or not isinstance(object_type, GraphQLObjectType):
            return None
        try:
            roots = collect_fields(
                self._schema, self._fragments, self._variables, self._root_type, self._root
            )
            if len(roots) != 1:
                return None
            ((root_key, nodes),) = roots.items()
            getters, required = self._object(object_type, nodes)
        except (NotCoveredError, GraphQLError):
            # What is wrong with the variables the executor says in its place.
            return None
        names = tuple(getters)
        gets = tuple(getters.values())
        needed = frozenset(required)

        def make(event: Any) -> bytes | None:
            values = {name: get(event) for name, get in zip(names, gets, strict=True)}
            for name in needed:
                if values[name] is None:
                    # An error with a path: the executor knows how to say it.
                    return None
            return encode({"data": {root_key: values}})

        return _flat(root_key, getters, make) or make

    def _object(
        self, object_type: GraphQLObjectType, nodes: list[FieldNode]
    ) -> tuple[dict[str, Getter], list[str]]:
        fields = collect_sub_fields(
            self._schema, self._fragments, self._variables, object_type, nodes
        )
        getters: dict[str, Getter] = {}
        required: list[str] = []
        for key, found in fields.items():
            name = found[0].name.value
            if name == "__typename":
                getters[key] = _Constant(object_type.name)
                continue
            field = object_type.fields.get(name)
            if field is None:
                raise NotCoveredError
            getters[key] = self._field(field, found)
            if isinstance(field.type, GraphQLNonNull):
                required.append(key)
        return getters, required

    def _field(self, field: GraphQLField, nodes: list[FieldNode]) -> Getter:
        definition = field.extensions.get("strawberry-definition")
        if definition is None or any(node.arguments for node in nodes):
            raise NotCoveredError
        type_ = field.type.of_type if isinstance(field.type, GraphQLNonNull) else field.type
        if isinstance(type_, GraphQLScalarType | GraphQLEnumType):
            if getattr(field.resolve, "_is_default", False):
                return _Leaf(type_, definition.python_name)
            raise NotCoveredError
        known_by = getattr(
            getattr(definition.base_resolver, "wrapped_func", None), "known_by", None
        )
        if known_by is None or not isinstance(type_, GraphQLObjectType):
            raise NotCoveredError
        return self._node(type_, nodes, attrgetter(known_by))

    def _node(self, type_: GraphQLObjectType, nodes: list[FieldNode], id_of: Getter) -> Getter:
        """Give an object of which no more than the id is asked for."""
        fields = collect_sub_fields(self._schema, self._fragments, self._variables, type_, nodes)
        parts: dict[str, Getter] = {}
        for key, found in fields.items():
            match found[0].name.value:
                case "__typename":
                    parts[key] = _Constant(type_.name)
                case "id":
                    parts[key] = id_of
                case _:
                    raise NotCoveredError

        def get(event: Any) -> dict[str, Any]:
            return {key: part(event) for key, part in parts.items()}

        return get


class _Constant:
    """The same for every event."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self, _: Any) -> Any:
        return self.value


class _Leaf:
    """An attribute of the event, as its type tells it."""

    def __init__(self, type_: GraphQLScalarType | GraphQLEnumType, name: str) -> None:
        self.name = name
        self.kind = _KINDS.get(type_)
        self._get = attrgetter(name)
        self._serialize = type_.serialize

    def __call__(self, event: Any) -> Any:
        value = self._get(event)
        if value is None or (self.kind is str and type(value) is str):
            return value
        return self._serialize(value)


def _flat(root_key: str, getters: dict[str, Getter], make: Answer) -> Answer | None:
    """Give what answers faster where all is constant or plain; `make` answers what is not.

    All attributes are got, and their types compared, at once.
    """
    leaves = {key: get for key, get in getters.items() if isinstance(get, _Leaf)}
    others = {key: get for key, get in getters.items() if not isinstance(get, _Leaf)}
    constants = {key: get.value for key, get in others.items() if isinstance(get, _Constant)}
    if len(leaves) < 2 or len(constants) < len(others) or any(not x.kind for x in leaves.values()):
        return None
    get_all = attrgetter(*(leaf.name for leaf in leaves.values()))
    kinds = tuple(leaf.kind for leaf in leaves.values())
    ints = tuple(place for place, kind in enumerate(kinds) if kind is int)
    keys = tuple(leaves)
    # In the order selected.
    template = {key: constants.get(key) for key in getters}

    def make_flat(event: Any) -> bytes | None:
        values = get_all(event)
        if tuple(map(type, values)) != kinds:
            return make(event)
        for place in ints:
            if not -_INT_END <= values[place] < _INT_END:
                return make(event)
        fields = template.copy()
        fields.update(zip(keys, values, strict=True))
        return encode({"data": {root_key: fields}})

    return make_flat
