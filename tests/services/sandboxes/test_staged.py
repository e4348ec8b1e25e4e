"""Archives are scanned before anything of them is in its place."""

import asyncio
import io
import os
import tarfile
import zipfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from models.sandboxes import Sandbox
from models.states import FileVerdict
from sandbox.archives import ArchiveFormat, Hold, Unpacked
from services.base import Viewer
from services.errors import UserError, UserErrorCode
from services.sandboxes import drafts, files, lifecycle, snapshots, staged, transfers
from services.sandboxes.file_events import Quarantined
from tests.servers.clamd import EICAR, HARMFUL, NAME, Clamd, running
from tests.services.sandboxes.conftest import Launch, Server, ran
from tests.services.sandboxes.watching.conftest import (
    Follow,
    equals,
    follow,
    found_rows,
    indexed,
    paths,
    until,
)

__all__ = ["follow"]
pytestmark = pytest.mark.bubblewrap
MIB = 1024 * 1024


def tar(**contents: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in contents.items():
            info = tarfile.TarInfo(name.replace("__", "/"))
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zipped(**contents: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            archive.writestr(name.replace("__", "/"), data)
    return buffer.getvalue()


Make = Callable[..., bytes]
STYLES: dict[str, Make] = {"tar.gz": tar, "zip": zipped}


async def unpack(
    server: Server, viewer: Viewer, box: Sandbox, data: bytes, style: str = "tar.gz", to: str = "in"
) -> Unpacked:
    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(data), 50_000):
            yield data[at : at + 50_000]

    return await transfers.unpack(
        server.deps,
        viewer,
        sandbox_id=box.id,
        path=to,
        style=ArchiveFormat(style),
        chunks=pieces(),
    )


@pytest.fixture
async def daemon(clamd_program: str, tmp_path: Path) -> AsyncIterator[Clamd]:
    async with running(clamd_program, tmp_path, MaxFileSize="1M") as daemon:
        yield daemon


@pytest.mark.clamd
async def test_a_harmful_file_keeps_its_archive_out(
    launch: Launch, any_kind: str, daemon: Clamd, follow: Follow
) -> None:
    server = await launch(any_kind, clamav_url=daemon.url)
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    following = await follow(server, ada, box)
    await files.write(server.deps, ada, sandbox_id=box.id, path="in/old", content="old")
    expected = []
    for style, make in STYLES.items():
        for data, rule in ((HARMFUL, NAME), (EICAR, "eicar")):
            archive = make(good=b"good", d__bad=data, more=os.urandom(MIB), old=b"new")
            with pytest.raises(UserError) as caught:
                await unpack(server, ada, box, archive, style)
            assert (caught.value.code, caught.value.path) == (UserErrorCode.INVALID, ("content",))
            assert "in/d/bad" in caught.value.message
            assert rule in caught.value.message
            assert "nothing was unpacked" in caught.value.message
            while not isinstance(item := await following.next(), Quarantined):
                pass
            assert (item.finding.path, item.finding.rule) == ("in/d/bad", rule)
            expected.append(("in/d/bad", rule))
    shown = await ran(server.deps, ada, box.id, "find . -type f | sort; cat in/old")
    assert shown.stdout == "./in/old\nold"
    found = await found_rows(server)
    assert [(finding.path, finding.rule) for finding in found] == expected
    kept = server.options.data_dir / "quarantine" / found[0].quarantine_path
    assert kept.read_bytes() == HARMFUL


@pytest.mark.clamd
async def test_a_harmless_archive_is_there_and_then_looked_at_again(
    launch: Launch, daemon: Clamd
) -> None:
    server = await launch(clamav_url=daemon.url)
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    contents = {f"d__{n}": b"%d" % n for n in range(300)}
    archive = tar(**contents, large=os.urandom(2 * MIB) + HARMFUL, empty=b"")
    made = await unpack(server, ada, box, archive)
    assert made.entries == 303
    await indexed(server, box, "in/d/299", 3, FileVerdict.CLEAN)
    # Of what is too large nobody says that it is clean.
    found = await indexed(server, box, "in/large", 2 * MIB + len(HARMFUL))
    assert found.verdict is FileVerdict.UNSCANNED
    assert await found_rows(server) == []


@pytest.mark.clamd
async def test_what_a_snapshot_brings_back_is_held_to_what_is_known_by_then(
    launch: Launch, any_kind: str, daemon: Clamd, tmp_path: Path, follow: Follow
) -> None:
    server = await launch(any_kind, clamav_url=daemon.url)
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    for path, content in (("d/old", "not known yet"), ("d/good", "good")):
        await files.write(server.deps, ada, sandbox_id=box.id, path=path, content=content)
    kept = await snapshots.take(server.deps, ada, sandbox_id=box.id)
    await lifecycle.stop(server.deps, ada, sandbox_id=box.id)
    await daemon.know("Noosphere.Test.New", b"not known yet")
    again = await lifecycle.create(server.deps, ada, snapshot_id=kept.id)
    await indexed(server, again, "d/good", 4, FileVerdict.CLEAN)

    async def is_found() -> bool:
        found = [(finding.path, finding.rule) for finding in await found_rows(server)]
        return found == [("d/old", "Noosphere.Test.New.UNOFFICIAL")]

    await until(is_found)
    await until(lambda: equals(paths(server, again), ["d", "d/good"]))
    shown = await ran(server.deps, ada, again.id, "ls d")
    assert shown.stdout == "good\n"


@pytest.mark.clamd
async def test_archives_are_refused_while_clamav_is_away(launch: Launch, daemon: Clamd) -> None:
    strict = await launch(clamav_url=daemon.url)
    ada = await strict.person("ada")
    box = await lifecycle.create(strict.deps, ada)
    await daemon.stop()
    with pytest.raises(UserError, match="try again soon") as caught:
        await unpack(strict, ada, box, tar(f=b"good"))
    assert caught.value.code is UserErrorCode.UNAVAILABLE
    # What is left behind the answer is cleared away by nobody who tells of it.
    await until(lambda: is_empty(strict, ada, box))
    await daemon.start()
    assert (await unpack(strict, ada, box, tar(f=b"good"))).entries == 1


async def is_empty(server: Server, viewer: Viewer, box: Sandbox) -> bool:
    shown = await ran(server.deps, viewer, box.id, "find . -mindepth 1")
    return shown.stdout == ""


async def test_archives_may_be_taken_in_unscanned_while_clamav_is_away(launch: Launch) -> None:
    server = await launch(clamav_url="unix:///nowhere/clamd.ctl", clamav_required=False)
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    assert (await unpack(server, ada, box, tar(f=b"any words"))).entries == 1
    assert (await indexed(server, box, "in/f", 9)).verdict is FileVerdict.UNSCANNED
    with pytest.raises(UserError, match="yara: eicar"):
        await unpack(server, ada, box, tar(f=EICAR))


async def test_what_a_program_adds_meanwhile_is_found_afterwards(
    server: Server, ada: Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = await lifecycle.create(server.deps, ada)
    run = staged._Look.run

    async def slow(look: Any, entries: int) -> None:
        await run(look, entries)
        folder = Hold(0, _nothing).name.replace("0", "*")
        text = EICAR.decode().replace("\\", "\\\\").replace("%", "%%").replace("$", "\\$")
        await ran(server.deps, ada, box.id, f'cd {folder}; printf "{text}" >added; rm f')

    monkeypatch.setattr(staged._Look, "run", slow)
    await unpack(server, ada, box, tar(f=b"good", g=b"good"))

    async def is_found() -> bool:
        return [finding.path for finding in await found_rows(server)] == ["in/added"]

    await until(is_found)
    await until(lambda: equals(paths(server, box), ["in", "in/g"]))


async def _nothing(entries: int) -> None:
    """Look at nothing."""


async def test_an_archive_that_was_changed_while_it_was_looked_for_is_refused(
    server: Server, ada: Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = await lifecycle.create(server.deps, ada)
    run = staged._Look.run

    async def one_more(look: Any, entries: int) -> None:
        await run(look, entries + 1)

    monkeypatch.setattr(staged._Look, "run", one_more)
    with pytest.raises(UserError, match="cannot be scanned"):
        await unpack(server, ada, box, tar(f=b"good"))
    await until(lambda: is_empty(server, ada, box))


async def test_the_watch_leaves_alone_what_is_looked_at(
    server: Server, ada: Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = await lifecycle.create(server.deps, ada)
    names: list[str] = []
    run = staged._Look.run

    async def look(self: Any, entries: int) -> None:
        names.append(self._folder)
        assert drafts.are_brought(box.id, f"{self._folder}/d/f")
        assert not drafts.are_brought(box.id, f"d/{self._folder}/f")
        assert not drafts.are_brought("sbx_other", f"{self._folder}/d/f")
        await run(self, entries)

    monkeypatch.setattr(staged._Look, "run", look)
    both = (unpack(server, ada, box, tar(f=b"good"), to=f"at{n}") for n in range(2))
    async with asyncio.timeout(60):
        await asyncio.gather(*both)
    assert len(set(names)) == 2
    assert not any(drafts.are_brought(box.id, f"{name}/f") for name in names)


def test_a_draft_is_known_by_its_file() -> None:
    long = "é" * 120
    with drafts.writing("sbx_1", "d/file"), drafts.writing("sbx_1", "d/file"):
        with drafts.writing("sbx_1", "d/file"), drafts.writing("sbx_1", long):
            assert drafts.are_brought("sbx_1", "d/.file.7.part")
            assert drafts.are_brought("sbx_1", f".{'é' * 100}.7.part")
        assert drafts.are_brought("sbx_1", "d/.file.12.part")
        for path in (
            "d/file", "d/.file.part", "d/.file.x.part", ".file.7.part", "d/.file.7.part/in",
            "d/.other.7.part", "d/file/.file.7.part", "d", ".d.7.part",
        ):  # fmt: skip
            assert not drafts.are_brought("sbx_1", path)
        assert not drafts.are_brought("sbx_2", "d/.file.7.part")
    assert not drafts.are_brought("sbx_1", "d/.file.7.part")


async def test_a_harmful_file_is_found_once_however_long_it_takes_to_come(
    server: Server, ada: Viewer
) -> None:
    box = await lifecycle.create(server.deps, ada)
    node = await server.host.node()

    await files.make_directory(server.deps, ada, sandbox_id=box.id, path="d")

    async def has_come() -> bool:
        listed = await node.client(box.id).files.list("d")
        return [(entry.name[:3], entry.size_bytes) for entry in listed] == [(".f.", len(EICAR))]

    async def slow() -> AsyncIterator[bytes]:
        yield EICAR
        await until(has_come)
        # What comes later is looked at meanwhile.
        await ran(server.deps, ada, box.id, "echo beside >beside")
        await indexed(server, box, "beside", 7, FileVerdict.CLEAN)

    with pytest.raises(UserError, match="taken for harmful"):
        await transfers.upload(server.deps, ada, sandbox_id=box.id, path="d/f", chunks=slow())
    assert [finding.path for finding in await found_rows(server)] == ["d/f"]
