"""The graph of a plan's steps: validation, order, and references between steps. Pure functions."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_REFERENCE = re.compile(r"\{\{\s*steps\.(\d{1,4})\.(output|result)((?:\.[A-Za-z0-9_]+)*)\s*\}\}")


def cycle(depends_on: Sequence[Sequence[int]]) -> list[int] | None:
    """Give a cycle as step indexes, the first repeated at the end, or None if there is none."""
    state = [0] * len(depends_on)
    for root in range(len(depends_on)):
        if state[root]:
            continue
        path, stack = [root], [iter(depends_on[root])]
        state[root] = 1
        while stack:
            nearest = next(stack[-1], None)
            if nearest is None:
                stack.pop()
                state[path.pop()] = 2
            elif state[nearest] == 1:
                return [*path[path.index(nearest) :], nearest]
            elif state[nearest] == 0:
                state[nearest] = 1
                path.append(nearest)
                stack.append(iter(depends_on[nearest]))
    return None


def ancestors(depends_on: Sequence[Sequence[int]]) -> list[set[int]]:
    """Give for each step of an acyclic graph all steps it waits for, directly or not."""
    found: list[set[int]] = []
    memo: dict[int, set[int]] = {}
    for root in range(len(depends_on)):
        pending = [root]
        while pending:
            step = pending[-1]
            missing = [d for d in depends_on[step] if d not in memo]
            if missing:
                pending += missing
                continue
            memo[step] = set(depends_on[step]).union(*(memo[d] for d in depends_on[step]))
            pending.pop()
        found.append(memo[root])
    return found


def references(value: Any) -> Iterator[int]:
    """Give the indexes of the steps a value refers to as `{{steps.N.output}}` or `….result.…`."""
    if isinstance(value, str):
        for match in _REFERENCE.finditer(value):
            yield int(match[1])
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from references(item)


def resolve(value: Any, outputs: Mapping[int, str], results: Mapping[int, Any]) -> Any:
    """Replace references by what the steps gave.

    A string that is one whole `….result…` reference becomes the value itself; inside a longer text
    it becomes text. A path that leads nowhere becomes empty.
    """
    if isinstance(value, Mapping):
        return {key: resolve(item, outputs, results) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [resolve(item, outputs, results) for item in value]
    if not isinstance(value, str):
        return value
    whole = _REFERENCE.fullmatch(value.strip())
    if whole is not None and whole[2] == "result":
        return _lookup(whole, outputs, results)

    def text(match: re.Match[str]) -> str:
        found = _lookup(match, outputs, results)
        return "" if found is None else str(found)

    return _REFERENCE.sub(text, value)


def _lookup(match: re.Match[str], outputs: Mapping[int, str], results: Mapping[int, Any]) -> Any:
    step = int(match[1])
    if match[2] == "output":
        return outputs.get(step, "").rstrip("\n")
    found = results.get(step)
    for part in match[3].split(".")[1:]:
        if isinstance(found, Mapping):
            found = found.get(part)
        elif isinstance(found, list) and part.isdigit() and int(part) < len(found):
            found = found[int(part)]
        else:
            return None
    return found
