"""What only Docker has: containers that outlive the server, and images."""

import asyncio
import contextlib
import io
import tarfile
from contextlib import aclosing
from pathlib import Path

import aiodocker
import pytest

from sandbox.base import DriverEventKind, SandboxSpec, SandboxState
from sandbox.client import Reason, SandboxClient
from sandbox.docker import DockerDriver
from sandbox.errors import DriverUnavailableError, NotFoundError, TemplateError
from tests.sandbox.conftest import Box, Boxes, docker_settings

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
    assert host["NanoCpus"] == box.handle.limits.cpu_millis * 1_000_000
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
                if event.sandbox_id == box.id:
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
