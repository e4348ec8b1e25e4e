"""What must hold of a file for it to be replaced, looked at when the new one is about to be."""

import asyncio
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from services.errors import UserError, UserErrorCode
from services.events.base import Json

ANY: Final = "*"
# By it a failed condition is told from other conflicts, on the way from another node as well.
PATH: Final = ("version",)
_locks: weakref.WeakValueDictionary[tuple[str, str], asyncio.Lock] = weakref.WeakValueDictionary()


def version(size_bytes: int, modified_at: datetime) -> str:
    """Name the version of a file: another one has another name."""
    moment = int(modified_at.timestamp() * 1_000_000)
    return f"{size_bytes:x}-{moment & 0xFFFF_FFFF_FFFF_FFFF:x}"


@dataclass(frozen=True, slots=True)
class Condition:
    """That a file is one of the versions `only`, none of `never`, and not changed `since`.

    `ANY` stands for whatever is there; None asks for nothing. `since` has full seconds.
    """

    only: tuple[str, ...] | None = None
    never: tuple[str, ...] | None = None
    since: datetime | None = None

    def require(self, found: tuple[int, datetime] | None) -> None:
        """Look at a file's size and time; None: there is none. Raises UserError CONFLICT."""
        named = None if found is None else version(*found)
        is_met = True
        if self.only is not None:
            is_met = named is not None and (ANY in self.only or named in self.only)
        elif self.since is not None and found is not None:
            is_met = found[1].replace(microsecond=0) <= self.since
        if not is_met:
            raise _failed("The file is not, or not any more, what the request is for; read it.")
        if self.never is not None and named is not None:
            if ANY in self.never:
                raise _failed("There is something at that path already.")
            if named in self.never:
                raise _failed("The file is the version that the request is not for.")

    def to_json(self) -> Json:
        """Give it as it travels between nodes."""
        return {
            "only": None if self.only is None else list(self.only),
            "never": None if self.never is None else list(self.never),
            "since": None if self.since is None else self.since.isoformat(),
        }

    @classmethod
    def from_json(cls, value: Json) -> "Condition":
        """Give what `to_json` was made from."""
        only, never, since = value["only"], value["never"], value["since"]
        return cls(
            None if only is None else tuple(only),
            None if never is None else tuple(never),
            None if since is None else datetime.fromisoformat(since),
        )


def _failed(message: str) -> UserError:
    return UserError(UserErrorCode.CONFLICT, message, PATH)


@asynccontextmanager
async def alone(sandbox_id: str, path: str) -> AsyncIterator[None]:
    """Be the only one of this node who replaces a file: between a look at it and its end.

    Programs inside are not kept out.
    """
    lock = _locks.setdefault((sandbox_id, path), asyncio.Lock())
    async with lock:
        yield
