"""Answers in pieces put together as clients do, and held to the whole answer."""

from collections.abc import Sequence
from typing import Any

Path = Sequence[str | int]


class Merged:
    """The data so far, the errors, and what was promised and never came."""

    def __init__(self) -> None:
        self.data: Any = None
        self.errors: list[dict[str, Any]] = []
        # Places of which something is missing, for an error left nothing of it.
        self.missing: list[tuple[str | int, ...]] = []
        self.has_next = True
        self._pending: dict[str, dict[str, Any]] = {}
        self._ids: set[str] = set()
        self._lengths: dict[str, int] = {}

    def add(self, payload: dict[str, Any]) -> None:
        """Take the next message; it must follow from those before it."""
        assert self.has_next, payload
        self.has_next = payload["hasNext"]
        if "data" in payload:
            assert self.data is None
            self.data = payload["data"]
        self.errors += payload.get("errors", ())
        for entry in payload.get("incremental", ()):
            if "id" not in entry:
                self._by_path(entry)
        announced = payload.get("pending", ())
        for promise in announced:
            assert promise["id"] not in self._ids, "an id was given twice"
            self._ids.add(promise["id"])
            self._pending[promise["id"]] = promise
        for entry in payload.get("incremental", ()):
            if "id" in entry:
                self._by_id(entry)
        for promise in announced:
            assert self.at(promise["path"]) is not None, "it belongs to nothing"
        for done in payload.get("completed", ()):
            promise = self._pending.pop(done["id"])
            if "errors" in done:
                self.errors += done["errors"]
                self.missing.append(tuple(promise["path"]))
        assert self.has_next or not self._pending

    def at(self, path: Path) -> Any:
        """Give what is at a place."""
        found = self.data
        for key in path:
            found = found[key]
        return found

    def _by_id(self, entry: dict[str, Any]) -> None:
        promise = self._pending[entry["id"]]
        self.errors += entry.get("errors", ())
        if "items" in entry:
            self.at(promise["path"]).extend(entry["items"])
            return
        merge(self.at([*promise["path"], *entry.get("subPath", ())]), entry["data"], once=True)

    def _by_path(self, entry: dict[str, Any]) -> None:
        path = entry["path"]
        self.errors += entry.get("errors", ())
        if "items" not in entry:
            if entry["data"] is None:
                assert entry["errors"]
                self.missing.append(tuple(path))
            else:
                merge(self.at(path), entry["data"], once=False)
        elif entry["items"] is None:
            assert entry["errors"]
            self.missing.append(tuple(path[:-1]))
        else:
            # A list that stands in several fragments is streamed for each.
            found = self.at(path[:-1])
            assert len(found) >= path[-1], "items do not follow"
            merge_lists(found, entry["items"], path[-1])


def merge(into: Any, data: Any, *, once: bool) -> None:
    """Merge objects. With `once`, nothing may be told that was told before."""
    assert isinstance(into, dict), (into, data)
    assert isinstance(data, dict), (into, data)
    for key, value in data.items():
        if key not in into:
            into[key] = value
            continue
        assert not once, f"{key} was told twice"
        known = into[key]
        if isinstance(known, dict) and isinstance(value, dict):
            merge(known, value, once=once)
        elif isinstance(known, list) and isinstance(value, list):
            merge_lists(known, value)
        else:
            assert known == value, (key, known, value)


def merge_lists(into: list[Any], data: list[Any], start: int = 0) -> None:
    """Merge the items of a list that was told more than once, of which more may follow."""
    for index, value in enumerate(data, start):
        if index >= len(into):
            into.append(value)
        elif isinstance(value, dict) and isinstance(into[index], dict):
            merge(into[index], value, once=False)
        elif isinstance(value, list) and isinstance(into[index], list):
            merge_lists(into[index], value)
        else:
            assert into[index] == value


def disagreement(whole: Any, merged: Merged, at: tuple[str | int, ...] = ()) -> str | None:
    """Say where a merged answer is not the whole one; None if nowhere.

    An error that would have nulled more of the whole answer may have left nothing of a deferred
    fragment or a list's rest instead, and then nothing more is missing.
    """
    return _differs(whole, merged.data, merged, at)


def _differs(whole: Any, one: Any, merged: Merged, at: tuple[str | int, ...]) -> str | None:
    if whole is None and one is not None:
        below = [*merged.missing, *(tuple(error.get("path", ())) for error in merged.errors)]
        return None if any(path[: len(at)] == at for path in below) else f"{at} is not null"
    if isinstance(whole, dict) and isinstance(one, dict):
        if one.keys() - whole.keys():
            return f"{at} has more keys"
        lost = whole.keys() - one.keys()
        if lost and not any(path == at[: len(path)] for path in merged.missing):
            return f"{at} lacks {sorted(lost)}"
        parts = [_differs(whole[key], one[key], merged, (*at, key)) for key in one]
    elif isinstance(whole, list) and isinstance(one, list):
        if len(one) > len(whole) or (len(one) < len(whole) and at not in merged.missing):
            return f"{at} has {len(one)} items, not {len(whole)}"
        pairs = enumerate(zip(whole, one, strict=False))
        parts = [_differs(left, right, merged, (*at, index)) for index, (left, right) in pairs]
    else:
        return None if type(whole) is type(one) and whole == one else f"{at} differs"
    return next((part for part in parts if part is not None), None)
