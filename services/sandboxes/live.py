"""A sandbox as the node that hosts it has it, and the sandboxes that are kept ready."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from sandbox.base import SandboxSpec
from sandbox.client import SandboxClient
from services.base import Deps
from services.sandboxes.running import Run

INSTALLATION_LABEL = "installation"


@dataclass(slots=True)
class Live:
    """A sandbox of this node; `driver_id` is its name with the driver.

    Its client is missing while it is paused after a restart.
    """

    sandbox_id: str
    driver_id: str
    client: SandboxClient | None
    env: Mapping[str, str]
    is_paused: bool = False
    is_ending: bool = False
    runs: dict[str, Run] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ready:
    """A sandbox that is nobody's yet. `key` says which kind it is of, if it was kept ready."""

    driver_id: str
    client: SandboxClient
    key: str | None = None


class Pool(Protocol):
    """Sandboxes kept ready, none of which has run anything."""

    async def claim(self, spec: SandboxSpec) -> Ready | None:
        """Give one that is as the spec says, its client set up with the spec's environment.

        It is the pool's no more, whatever becomes of the caller. None when there is none; errors of
        the pool are its own affair.
        """
        ...


def installation(deps: Deps) -> str:
    """Name the installation: all nodes that work on one database are one."""
    url = deps.db.url.render_as_string(hide_password=True)
    return hashlib.sha256(url.encode()).hexdigest()[:16]
