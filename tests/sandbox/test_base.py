"""What is asked of a sandbox: rules that make sense, and nothing that would not hold."""

import json
from typing import Any

import pytest

from sandbox.base import (
    CHANGEABLE,
    MIB,
    Capabilities,
    Enforcement,
    Limits,
    NetworkPolicy,
    NetworkRule,
    Policy,
    SandboxSpec,
    require,
)
from sandbox.errors import (
    DriverUnavailableError,
    InvalidArgumentError,
    PolicyUnsupportedError,
)

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


@pytest.mark.parametrize(
    "host",
    ["example.org", "*.example.org", "10.0.0.1", "10.0.0.0/8", "::1", "fd00::/8",
     "xn--bcher-kva.ch", "localhost", "_srv.example.org"],
)  # fmt: skip
def test_names_and_addresses_are_rules(host: str) -> None:
    NetworkPolicy("allow", (NetworkRule(host),)).check()


@pytest.mark.parametrize(
    "rule",
    [
        NetworkRule(""),
        NetworkRule("*"),
        NetworkRule("*.*.org"),
        NetworkRule("exa mple.org"),
        NetworkRule("bücher.ch"),
        NetworkRule("http://example.org"),
        NetworkRule("example.org:80"),
        NetworkRule("127.1"),
        NetworkRule("2130706433"),
        NetworkRule("10.0.0.1/8"),
        NetworkRule("-a.org"),
        NetworkRule("a..org"),
        NetworkRule("a" * 64 + ".org"),
        NetworkRule("example.org", ()),
        NetworkRule("example.org", (0,)),
        NetworkRule("example.org", (80, 65536)),
    ],
    ids=repr,
)
def test_rules_that_name_nothing_are_refused(rule: NetworkRule) -> None:
    with pytest.raises(InvalidArgumentError):
        NetworkPolicy("allow", (rule,)).check()


def test_rules_need_the_mode_that_uses_them() -> None:
    with pytest.raises(InvalidArgumentError):
        NetworkPolicy("none", (NetworkRule("example.org"),)).check()
    with pytest.raises(PolicyUnsupportedError):
        NetworkPolicy("bridge").check()  # type: ignore[arg-type]


def test_a_policy_survives_json() -> None:
    policy = Policy(
        NetworkPolicy("allow", (NetworkRule("*.example.org", (443, 8443)), NetworkRule("::1"))),
        {"A": "ü"},
        frozenset({"isolation", "uid"}),
    )
    assert Policy.from_json(json.loads(json.dumps(policy.to_json()))) == policy
    told = policy.to_json(with_env=False)
    assert "ü" not in json.dumps(told, ensure_ascii=False)
    assert Policy.from_json(told) == Policy(policy.network, {}, policy.required)
    assert Policy.from_json({}) == Policy()


@pytest.mark.parametrize(
    "value",
    [
        {"network": "allow"},
        {"network": {"mode": "allow", "rules": [{"host": "example.org"}]}},
        {"network": {"mode": "allow", "rules": [{"host": 1, "ports": [1]}]}},
        {"network": {"mode": "allow", "rules": [{"host": "a.org", "ports": ["x"]}]}},
        {"network": {"mode": "allow", "rules": 5}},
        {"env": {"A": 1}},
        {"env": {"A=": ""}},
        {"env": 5},
        {"required": 5},
    ],
)
def test_a_malformed_policy_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        Policy.from_json(value)
