"""What is asked of a sandbox: nothing that would not hold, and no change that cannot be made."""

from typing import Any

import pytest

from sandbox.base import Capabilities, Enforcement, SandboxSpec, require
from sandbox.errors import (
    DriverUnavailableError,
    InvalidArgumentError,
    PolicyUnsupportedError,
)
from sandbox.limits import CHANGEABLE, MIB, Limits
from sandbox.policy import Policy

FULL, PARTLY, NONE = Enforcement.ENFORCED, Enforcement.PER_PROCESS, Enforcement.UNAVAILABLE
ROOTLESS = Capabilities(
    "box",
    {"isolation": FULL, "network": FULL, "syscalls": FULL, "disk": FULL, "pids": FULL,
     "memory": PARTLY, "cpu": NONE},
)  # fmt: skip


def spec(**changes: Any) -> SandboxSpec:
    return SandboxSpec("box", "host", **changes)


def test_defaults_need_no_more_than_isolation() -> None:
    require(ROOTLESS, spec())
    require(ROOTLESS, spec(demanded=frozenset({"disk", "pids"})))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"demanded": frozenset({"cpu"})}, ["cpu"]),
        ({"demanded": frozenset({"memory"})}, ["memory (here for each process alone)"]),
        ({"demanded": frozenset({"memory", "cpu", "inodes"})}, ["cpu", "inodes", "memory"]),
        ({"limits": Limits(network_bytes_per_s=1)}, ["network_bandwidth"]),
        ({"disk": "image"}, ["disk_image"]),
        ({"policy": Policy(required=frozenset({"isolation", "uid"}))}, ["uid"]),
        ({"demanded": frozenset({"cpu"}), "accepts_per_process": True}, ["cpu"]),
    ],
)
def test_what_would_not_hold_is_refused_by_name(changes: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(PolicyUnsupportedError) as caught:
        require(ROOTLESS, spec(**changes))
    assert all(name in caught.value.message for name in named)


def test_a_limit_per_process_passes_where_that_is_accepted() -> None:
    require(ROOTLESS, spec(demanded=frozenset({"memory"}), accepts_per_process=True))


def test_a_driver_that_cannot_isolate_is_refused_whatever_is_asked() -> None:
    with pytest.raises(PolicyUnsupportedError, match="isolation, network, syscalls"):
        require(Capabilities("box", {}), spec())
    with pytest.raises(DriverUnavailableError, match="no engine"):
        require(Capabilities("box", {}, unavailable="no engine"), spec())


def test_every_limit_demands_its_item() -> None:
    assert set(Limits().demands()) == {"cpu", "memory", "pids", "disk", "inodes"}
    limited = Limits(cpu_millis=7, network_bytes_per_s=9).demands()
    assert (limited["cpu"], limited["network_bandwidth"]) == (7, 9)


def test_what_a_running_sandbox_cannot_change_is_refused() -> None:
    now = Limits()
    now.changed(Limits(cpu_millis=500, memory_bytes=600 * MIB, pids=9), CHANGEABLE)
    with pytest.raises(PolicyUnsupportedError, match="disk_bytes, inodes"):
        now.changed(Limits(disk_bytes=MIB, inodes=100), CHANGEABLE)


def test_a_disk_of_its_own_does_not_count_as_memory() -> None:
    limits = Limits(memory_bytes=128 * MIB, disk_bytes=4096 * MIB)
    with pytest.raises(InvalidArgumentError, match="files count as memory"):
        spec(limits=limits).check()
    spec(limits=limits, disk="image").check()
