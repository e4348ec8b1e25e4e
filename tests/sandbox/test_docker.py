"""What only Docker has: containers that outlive the server."""

import asyncio
import contextlib
import os
from contextlib import aclosing
from pathlib import Path
from typing import Any

import aiodocker
import pytest
from aiodocker.containers import DockerContainer

from sandbox import docker_config, docker_engine, docker_stats
from sandbox.base import DriverEventKind, SandboxSpec, SandboxState
from sandbox.client import Reason, SandboxClient
from sandbox.docker import DockerDriver
from sandbox.errors import DriverUnavailableError, NotFoundError, TemplateError
from tests.sandbox.conftest import Box, Boxes, docker_settings
from tests.sandbox.docker_containers import shown

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


async def test_a_container_of_another_machine_is_not_looked_for_here(docked: Boxes) -> None:
    found = await shown(await docked.make())
    # Its number may well be that of a process here, which is none of the sandbox's.
    assert docker_stats.find({**found, "Id": "0" * 64}) is None
    assert docker_stats.find({**found, "State": {"Pid": os.getpid()}}) is None
    assert docker_stats.find({**found, "State": {"Pid": 0}}) is None
