"""Changes in a workspace as they happen, and walks through it."""

import asyncio
import select
import socket
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import pytest

from sandbox.errors import FileError, FileErrorCode, ResourceExhaustedError
from sandbox.inside.core import Agent
from sandbox.inside.files import Files
from sandbox.inside.watching import Watch
from sandbox.watching import Change, ChangeKind
from tests.sandbox.conftest import Box, Boxes

WAIT_S = 60


class Watched:
    """What a watch has told so far."""

    def __init__(self, batches: AsyncGenerator[list[Change], None]) -> None:
        self._batches = batches
        self.changes: list[Change] = []

    async def next(self) -> Change:
        """The next change."""
        async with asyncio.timeout(WAIT_S):
            while not self.changes:
                self.changes += await anext(self._batches)
        return self.changes.pop(0)

    async def sizes(self, **wanted: int) -> None:
        """Wait until each of these files was told with its size; `__` stands for a slash."""
        left = {name.replace("__", "/"): size for name, size in wanted.items()}
        while left:
            change = await self.next()
            if left.get(change.path) == change.size_bytes:
                del left[change.path]

    async def until(self, kind: ChangeKind, path: str) -> list[Change]:
        """What was told since last asked, up to this change."""
        async with asyncio.timeout(WAIT_S):
            while True:
                for at, change in enumerate(self.changes):
                    if (change.kind, change.path) == (kind, path):
                        told, self.changes = self.changes[: at + 1], self.changes[at + 1 :]
                        return told
                self.changes += await anext(self._batches)


Begin = Callable[..., Awaitable[Watched]]


@pytest.fixture
async def begin() -> AsyncIterator[Begin]:
    """Begins watches, and ends them."""
    async with AsyncExitStack() as stack:

        async def start(
            box: Box, path: str = ".", *, recursive: bool = True, is_partial: bool = False
        ) -> Watched:
            batches = box.client.files.watch(path, recursive=recursive)
            watched = Watched(await stack.enter_async_context(aclosing(batches)))
            (first,) = await watched.until(ChangeKind.OVERFLOW, path)
            assert first.is_partial is is_partial
            return watched

        yield start


def brief(changes: list[Change]) -> list[tuple[str, str, int]]:
    return [(change.kind.value, change.path, change.size_bytes) for change in changes]


async def test_changes_are_told_in_order_with_their_sizes(box: Box, begin: Begin) -> None:
    watched = await begin(box)
    await box.run("printf hello > a")
    assert (await watched.next()).kind is ChangeKind.CREATED
    await box.run("printf more >> a")
    await watched.sizes(a=9)
    await box.run("mv a b")
    moved = (await watched.until(ChangeKind.RENAMED, "b"))[-1]
    assert (moved.old_path, moved.size_bytes, moved.is_directory) == ("a", 9, False)
    await box.run("rm b")
    assert brief(await watched.until(ChangeKind.REMOVED, "b"))[-1] == ("REMOVED", "b", 0)


async def test_directories_made_later_are_watched_with_what_was_in_them_by_then(
    box: Box, begin: Begin
) -> None:
    watched = await begin(box)
    await box.run("mkdir -p d/e/f && printf 1 > d/e/f/one && printf 22 > d/two && mkdir d/last")
    await watched.sizes(d__e__f__one=1, d__two=2)
    await box.run("printf 333 > d/e/f/three")
    await watched.sizes(d__e__f__three=3)
    await box.run("mv d/e g")
    moved = (await watched.until(ChangeKind.RENAMED, "g"))[-1]
    assert (moved.old_path, moved.is_directory) == ("d/e", True)
    # Directories below keep being watched, by their new names.
    await box.run("printf 4444 > g/f/four")
    await watched.sizes(g__f__four=4)
    await box.run("rm -r g")
    told = await watched.until(ChangeKind.REMOVED, "g")
    removed = {change.path for change in told if change.kind is ChangeKind.REMOVED}
    assert {"g/f/one", "g/f/three", "g/f/four", "g/f", "g"} <= removed


async def test_sizes_are_told_of_files_whose_directory_moves_at_once(
    box: Box, begin: Begin
) -> None:
    await box.run("mkdir d0 d0/e && touch d0/e/f")
    watched = await begin(box)
    await box.run("for n in 1 2 3 4 5; do printf 12 >> d$((n - 1))/e/f; mv d$((n - 1)) d$n; done")
    await watched.sizes(d5__e__f=10)


async def test_what_is_there_at_the_beginning_is_no_change_but_is_watched(
    box: Box, begin: Begin
) -> None:
    await box.run("mkdir -p x/y && printf old > x/y/old")
    watched = await begin(box)
    await box.run("printf new > x/y/new")
    first = await watched.next()
    assert (first.kind, first.path) == (ChangeKind.CREATED, "x/y/new")


async def test_a_watch_that_is_not_recursive_tells_of_one_directory(box: Box, begin: Begin) -> None:
    await box.run("mkdir -p x/y")
    watched = await begin(box, "x", recursive=False)
    await box.run("touch above x/y/below && mkdir x/z && touch x/z/below x/here")
    told = await watched.until(ChangeKind.CREATED, "x/here")
    assert {change.path for change in told} == {"x/z", "x/here"}


async def test_moves_out_of_what_is_watched_and_back(box: Box, begin: Begin) -> None:
    await box.run("mkdir -p in/d && touch in/d/f")
    watched = await begin(box, "in")
    await box.run("mv in/d out")
    assert (await watched.until(ChangeKind.REMOVED, "in/d"))[-1].is_directory
    await box.run("touch out/unseen && mv out in/back")
    told = await watched.until(ChangeKind.CREATED, "in/back")
    while not {"in/back/unseen", "in/back/f"} <= {change.path for change in told}:
        told.append(await watched.next())
    await box.run("touch in/back/more")
    await watched.until(ChangeKind.CREATED, "in/back/more")


async def test_links_are_told_of_and_not_followed(box: Box, begin: Begin) -> None:
    await box.run("mkdir real && ln -s / root && ln -s real alias")
    watched = await begin(box)
    await box.run("touch /tmp/elsewhere alias/f && ln -s /etc/passwd link")
    told = await watched.until(ChangeKind.CREATED, "link")
    assert {change.path for change in told} == {"real/f", "link"}
    assert told[-1].size_bytes == 0


async def test_more_than_the_kernel_holds_is_an_overflow_and_nothing_is_missed_later(
    box: Box, begin: Begin
) -> None:
    watched = await begin(box)
    # Nobody reads meanwhile, so that it is the kernel that holds what happens.
    program = (
        "import os\n"
        "os.mkdir('d')\n"
        "for n in range(30000):\n"
        "    name = 'd/' + 'x' * 200 + str(n)\n"
        "    open(name, 'w').close(); os.unlink(name)\n"
        "os.mkdir('d/late')\n"
    )
    result, _, error = await box.python(program, timeout_s=60)
    assert result.exit_code == 0, error
    await watched.until(ChangeKind.OVERFLOW, ".")
    await box.run("touch d/late/file")
    told = await watched.until(ChangeKind.CREATED, "d/late/file")
    assert told[-1].path == "d/late/file"


def test_what_is_gone_is_not_looked_for_again_at_every_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
    agent = Agent(ends[0].fileno(), ends[0].fileno(), {"workspace": str(tmp_path)})
    workspace = agent.part(Files).workspace
    watch = Watch(agent, workspace, 1, True, 1 << 30, b"")
    looked: Counter[bytes] = Counter()
    walk = workspace.walk

    def counting(path: bytes, follow: bool) -> tuple[int, bytes]:
        looked[path] += 1
        return walk(path, follow)

    monkeypatch.setattr(workspace, "walk", counting)
    files = [tmp_path / ("x" * 200 + str(n)) for n in range(2000)]
    for file in files:
        file.touch()
    for file in files:
        file.unlink()
    try:
        rounds = 0
        while select.select([watch.fd], [], [], 0)[0]:
            watch.round()
            rounds += 1
        assert rounds > 10
        # When it was told of, and when it was told that it had been written to.
        assert (len(looked), max(looked.values())) == (2000, 2)
        assert not watch.missing
    finally:
        watch.close()
        agent.poll.close()
        for end in ends:
            end.close()


async def test_a_reader_that_stalls_costs_no_memory_and_is_told_so(box: Box) -> None:
    batches = box.client.files.watch()
    await anext(batches)
    names = "x" * 200
    program = f"for n in range(12000): open('{names}%d' % n, 'w').close()"
    result, _, error = await box.python(program, timeout_s=60)
    assert result.exit_code == 0, error
    async with asyncio.timeout(WAIT_S), aclosing(batches):
        kinds: Counter[ChangeKind] = Counter()
        async for batch in batches:
            kinds.update(change.kind for change in batch)
            if kinds[ChangeKind.OVERFLOW] or kinds[ChangeKind.CREATED] == 12000:
                break
    walked = 0
    async with aclosing(box.client.files.walk()) as entries:
        async for found in entries:
            walked += len(found)
    assert walked == 12000


async def test_a_directory_that_cannot_be_read_makes_it_partial(box: Box, begin: Begin) -> None:
    await box.run("mkdir secret && chmod 000 secret")
    watched = await begin(box, is_partial=True)
    # Once it can be read again it is watched like all others.
    await box.run("chmod 755 secret")
    await box.run("until touch secret/file; do :; done; touch seen")
    told = await watched.until(ChangeKind.CREATED, "seen")
    paths = {change.path for change in told}
    while "secret/file" not in paths:
        paths.add((await watched.next()).path)


async def test_the_number_of_watches_is_bounded_and_given_back(box: Box, begin: Begin) -> None:
    watches = [await begin(box) for _ in range(8)]
    with pytest.raises(ResourceExhaustedError):
        await anext(box.client.files.watch())
    await watches[0]._batches.aclose()
    again = await begin(box)
    await box.run("touch f")
    for watched in [*watches[1:], again]:
        await watched.until(ChangeKind.CREATED, "f")


async def test_a_directory_that_goes_ends_its_watch(box: Box, begin: Begin) -> None:
    await box.run("mkdir d && touch f")
    watched = await begin(box, "d")
    await box.run("rm -r d")
    with pytest.raises(FileError) as caught:
        await watched.until(ChangeKind.CREATED, "never")
    assert caught.value.code is FileErrorCode.NOT_FOUND
    for path, code in (("none", FileErrorCode.NOT_FOUND), ("f", FileErrorCode.NOT_A_DIRECTORY)):
        with pytest.raises(FileError) as caught:
            await anext(box.client.files.watch(path))
        assert caught.value.code is code
    for path in ("..", "/etc"):
        with pytest.raises(FileError) as caught:
            await anext(box.client.files.watch(path))
        assert caught.value.code is FileErrorCode.OUTSIDE


async def test_executions_are_served_while_a_program_writes_without_end(
    box: Box, begin: Begin
) -> None:
    watched = await begin(box)
    noise = await box.start("while :; do echo x > a; mv a b; done", timeout_s=60)
    for number in range(20):
        _, out, _ = await box.run(f"echo {number}")
        assert out == b"%d\n" % number
    await watched.until(ChangeKind.RENAMED, "b")
    await noise.cancel()


async def test_a_walk_tells_everything_below_with_links_as_themselves(
    box: Box, begin: Begin
) -> None:
    await box.run(
        "mkdir -p a/b/c && printf 12345 > a/b/c/f && ln -s / a/root && touch 'a/new\nline'"
    )
    found: dict[str, tuple[bool, int]] = {}
    async with aclosing(box.client.files.walk("a")) as batches:
        async for batch in batches:
            found |= {entry.path: (entry.is_directory, entry.size_bytes) for entry in batch}
    assert found == {
        "a/b": (True, 0),
        "a/b/c": (True, 0),
        "a/b/c/f": (False, 5),
        "a/root": (False, 1),
        "a/new\nline": (False, 0),
    }
    with pytest.raises(FileError):
        await anext(box.client.files.walk("none"))


async def test_a_client_that_takes_over_ends_the_watches_of_the_one_before(
    boxes: Boxes, begin: Begin
) -> None:
    if not boxes.driver.survives_server:
        pytest.skip("another client cannot take over")
    box = await boxes.make()
    watches = [await begin(box) for _ in range(8)]
    second = await boxes.client(box.id)
    async with aclosing(second.files.watch()) as batches:
        assert (await anext(batches))[0].kind is ChangeKind.OVERFLOW
    del watches
