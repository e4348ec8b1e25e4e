"""Clearing away what drivers still have of sandboxes that no row speaks of."""

import logging

from sandbox.base import SandboxInfo
from sandbox.errors import SandboxError
from services.sandboxes import removals, rows
from services.sandboxes.hosting import driver_id
from services.sandboxes.live import INSTALLATION_LABEL, POOL_LABEL, installation
from services.sandboxes.node import Node
from services.sandboxes.removals import Kind

log = logging.getLogger("noosphere.sandboxes")
AT_START = "It was left by a process that is gone."
LATER = "No sandbox of this installation is in it."


async def at_start(node: Node) -> None:
    """Remove what an earlier process left: nothing of this one can be meant."""
    strays = await _strays(node)
    await _remove(node, [info for info in strays if not _is_ours(node, info)], AT_START)


def _is_ours(node: Node, info: SandboxInfo) -> bool:
    return info.owned and not node.survives


class Sweep:
    """Looks again and again; what two looks in a row find without a row is removed.

    One look alone may come between the making of a sandbox and the word of it.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._suspects: set[str] = set()

    async def look(self) -> None:
        """Look once. An engine that does not answer is asked the next time."""
        strays = await _strays(self._node)
        guilty = [info for info in strays if info.sandbox_id in self._suspects]
        left = await _remove(self._node, guilty, LATER)
        self._suspects = {info.sandbox_id for info in strays} - left
        self._node.is_untidy = bool(self._suspects)


async def _strays(node: Node) -> list[SandboxInfo]:
    """Give the sandboxes of this installation that neither a row nor a pool has."""
    # bubblewrap knows only those of its own directory, and torn records have no labels.
    labels = {INSTALLATION_LABEL: installation(node.deps)} if node.survives else {}
    try:
        found = await node.driver.list(labels)
    except SandboxError:
        log.warning("leftovers were not looked for; the next look tries again", exc_info=True)
        return []
    # Listed first: what is being created now has its row already.
    living = await rows.living(node.deps)
    known = {row.id for row in living} | {driver_id(row) for row in living}
    known |= {live.driver_id for live in node.live.values()} | node.probes.names
    others = await node.deps.bus.nodes() - {node.deps.bus.node_id}
    return [
        info
        for info in found
        if info.sandbox_id not in known
        and info.labels.get(POOL_LABEL) not in others
        and not (node.pool is not None and node.pool.holds(info.sandbox_id))
    ]


async def _remove(node: Node, strays: list[SandboxInfo], reason: str) -> set[str]:
    """Remove sandboxes, and give those that are gone; what resists is left to the next look."""
    gone: list[str] = []
    for info in strays:
        try:
            await node.driver.remove(info.sandbox_id)
        except SandboxError:
            log.warning("a leftover resists", extra={"driver_id": info.sandbox_id}, exc_info=True)
        else:
            log.info("a leftover is removed", extra={"driver_id": info.sandbox_id})
            gone.append(info.sandbox_id)
    if gone:
        await removals.note(node.deps, Kind.CONTAINER, gone, reason)
    return set(gone)
