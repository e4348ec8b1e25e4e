"""Limits of containers: kept, changed and measured."""

import asyncio
import json
from contextlib import aclosing
from dataclasses import replace

import pytest

from sandbox import docker_config, docker_stats
from sandbox.client import Reason
from sandbox.docker import DockerDriver
from sandbox.errors import ConflictError, InvalidArgumentError, PolicyUnsupportedError
from sandbox.limits import Limits
from sandbox.policy import NetworkPolicy, NetworkRule, Policy
from tests.sandbox.conftest import MIB, Boxes, docker_settings
from tests.sandbox.docker_containers import shown

pytestmark = pytest.mark.docker


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
