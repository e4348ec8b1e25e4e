"""What code in a sandbox may reach: rules that make sense, and that survive being stored."""

import json
from typing import Any

import pytest

from sandbox.errors import InvalidArgumentError, PolicyUnsupportedError
from sandbox.policy import NetworkPolicy, NetworkRule, Policy


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
