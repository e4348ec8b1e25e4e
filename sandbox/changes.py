"""What may change in a sandbox that runs."""

from collections.abc import Collection

from sandbox.base import Capabilities, SandboxHandle, SandboxSpec, require
from sandbox.limits import Limits


def require_change(
    capabilities: Capabilities, handle: SandboxHandle, wanted: Limits, changeable: Collection[str]
) -> None:
    """Refuse new limits of which one cannot change, or would not hold.

    Raises PolicyUnsupportedError naming them, DriverUnavailableError.
    """
    handle.limits.changed(wanted, changeable)
    before = handle.limits.demands()
    demanded = {item for item, value in wanted.demands().items() if before.get(item) != value}
    require(
        capabilities,
        SandboxSpec(handle.sandbox_id, handle.image, wanted, demanded=frozenset(demanded)),
    )
