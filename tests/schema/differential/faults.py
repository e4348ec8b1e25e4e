"""Things that go wrong at random, but the same way for whoever reads the same rows."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from resolvers import loads
from services.errors import RequestError

_KEPT = ("id",)


class Faults:
    """What goes wrong in one case: told by the seed, the table, the row and the column alone.

    Of about every `one_in` values one is null, one is an error and one can be no such value; of
    rows some are missing, and some loads fail as a whole. Ids and references are let be, so that
    both executors read the same rows.
    """

    def __init__(self, seed: int, one_in: int) -> None:
        self._seed = seed
        self._one_in = one_in

    def _number(self, *names: Any) -> int:
        digest = hashlib.blake2b(repr((self._seed, *names)).encode(), digest_size=4).digest()
        return int.from_bytes(digest) % self._one_in

    def rows(self, record: type[Any], rows: list[Any]) -> list[Any]:
        """Give rows as they go wrong."""
        return [
            self._row(record.__name__, row)
            for row in rows
            if self._number(record.__name__, row.id) != 1
        ]

    def _row(self, table: str, row: Any) -> Any:
        changes: dict[str, Any] = {}
        for name in row._fields:
            if name in _KEPT or name.endswith("_id"):
                continue
            match self._number(table, row.id, name):
                case 1:
                    changes[name] = None
                case 2:
                    changes[name] = ValueError(f"{table}.{name} is broken")
                case 3:
                    changes[name] = {"nothing": "a column holds"}
        return row._replace(**changes) if changes else row

    def check(self, verb: str, record: type[Any], column: str) -> None:
        """Fail a load as a whole. Raises RequestError, or what is a bug."""
        match self._number(verb, record.__name__, column):
            case 1:
                raise RequestError("FORBIDDEN", "This load is refused.")
            case 2:
                raise RuntimeError("this load is broken")


@contextmanager
def breaking(monkeypatch: pytest.MonkeyPatch, faults: Faults) -> Iterator[None]:
    """Let the loads of all resolvers go wrong meanwhile."""
    read = loads.Loads._run

    async def broken(self: Any, record: type[Any], *rest: Any) -> list[Any]:
        return faults.rows(record, list(await read(self, record, *rest)))

    with monkeypatch.context() as patched:
        patched.setattr(loads.Loads, "_run", broken)
        for verb in ("one", "many", "page"):
            patched.setattr(loads.Loads, verb, _failing(verb, faults))
        yield


def _failing(verb: str, faults: Faults) -> Any:
    load = getattr(loads.Loads, verb)

    async def failing(self: Any, record: Any, column: Any, *rest: Any, **more: Any) -> Any:
        faults.check(verb, record, column.key)
        return await load(self, record, column, *rest, **more)

    return failing
