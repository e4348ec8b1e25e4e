"""Trees that no operation on files may choke on, and things in them that are no files at all."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import pytest

from sandbox.archives import ArchiveFormat
from sandbox.errors import FileError, FileErrorCode
from sandbox.files import Files
from tests.sandbox.abuse.attack import PROLOGUE, code_of, tries
from tests.sandbox.abuse.conftest import Site
from tests.sandbox.conftest import MIB, Box

pytestmark = pytest.mark.asyncio(loop_scope="module")
WAIT_S = 60.0


async def walked(files: Files, path: str) -> int:
    count = 0
    async with aclosing(files.walk(path)) as batches:
        async for batch in batches:
            count += len(batch)
    return count


async def packed(files: Files, path: str) -> int:
    """Bytes of an archive, of which no more is taken than the workspace could hold."""
    size = 0
    async with aclosing(files.pack(path, ArchiveFormat.TAR)) as chunks:
        async for chunk in chunks:
            size += len(chunk)
            if size > 32 * MIB:
                break
    return size


async def watched(files: Files, path: str) -> None:
    async with aclosing(files.watch(path)) as batches:
        await anext(batches)


async def listed(files: Files, path: str) -> None:
    await files.list(path)


async def removed(files: Files, path: str) -> None:
    await files.remove(path, recursive=True)


Operation = Callable[[Files, str], Awaitable[object]]
OPERATIONS: dict[str, Operation] = {
    "list": listed, "walk": walked, "pack": packed, "watch": watched, "remove": removed,
    "measure": lambda files, path: files.measure(path),
    "rename": lambda files, path: files.rename(path, "elsewhere"),
    "make_dir": lambda files, path: files.make_dir(f"{path}/new"),
}  # fmt: skip
# Ten times what a stack of calls would bear; its path is longer than any path may be.
DEEP = """
os.mkdir('/workspace/deep')
os.chdir('/workspace/deep')
made = 0
try:
    while made < 3000:
        os.mkdir('dd')
        os.chdir('dd')
        made += 1
except OSError:
    pass
print(made)
"""


@pytest.mark.parametrize("name", OPERATIONS)
async def test_a_tree_deeper_than_any_stack(site: Site, name: str) -> None:
    box = await site.make()
    (made,) = await tries(box, DEEP)
    assert int(made) == 3000
    async with asyncio.timeout(WAIT_S):
        code = await code_of(OPERATIONS[name](box.client.files, "deep"))
    assert code in (None, "DENIED", "TOO_LARGE")
    assert (await box.run("echo well"))[1] == b"well\n"
    assert (await box.run("rm -rf deep elsewhere", timeout_s=60))[0].exit_code == 0


WIDE = """
os.mkdir('/workspace/wide')
for number in range(9_000):
    os.mkdir(f'/workspace/wide/{number:04}')
print('made')
"""


@pytest.mark.parametrize("name", OPERATIONS)
async def test_a_tree_wider_than_any_window(site: Site, name: str) -> None:
    box = await site.make()
    await tries(box, WIDE)
    async with asyncio.timeout(WAIT_S):
        code = await code_of(OPERATIONS[name](box.client.files, "wide"))
    assert code in (None, "DENIED", "TOO_LARGE")
    assert (await box.run("echo well"))[1] == b"well\n"


ODD = {
    "a pipe that nobody writes": "os.mkfifo(path)",
    "a pipe that somebody holds": "os.mkfifo(path); hold.append(os.open(path, os.O_RDWR))",
    "a socket": "hold.append(socket.socket(1)); hold[-1].bind(path)",
    "a link to a device without end": "os.symlink('/dev/zero', path)",
    "a link to a terminal": "os.symlink('/dev/tty', path)",
    "a link to itself": "os.symlink(path, path)",
    "a link to the whole system": "os.symlink('/', path)",
    "a link to the processes": "os.symlink('/proc', path)",
    "a file that nobody may read": "open(path, 'w').close(); os.chmod(path, 0)",
    "a directory that nobody may enter": "os.mkdir(path); os.chmod(path, 0)",
    "a file that is leased": "import fcntl; hold.append(open(path, 'w'));"
    " fcntl.fcntl(hold[-1], 1024, 1)",
    "a file that is locked": "import fcntl; hold.append(open(path, 'w')); fcntl.flock(hold[-1], 2)",
    "a file of an exabyte": "hold.append(open(path, 'w')); os.truncate(path, (1 << 63) - 1)",
    "a file with a time beyond all": "open(path, 'w').close(); os.utime(path, (1 << 33, 1 << 33))",
    "a file with a time before all": "open(path, 'w').close();"
    " os.utime(path, (-(1 << 31), -(1 << 31)))",
}  # fmt: skip
PLANT = """
path, hold = '/workspace/odd/thing', []
os.makedirs('/workspace/odd')
{make}
print('ready', flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("make", ODD.values(), ids=ODD.keys())
async def test_no_operation_waits_for_what_is_odd(site: Site, make: str) -> None:
    box = site.box
    files = box.client.files
    keeper = await box.start(["python3", "-c", PROLOGUE + PLANT.format(make=make)])
    async for _ in keeper.output():
        break
    every: dict[str, Operation] = {
        "read": lambda files, path: files.read(path, limit=10),
        "stat": lambda files, path: files.stat(path),
        **OPERATIONS,
    }
    done = 0
    async with asyncio.timeout(WAIT_S):
        for name in ("read", "stat", "list", "walk", "watch", "pack", "measure", "make_dir"):
            for path in ("odd/thing", "odd"):
                done += await code_of(every[name](files, path)) is None
        assert done > 0
        # Writing puts a file in its place, and never through it.
        code = await code_of(files.write("odd/thing", b"mine"))
        assert code is not None or await files.read("odd/thing") == b"mine"
    await keeper.cancel()
    await keeper.result()
    await box.run("chmod -R u+rwx odd; rm -rf odd")


NAMES = {
    "a line's end": b"a\nb",
    "a tab and a return": b"a\tb\rc",
    "invalid UTF-8": b"\xff\xfe\x80",
    "half a surrogate": b"\xed\xa0\x80",
    "a byte order mark": b"\xef\xbb\xbfname",
    "as long as a name may be": b"n" * 255,
    "as long, and not valid": b"\x80" * 255,
    "spaces alone": b"   ",
    "a dash": b"-rf",
    "a star": b"*",
    "a name that looks like a draft": b".x.1.part",
    "three dots": b"...",
    "an escape": b"\x1b]0;evil\x07",
    "a name of a drive": b"C:\\evil",
    "what a format would take in": b"%s%n{0}${x}`id`",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
async def test_any_name_is_only_a_name(site: Site, name: bytes) -> None:
    box = site.box
    files = box.client.files
    await box.client.files.make_dir("names")
    shown = name.decode("utf-8", "surrogateescape")
    await tries(box, f"open({b'/workspace/names/' + name!r}, 'w').write('content')")
    (entry,) = await files.list("names")
    assert entry.name == shown
    assert await files.read(entry.path) == b"content"
    assert (await files.stat(entry.path)).size_bytes == 7
    assert await walked(files, "names") == 1
    assert await packed(files, "names") > 512
    await watched(files, "names")
    await files.rename(entry.path, "names/other")
    await files.rename("names/other", entry.path)
    await files.remove(entry.path)
    assert await files.list("names") == []
    await files.remove("names")


STORM = """
import itertools
os.makedirs('/workspace/storm/a', exist_ok=True)
os.makedirs('/tmp/outside', exist_ok=True)
print('ready', flush=True)
for number in itertools.count():
    {work}
"""
STORMS = {
    "renames in a circle": "os.makedirs('/workspace/storm/x', exist_ok=True);"
    " os.rename('/workspace/storm/x', '/workspace/storm/y');"
    " os.rename('/workspace/storm/y', '/workspace/storm/x')",
    "files that come and go": "open('/workspace/storm/f', 'w').close();"
    " os.unlink('/workspace/storm/f')",
    "folders that come and go": "os.mkdir('/workspace/storm/d'); os.mkdir('/workspace/storm/d/e');"
    " os.rmdir('/workspace/storm/d/e'); os.rmdir('/workspace/storm/d')",
    "a folder that is a link in between": "os.rename('/workspace/storm/a', '/workspace/storm/b');"
    " os.symlink('/', '/workspace/storm/a'); os.unlink('/workspace/storm/a');"
    " os.rename('/workspace/storm/b', '/workspace/storm/a')",
    "a folder that leaves and comes back": "os.rename('/workspace/storm/a', '/workspace/away');"
    " os.rename('/workspace/away', '/workspace/storm/a')",
    "one file, written a byte at a time": "fd = os.open('/workspace/storm/f', 577);"
    " [os.write(fd, b'x') for _ in range(100)]; os.close(fd)",
    "attributes of one file": "open('/workspace/storm/f', 'w').close();"
    " [os.chmod('/workspace/storm/f', 0o600 + n % 64) for n in range(100)]",
}


@pytest.mark.parametrize("work", STORMS.values(), ids=STORMS.keys())
async def test_a_storm_of_changes_is_told_in_bounds(site: Site, work: str) -> None:
    box = await site.make()
    files = box.client.files
    storm = await box.start(["python3", "-c", PROLOGUE + STORM.format(work=work)], timeout_s=60)
    async for _ in storm.output():
        break
    told = 0
    async with asyncio.timeout(WAIT_S), aclosing(files.watch("storm")) as batches:
        async for batch in batches:
            told += len(batch)
            assert all(change.path.startswith("storm") for change in batch)
            if told > 50:
                break
        # A watch that nobody reads costs nothing but its window, and the rest goes on.
        for _ in range(10):
            assert (await box.run("echo well"))[1] == b"well\n"
    await storm.cancel()
    await storm.result()


@pytest.mark.parametrize("path", ["/", "..", "/proc", "/tmp", "link", "root/proc"])
async def test_nothing_outside_is_watched_walked_or_packed(box: Box, path: str) -> None:
    await box.run("ln -sfn / root; ln -sfn /tmp link")
    for name in ("watch", "walk", "pack", "list", "measure"):
        with pytest.raises(FileError) as caught:
            await OPERATIONS[name](box.client.files, path)
        assert caught.value.code is FileErrorCode.OUTSIDE
    await box.run("rm -f root link")


async def test_uploads_of_one_file_at_once_leave_one_of_them_whole(site: Site) -> None:
    box = await site.make()
    files = box.client.files
    contents = [bytes((number,)) * 400_000 for number in range(12)]
    async with asyncio.timeout(WAIT_S):
        await asyncio.gather(*(files.write("same", content) for content in contents))
    assert await files.read("same") in contents
    assert [entry.name for entry in await files.list()] == ["same"]


async def test_uploads_are_refused_where_their_drafts_are_in_the_way(site: Site) -> None:
    box = await site.make()
    # Whoever guesses the names of drafts takes them: files of his own stay what they are.
    program = """
open('/workspace/victim', 'w').write('v')
for number in range(200):
    os.symlink('/workspace/victim', f'/workspace/.mine.{number}.part')
"""
    await tries(box, program)
    for _ in range(5):
        code = await code_of(box.client.files.write("mine", b"evil"))
        assert code in (None, "EXISTS")
    assert await box.client.files.read("victim") == b"v"
