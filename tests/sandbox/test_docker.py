"""What only Docker has: containers that outlive the server, and images."""

import asyncio
import contextlib
import io
import json
import os
import tarfile
from contextlib import aclosing
from dataclasses import replace
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from typing import Any

import aiodocker
import pytest
from aiodocker.containers import DockerContainer

from sandbox import docker_config, docker_engine, docker_images, docker_stats
from sandbox.agent_file import code_arguments
from sandbox.base import (
    DriverEventKind,
    Limits,
    NetworkPolicy,
    NetworkRule,
    Policy,
    SandboxSpec,
    SandboxState,
)
from sandbox.client import Reason, SandboxClient
from sandbox.docker import DockerDriver
from sandbox.errors import (
    ConflictError,
    DriverUnavailableError,
    InvalidArgumentError,
    NotFoundError,
    PolicyUnsupportedError,
    TemplateError,
)
from tests.sandbox.conftest import MIB, Box, Boxes, docker_settings

pytestmark = pytest.mark.docker


async def test_a_restarted_server_finds_its_sandboxes_again(docked: Boxes) -> None:
    box = await docked.make(labels={"owner": "someone"})
    await box.client.files.write("kept", b"from before")
    lost = await box.start("sleep 600")
    later = DockerDriver(url=docker_settings()[0])
    try:
        await later.start()
        (info,) = await later.list(docked.run_label)
        assert (info.sandbox_id, info.state, info.owned) == (box.id, SandboxState.RUNNING, False)
        handle = await later.connect(box.id)
        assert (handle.limits, handle.policy) == (box.handle.limits, box.handle.policy)
        assert handle.labels == box.handle.labels
        client = await SandboxClient.connect(await later.open_channel(box.id))
        again = Box(later, handle, client)
        assert await client.files.read("kept") == b"from before"
        result, out, _ = await again.run("ps 2>/dev/null; echo here")
        assert result.exit_code == 0
        assert out.endswith(b"here\n")
        # The first server learns that it no longer speaks for the sandbox.
        assert (await lost.result()).reason is Reason.SANDBOX_LOST
        await client.aclose()
    finally:
        await later.aclose()


async def test_a_server_that_let_go_may_come_back(docked: Boxes) -> None:
    box = await docked.make()
    await box.client.aclose()
    await docked.driver.aclose()
    await docked.driver.start()
    client = await docked.client(box.id)
    result, out, _ = await Box(docked.driver, box.handle, client).run("echo again")
    assert (out, result.exit_code) == (b"again\n", 0)


async def test_the_container_is_hardened(docked: Boxes) -> None:
    box = await docked.make()
    async with aiodocker.Docker(url=docker_settings()[0]) as docker:
        shown = await (await docker.containers.get(f"noosphere-{box.id}")).show()
    host, config = shown["HostConfig"], shown["Config"]
    assert host["NetworkMode"] == "none"
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert not host["Privileged"]
    assert not host["Binds"]
    assert not host["Devices"]
    assert host["Memory"] == host["MemorySwap"] == box.handle.limits.memory_bytes
    assert host["PidsLimit"] == box.handle.limits.pids
    assert host["CpuQuota"] * 1000 == box.handle.limits.cpu_millis * host["CpuPeriod"]
    assert host["IpcMode"] == "private"
    assert host["LogConfig"]["Type"] == "none"
    assert "no-new-privileges" in host["SecurityOpt"]
    assert int(config["User"].partition(":")[0]) >= 65534


async def test_events_arrive_from_the_engine(docked: Boxes) -> None:
    box = await docked.make()
    async with aclosing(docked.driver.events()) as events:
        await docked.driver.pause(box.id)
        await docked.driver.resume(box.id)
        await docked.driver.stop(box.id)
        kinds = []
        async with asyncio.timeout(20):
            async for event in events:
                if event.sandbox_id != box.id:
                    continue  # The engine tells of everybody's.
                kinds.append(event.kind)
                if event.kind is DriverEventKind.DIED:
                    break
    assert kinds == [DriverEventKind.PAUSED, DriverEventKind.RESUMED, DriverEventKind.DIED]


async def test_an_image_without_python_is_refused(docked: Boxes) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("empty"), io.BytesIO())
    name = f"noosphere-test-{docked.run_label['test'][:12]}"
    async with aiodocker.Docker(url=docker_settings()[0]) as docker:
        await docker._query_json(
            "images/create",
            "POST",
            params={"fromSrc": "-", "repo": name},
            data=archive.getvalue(),
            headers={"Content-Type": "application/x-tar"},
        )
        try:
            assert await docked.driver.has_image(name)
            with pytest.raises(TemplateError, match="python3"):
                await docked.make(image=name)
            assert await docked.driver.list(docked.run_label) == []
        finally:
            await docker.images.delete(name, force=True)


async def command_line(box: Box) -> bytes:
    """What the agent was started with."""
    _, out, _ = await box.run("cat /proc/1/cmdline")
    return out


async def test_an_image_whose_python_is_of_our_version_gets_the_agent_compiled(
    docked: Boxes,
) -> None:
    driver = docked.driver
    assert isinstance(driver, DockerDriver)
    text = docker_config.SOURCE.encode()
    assert text in await command_line(await docked.make())
    magic = driver._magic[docked.image]
    assert len(magic) == len(MAGIC_NUMBER)
    line = await command_line(await docked.make())
    assert (text in line) is (magic != MAGIC_NUMBER)


async def test_an_image_that_runs_no_compiled_agent_gets_its_text(
    docked: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = docked.driver
    assert isinstance(driver, DockerDriver)
    driver._magic[docked.image] = MAGIC_NUMBER
    boot, _, *code = code_arguments(docker_config.SOURCE)
    monkeypatch.setattr("sandbox.docker.code_arguments", lambda _: (boot, "00000000", *code))
    for _ in range(2):
        box = await docked.make()
        assert docker_config.SOURCE.encode() in await command_line(box)
        assert driver._magic[docked.image] == b""
    assert len(await driver.list(docked.run_label)) == 2


@pytest.mark.parametrize("failures", [1, 5])
async def test_a_removal_that_the_engine_did_not_finish_is_tried_again(
    docked: Boxes, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    box = await docked.make()
    delete = DockerContainer.delete
    refused = [aiodocker.DockerError(500, "unable to remove filesystem: directory not empty")]
    refused *= failures

    async def failing(self: DockerContainer, **options: Any) -> None:
        if refused:
            raise refused.pop()
        await delete(self, **options)

    monkeypatch.setattr(DockerContainer, "delete", failing)
    if failures == 1:
        await docked.driver.remove(box.id)
        assert await docked.driver.list(docked.run_label) == []
    else:
        with pytest.raises(TemplateError, match="refuses to remove"):
            await docked.driver.remove(box.id)
    assert refused == []


async def test_an_image_has_a_digest(docked: Boxes) -> None:
    digest = await docked.driver.image_digest(docked.image)
    assert digest is not None
    assert digest.startswith("sha256:")
    assert await docked.driver.image_digest("noosphere-no-such-image") is None


async def test_a_container_of_someone_else_is_none_of_ours(docked: Boxes) -> None:
    async with aiodocker.Docker(url=docker_settings()[0]) as docker:
        name = f"noosphere-alien{docked.run_label['test'][:8]}"
        alien = await docker.containers.create({"Image": docked.image, "Cmd": ["true"]}, name=name)
        try:
            with pytest.raises(NotFoundError):
                await docked.driver.connect(name.removeprefix("noosphere-"))
        finally:
            await alien.delete(force=True)


async def test_an_engine_that_is_not_there_is_told(tmp_path: object) -> None:
    driver = DockerDriver(url=f"unix://{tmp_path}/none.sock")
    with pytest.raises(DriverUnavailableError, match="Install Docker"):
        await driver.check()
    assert (await driver.capabilities()).unavailable is not None
    await driver.aclose()


async def test_starting_twice_at_once_reaches_the_engine_once(
    docked: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    reach = docker_engine.reach
    reached: list[str | None] = []

    async def counted(url: str | None) -> tuple[aiodocker.Docker, dict[str, Any]]:
        reached.append(url)
        return await reach(url)

    monkeypatch.setattr(docker_engine, "reach", counted)
    driver = DockerDriver(url=docker_settings()[0])
    try:
        await asyncio.gather(driver.check(), driver.list({}), driver.capabilities())
        assert len(reached) == 1
    finally:
        await driver.aclose()


async def test_an_engine_that_hangs_up_is_told(tmp_path: Path) -> None:
    def answer(body: bytes) -> bytes:
        head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
        return f"{head}{len(body)}\r\n\r\n".encode() + body

    version = answer(b'{"ApiVersion": "1.41"}')
    info = answer(b'{"OSType": "linux", "SecurityOptions": ["name=seccomp,profile=default"]}')

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer as an engine until the driver has started, then cut every connection."""
        while head := await reader.readuntil(b"\r\n\r\n"):
            if b"/version" in head:
                writer.write(version)
            elif b"/info" in head:
                writer.write(info)
            else:
                break
            await writer.drain()
        writer.close()

    async def quiet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await serve(reader, writer)
        writer.close()

    path = tmp_path / "engine.sock"
    async with await asyncio.start_unix_server(quiet, path):
        driver = DockerDriver(url=f"unix://{path}")
        await driver.start()
        try:
            with pytest.raises(DriverUnavailableError, match="does not answer"):
                await driver.list({})
            with pytest.raises(DriverUnavailableError, match="does not answer"):
                await driver.create(SandboxSpec("box", "image"))
        finally:
            await driver.aclose()


async def shown(box: Box) -> dict[str, Any]:
    """What the engine tells everybody who may ask it about the container of a sandbox."""
    async with aiodocker.Docker(url=docker_settings()[0]) as docker:
        return dict(await (await docker.containers.get(f"noosphere-{box.id}")).show())


async def test_the_whole_policy_outlives_the_server_but_not_its_secrets(docked: Boxes) -> None:
    policy = Policy(
        network=NetworkPolicy("allow", (NetworkRule("*.example.org", (443, 8443)),)),
        env={"TOKEN": "hush-hush"},
        required=frozenset({"isolation", "network", "syscalls", "memory"}),
    )
    box = await docked.make(policy=policy)
    assert box.handle.policy == policy
    assert "hush-hush" not in json.dumps(await shown(box))
    later = DockerDriver(url=docker_settings()[0])
    try:
        handle = await later.connect(box.id)
        assert handle.policy == replace(policy, env={})
        assert handle.image == box.handle.image
    finally:
        await later.aclose()


async def test_changed_limits_outlive_the_server(docked: Boxes) -> None:
    box = await docked.make()
    wanted = replace(box.handle.limits, memory_bytes=256 * MIB, pids=80, cpu_millis=700)
    assert await docked.driver.update(box.id, limits=wanted) == wanted
    assert (await docked.driver.connect(box.id)).limits == wanted
    later = DockerDriver(url=docker_settings()[0])
    try:
        assert (await later.connect(box.id)).limits == wanted
    finally:
        await later.aclose()


async def test_changes_at_once_leave_the_handle_right(docked: Boxes) -> None:
    box = await docked.make()
    wanted = [replace(box.handle.limits, pids=64 + n) for n in range(8)]
    await asyncio.gather(*(docked.driver.update(box.id, limits=each) for each in wanted))
    now = (await docked.driver.connect(box.id)).limits
    assert now in wanted
    assert docker_config.limits_in_force(await shown(box)) == now


async def test_containers_of_an_older_release_change_by_the_measure_they_were_made_with(
    docked: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        before.setattr(
            docker_config, "cpu_share", lambda limits: {"NanoCpus": limits.cpu_millis * 1_000_000}
        )
        box = await docked.make()
    wanted = replace(box.handle.limits, cpu_millis=box.handle.limits.cpu_millis // 2)
    assert docker_config.limits_in_force(await shown(box)) == box.handle.limits
    await docked.driver.update(box.id, limits=wanted)
    assert docker_config.limits_in_force(await shown(box)) == wanted


async def test_limits_that_the_engine_refuses_stay_as_they_were(
    docked: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = await docked.make()
    cpu_share = docker_config.cpu_share
    # Less than the kernel gives anybody: the engine looks at it after it was asked.
    monkeypatch.setattr(
        docker_config,
        "cpu_share",
        lambda limits, host=None: (
            {"CpuPeriod": 10_000, "CpuQuota": 10} if limits.pids == 99 else cpu_share(limits, host)
        ),
    )
    with pytest.raises(ConflictError):
        await docked.driver.update(box.id, limits=replace(box.handle.limits, pids=99))
    assert docker_config.limits_in_force(await shown(box)) == box.handle.limits
    assert (await docked.driver.connect(box.id)).limits == box.handle.limits


async def test_what_cannot_change_is_refused_and_nothing_changes(docked: Boxes) -> None:
    box = await docked.make(limits=Limits(memory_bytes=512 * MIB, disk_bytes=300 * MIB))
    before = box.handle.limits
    for change in ({"disk_bytes": MIB}, {"inodes": 100}, {"disk_bytes": MIB, "pids": 70}):
        with pytest.raises(PolicyUnsupportedError, match="cannot change"):
            await docked.driver.update(box.id, limits=replace(before, **change))
    with pytest.raises(PolicyUnsupportedError):
        await docked.driver.update(box.id, limits=replace(before, network_bytes_per_s=1))
    # /tmp stays as large as it was made, though a new sandbox of 414 MiB would have a smaller one.
    small = replace(before, memory_bytes=417 * MIB)
    small.check()
    with pytest.raises(InvalidArgumentError, match="at least"):
        await docked.driver.update(box.id, limits=small)
    assert docker_config.limits_in_force(await shown(box)) == before
    assert (await docked.driver.connect(box.id)).limits == before


async def test_memory_in_use_is_not_taken_away(docked: Boxes) -> None:
    box = await docked.make(limits=Limits(memory_bytes=512 * MIB, disk_bytes=MIB))
    program = "x = b'1' * (200 << 20); print('up', flush=True); input()"
    hungry = await box.start(["python3", "-c", program], keep_stdin_open=True)
    async with aclosing(hungry.output()) as output:
        assert (await anext(output)).data.startswith(b"up")
    with pytest.raises(ConflictError):
        await docked.driver.update(
            box.id, limits=replace(box.handle.limits, memory_bytes=150 * MIB)
        )
    assert docker_config.limits_in_force(await shown(box)) == box.handle.limits
    await hungry.write_stdin(b"\n")
    assert (await hungry.result()).exit_code == 0


async def test_no_two_sandboxes_have_the_same_user(
    docked: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = docker_config.DOCKER_UID_BASE
    drawn = [first, first, first, first + 1]
    monkeypatch.setattr(docker_config, "random_uid", lambda: drawn.pop(0))
    one, two = await docked.make(), await docked.make()
    users = [(await shown(box))["Config"]["User"] for box in (one, two)]
    if users[0] == "65534:65534":
        pytest.skip("This engine has no users of their own to give.")
    assert users == [f"{first}:{first}", f"{first + 1}:{first + 1}"]
    assert (await two.run("id -u"))[1] == f"{first + 1}\n".encode()
    assert drawn == []
    assert len(await docked.driver.list(docked.run_label)) == 2


async def test_two_servers_that_draw_the_same_user_at_once_share_none(
    docked: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = iter([*([docker_config.DOCKER_UID_BASE + 7] * 4), *range(2_000_000_000, 2_000_000_100)])
    monkeypatch.setattr(docker_config, "random_uid", lambda: next(drawn))
    other = DockerDriver(url=docker_settings()[0])
    try:
        await other.check()
        await asyncio.gather(
            *(driver.create(docked.spec()) for driver in (docked.driver, other) * 2)
        )
        async with aiodocker.Docker(url=docker_settings()[0]) as docker:
            found = [
                (await (await docker.containers.get(f"noosphere-{name}")).show())["Config"]["User"]
                for name in docked.ids
            ]
        assert len(set(found)) == 4
    finally:
        await other.aclose()


async def test_usage_is_read_from_files_where_the_engine_is_local(docked: Boxes) -> None:
    assert isinstance(docked.driver, DockerDriver)
    box = await docked.make()
    empty = await docked.driver.stats(box.id)
    if docked.driver._sandboxes[box.id].place is None:
        pytest.skip("The engine's containers are not on this machine.")
    await box.run("head -c 10000000 /dev/zero > big; touch a b c; python3 -c 'x = 1' ")
    hungry = await box.python("x = b'1' * (600 << 20)")
    assert hungry[0].reason is Reason.OOM_KILLED
    usage = await docked.driver.stats(box.id)
    assert usage.oom_kills is not None
    assert usage.oom_kills >= 1
    assert empty.disk_bytes is not None
    assert usage.disk_bytes is not None
    assert 10_000_000 <= usage.disk_bytes - empty.disk_bytes < 11_000_000
    assert empty.inodes is not None
    assert usage.inodes == empty.inodes + 4
    assert usage.cpu_ms is not None
    assert usage.cpu_throttled_ms is not None
    assert usage.memory_bytes is not None
    assert usage.memory_bytes >= 10_000_000
    assert usage.pids is not None
    assert usage.pids >= 1


async def test_usage_of_an_engine_elsewhere_is_asked_of_it(
    docked: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_stats, "find", lambda shown: None)
    box = await docked.make()
    usage = await docked.driver.stats(box.id)
    assert usage.cpu_ms is not None
    assert usage.cpu_ms > 0
    assert usage.memory_bytes is not None
    assert usage.disk_bytes is None


async def test_a_container_of_another_machine_is_not_looked_for_here(docked: Boxes) -> None:
    found = await shown(await docked.make())
    # Its number may well be that of a process here, which is none of the sandbox's.
    assert docker_stats.find({**found, "Id": "0" * 64}) is None
    assert docker_stats.find({**found, "State": {"Pid": os.getpid()}}) is None
    assert docker_stats.find({**found, "State": {"Pid": 0}}) is None


async def test_exactly_the_version_asked_for_runs(docked: Boxes) -> None:
    digest = await docked.driver.image_digest(docked.image)
    box = await docked.make(image_digest=digest)
    assert (await shown(box))["Image"] == digest
    assert box.handle.image == docked.image
    with pytest.raises(TemplateError, match="with the digest"):
        await docked.make(image_digest="sha256:" + "0" * 64)
    assert len(await docked.driver.list(docked.run_label)) == 1


@pytest.mark.parametrize(
    ("image", "repository"),
    [
        ("python", "python"),
        ("python:3.11", "python"),
        ("registry:5000/team/python:3.11", "registry:5000/team/python"),
        ("registry:5000/python@sha256:" + "0" * 64, "registry:5000/python"),
    ],
)
def test_a_repository_is_the_name_without_its_version(image: str, repository: str) -> None:
    assert docker_images.repository(image) == repository


async def test_a_disk_image_is_refused(docked: Boxes) -> None:
    with pytest.raises(PolicyUnsupportedError, match="disk_image"):
        await docked.make(disk="image")
