"""Comparing two answers to one operation: data to the byte, errors whatever their order."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import orjson

Position = tuple[Any, ...]


def nulled(data: Any, path: list[Any]) -> Position:
    """Give the place in the data that an error made null: at its path, or above."""
    here: Position = ()
    for key in path:
        if data is None:
            return here
        data, here = data[key], (*here, key)
    return here


def errors_of(answer: Mapping[str, Any]) -> dict[Position, set[bytes]]:
    """Give the errors by the places they made null."""
    found: dict[Position, set[bytes]] = defaultdict(set)
    for error in answer.get("errors", ()):
        place = nulled(answer.get("data"), error.get("path", []))
        found[place].add(orjson.dumps(error, option=orjson.OPT_SORT_KEYS))
    return found


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """Say in what two answers differ; None if in nothing that matters.

    Where several errors meet at one null, the specification lets an executor tell any of them, and
    the first that comes is told: then they are of different places below it.
    """
    if orjson.dumps(one.get("data")) != orjson.dumps(other.get("data")):
        return "their data"
    mine, theirs = errors_of(one), errors_of(other)
    if mine.keys() != theirs.keys():
        return f"where errors are: {sorted(map(str, mine.keys() ^ theirs.keys()))}"
    for place, errors in mine.items():
        if not errors & theirs[place] and not paths(errors).isdisjoint(paths(theirs[place])):
            return f"the errors at {place}"
    return None


def paths(errors: set[bytes]) -> set[str]:
    """Give the paths of errors."""
    return {str(orjson.loads(error).get("path")) for error in errors}
