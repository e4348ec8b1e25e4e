"""What programs and people write is scanned."""

import asyncio
import hashlib
import os
import stat
from pathlib import Path

import pytest

from models.sandboxes import Sandbox
from models.states import FileVerdict
from services.base import Viewer
from services.changes import topic as viewer_topic
from services.errors import UserError, UserErrorCode
from services.sandboxes import (
    changed,
    files,
    findings,
    lifecycle,
    scans,
)
from services.sandboxes.file_events import FileChange, Quarantined
from tests.servers.clamd import EICAR, HARMFUL, NAME, running
from tests.services.sandboxes.conftest import BOTH_DATABASES, Launch, Server, ran
from tests.services.sandboxes.watching.conftest import (
    EICAR_TEXT,
    WAIT_S,
    Follow,
    equals,
    found_rows,
    indexed,
    paths,
    quoted,
    until,
)

pytestmark = pytest.mark.bubblewrap


@BOTH_DATABASES
async def test_a_harmful_file_is_refused_and_nothing_appears(
    server: Server, ada: Viewer, box: Sandbox, follow: Follow
) -> None:
    deps = server.deps
    following = await follow(server, ada, box)
    await files.write(deps, ada, sandbox_id=box.id, path="f", content="good")
    with pytest.raises(UserError) as caught:
        await files.write(deps, ada, sandbox_id=box.id, path="f", content=EICAR_TEXT)
    assert (caught.value.code, caught.value.path) == (UserErrorCode.INVALID, ("content",))
    assert "yara: eicar" in caught.value.message
    assert await files.read(deps, ada, sandbox_id=box.id, path="f") == b"good"
    assert [entry.path for entry in await files.listing(deps, box, ".")] == ["f"]
    (finding,) = await found_rows(server)
    assert (finding.sandbox_id, finding.user_id, finding.path) == (box.id, ada.id, "f")
    assert (finding.rule, finding.engine, finding.size_bytes) == ("eicar", "yara", len(EICAR))
    assert finding.sha256 == hashlib.sha256(EICAR).hexdigest()
    kept = server.options.data_dir / "quarantine" / finding.quarantine_path
    assert kept.read_bytes() == EICAR
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    while not isinstance(item := await following.next(), Quarantined):
        pass
    assert (item.finding.id, item.finding.rule) == (finding.id, "eicar")


async def test_a_harmful_file_that_a_program_wrote_goes_into_quarantine(
    server: Server, ada: Viewer, box: Sandbox, follow: Follow
) -> None:
    deps = server.deps
    following = await follow(server, ada, box)
    async with deps.bus.attach(viewer_topic(ada.id)) as tap:
        program = f"import sys; open('virus', 'wb').write({EICAR!r})"
        await ran(deps, ada, box.id, f"mkdir d; cd d; python3 -c {quoted(program)}; touch beside")
        while not isinstance(item := await following.next(), Quarantined):
            pass
        assert item.finding.path == "d/virus"
        assert (await following.change("d/virus", FileChange.REMOVED)).is_directory is False
        async with asyncio.timeout(WAIT_S):
            news = await tap.get(WAIT_S)
        assert news is not None
        assert (news.data["type"], news.data["payload"]["id"]) == ("SandboxChanged", box.id)
    (finding,) = await found_rows(server)
    assert (finding.path, finding.rule) == ("d/virus", "eicar")
    kept = server.options.data_dir / "quarantine" / finding.quarantine_path
    assert kept.read_bytes() == EICAR
    await until(lambda: equals(paths(server, box), ["d", "d/beside"]))
    assert [entry.path for entry in await files.listing(deps, box, "d")] == ["d/beside"]


@pytest.mark.clamd
async def test_files_are_refused_while_clamav_is_away(
    launch: Launch, any_kind: str, clamd_program: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, follow: Follow,
) -> None:  # fmt: skip
    monkeypatch.setattr(scans, "_AGAIN_S", 0.1)
    monkeypatch.setattr(scans, "_AGAIN_MAX_S", 0.1)
    async with running(clamd_program, tmp_path) as daemon:
        strict = await launch(any_kind, clamav_url=daemon.local_url)
        deps = strict.deps
        ada = await strict.person("ada")
        box = await lifecycle.create(deps, ada)
        following = await follow(strict, ada, box)
        with pytest.raises(UserError) as caught:
            await files.write(deps, ada, sandbox_id=box.id, path="f", content=HARMFUL.decode())
        assert f"clamav: {NAME}" in caught.value.message
        await files.write(deps, ada, sandbox_id=box.id, path="f", content="good words")
        await indexed(strict, box, "f", 10, FileVerdict.CLEAN)

        await daemon.stop()
        with pytest.raises(UserError) as caught:
            await files.write(deps, ada, sandbox_id=box.id, path="f", content="other")
        assert caught.value.code is UserErrorCode.UNAVAILABLE
        assert await files.read(deps, ada, sandbox_id=box.id, path="f") == b"good words"
        await ran(deps, ada, box.id, f"printf more >g; printf '{HARMFUL.decode()}' >h")
        for path, size in (("g", 4), ("h", len(HARMFUL))):
            found = await indexed(strict, box, path, size)
            assert (found.verdict, found.scanned_at) == (FileVerdict.UNSCANNED, None)

        # What programs wrote meanwhile is looked at once it is back.
        await daemon.start()
        await indexed(strict, box, "g", 4, FileVerdict.CLEAN)
        await following.change("h", FileChange.REMOVED)
        await until(lambda: equals(paths(strict, box), ["f", "g"]))
        found_paths = [(finding.path, finding.rule) for finding in await found_rows(strict)]
        assert found_paths == [("f", NAME), ("h", NAME)]


async def test_no_name_keeps_a_file_from_being_scanned(
    server: Server, ada: Viewer, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Everything is looked at, as after a burst.
    monkeypatch.setattr(changed, "MOST_CHANGES", 0)
    program = f"import sys; open('virus', 'wb').write({EICAR!r})"
    hidden = ".archive.1.part/.x.2.part"
    command = f"mkdir -p {hidden}; cd {hidden}; python3 -c {quoted(program)}; touch good"
    await ran(server.deps, ada, box.id, command)
    await until(lambda: found_rows(server))
    (finding,) = await found_rows(server)
    assert (finding.path, finding.rule) == (f"{hidden}/virus", "eicar")

    async def is_gone() -> bool:
        listed = await files.listing(server.deps, box, hidden)
        return [entry.name for entry in listed] == ["good"]

    await until(is_gone)


async def test_files_may_be_taken_in_unscanned_while_clamav_is_away(launch: Launch) -> None:
    server = await launch(clamav_url="unix:///nowhere/clamd.ctl", clamav_required=False)
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    await files.write(server.deps, ada, sandbox_id=box.id, path="f", content="bad words")
    found = await indexed(server, box, "f", 9)
    assert (found.verdict, found.finding) == (FileVerdict.UNSCANNED, None)


async def test_the_quarantine_is_cleared_in_time(launch: Launch) -> None:
    server = await launch(quarantine_retention_s=60)
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    for name in ("old", "new"):
        with pytest.raises(UserError):
            await files.write(server.deps, ada, sandbox_id=box.id, path=name, content=EICAR_TEXT)
    old, new = await found_rows(server)
    folder = server.options.data_dir / "quarantine"

    os.utime(folder / old.quarantine_path, (0, 0))
    assert await findings.clear(server.deps) == 1
    assert [p.name for p in folder.iterdir() if p.is_file()] == [new.quarantine_path]
    assert len(await found_rows(server)) == 2
