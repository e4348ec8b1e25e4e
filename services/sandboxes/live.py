"""A sandbox as the node that hosts it has it, and the sandboxes that are kept ready."""

import asyncio
import hashlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from models.base import now
from sandbox.base import SandboxSpec
from sandbox.client import SandboxClient
from services.base import Deps
from services.sandboxes.running import Run

INSTALLATION_LABEL = "installation"
# Of one that is nobody's yet: the node that keeps it ready.
POOL_LABEL = "pool"
MENDS = 10


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
    # When something was last done in it, as far as its row is told, and in fact.
    told_use_at: datetime = field(default_factory=now)
    used_at: datetime = field(default_factory=now)
    is_persistent: bool = False
    # Set when there is another client, and when it ends.
    is_renewed: asyncio.Event = field(default_factory=asyncio.Event)
    # When the way to it, having broken off, was last mended: by the clock of the loop.
    mended_at: deque[float] = field(default_factory=lambda: deque(maxlen=MENDS))


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

    def holds(self, driver_id: str) -> bool:
        """Tell whether a sandbox is the pool's, ready or being made."""
        ...


def installation(deps: Deps) -> str:
    """Name the installation: all nodes that work on one database are one."""
    url = deps.db.url.render_as_string(hide_password=True)
    return hashlib.sha256(url.encode()).hexdigest()[:16]
