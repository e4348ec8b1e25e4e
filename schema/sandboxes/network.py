"""What code in a sandbox may reach."""

from enum import StrEnum
from typing import Any

import strawberry

from models import sandboxes as tables
from schema.base import Node, attr, described_enum
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
        SandboxNetwork.ALLOW_LIST: "Named hosts only. Refused where the driver cannot enforce it.",
    },
)


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
        return SandboxNetwork(policy["mode"].upper())

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


@strawberry.input(
    description="What code may reach. What the server's driver cannot enforce is refused."
)
class SandboxSecurityInput:
    network: SandboxNetwork = strawberry.field(
        default=SandboxNetwork.NONE, description="What it may reach over the network."
    )
    syscalls: list[str] = strawberry.field(
        default_factory=list, description="System calls to allow beyond the profile."
    )
    mounts: list[str] = strawberry.field(
        default_factory=list, description="Directories of the host to see."
    )
    capabilities: list[str] = strawberry.field(
        default_factory=list, description="Capabilities of the kernel to give."
    )
    env_variables: list[SandboxEnvVariableInput] = strawberry.field(
        default_factory=list, description="Environment of every execution, at most 64 KiB."
    )


def security(wish: SandboxSecurityInput | None) -> Security:
    if wish is None:
        return Security()
    return Security(
        network=wish.network,
        syscalls=wish.syscalls,
        mounts=wish.mounts,
        capabilities=wish.capabilities,
        env_variables={variable.name: variable.value for variable in wish.env_variables},
    )
