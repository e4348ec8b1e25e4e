"""What only the embedded driver has: leftovers, other users, and the program itself."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sandbox import bubblewrap_command, bubblewrap_start, records
from sandbox.base import SandboxState
from sandbox.bubblewrap import BubblewrapDriver
from sandbox.client import Reason
from sandbox.errors import (
    ConflictError,
    DriverUnavailableError,
    NotFoundError,
    TemplateError,
)
from sandbox.policy import Policy
from tests.sandbox.conftest import Boxes

pytestmark = pytest.mark.bubblewrap
ROOT = Path(__file__).parents[2]


def interpreter_for_all() -> str:
    """A Python that any user may run; the virtual environment's may be in someone's home."""
    for path in (sys.executable, "/usr/bin/python3"):
        if not Path(path).exists() or not bubblewrap_command.reachable_by_others(Path(path)):
            continue
        version = bubblewrap_command._output(path, "--version").split()[-1]
        if tuple(map(int, version.split(".")[:2])) >= (3, 11):
            return path
    pytest.skip("No Python 3.11 here can be run by every user.")


async def serve(
    folder: Path, what: str, uid: str = "-", python: str = sys.executable
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        python, "-m", "tests.sandbox.bubblewrap_server", str(folder), uid, what,
        stdout=asyncio.subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip


def open_for_all(folder: Path) -> None:
    """Let other users pass through the folders above; pytest's are private."""
    os.chown(folder, 65534, 65534)
    for parent in folder.parents:
        if parent.stat().st_mode & 0o001 == 0:
            parent.chmod(parent.stat().st_mode | 0o001)


def host_user(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().partition("\nUid:\t")[2].split()[0])


def sleepers(pids: list[int]) -> list[int]:
    return [pid for pid in pids if records.start_time(pid)]


async def below(pid: int) -> list[int]:
    """Every process under a process."""
    found, queue = [], [pid]
    while queue:
        children = records.children(queue.pop())
        found += children
        queue += children
    return found


@pytest.fixture
async def killed(wrapped: Boxes, tmp_path: Path) -> AsyncIterator[tuple[Path, list[int]]]:
    """The state directory of a server killed with a sandbox running, and what ran under it."""
    folder = tmp_path / "killed"
    server = await serve(folder, "wait")
    assert server.stdout is not None
    try:
        async with asyncio.timeout(60):
            assert await server.stdout.readline() == b"READY\n"
        pids = await below(server.pid)
        # The spawner, bubblewrap, the agent, a shim, the command: a tree worth the name.
        assert len(pids) >= 5
    finally:
        server.send_signal(signal.SIGKILL)
        await server.wait()
    yield folder, pids
    cleaner = BubblewrapDriver(state_dir=folder)
    await cleaner.start()
    await cleaner.remove("left")
    await cleaner.aclose()


async def test_sandboxes_end_with_a_killed_server(killed: tuple[Path, list[int]]) -> None:
    _, pids = killed
    async with asyncio.timeout(20):
        while sleepers(pids):  # noqa: ASYNC110 - processes of others tell nobody of their end.
            await asyncio.sleep(0.01)


async def test_a_later_server_finds_and_clears_what_was_left(
    killed: tuple[Path, list[int]],
) -> None:
    folder, pids = killed
    driver = BubblewrapDriver(state_dir=folder)
    await driver.start()
    try:
        async with asyncio.timeout(20):
            while sleepers(pids):  # noqa: ASYNC110 - see above.
                await asyncio.sleep(0.01)
        (info,) = await driver.list({"who": "tests"})
        assert (info.sandbox_id, info.owned) == ("left", False)
        assert info.state is SandboxState.STOPPED
        with pytest.raises(NotFoundError):
            await driver.connect("left")
        groups = driver._hierarchies
        if groups is not None:
            assert "left" in groups.names()
        await driver.remove("left")
        assert await driver.list({}) == []
        if groups is not None:
            assert "left" not in groups.names()
    finally:
        await driver.aclose()


async def test_a_group_without_a_record_is_a_leftover_too(
    killed: tuple[Path, list[int]],
) -> None:
    folder, _ = killed
    (folder / "sandboxes" / "left.json").unlink()
    driver = BubblewrapDriver(state_dir=folder)
    await driver.start()
    try:
        if driver._hierarchies is None:
            pytest.skip("No writable cgroups here.")
        (info,) = await driver.list({})
        assert (info.sandbox_id, info.owned) == ("left", False)
        await driver.remove("left")
        assert await driver.list({}) == []
    finally:
        await driver.aclose()


async def test_a_sandbox_of_a_living_server_is_left_to_it(wrapped: Boxes) -> None:
    box = await wrapped.make()
    assert isinstance(wrapped.driver, BubblewrapDriver)
    other = BubblewrapDriver(state_dir=wrapped.driver._state_dir)
    await other.start()
    try:
        (info,) = await other.list(wrapped.run_label)
        assert (info.sandbox_id, info.owned, info.state) == (box.id, True, SandboxState.RUNNING)
        with pytest.raises(ConflictError):
            await other.remove(box.id)
        with pytest.raises(ConflictError):
            await other.create(wrapped.spec(sandbox_id=box.id))
    finally:
        await other.aclose()
    assert (await box.run("echo mine"))[1] == b"mine\n"


async def test_closing_the_driver_leaves_nothing(wrapped: Boxes, tmp_path: Path) -> None:
    driver = BubblewrapDriver(state_dir=tmp_path / "other")
    await driver.create(wrapped.spec())
    await driver.create(wrapped.spec())
    groups = driver._hierarchies
    pids = [sandbox.record.pid for sandbox in driver._sandboxes.values()]
    await driver.aclose()
    assert sleepers(pids) == []
    assert list((tmp_path / "other" / "sandboxes").iterdir()) == []
    assert groups is None or groups.names() == set()


async def test_a_dead_spawner_is_replaced(wrapped: Boxes) -> None:
    driver = wrapped.driver
    assert isinstance(driver, BubblewrapDriver)
    box = await wrapped.make()
    other = await wrapped.make()
    execution = await box.start("sleep 600")
    pids = [sandbox.record.pid for sandbox in driver._sandboxes.values()]
    spawner = driver._spawner._process
    assert spawner is not None
    async with asyncio.timeout(60):
        os.kill(spawner.pid, signal.SIGKILL)
        # At once, whether or not the driver has noticed; two at a time want one spawner only.
        made = await asyncio.gather(wrapped.make(), wrapped.make())
        for each in made:
            assert (await each.run("echo alive"))[1] == b"alive\n"
        assert (await execution.result()).reason is Reason.SANDBOX_LOST
        infos = {info.sandbox_id: info.state for info in await driver.list({})}
        assert infos[box.id] is infos[other.id] is SandboxState.STOPPED
        await driver.remove(box.id)
        await driver.remove(other.id)
        while sleepers(pids):  # noqa: ASYNC110 - see above.
            await asyncio.sleep(0.01)


async def test_a_check_notices_a_dead_spawner(wrapped: Boxes) -> None:
    driver = wrapped.driver
    assert isinstance(driver, BubblewrapDriver)
    spawner = driver._spawner._process
    assert spawner is not None
    spawner.kill()
    async with asyncio.timeout(60):
        while driver._spawner.is_running:  # noqa: ASYNC110 - the driver tells nobody.
            await asyncio.sleep(0.01)
        await driver.check()
    assert driver._spawner.is_running


async def test_a_closed_driver_starts_no_spawner(tmp_path: Path, wrapped: Boxes) -> None:
    driver = BubblewrapDriver(state_dir=tmp_path / "other")
    await driver.check()
    await driver.aclose()
    with pytest.raises(DriverUnavailableError):
        await driver._spawner.spawn("late", {}, [])


async def test_each_sandbox_has_a_host_user_of_its_own(wrapped: Boxes) -> None:
    if os.geteuid() != 0:
        pytest.skip("Only root can give other users away.")
    assert isinstance(wrapped.driver, BubblewrapDriver)
    await wrapped.make()
    await wrapped.make()
    sandboxes = list(wrapped.driver._sandboxes.values())
    found = [host_user(sandbox.inner) for sandbox in sandboxes]
    assert found == [sandbox.uid for sandbox in sandboxes]
    assert len(set(found)) == 2
    assert min(found) > 100_000


async def test_the_environment_is_kept_nowhere(wrapped: Boxes) -> None:
    assert isinstance(wrapped.driver, BubblewrapDriver)
    box = await wrapped.make(policy=Policy(env={"TOKEN": "hush-hush"}), labels={"a": "b"})
    written = [path for path in wrapped.driver._state_dir.rglob("*") if path.is_file()]
    assert written
    pid = wrapped.driver._sandboxes[box.id].record.pid
    for path in [*written, *(Path(f"/proc/{pid}/{name}") for name in ("cmdline", "environ"))]:
        assert b"hush-hush" not in path.read_bytes(), path


async def test_a_sandbox_that_ends_before_its_start_is_told_is_refused_at_once(
    wrapped: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = wrapped.driver
    assert isinstance(driver, BubblewrapDriver)
    spawn = driver._spawner.spawn

    async def late(name: str, request: dict[str, Any], fds: Sequence[int]) -> int:
        pid = await spawn(name, {**request, "argv": ["/bin/false"]}, fds)
        async with asyncio.timeout(20):
            while records.start_time(pid):  # noqa: ASYNC110 - nobody waits for it yet.
                await asyncio.sleep(0.005)
        return pid

    monkeypatch.setattr(driver._spawner, "spawn", late)
    monkeypatch.setattr(bubblewrap_start, "READY_TIMEOUT_S", 3600.0)
    async with asyncio.timeout(60):
        with pytest.raises(DriverUnavailableError, match="did not start"):
            await wrapped.make()
    assert await driver.list({}) == []


async def test_a_digest_is_refused_where_there_are_no_images(wrapped: Boxes) -> None:
    with pytest.raises(TemplateError, match="digest"):
        await wrapped.make(image_digest="sha256:" + "0" * 64)


async def test_an_ordinary_user_keeps_the_isolation(wrapped: Boxes, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("The contract suite itself runs unprivileged here.")
    folder = tmp_path / "nobody"
    folder.mkdir()
    open_for_all(folder)
    server = await serve(folder, "exercise", "65534", interpreter_for_all())
    async with asyncio.timeout(90):
        out, _ = await server.communicate()
    assert server.returncode == 0
    answers = json.loads(out)
    assert answers["uid"] == 65534
    assert answers["hello"] == ["data", "EXITED", 0]
    assert 10 <= int(answers["forks"][0]) < 32
    assert answers["hungry"][0] == "MemoryError\n"
    assert answers["unshare"][2] != 0
    assert answers["write"][0].endswith("No space left on device\n1\n")
    assert answers["shadow"][2] != 0
    assert answers["left"] == []
    # What cannot be held is said.
    assert answers["items"]["memory"] == "PER_PROCESS"
    assert answers["items"]["cpu"] == "UNAVAILABLE"
    assert answers["items"]["pause"] == "UNAVAILABLE"
    assert answers["items"]["uid"] == "UNAVAILABLE"
    assert answers["items"]["network"] == "ENFORCED"
    assert answers["items"]["disk_image"] == "UNAVAILABLE"
    # And refused where it is asked for, by name.
    assert set(answers["refused"]) == {"cpu", "memory", "inodes", "disk_image", "update"}
    assert "memory (here for each process alone)" in answers["refused"]["memory"]
    assert "disk_bytes" in answers["refused"]["update"]
    assert answers["stats"] is None


async def test_the_wheels_program_serves_where_the_system_has_none(
    wrapped: Boxes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bubblewrap_command.shutil, "which", lambda name: None)
    program = bubblewrap_command.find_program()
    assert program.source == "wheel"
    driver = BubblewrapDriver(state_dir=tmp_path / "wheel")
    try:
        await driver.check()
        capabilities = await driver.capabilities()
        assert any("(wheel)" in note for note in capabilities.notes)
    finally:
        await driver.aclose()


async def test_a_program_that_others_cannot_reach_is_copied(
    wrapped: Boxes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("Only root's sandboxes run as other users.")
    monkeypatch.setattr(bubblewrap_command.shutil, "which", lambda name: None)
    monkeypatch.setattr(bubblewrap_command, "reachable_by_others", lambda path: False)
    driver = BubblewrapDriver(state_dir=tmp_path / "copied")
    try:
        await driver.check()
        copy = driver._copy
        assert copy is not None
        assert copy.is_dir()
    finally:
        await driver.aclose()
    assert not copy.exists()


async def test_without_any_program_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bubblewrap_command.shutil, "which", lambda name: None)
    monkeypatch.setattr(bubblewrap_command, "_wheel", lambda: None)
    driver = BubblewrapDriver(state_dir=tmp_path / "none")
    try:
        with pytest.raises(DriverUnavailableError, match="apt install bubblewrap"):
            await driver.check()
        capabilities = await driver.capabilities()
        assert capabilities.unavailable is not None
        assert not capabilities.items
    finally:
        await driver.aclose()
