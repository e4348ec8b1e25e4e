"""What an archive came to, looked at in a folder that nobody sees before it takes its place."""

import asyncio
import posixpath
import secrets
import stat
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING

from sandbox.archives import Hold
from sandbox.errors import FileError, FileErrorCode
from services.errors import UserError, UserErrorCode
from services.sandboxes import drafts, findings
from services.sandboxes.findings import shown
from services.sandboxes.scanning import Verdict, scanner

if TYPE_CHECKING:
    from services.sandboxes.node import Node

_AT_ONCE = 4


@contextmanager
def hold(node: "Node", sandbox_id: str, target: str) -> Iterator[Hold]:
    """Have what is unpacked into `target` scanned before it is there.

    What is harmful goes into quarantine, and raises UserError INVALID; UserError UNAVAILABLE is
    raised as by `Scanner.find`, and FileError for what cannot be read.
    """

    async def check(entries: int) -> None:
        await _Look(node, sandbox_id, held.name, target).run(entries)

    held = Hold(secrets.randbits(62), check)
    with drafts.unpacking(sandbox_id, held.name):
        yield held


class _Look:
    """One look at all files of a folder, some at a time, until something harmful is found."""

    def __init__(self, node: "Node", sandbox_id: str, folder: str, target: str) -> None:
        self._node = node
        self._id = sandbox_id
        self._folder, self._target = folder, target
        self._files = node.client(sandbox_id).files
        self._todo: list[str] = []
        self._found: list[tuple[str, Verdict]] = []
        self._noting = asyncio.Lock()

    async def run(self, entries: int) -> None:
        count = 0
        most = self._node.deps.options.scan_max_bytes
        async with aclosing(self._files.walk(self._folder)) as batches:
            async for batch in batches:
                count += len(batch)
                self._todo += [
                    entry.path
                    for entry in batch
                    if stat.S_ISREG(entry.mode) and 0 < entry.size_bytes <= most
                ]
        if count < entries:
            raise FileError(
                FileErrorCode.DENIED,
                "The archive cannot be scanned: a path in it is too long, or what was unpacked of "
                "it was changed meanwhile.",
                path=self._target,
            )
        self._todo.reverse()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(_AT_ONCE):
                    group.create_task(self._work())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        if self._found:
            raise _refusal(*self._found[0])

    async def _work(self) -> None:
        while self._todo and not self._found:
            await self._scan(self._todo.pop())
            self._node.touch(self._id)

    async def _scan(self, path: str) -> None:
        known = scanner(self._node.deps)
        async with known.intake() as intake:
            async with aclosing(self._files.stream(path, 0, known.most_bytes + 1)) as chunks:
                async for chunk in chunks:
                    await intake.add(chunk)
            verdict = await intake.judge()
            if not verdict.is_infected:
                return
            async with self._noting:
                if not self._found:
                    place = posixpath.join(self._target, path[len(self._folder) + 1 :])
                    place = posixpath.normpath(place)
                    self._found.append((place, verdict))
                    await findings.note(self._node.deps, self._id, place, intake, verdict)


def _refusal(path: str, verdict: Verdict) -> UserError:
    return UserError(
        UserErrorCode.INVALID,
        f"A file of the archive, {shown(path)}, was taken for harmful ({verdict.engine}: "
        f"{verdict.rule}) and put in quarantine; nothing was unpacked. If you think that it is "
        "not, ask an administrator.",
        ("content",),
    )
