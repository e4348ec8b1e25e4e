"""What failed in a breadth-first execution: kept where the value would be, settled at the end.

While levels are read nobody knows the path of a value, nor needs it. Only when something failed is
the answer walked once more from its root, depth first, as graphql-core executes: failures become
located errors, and nulls where the schema allows them.
"""

from typing import TYPE_CHECKING, Any

from graphql import FieldNode, GraphQLError, located_error
from graphql.execution.execute import CollectedErrors
from graphql.pyutils import Path

if TYPE_CHECKING:
    from schema.execution.plan import Field, Selection, Shape


class Failure:
    """Stands in an answer for a value that could not be had."""

    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        self.error = error


def null_failure(place: str) -> Failure:
    """Give the failure of a field that must not be null; `place` is `Type.field`."""
    return Failure(TypeError(f"Cannot return null for non-nullable field {place}."))


class Settlement:
    """Settles one answer. `selections` tells, by identity, what an object of an abstract field is.

    Objects that several places share are settled at each of them: every place has its own errors.
    """

    def __init__(self, selections: dict[int, "Selection"]) -> None:
        self._selections = selections
        self._collected = CollectedErrors()

    def settle(
        self, selection: "Selection", answer: dict[str, Any]
    ) -> tuple[dict[str, Any] | None, list[GraphQLError]]:
        """Give the data, and the errors in the order they were met."""
        data: dict[str, Any] | None
        try:
            data = self._object(selection, answer, None)
        except GraphQLError as error:
            self._collected.add(error, None)
            data = None
        return data, self._collected.errors

    def _object(
        self, selection: "Selection", answer: dict[str, Any], path: Path | None
    ) -> dict[str, Any]:
        settled = dict(answer)
        # What needs no waiting fails first.
        for field in sorted(selection.fields, key=lambda field: field.is_awaited):
            here = Path(path, field.key, selection.object_type.name)
            settled[field.key] = self._position(field.shape, answer[field.key], here, field)
        return settled

    def _position(self, shape: "Shape", value: Any, path: Path, field: "Field") -> Any:
        try:
            return self._value(shape, value, path, field)
        except GraphQLError as error:
            if shape.is_required:
                raise
            self._collected.add(error, path)
            return None

    def _value(self, shape: "Shape", value: Any, path: Path, field: "Field") -> Any:
        if value is None:
            return None
        if isinstance(value, Failure):
            raise _located(value.error, field.nodes, path)
        if shape.item is not None:
            item = shape.item
            return [
                self._position(item, part, path.add_key(index), field)
                for index, part in enumerate(value)
            ]
        if shape.is_leaf:
            return value
        selection = self._selections.get(id(value)) or field.selection
        if selection is None:
            raise LookupError(f"nobody knows what {field.place} is an object of")
        return self._object(selection, value, path)


def _located(error: Exception, nodes: list[FieldNode], path: Path) -> GraphQLError:
    return located_error(error, nodes, path.as_list())
