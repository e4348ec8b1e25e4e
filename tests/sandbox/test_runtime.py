"""A runtime other than the engine's default, and what an engine's account of itself is worth."""

from typing import Any

import aiodocker
import pytest

from sandbox import docker_config, docker_engine
from sandbox.base import Enforcement, SandboxSpec
from sandbox.docker import DockerDriver
from sandbox.errors import DriverUnavailableError
from sandbox.limits import Limits
from tests.sandbox.conftest import Boxes, docker_settings

ENGINE = {
    "OSType": "linux",
    "SecurityOptions": ["name=seccomp,profile=default"],
    "Runtimes": {"runc": {"path": "runc"}, "runsc": {"path": "/usr/local/bin/runsc"}},
    "DefaultRuntime": "runc",
    "CgroupDriver": "systemd",
    "MemoryLimit": True,
    "SwapLimit": True,
    "CpuCfsPeriod": True,
    "CpuCfsQuota": True,
    "PidsLimit": True,
}
OF_VERSION_1 = "io.containerd.runtime.v1.linux"
FULL, NONE = Enforcement.ENFORCED, Enforcement.UNAVAILABLE


def items(runtime: str = "", **changes: Any) -> dict[str, Enforcement]:
    return dict(docker_engine.report("docker", ENGINE | changes, runtime).items)


@pytest.mark.docker
async def test_a_runtime_that_the_engine_lacks_is_refused_with_instructions() -> None:
    driver = DockerDriver(url=docker_settings()[0], runtime="noosphere-absent")
    try:
        with pytest.raises(DriverUnavailableError) as caught:
            await driver.check()
        assert "'noosphere-absent'" in caught.value.message
        assert "runc" in caught.value.message
        assert "daemon.json" in caught.value.message
        assert (await driver.capabilities()).unavailable == caught.value.message
        with pytest.raises(DriverUnavailableError):
            await driver.create(SandboxSpec("never", docker_settings()[1]))
        assert all(info.sandbox_id != "never" for info in await driver.list({}))
    finally:
        await driver.aclose()


@pytest.mark.docker
async def test_the_runtime_asked_for_runs_the_sandbox(docked: Boxes) -> None:
    url, _ = docker_settings()
    async with aiodocker.Docker(url=url) as docker:
        info = await docker.system.info()
        others = sorted(set(info["Runtimes"]) - {info["DefaultRuntime"]})
        others = [name for name in others if info["Runtimes"][name].get("path") == "runc"]
        if info.get("CgroupVersion") == "2":
            others = [name for name in others if name != OF_VERSION_1]
        if not others:
            pytest.skip("This engine has one runtime only.")
        driver = DockerDriver(url=url, runtime=others[-1])
        spec = docked.spec()
        try:
            await driver.create(spec)
            found = await (await docker.containers.get(f"noosphere-{spec.sandbox_id}")).show()
            assert found["HostConfig"]["Runtime"] == others[-1]
            assert any(others[-1] in note for note in (await driver.capabilities()).notes)
        finally:
            await driver.remove(spec.sandbox_id)
            await driver.aclose()


def test_an_engine_that_can_do_everything_says_so() -> None:
    found = items()
    assert {name for name, state in found.items() if state is not FULL} == {
        "disk_image",
        "network_bandwidth",
    }
    unproved = {**found, "inodes": NONE, "pids": NONE, "agent": NONE}
    assert items("runsc") == unproved
    report = docker_engine.report("docker", ENGINE, "runsc", keeps_agent=True)
    assert report.items == {**unproved, "agent": FULL}
    notes = docker_engine.report("docker", ENGINE, "runsc").notes
    assert any("runsc" in note and "inodes" in note for note in notes)


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({"CpuCfsQuota": False}, {"cpu"}),
        ({"CpuCfsPeriod": False}, {"cpu"}),
        ({"MemoryLimit": False}, {"memory"}),
        ({"SwapLimit": False}, {"memory"}),
        ({"PidsLimit": False}, {"pids"}),
        ({"CgroupDriver": "none"}, {"memory", "cpu", "pids", "pause"}),
        ({"SecurityOptions": ["name=seccomp", "name=rootless"]}, {"uid"}),
        ({"SecurityOptions": ["name=seccomp", "name=userns"]}, {"uid"}),
    ],
)
def test_what_an_engine_lacks_is_not_called_enforced(
    changes: dict[str, Any], lost: set[str]
) -> None:
    assert {name for name, state in items(**changes).items() if state is not items()[name]} == lost


def gvisor(*options: str, **known: str) -> dict[str, Any]:
    return {"Runtimes": {"runsc": {"runtimeArgs": list(options), **known}}}


@pytest.mark.parametrize(
    "changes",
    [
        gvisor("--ignore-cgroups", path="/usr/bin/runsc"),
        gvisor("-ignore-cgroups=true", path="/opt/runsc-2025"),
    ],
)
def test_a_runtime_that_is_told_to_limit_nothing_is_believed(changes: dict[str, Any]) -> None:
    found = items("runsc", **changes)
    assert (found["memory"], found["cpu"], found["pause"]) == (NONE, NONE, FULL)
    notes = docker_engine.report("docker", ENGINE | changes, "runsc").notes
    assert any("--ignore-cgroups" in note for note in notes)


def test_a_shim_of_containerd_is_known_as_what_it_is() -> None:
    changes = gvisor(runtimeType="io.containerd.runsc.v1")
    assert items("runsc", **changes) == items("runsc")
    runtime = docker_engine.runtime_of(ENGINE | changes, "runsc")
    assert (runtime.is_gvisor, runtime.has_own_kernel) == (True, True)
    assert not docker_engine.runtime_of(ENGINE, "").has_own_kernel


def test_a_filter_by_which_no_program_starts_is_refused() -> None:
    changes = gvisor("--oci-seccomp", path="/usr/bin/runsc")
    docker_engine.check(ENGINE | changes, "")
    with pytest.raises(DriverUnavailableError, match="--oci-seccomp"):
        docker_engine.check(ENGINE | changes, "runsc")


def test_a_runtime_of_version_1_is_refused_on_version_2() -> None:
    engine = ENGINE | {"Runtimes": {"runc": {"path": "runc"}, OF_VERSION_1: {"path": "runc"}}}
    docker_engine.check(engine | {"CgroupVersion": "1"}, OF_VERSION_1)
    docker_engine.check(engine | {"CgroupVersion": "2"}, "runc")
    with pytest.raises(DriverUnavailableError, match="version 1 of cgroups alone"):
        docker_engine.check(engine | {"CgroupVersion": "2"}, OF_VERSION_1)


def test_the_host_bounds_the_tasks_of_a_kernel_of_its_own_not_the_programs_in_it() -> None:
    spec = SandboxSpec("one", "image", Limits(pids=64))
    own = docker_config.config(spec, image="image", runtime="runsc", has_own_kernel=True)
    assert own["HostConfig"]["PidsLimit"] > 1000
    shown = {"Config": {"Labels": own["Labels"]}, "HostConfig": own["HostConfig"]}
    assert docker_config.limits_in_force(shown) == spec.limits
    plain = docker_config.config(spec, image="image")
    assert plain["HostConfig"]["PidsLimit"] == 64


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"OSType": "windows"}, "Linux"),
        ({"SecurityOptions": []}, "seccomp"),
        ({"Runtimes": {}}, "it has none"),
    ],
)
def test_an_engine_that_cannot_hold_a_sandbox_is_refused(
    changes: dict[str, Any], said: str
) -> None:
    docker_engine.check(ENGINE, "runsc")
    with pytest.raises(DriverUnavailableError, match=said):
        docker_engine.check(ENGINE | changes, "runsc")
