"""Running a plan: level by level, each field once for all its parents."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import chain
from typing import Any

from graphql import (
    GraphQLError,
    GraphQLObjectType,
    GraphQLResolveInfo,
    Undefined,
    get_argument_values,
)
from graphql.execution.execute import ExecutionContext, invalid_return_type_error
from graphql.pyutils import is_iterable
from strawberry.types import Info

from resolvers.base import Parents
from schema.execution.failures import Failure, Settlement, null_failure
from schema.execution.plan import Field, Plan, Selection, Shape, Source

Settled = tuple[dict[str, Any] | None, list[GraphQLError]]


class _Objects:
    """The objects one field gave at one level: each once, and every place it belongs to."""

    __slots__ = ("_columns", "_indexes", "_lists", "_places", "rows")

    def __init__(self) -> None:
        self.rows: list[Any] = []
        self._indexes: dict[int, int] = {}
        self._places: list[tuple[Any, Any, int]] = []
        # One key of many answers: the answers, and from where to where the objects are that they
        # have there, or the identity of each.
        self._columns: list[tuple[Sequence[dict[str, Any]], str, slice | list[int]]] = []
        # Whole lists of objects: where each is, and from where to where, or at which indexes, its
        # items are.
        self._lists: list[tuple[Any, Any, slice | list[int]]] = []

    def add(self, value: Any, container: Any, key: Any) -> None:
        self._places.append((container, key, self._index(value)))

    def add_column(
        self, values: Sequence[Any], containers: Sequence[dict[str, Any]], key: str
    ) -> None:
        """Add one value for each container; null stays what is there."""
        ids = list(map(id, values))
        found = dict(zip(ids, values, strict=True))
        found.pop(id(None), None)
        if len(found) == len(ids) and self._are_new(found):
            self._columns.append((containers, key, self._append(found)))
            return
        for value in found.values():
            self._index(value)
        self._columns.append((containers, key, ids))

    def add_lists(self, values: Sequence[list[Any]], containers: Sequence[Any], key: Any) -> None:
        """Add a list of objects, none of them null, for each container."""
        every = list(chain.from_iterable(values))
        found = dict(zip(map(id, every), every, strict=True))
        if len(found) == len(every) and self._are_new(found):
            start = self._append(found).start
            for value, container in zip(values, containers, strict=True):
                end = start + len(value)
                self._lists.append((container, key, slice(start, end)))
                start = end
            return
        for value, container in zip(values, containers, strict=True):
            self._lists.append((container, key, [self._index(one) for one in value]))

    def _are_new(self, found: dict[int, Any]) -> bool:
        return not self._indexes or self._indexes.keys().isdisjoint(found)

    def _append(self, found: dict[int, Any]) -> slice:
        """Add objects that are new, as most are: they stay together."""
        start = len(self.rows)
        self.rows += found.values()
        end = len(self.rows)
        self._indexes.update(zip(found, range(start, end), strict=True))
        return slice(start, end)

    def _index(self, value: Any) -> int:
        index = self._indexes.get(id(value))
        if index is None:
            index = self._indexes[id(value)] = len(self.rows)
            self.rows.append(value)
        return index

    def fill(self, answers: list[dict[str, Any]]) -> None:
        for container, key, index in self._places:
            container[key] = answers[index]
        for container, key, where in self._lists:
            if isinstance(where, slice):
                container[key] = answers[where]
            else:
                container[key] = [answers[index] for index in where]
        for containers, key, ids in self._columns:
            if isinstance(ids, slice):
                given: Iterable[Any] = answers[ids]
            else:
                found: dict[int, Any] = {id_: answers[at] for id_, at in self._indexes.items()}
                given = map(found.get, ids)
            for container, answer in zip(containers, given, strict=True):
                container[key] = answer


class Run:
    """One execution of a plan.

    `execution` is graphql-core's context of the same operation: its schema, variables and values,
    and its own word where something is amiss.
    """

    def __init__(self, plan: Plan, execution: ExecutionContext) -> None:
        self._plan = plan
        self._execution = execution
        self._variables = execution.variable_values
        # What objects of interfaces and unions are, for the settlement.
        self._selections: dict[int, Selection] = {}
        self._has_failed = False

    async def answer(self) -> Settled:
        """Give the data and what went wrong. Cancellation cancels what is being resolved."""
        root = self._plan.root
        (data,) = await self._level(root, [self._execution.root_value])
        if not self._has_failed:
            return data, []
        return Settlement(self._selections).settle(root, data)

    async def _level(self, selection: Selection, rows: Sequence[Any]) -> list[dict[str, Any]]:
        try:
            answers = selection.make(rows)
        except Exception:  # noqa: BLE001 - told for each value, as graphql-core would.
            self._has_failed = True
            answers = selection.make_carefully(rows)
        for fields in selection.ready:
            await self._fields(fields, rows, answers)
        waiting = selection.waiting
        if len(waiting) == 1:
            await self._fields(waiting[0], rows, answers)
        elif waiting:
            async with asyncio.TaskGroup() as group:
                for fields in waiting[1:]:
                    group.create_task(self._fields(fields, rows, answers))
                # One of them needs no task of its own.
                await self._fields(waiting[0], rows, answers)
        return answers

    async def _fields(
        self, fields: Sequence[Field], rows: Sequence[Any], answers: Sequence[dict[str, Any]]
    ) -> None:
        """Answer fields that ask for the same."""
        first = fields[0]
        values: Sequence[Any]
        if first.source is Source.ATTRIBUTE:
            values = _attributes(first, rows)
        else:
            values = await self._resolve(first, rows)
        for field in fields:
            objects: dict[Selection, _Objects] = {}
            if not self._place_known(field, values, answers, objects):
                for answer, value in zip(answers, values, strict=True):
                    self._place(field, field.shape, value, answer, field.key, objects)
            for selection, found in objects.items():
                below = await self._level(selection, found.rows)
                if field.selection is None:
                    self._selections.update((id(answer), selection) for answer in below)
                found.fill(below)

    async def _resolve(self, field: Field, rows: Sequence[Any]) -> Sequence[Any]:
        """Give a value, or a Failure, for each row."""
        try:
            resolve, arguments = self._resolver(field)
            if field.source is Source.BATCH:
                found: Sequence[Any] = await resolve(rows, **arguments)
                if len(found) != len(rows):
                    raise ValueError(f"{field.place}: {len(found)} answers for {len(rows)} parents")
                return found
        except Exception as error:  # noqa: BLE001 - told at its places in the answer.
            return [Failure(error)] * len(rows)
        values = [_called(resolve, row, arguments) for row in rows]
        if not field.is_awaited and not any(map(_is_awaitable, set(map(type, values)))):
            return values
        if len(values) == 1:
            return [await _awaited(values[0])]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_awaited(value)) for value in values]
        return [task.result() for task in tasks]

    def _resolver(self, field: Field) -> tuple[Callable[..., Any], dict[str, Any]]:
        """Give what to call with each parent, and with which arguments. Raises GraphQLError."""
        call = field.call
        arguments = None if call is None else call.arguments(self._variables)
        if call is not None and arguments is not None:
            if call.info_name is not None:
                info = self._info(field, narrow=field.wanted)
                arguments[call.info_name] = Info(_raw_info=info, _field=call.declared)
            return call.function, arguments
        raw = get_argument_values(field.definition, field.nodes[0], self._variables)
        info = self._info(field, narrow=field.wanted)
        resolve: Any = field.definition.resolve
        if field.source is Source.BATCH:
            return (lambda parents, **given: resolve(Parents(parents), info, **given)), raw
        return (lambda parent, **given: resolve(parent, info, **given)), raw

    def _info(
        self, field: Field, *, narrow: tuple[type[Any], frozenset[str]] | None = None
    ) -> GraphQLResolveInfo:
        execution = self._execution
        context = execution.context_value
        return GraphQLResolveInfo(
            field.name,
            field.nodes,
            field.definition.type,
            field.parent,
            field.path,
            execution.schema,
            execution.fragments,
            execution.root_value,
            execution.operation,
            self._variables,
            context if narrow is None else context.narrowed(*narrow),
            execution.is_awaitable,
        )

    def _place(
        self,
        field: Field,
        shape: Shape,
        value: Any,
        container: Any,
        key: Any,
        objects: dict[Selection, _Objects],
    ) -> None:
        """Put a value where it belongs; objects are gathered, to be filled in later."""
        if value is None or value is Undefined:
            container[key] = None
            if shape.is_required:
                self._fail(container, key, null_failure(field.place))
        elif isinstance(value, Failure):
            self._fail(container, key, value)
        elif isinstance(value, Exception):
            self._fail(container, key, Failure(value))
        elif shape.item is not None:
            self._place_list(field, shape.item, value, container, key, objects)
        elif shape.complete is not None:
            try:
                container[key] = shape.complete(value)
            except Exception as error:  # noqa: BLE001 - told at its place in the answer.
                self._fail(container, key, Failure(error))
        else:
            try:
                selection = self._selection(field, shape, value)
            except Exception as error:  # noqa: BLE001 - told at its place in the answer.
                self._fail(container, key, Failure(error))
                return
            gathered = objects.get(selection)
            if gathered is None:
                gathered = objects[selection] = _Objects()
            gathered.add(value, container, key)

    def _place_known(
        self,
        field: Field,
        values: Sequence[Any],
        answers: Sequence[dict[str, Any]],
        objects: dict[Selection, _Objects],
    ) -> bool:
        """Place what nearly all fields give: objects of one type met before, or lists of those.

        Or null in their place. False, with nothing placed, where there is anything else.
        """
        selection, shape = field.selection, field.shape
        if selection is None or shape.complete is not None:
            return False
        classes = set(map(type, values))
        if shape.item is None:
            if not shape.is_required:
                classes.discard(type(None))
            if not all(map(selection.known.get, classes)):
                return False
            objects.setdefault(selection, _Objects()).add_column(values, answers, field.key)
            return True
        if shape.item.item is not None or classes != {list}:
            return False
        if not all(map(selection.known.get, set(map(type, chain.from_iterable(values))))):
            return False
        objects.setdefault(selection, _Objects()).add_lists(values, answers, field.key)
        return True

    def _place_list(
        self,
        field: Field,
        item: Shape,
        values: Any,
        container: Any,
        key: Any,
        objects: dict[Selection, _Objects],
    ) -> None:
        if not is_iterable(values):
            found = f"Expected Iterable, but did not find one for field '{field.place}'."
            self._fail(container, key, Failure(GraphQLError(found)))
            return
        values = list(values)
        selection = field.selection
        if selection is not None and item.item is None:
            classes = set(map(type, values))
            if len(classes) == 1 and selection.known.get(classes.pop()):
                # As most lists are: objects of the one type, none of them null.
                objects.setdefault(selection, _Objects()).add_lists([values], [container], key)
                return
        parts = container[key] = [None] * len(values)
        for index, value in enumerate(values):
            self._place(field, item, value, parts, index, objects)

    def _fail(self, container: Any, key: Any, failure: Failure) -> None:
        self._has_failed = True
        container[key] = failure

    def _selection(self, field: Field, shape: Shape, value: Any) -> Selection:
        """Give what is selected of an object. Raises GraphQLError if it is not of the type."""
        selection = field.selection or field.selections.get(type(value))
        if selection is None:
            type_ = self._type_of(field, shape, value)
            selection = self._plan.planner.below(field, type_)
            field.selections[type(value)] = selection
        is_of_type = selection.known.get(type(value))
        if is_of_type is None:
            test = selection.object_type.is_type_of
            is_of_type = test is None or bool(test(value, self._info(field)))
            selection.known[type(value)] = is_of_type
        if not is_of_type:
            raise invalid_return_type_error(selection.object_type, value, field.nodes)
        return selection

    def _type_of(self, field: Field, shape: Shape, value: Any) -> GraphQLObjectType:
        execution, info, abstract = self._execution, self._info(field), shape.type
        resolve = abstract.resolve_type or execution.type_resolver  # type: ignore[union-attr]
        return execution.ensure_valid_runtime_type(
            resolve(value, info, abstract),  # type: ignore[arg-type]
            abstract,  # type: ignore[arg-type]
            field.nodes,
            info,
            value,
        )


def _attributes(field: Field, rows: Sequence[Any]) -> list[Any]:
    try:
        return list(map(field.get, rows))
    except Exception:  # noqa: BLE001 - told for each value, as graphql-core would.
        return [_attribute(row, field.attribute) for row in rows]


def _attribute(row: Any, name: str) -> Any:
    try:
        return getattr(row, name)
    except Exception as error:  # noqa: BLE001 - told at its place in the answer.
        return Failure(error)


def _called(resolve: Callable[..., Any], row: Any, arguments: dict[str, Any]) -> Any:
    try:
        return resolve(row, **arguments)
    except Exception as error:  # noqa: BLE001 - told at its place in the answer.
        return Failure(error)


def _is_awaitable(kind: type) -> bool:
    """Tell whether objects of a class can be awaited; `inspect` asks much more, of each."""
    return hasattr(kind, "__await__")


async def _awaited(value: Awaitable[Any] | Any) -> Any:
    if not _is_awaitable(type(value)):
        return value
    try:
        return await value
    except Exception as error:  # noqa: BLE001 - told at its place in the answer.
        return Failure(error)
