"""No path leads a file operation out of the workspace, whatever links and dots it has."""

from collections.abc import Awaitable, Callable

import pytest

from sandbox.errors import FileError, FileErrorCode, InvalidArgumentError
from sandbox.files import Files
from tests.sandbox.abuse.attack import tries
from tests.sandbox.abuse.conftest import Site
from tests.sandbox.conftest import Box

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def drain(files: Files, path: str) -> None:
    async for _ in files.stream(path):
        return


Operation = Callable[[Files, str], Awaitable[object]]
OPERATIONS: dict[str, Operation] = {
    "read": lambda files, path: files.read(f"{path}/target"),
    "stream": lambda files, path: drain(files, f"{path}/target"),
    "write": lambda files, path: files.write(f"{path}/target", b"x"),
    "write anew": lambda files, path: files.write(f"{path}/new", b"x"),
    "stat": lambda files, path: files.stat(f"{path}/target"),
    "list": lambda files, path: files.list(path),
    "make_dir": lambda files, path: files.make_dir(f"{path}/new"),
    "make_dir with parents": lambda files, path: files.make_dir(f"{path}/new/er", parents=True),
    "rename from": lambda files, path: files.rename(f"{path}/target", "stolen"),
    "rename to": lambda files, path: files.rename("mine", f"{path}/target"),
    "remove": lambda files, path: files.remove(f"{path}/target"),
    "remove all": lambda files, path: files.remove(f"{path}/folder", recursive=True),
}
# /tmp/outside belongs to the same user: only the walk keeps the agent away from it.
OUTSIDE = {
    "dots": "../tmp/outside",
    "dots in the middle": "inside/../../tmp/outside",
    "many dots": "../../../../../../../../tmp/outside",
    "dots after a name that is not there": "nothing/../../tmp/outside",
    "absolute": "/tmp/outside",
    "absolute with dots": "/workspace/../tmp/outside",
    "a neighbour with a longer name": "/workspace-not/outside",
    "double slashes": "//tmp//outside",
    "a link": "link",
    "a relative link": "relative",
    "a link to a link": "chain",
    "a link in a folder": "inside/up/tmp/outside",
    "a link to the root": "root/tmp/outside",
    "a link through proc to the root": "procroot/tmp/outside",
    "a link through proc to the directory": "proccwd/../tmp/outside",
    "a link to a descriptor": "fd/../../tmp/outside",
    "a link to the workspace and out": "self/../tmp/outside",
}
SETUP = """
import shutil
os.makedirs('/tmp/outside/folder/kept', exist_ok=True)
open('/tmp/outside/target', 'w').write('kept')
os.makedirs('/workspace/inside', exist_ok=True)
open('/workspace/mine', 'w').write('mine')
for name, target in {'link': '/tmp/outside', 'relative': '../tmp/outside', 'chain': 'link',
                     'inside/up': '../..', 'root': '/', 'procroot': '/proc/self/root',
                     'proccwd': '/proc/self/cwd', 'fd': '/proc/self/fd/0',
                     'self': '/workspace'}.items():
    os.symlink(target, '/workspace/' + name)
"""
LOOK = """
for top, folders, names in sorted(os.walk('/tmp/outside')):
    print(top, *sorted(folders), *sorted(names))
print(open('/tmp/outside/target').read(), open('/workspace/mine').read())
print(*sorted(os.listdir('/workspace')))
"""


@pytest.mark.parametrize("name", OPERATIONS)
async def test_no_operation_leads_out(site: Site, name: str) -> None:
    box = await site.make()
    await tries(box, SETUP)
    before = await tries(box, LOOK)
    got = {}
    for kind, path in OUTSIDE.items():
        with pytest.raises(FileError) as caught:
            await OPERATIONS[name](box.client.files, path)
        got[kind] = caught.value.code
    # What is not there is not followed by dots, either.
    may_be_absent = {"dots after a name that is not there"}
    assert {
        kind for kind, code in got.items() if code is not FileErrorCode.OUTSIDE
    } <= may_be_absent
    assert set(got.values()) <= {FileErrorCode.OUTSIDE, FileErrorCode.NOT_FOUND}
    if name == "make_dir with parents":
        # Made, and rightly so, before the dots behind it led out.
        await box.client.files.remove("nothing")
    assert await tries(box, LOOK) == before


async def test_links_that_stay_inside_are_followed(box: Box) -> None:
    # Were everything refused, the refusals above would prove nothing.
    files = box.client.files
    await box.run("mkdir -p real/deep; echo yes > real/deep/file; ln -s real/deep short;"
                  " ln -s /workspace/real whole; ln -s ../real real/back")  # fmt: skip
    for path in ("short/file", "whole/deep/file", "real/back/back/deep/file", "real/../short/file",
                 "/workspace/short/file", "./short//file"):  # fmt: skip
        assert await files.read(path) == b"yes\n"
    await files.remove("short")
    await files.remove("whole", recursive=True)
    assert await files.read("real/deep/file") == b"yes\n"
    await files.remove("real", recursive=True)


async def test_only_the_link_itself_is_moved_and_removed(site: Site) -> None:
    box = await site.make()
    await tries(box, SETUP)
    before = await tries(box, LOOK)
    await box.client.files.rename("link", "moved")
    await box.client.files.remove("moved", recursive=True)
    await box.client.files.remove("relative")
    after = await tries(box, LOOK)
    assert after[:-1] != before[:-1]
    assert set(before) - set(after) == {"link", "relative"}
    # A recursive removal meets links on its way and goes into none.
    await box.run("mkdir doomed; ln -s /tmp/outside doomed/a; ln -s / doomed/b; ln -s .. doomed/c")
    await box.client.files.remove("doomed", recursive=True)
    assert await tries(box, LOOK) == after


async def test_what_is_no_file_holds_nobody(site: Site) -> None:
    box = await site.make()
    await tries(box, """
os.mkfifo('pipe'); socket.socket(1).bind('sock'); os.symlink('loop', 'loop')
os.symlink('a' * 4000, 'far'); os.symlink('/dev/zero', 'zero'); os.symlink('/proc/self/fd/1', 'out')
for n in range(60):
    os.symlink(f'hop{n + 1}', f'hop{n}')
""")  # fmt: skip
    for path in ("pipe", "sock", "loop", "far", "zero", "out", "hop0"):
        for operate in OPERATIONS.values():
            with pytest.raises(FileError):
                await operate(box.client.files, path)
    for path in ("pipe", "sock", "loop", "zero", "out"):
        with pytest.raises(FileError):
            await box.client.files.read(path)


MALFORMED = {
    "nothing": "",
    "a NUL byte": "a\0b",
    "half a character": "\ud800",
    "longer than any path": "x/" * 2500,
}


@pytest.mark.parametrize("path", MALFORMED.values(), ids=MALFORMED.keys())
async def test_what_is_no_path_is_refused(box: Box, path: str) -> None:
    files = box.client.files
    for work in (
        files.read(path), files.write(path, b""), files.list(path), files.stat(path),
        files.make_dir(path, parents=True), files.rename("a", path), files.rename(path, "a"),
        files.remove(path, recursive=True), drain(files, path),
    ):  # fmt: skip
        with pytest.raises(InvalidArgumentError):
            await work


@pytest.mark.parametrize("length", [256, 4000])
async def test_a_name_longer_than_a_name_is_refused(box: Box, length: int) -> None:
    files = box.client.files
    for work in (files.read("n" * length), files.write("n" * length, b""),
                 files.make_dir("n" * length), files.make_dir("n" * length, parents=True),
                 files.stat("n" * length), files.list("n" * length)):  # fmt: skip
        with pytest.raises(FileError):
            await work


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o1777, 0o10000, -1])
async def test_no_file_is_written_with_more_than_permissions(box: Box, mode: int) -> None:
    with pytest.raises(InvalidArgumentError):
        await box.client.files.write("setuid", b"", mode=mode)


async def test_a_hard_link_to_the_host_is_not_made(box: Box) -> None:
    program = """
for path in ('/etc/passwd', '/bin/sh', '/proc/self/environ', '/usr/bin/env'):
    attempt(os.link, path, '/workspace/hard')
"""
    got = await tries(box, program)
    assert set(got) <= {"EXDEV", "EPERM", "EROFS"}
    assert len(got) == 4
