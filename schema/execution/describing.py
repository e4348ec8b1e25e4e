"""A plan in words, for whoever wants to know what an operation does."""

from collections.abc import Iterator

from schema.execution.plan import Field, Plan, Selection, Source

_WAYS = {
    Source.ATTRIBUTE: "attribute",
    Source.BATCH: "once for all",
    Source.CALL: "once for each",
}


def describe(plan: Plan) -> str:
    """Give one line for each field that is more than an attribute, indented by its level."""
    return "\n".join(_selection(plan.root, 0))


def _selection(selection: Selection, level: int) -> Iterator[str]:
    computed = {id(field) for together in selection.computed for field in together}
    plain = [field.key for field in selection.fields if id(field) not in computed]
    yield f"{'  ' * level}{selection.object_type.name} {{ {' '.join(plain)} }}".replace(
        "{  }", "{ }"
    )
    for together in selection.computed:
        for number, field in enumerate(together):
            yield f"{'  ' * (level + 1)}{_field(field, is_shared=number > 0)}"
            if field.selection is not None:
                yield from _selection(field.selection, level + 2)
    for part in selection.parts:
        labels = " ".join(usage.label for usage in part.usages if usage.label)
        yield f"{'  ' * (level + 1)}later{f' ({labels})' if labels else ''}:"
        yield from _selection(part.selection, level + 2)


def _field(field: Field, *, is_shared: bool) -> str:
    name = field.key if field.key == field.name else f"{field.key}: {field.name}"
    way = "with the one before" if is_shared else _WAYS[field.source]
    columns = "" if field.wanted is None else f", columns {' '.join(sorted(field.wanted[1]))}"
    known = "" if field.selection or field.shape.is_leaf else ", of a type known when it is met"
    stream = field.stream
    items = "" if stream is None else f", items from {stream.initial_count} on later"
    return f"{name} ({way}{columns}{known}{items})"
