"""A plan's run that leaves parts for later, and what settles the pieces it gives."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from graphql import GraphQLError
from graphql.execution.execute import CollectedErrors, ExecutionContext
from graphql.pyutils import Path, is_iterable

from schema.execution.delivery import Place
from schema.execution.division import Part
from schema.execution.failures import Settlement
from schema.execution.levels import Run, _Objects
from schema.execution.plan import Field, Plan, Selection, Shape, Wanted

Located = list[GraphQLError]


class Left(NamedTuple):
    """A part left for later, of rows whose answers so far are `answers`."""

    part: Part
    rows: Sequence[Any]
    answers: Sequence[dict[str, Any]]


class Rest(NamedTuple):
    """The items of a list that were left for later; `told` is the list as it is answered."""

    told: list[Any]
    start: int
    items: list[Any]


class _Known:
    """What a field gave, by the row it was asked of, and what was needed of it then."""

    __slots__ = ("values", "wanted")

    def __init__(self, wanted: Wanted | None) -> None:
        self.wanted = wanted
        # With the row, whose address must stay its own.
        self.values: dict[int, tuple[Any, Any]] = {}

    def serves(self, field_: Field, rows: Sequence[Any]) -> bool:
        """Tell whether it has all that a field asks for."""
        if self.wanted is not None:
            if field_.wanted is None or field_.wanted[0] is not self.wanted[0]:
                return False
            if not field_.wanted[1] <= self.wanted[1]:
                return False
        return all(id(row) in self.values for row in rows)


Memory = dict[Any, _Known]
"""What the fields of one operation gave, by question."""


class PieceRun(Run):
    """A run that leaves parts for later, and remembers what it asked."""

    def __init__(self, plan: Plan, execution: ExecutionContext, memory: Memory) -> None:
        super().__init__(plan, execution)
        self._memory = memory
        self.left: list[Left] = []
        self.rests: dict[Field, list[Rest]] = {}

    @property
    def has_failed(self) -> bool:
        """Whether the answer has failures to be settled."""
        return self._has_failed

    async def first(self) -> dict[str, Any]:
        """Give the answer, unsettled, without what is left for later."""
        (answer,) = await self._level(self._plan.root, [self._execution.root_value])
        return answer

    async def part(self, selection: Selection, rows: Sequence[Any]) -> list[dict[str, Any]]:
        """Give the answers of a part, unsettled."""
        return await self._level(selection, rows)

    async def items(self, field_: Field, lists: Sequence[Sequence[Any]]) -> list[list[Any]]:
        """Give the items of lists, unsettled."""
        item = field_.shape.item
        assert item is not None  # noqa: S101 - it is a list that was streamed.
        answers: list[list[Any]] = [[None] * len(values) for values in lists]
        objects: dict[Selection, _Objects] = {}
        for answer, values in zip(answers, lists, strict=True):
            for index, value in enumerate(values):
                self._place(field_, item, value, answer, index, objects)
        for selection, found in objects.items():
            below = await self._level(selection, found.rows)
            if field_.selection is None:
                self._selections.update((id(one), selection) for one in below)
            found.fill(below)
        return answers

    def settlement(self) -> "Places":
        """Give what settles the answer, and notes where what was left belongs."""
        watched = {id(answer) for left in self.left for answer in left.answers}
        watched.update(id(rest.told) for rests in self.rests.values() for rest in rests)
        return Places(self._selections, watched)

    async def _level(self, selection: Selection, rows: Sequence[Any]) -> list[dict[str, Any]]:
        answers = await super()._level(selection, rows)
        self.left += [Left(part, rows, answers) for part in selection.parts]
        return answers

    async def _resolve(self, field: Field, rows: Sequence[Any]) -> Sequence[Any]:
        known = self._memory.get(field.question)
        if known is not None and known.serves(field, rows):
            return [known.values[id(row)][1] for row in rows]
        values = await super()._resolve(field, rows)
        if known is None or known.wanted != field.wanted:
            known = self._memory[field.question] = _Known(field.wanted)
        for row, value in zip(rows, values, strict=True):
            known.values[id(row)] = (row, value)
        return values

    def _place_known(
        self,
        field: Field,
        values: Sequence[Any],
        answers: Sequence[dict[str, Any]],
        objects: dict[Selection, _Objects],
    ) -> bool:
        # What is streamed is not placed as a whole.
        return field.stream is None and super()._place_known(field, values, answers, objects)

    def _place_list(
        self,
        field: Field,
        item: Shape,
        values: Any,
        container: Any,
        key: Any,
        objects: dict[Selection, _Objects],
    ) -> None:
        stream = field.stream
        if stream is None or item is not field.shape.item or not is_iterable(values):
            super()._place_list(field, item, values, container, key, objects)
            return
        values = list(values)
        start = stream.initial_count
        told = container[key] = [None] * min(start, len(values))
        for index, value in enumerate(values[:start]):
            self._place(field, item, value, told, index, objects)
        if len(values) > start:
            self.rests.setdefault(field, []).append(Rest(told, start, values[start:]))


class Places(Settlement):
    """Settles pieces, and notes where in them lies what is watched, by identity."""

    def __init__(self, selections: dict[int, Selection], watched: set[int]) -> None:
        super().__init__(selections)
        self._watched = watched
        self._found: list[tuple[int, Path | None]] = []

    def object(
        self, selection: Selection, answer: dict[str, Any], place: Place
    ) -> tuple[dict[str, Any] | None, Located]:
        """Give the data of an object at a place; None if an error left nothing of it."""
        self._begin()
        data: dict[str, Any] | None
        try:
            data = self._object(selection, answer, _path(place))
        except GraphQLError as error:
            self._collected.add(error, None)
            data = None
        return data, self._collected.errors

    def item(self, field_: Field, value: Any, place: Place) -> tuple[Any, Located, bool]:
        """Give an item of a list, and whether an error left nothing of the list from there on."""
        self._begin()
        path, shape = _path(place), field_.shape.item
        assert path is not None and shape is not None  # noqa: S101, PT018 - an item of a list.
        try:
            item = self._position(shape, value, path, field_)
        except GraphQLError as error:
            self._collected.add(error, None)
            return None, self._collected.errors, True
        return item, self._collected.errors, False

    def found(self, data: Any, place: Place) -> list[tuple[int, Place]]:
        """Give where watched things are in what was settled last, which lies at a place."""
        places = [(id_, () if path is None else tuple(path.as_list())) for id_, path in self._found]
        return [(id_, one) for id_, one in places if _is_there(data, one[len(place) :])]

    def _begin(self) -> None:
        self._collected = CollectedErrors()
        self._found = []

    def _object(
        self, selection: Selection, answer: dict[str, Any], path: Path | None
    ) -> dict[str, Any]:
        if id(answer) in self._watched:
            self._found.append((id(answer), path))
        return super()._object(selection, answer, path)

    def _value(self, shape: Shape, value: Any, path: Path, field: Field) -> Any:
        if type(value) is list and id(value) in self._watched:
            self._found.append((id(value), path))
        return super()._value(shape, value, path, field)


def _path(place: Place) -> Path | None:
    path = None
    for key in place:
        path = Path(path, key, None)
    return path


def _is_there(data: Any, place: Place) -> bool:
    for key in place:
        if data is None:
            return False
        data = data[key]
    return data is not None
