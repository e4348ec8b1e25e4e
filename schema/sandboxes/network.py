"""What code in a sandbox may reach."""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

import strawberry

from models import sandboxes as tables
from models.states import ConnectionVerdict
from sandbox.policy import NetworkRule
from schema.base import BigInt, Node, attr, described_enum
from services.sandboxes.wishes import Security


class SandboxNetwork(StrEnum):
    """What a sandbox may reach."""

    NONE = "NONE"
    ALLOW_LIST = "ALLOW_LIST"


described_enum(
    SandboxNetwork,
    "What code in a sandbox may reach over the network.",
    {
        SandboxNetwork.NONE: "Nothing.",
        SandboxNetwork.ALLOW_LIST: "Named hosts only, through a proxy. Refused where the operator "
        "does not let it.",
    },
)


described_enum(
    ConnectionVerdict,
    "What became of a connection that code in a sandbox asked for.",
    {
        ConnectionVerdict.ALLOWED: "It was made.",
        ConnectionVerdict.DENIED: "No rule allows it.",
        ConnectionVerdict.FAILED: "A rule allows it, but nobody answered.",
    },
    name="SandboxNetworkVerdict",
)


@strawberry.type(description="A host that code in a sandbox may reach.")
class SandboxNetworkRule:
    host: str = attr("A name, `*.` and a name for all below it, an address, or a range of them.")
    ports: list[int] = attr("Its ports.")


@strawberry.type(description="A connection that code in a sandbox made, or asked for in vain.")
class SandboxNetworkAccess(Node, row=tables.SandboxConnection):
    host: str = attr("The name or address asked for.")
    address: str | None = attr("The address it went to; null when none was tried.")
    port: int = attr("The port.")
    verdict: ConnectionVerdict = attr("What became of it.")
    rule: str | None = attr("The host of the rule that allowed it.")
    bytes_in: BigInt = attr("Bytes that came into the sandbox; counted when it closes.")
    bytes_out: BigInt = attr("Bytes that went out of the sandbox; counted when it closes.")
    opened_at: datetime = attr("When it was asked for.")
    closed_at: datetime | None = attr("When it ended; null while it is open.")


@strawberry.type(description="An environment variable.")
class SandboxEnvVariable:
    name: str = attr("Its name.")
    value: str = attr("Its value.")


@strawberry.type(description="What code in a sandbox may reach.")
class SandboxSecurity(Node, row=tables.SandboxSecurityPolicy):
    capabilities: list[str] = attr("Capabilities of the kernel beyond none.")

    @strawberry.field(description="What it may reach over the network.")
    def network(self) -> SandboxNetwork:
        policy: dict[str, str] = self.network_policy  # type: ignore[attr-defined]
        return SandboxNetwork.NONE if policy["mode"] == "none" else SandboxNetwork.ALLOW_LIST

    @strawberry.field(description="The hosts it may reach.")
    def network_rules(self) -> list[SandboxNetworkRule]:
        policy: dict[str, Any] = self.network_policy  # type: ignore[attr-defined]
        return [
            SandboxNetworkRule(host=rule["host"], ports=rule["ports"])
            for rule in policy.get("rules", ())
        ]

    @strawberry.field(description="System calls allowed beyond the profile every sandbox has.")
    def syscalls(self) -> list[str]:
        policy: dict[str, Any] = self.syscall_policy  # type: ignore[attr-defined]
        return list(policy.get("allowed", ()))

    @strawberry.field(description="Directories of the host it sees.")
    def mounts(self) -> list[str]:
        policy: dict[str, Any] = self.mount_policy  # type: ignore[attr-defined]
        return list(policy.get("mounts", ()))

    @strawberry.field(description="Environment variables of every execution.")
    def env_variables(self) -> list[SandboxEnvVariable]:
        variables: dict[str, str] = self.env_variables  # type: ignore[assignment]
        return [SandboxEnvVariable(name=n, value=v) for n, v in sorted(variables.items())]


@strawberry.input(description="An environment variable.")
class SandboxEnvVariableInput:
    name: str = attr("Letters, digits and underscores, not beginning with a digit.")
    value: str = attr("Its value, without NUL.")


@strawberry.input(description="A host that code in a sandbox may reach.")
class SandboxNetworkRuleInput:
    host: str = attr(
        "A name, `*.` and a name for all below it, an address, or a range such as 192.0.2.0/24. "
        "Addresses that are none of the Internet must be named, and the operator must let it."
    )
    ports: list[int] = attr(
        "Its ports; those of the web by default.", default_factory=lambda: [80, 443]
    )


@strawberry.input(
    description="What code may reach. What the server's driver cannot enforce is refused."
)
class SandboxSecurityInput:
    network: SandboxNetwork = attr(
        "What it may reach over the network.", default=SandboxNetwork.NONE
    )
    network_rules: list[SandboxNetworkRuleInput] = attr(
        "The hosts it may reach, with `ALLOW_LIST`.", default_factory=list
    )
    syscalls: list[str] = attr("System calls to allow beyond the profile.", default_factory=list)
    mounts: list[str] = attr("Directories of the host to see.", default_factory=list)
    capabilities: list[str] = attr("Capabilities of the kernel to give.", default_factory=list)
    env_variables: list[SandboxEnvVariableInput] = attr(
        "Environment of every execution, at most 64 KiB.", default_factory=list
    )


def rules(wishes: Sequence[SandboxNetworkRuleInput]) -> list[NetworkRule]:
    """The rules that were asked for."""
    return [NetworkRule(wish.host, tuple(wish.ports)) for wish in wishes]


def security(wish: SandboxSecurityInput | None) -> Security:
    if wish is None:
        return Security()
    return Security(
        network=wish.network,
        rules=rules(wish.network_rules),
        syscalls=wish.syscalls,
        mounts=wish.mounts,
        capabilities=wish.capabilities,
        env_variables={variable.name: variable.value for variable in wish.env_variables},
    )
