"""Races between check and use: a folder that is a link to somewhere else in the next moment."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from sandbox.client import Execution
from sandbox.errors import FileError, FileErrorCode
from sandbox.files import Files
from tests.sandbox.abuse.attack import PROLOGUE, tries
from tests.sandbox.abuse.conftest import Site
from tests.sandbox.conftest import Box

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROUNDS = 300
# Two names are exchanged in one step, so that `flip` is always one or the other.
FLIP = """
number = 316 if X86 else 276
os.makedirs('/tmp/outside/sub', exist_ok=True)
open('/tmp/outside/file', 'w').write('outside')
for name in ('a', 'b', 'c'):
    open(f'/tmp/outside/{name}', 'w').write('outside')
os.makedirs('/workspace/flip/sub', exist_ok=True)
open('/workspace/flip/file', 'w').write('inside')
os.symlink('/tmp/outside', '/workspace/flop')
print('ready', flush=True)
while True:
    libc.syscall(number, -100, b'/workspace/flip', -100, b'/workspace/flop', 2)
"""
LOOK = """
for name in sorted(os.listdir('/tmp/outside')):
    path = '/tmp/outside/' + name
    print(name, 'folder' if os.path.isdir(path) else open(path).read())
print(*os.listdir('/tmp/outside/sub'), 'end')
"""
UNTOUCHED = [
    "a", "outside", "b", "outside", "c", "outside", "file", "outside", "sub", "folder", "end",
]  # fmt: skip


async def make_and_remove(files: Files, path: str) -> None:
    await files.make_dir(f"{path}/new")
    await files.remove(f"{path}/new")


async def rename_there_and_back(files: Files, path: str) -> None:
    await files.rename(f"{path}/file", "taken")
    await files.rename("taken", "flip/file")


Operation = Callable[[Files, str], Awaitable[object]]
OPERATIONS: dict[str, Operation] = {
    "read": lambda files, path: files.read(f"{path}/file"),
    "write": lambda files, path: files.write(f"{path}/file", b"inside"),
    "write anew": lambda files, path: files.write(f"{path}/new", b"inside"),
    "stat": lambda files, path: files.stat(f"{path}/file"),
    "list": lambda files, path: files.list(path),
    "make_dir": make_and_remove,
    "make_dir with parents": lambda files, path: files.make_dir(f"{path}/sub/er", parents=True),
    "rename from": rename_there_and_back,
    "rename to": lambda files, path: files.rename("mine", f"{path}/mine"),
    "remove": lambda files, path: files.remove(f"{path}/a"),
    "remove all": lambda files, path: files.remove(f"{path}/sub", recursive=True),
}
REFUSED = {
    FileErrorCode.OUTSIDE, FileErrorCode.NOT_FOUND, FileErrorCode.EXISTS,
    FileErrorCode.NOT_A_DIRECTORY, FileErrorCode.IS_A_DIRECTORY,
}  # fmt: skip


async def racing(box: Box) -> Execution:
    execution = await box.start(["python3", "-c", PROLOGUE + FLIP], timeout_s=120)
    async for _ in execution.output():
        break
    return execution


@pytest.mark.parametrize("name", OPERATIONS)
async def test_no_race_leads_out(site: Site, name: str) -> None:
    box = await site.make()
    files = box.client.files
    racer = await racing(box)
    codes, done, texts = set(), 0, set()
    async with asyncio.timeout(100):
        for _ in range(ROUNDS):
            try:
                got = await OPERATIONS[name](files, "flip")
            except FileError as error:
                codes.add(error.code)
                continue
            done += 1
            if isinstance(got, bytes):
                texts.add(got)
    await racer.cancel()
    await racer.result()
    assert codes <= REFUSED
    assert FileErrorCode.OUTSIDE in codes
    assert texts <= {b"inside"}
    assert done > 0 or name not in ("read", "write", "stat", "list")
    assert await tries(box, LOOK) == UNTOUCHED


async def test_a_whole_tree_that_changes_while_it_is_removed(site: Site) -> None:
    box = await site.make()
    files = box.client.files
    racer = await racing(box)
    grow = """
while True:
    try:
        os.makedirs('/workspace/tree/a/b/c', exist_ok=True)
        os.rename('/workspace/tree/a', '/workspace/tree/x')
        os.symlink('/tmp/outside', '/workspace/tree/a')
        os.unlink('/workspace/tree/a')
        os.rename('/workspace/tree/x', '/workspace/tree/a')
    except OSError:
        pass
"""
    grower = await box.start(["python3", "-c", PROLOGUE + grow], timeout_s=120)
    codes = set()
    for _ in range(ROUNDS):
        try:
            await files.remove("tree", recursive=True)
        except FileError as error:
            codes.add(error.code)
    assert codes <= REFUSED
    for execution in (grower, racer):
        await execution.cancel()
        await execution.result()
    assert await tries(box, LOOK) == UNTOUCHED


async def test_a_draft_is_replaced_by_a_link_while_it_is_written(site: Site) -> None:
    box = await site.make()
    await tries(box, "os.mkdir('/tmp/outside'); open('/tmp/outside/file', 'w').write('outside')")
    swap = """
print('ready', flush=True)
while True:
    for name in os.listdir('/workspace'):
        if name.endswith('.part'):
            try:
                os.unlink('/workspace/' + name)
                os.symlink('/tmp/outside/file', '/workspace/' + name)
            except OSError:
                pass
"""
    racer = await box.start(["python3", "-c", PROLOGUE + swap], timeout_s=120)
    async for _ in racer.output():
        break
    codes = set()
    for _ in range(50):
        try:
            await box.client.files.write("mine", b"x" * 300_000)
        except FileError as error:
            codes.add(error.code)
    assert codes <= REFUSED
    await racer.cancel()
    await racer.result()
    assert await tries(box, "print(open('/tmp/outside/file').read())") == ["outside"]
