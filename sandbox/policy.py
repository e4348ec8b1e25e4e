"""What code in a sandbox may reach, and the environment it runs in."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from sandbox.addresses import is_name
from sandbox.errors import InvalidArgumentError, PolicyUnsupportedError

# What holds for every sandbox, asked for or not; no driver may do with less.
ALWAYS = frozenset({"isolation", "network", "syscalls"})
MAX_RULES = 1000

NetworkMode = Literal["none", "allow"]


@dataclass(frozen=True, slots=True)
class NetworkRule:
    """What a sandbox may connect to: a name, `*.` before one, an address or a range of addresses.

    Addresses that are none of the public Internet (private, loopback, link-local and others) are
    reached only where a rule names them or a range of such, and the operator lets it.
    """

    host: str
    ports: tuple[int, ...] = (80, 443)

    def check(self) -> None:
        """Raise InvalidArgumentError for what names no host or no port."""
        if not self.ports or not all(1 <= port <= 65535 for port in self.ports):
            raise InvalidArgumentError(f"The rule for {self.host[:253]!r} needs ports 1 to 65535.")
        try:
            ipaddress.ip_network(self.host)
        except ValueError:
            if not is_name(self.host.removeprefix("*.")):
                raise InvalidArgumentError(
                    f"{self.host[:253]!r} is neither a host name, an address nor a range."
                ) from None


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """What code may reach: nothing, or what the rules name, by a proxy of the server.

    The network of the sandbox itself is empty in both modes; `allow` adds a way out through the
    channel, so drivers have nothing to do for it.
    """

    mode: NetworkMode = "none"
    rules: tuple[NetworkRule, ...] = ()

    def check(self) -> None:
        """Raise PolicyUnsupportedError for an unknown mode, InvalidArgumentError for bad rules."""
        if self.mode not in ("none", "allow"):
            raise PolicyUnsupportedError(
                f"The network policy {self.mode!r} is not supported; use 'none' or 'allow'."
            )
        if self.mode == "none" and self.rules:
            raise InvalidArgumentError("Rules for a network need the network policy 'allow'.")
        if len(self.rules) > MAX_RULES:
            raise InvalidArgumentError(f"A network policy has at most {MAX_RULES} rules.")
        for rule in self.rules:
            rule.check()


@dataclass(frozen=True, slots=True)
class Policy:
    """What code in the sandbox may reach, and the environment of every execution.

    `required` are items of `Capabilities` that must hold, whatever limits were asked for.
    """

    network: NetworkPolicy = field(default_factory=NetworkPolicy)
    env: Mapping[str, str] = field(default_factory=dict)
    required: frozenset[str] = ALWAYS

    def check(self) -> None:
        """Raise PolicyUnsupportedError or InvalidArgumentError for what no driver can enforce."""
        self.network.check()
        check_env(self.env)

    def to_json(self, *, with_env: bool = True) -> dict[str, Any]:
        """Plain values for `from_json`; without the environment where others may read them."""
        rules = [{"host": rule.host, "ports": list(rule.ports)} for rule in self.network.rules]
        value: dict[str, Any] = {
            "network": {"mode": self.network.mode, "rules": rules},
            "required": sorted(self.required),
        }
        if with_env:
            value["env"] = dict(self.env)
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The policy that `to_json` told of; an absent part is the default.

        Raises InvalidArgumentError for anything else.
        """
        try:
            network = value.get("network", {})
            policy = cls(
                NetworkPolicy(
                    network.get("mode", "none"),
                    tuple(
                        NetworkRule(str(rule["host"]), tuple(map(int, rule["ports"])))
                        for rule in network.get("rules", ())
                    ),
                ),
                dict(value.get("env", {})),
                frozenset(value.get("required", ALWAYS)),
            )
            policy.check()
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InvalidArgumentError("The policy is malformed.") from error
        return policy


def check_env(env: Mapping[str, str]) -> None:
    """Raise InvalidArgumentError for names or values that no process can be given."""
    total = 0
    for name, value in env.items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise InvalidArgumentError(f"The environment variable {name[:64]!r} is malformed.")
        total += len(name) + len(value)
    if total > 64 * 1024:
        raise InvalidArgumentError("The environment is larger than 64 KB.")
