"""Documents made at random over the whole schema, as clients write them and worse."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from graphql import (
    GraphQLArgument,
    GraphQLCompositeType,
    GraphQLEnumType,
    GraphQLField,
    GraphQLInputObjectType,
    GraphQLInputType,
    GraphQLInterfaceType,
    GraphQLList,
    GraphQLNonNull,
    GraphQLObjectType,
    GraphQLSchema,
    GraphQLUnionType,
    get_named_type,
    is_composite_type,
)
from hypothesis import strategies as st

_DEPTH = 6
_TEXTS = ("", "a", "own", "é\u2028", "bad cursor")


@dataclass
class Document:
    """A document with its variables."""

    text: str
    variables: dict[str, Any]


@dataclass
class _Maker:
    schema: GraphQLSchema
    ids: Sequence[str]
    draw: Callable[[st.SearchStrategy[Any]], Any]
    definitions: list[str] = field(default_factory=list)
    variables: dict[str, Any] = field(default_factory=dict)
    fragments: list[str] = field(default_factory=list)
    # One in so many fragments is deferred, and of lists one is streamed; 0: none.
    divided_one_in: int = 0
    labels: int = 0
    aliases: int = 0
    budget: int = 40

    def chance(self, one_in: int) -> bool:
        return bool(self.draw(st.integers(0, one_in - 1)) == one_in - 1)

    def pick(self, items: Sequence[Any]) -> Any:
        return items[self.draw(st.integers(0, len(items) - 1))]

    def document(self) -> Document:
        query = self.schema.query_type
        assert query is not None
        body = self.selections(query, _DEPTH)
        head = f"query Q({', '.join(self.definitions)}) " if self.definitions else "query Q "
        return Document(" ".join([head + body, *self.fragments]), self.variables)

    def selections(self, type_: GraphQLCompositeType, depth: int) -> str:
        count = self.draw(st.integers(1, 4))
        parts = [self.selection(type_, depth) for _ in range(count)]
        return "{ " + " ".join(parts) + " }"

    def selection(self, type_: GraphQLCompositeType, depth: int) -> str:
        self.budget -= 1
        kind = self.draw(st.integers(0, 11))
        if kind == 0 or isinstance(type_, GraphQLUnionType):
            return "__typename"
        if kind in range(1, 5 if self.divided_one_in else 2) and depth > 0:
            return self.fragment(type_, depth)
        return self.field(type_, depth)

    def fragment(self, type_: GraphQLCompositeType, depth: int) -> str:
        condition = self.condition(type_)
        body = self.selections(condition, depth - 1)
        if self.chance(2):
            name = f"F{len(self.fragments)}"
            self.fragments.append("")
            index = len(self.fragments) - 1
            self.fragments[index] = f"fragment {name} on {condition.name} {body}"
            spread = f"...{name}{self.directive()}{self.defer()}"
            # Spread twice, it must be merged.
            return f"{spread} ...{name}" if self.chance(4) else spread
        named = "" if condition is type_ and self.chance(3) else f" on {condition.name}"
        return f"...{named}{self.directive()}{self.defer()} {body}"

    def condition(self, type_: GraphQLCompositeType) -> GraphQLCompositeType:
        if isinstance(type_, GraphQLObjectType):
            return self.pick([type_, type_, *type_.interfaces])
        return self.pick([type_, *self.schema.get_possible_types(type_)])

    def directive(self) -> str:
        if not self.chance(6):
            return ""
        name, value = self.pick(["skip", "include"]), bool(self.chance(2))
        if self.chance(2):
            return f" @{name}(if: ${self.variable('Boolean!', value)})"
        return f" @{name}(if: {str(value).lower()})"

    def defer(self) -> str:
        if not self.divided_one_in or not self.chance(self.divided_one_in):
            return ""
        return f" @defer{self.division([])}"

    def stream(self, found: GraphQLField) -> str:
        type_ = found.type.of_type if isinstance(found.type, GraphQLNonNull) else found.type
        if not isinstance(type_, GraphQLList) or not self.divided_one_in:
            return ""
        if not self.chance(self.divided_one_in):
            return ""
        count = self.draw(st.integers(0, 2))
        return f" @stream{self.division([f'initialCount: {count}'] if count else [])}"

    def division(self, arguments: list[str]) -> str:
        if self.chance(3):
            self.labels += 1
            arguments.append(f'label: "l{self.labels}"')
        if self.chance(6):
            arguments.append(f"if: ${self.variable('Boolean!', self.chance(2))}")
        return f"({', '.join(arguments)})" if arguments else ""

    def variable(self, type_: str, value: Any) -> str:
        name = f"v{len(self.definitions)}"
        self.definitions.append(f"${name}: {type_}")
        self.variables[name] = value
        return name

    def field(self, type_: GraphQLCompositeType, depth: int) -> str:
        assert isinstance(type_, GraphQLObjectType | GraphQLInterfaceType)
        fields = list(type_.fields.items())
        if depth <= 0 or self.budget <= 0:
            plain = [
                (name, found)
                for name, found in fields
                if not is_composite_type(get_named_type(found.type))
            ]
            if not plain:
                return "__typename"
            fields = plain
        name, found = self.pick(fields)
        arguments = self.arguments(found)
        alias, stream = "", self.stream(found)
        # What answers one place must stream alike.
        if arguments or stream or self.chance(5):
            self.aliases += 1
            alias = f"a{self.aliases}: "
        named = get_named_type(found.type)
        below = ""
        if is_composite_type(named):
            below = " " + self.selections(named, depth - 1)  # type: ignore[arg-type]
        return f"{alias}{name}{arguments}{self.directive()}{stream}{below}"

    def arguments(self, found: GraphQLField) -> str:
        given = [
            f"{name}: {self.argument(name, argument)}"
            for name, argument in found.args.items()
            if isinstance(argument.type, GraphQLNonNull) or self.chance(3)
        ]
        return f"({', '.join(given)})" if given else ""

    def argument(self, name: str, argument: GraphQLArgument) -> str:
        value = self.value(name, argument.type)
        if self.chance(3):
            return f"${self.variable(str(argument.type), value)}"
        return _literal(value, argument.type)

    def value(self, name: str, type_: GraphQLInputType) -> Any:
        if isinstance(type_, GraphQLNonNull):
            return self.value(name, type_.of_type)
        if not name.startswith("id") and self.chance(8):
            return None
        return self.some_value(name, type_)

    def some_value(self, name: str, type_: Any) -> Any:
        if isinstance(type_, GraphQLNonNull):
            return self.some_value(name, type_.of_type)
        if isinstance(type_, GraphQLList):
            count = self.draw(st.integers(0, 3))
            return [self.some_value(name, type_.of_type) for _ in range(count)]
        if isinstance(type_, GraphQLEnumType):
            return self.pick(list(type_.values))
        if isinstance(type_, GraphQLInputObjectType):
            return {
                key: self.some_value(key, inner.type)
                for key, inner in type_.fields.items()
                if isinstance(inner.type, GraphQLNonNull) or self.chance(2)
            }
        match type_.name:
            case "Int":
                return self.pick([0, 1, 2, 3, 5, 100, -1, 101])
            case "Float":
                return self.pick([0.0, 0.5, 1.0, -1.0])
            case "Boolean":
                return self.chance(2)
            case "ID":
                return self.pick(self.ids)
            case "DateTime":
                return "2026-01-01T00:00:00+00:00"
            case "BigInt":
                return self.pick([0, 1, 2**40])
        return self.pick(_TEXTS)


def _literal(value: Any, type_: Any) -> str:
    if isinstance(type_, GraphQLNonNull):
        return _literal(value, type_.of_type)
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case list():
            return "[" + ", ".join(_literal(item, type_.of_type) for item in value) + "]"
        case dict():
            inner = (f"{key}: {_literal(v, type_.fields[key].type)}" for key, v in value.items())
            return "{" + ", ".join(inner) + "}"
    if isinstance(type_, GraphQLEnumType):
        return str(value)
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\u2028", " ") + '"'


def documents(
    schema: GraphQLSchema, ids: Sequence[str], *, divided_one_in: int = 0
) -> st.SearchStrategy[Document]:
    """Queries over the whole schema; most are valid.

    With `divided_one_in` they use `@defer` and `@stream`.
    """

    @st.composite
    def made(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Document:
        return _Maker(schema, ids, draw, divided_one_in=divided_one_in).document()

    return made()
