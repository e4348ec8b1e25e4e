"""What each node keeps ready: so many sandboxes of the templates that the configuration names."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from sqlalchemy import select

from models.base import row_columns, rows_of
from models.sandboxes import SandboxTemplate
from sandbox.base import SandboxSpec
from sandbox.errors import SandboxError
from sandbox.policy import Policy
from services.events.calls import TaskSet
from services.sandboxes import operations, templates, wishes
from services.sandboxes.counts import TOTALS
from services.sandboxes.live import INSTALLATION_LABEL, POOL_LABEL, Ready, installation
from services.sandboxes.pool import PREFIX, Wanted, WarmPool
from services.sandboxes.wishes import Resources

if TYPE_CHECKING:
    from services.sandboxes.node import Node

log = logging.getLogger("noosphere.sandboxes")
_LOOK_S = 15.0
# The nodes of this process with what they keep ready.
NODES: "list[tuple[Node, NodePool]]" = []


class NodePool(WarmPool):
    """The pool of a node, which also sees when a sandbox begins to be made."""

    def __init__(self, node: "Node") -> None:
        labels = {
            INSTALLATION_LABEL: installation(node.deps),
            POOL_LABEL: node.deps.bus.node_id,
        }

        def leave(_: str) -> None:
            node.is_untidy = True

        super().__init__(
            node.driver,
            labels=labels,
            refills=node.deps.options.sandbox_pool_refills,
            on_leftover=leave,
        )

    async def claim(self, spec: SandboxSpec) -> Ready | None:
        """See `WarmPool.claim`."""
        TOTALS.begin(spec.sandbox_id)
        return await super().claim(spec)


async def wanted(node: "Node") -> list[Wanted]:
    """Give what shall be ready: sandboxes as the templates make them when nothing is asked for.

    Templates that are not there, are switched off or have images that the driver cannot run, are
    left out.
    """
    deps, driver = node.deps, node.driver
    sizes = dict(deps.options.sandbox_pool)
    async with deps.db.reading() as connection:
        found = await connection.execute(
            select(*row_columns(SandboxTemplate)).where(
                SandboxTemplate.name.in_(sizes), SandboxTemplate.is_active.is_(True)
            )
        )
        known = rows_of(SandboxTemplate, found)
    default = ":".join(templates.split_image(deps.options.sandbox_template_image))
    kinds = []
    for template in known:
        image = f"{template.image_name}:{template.image_tag}"
        if not driver.has_images and image != default:
            continue
        spec = SandboxSpec(
            PREFIX,
            image if driver.has_images else "host",
            wishes.limits(deps.options, template, Resources()),
            Policy(),
            disk=deps.options.sandbox_disk,  # type: ignore[arg-type]  # checked before.
            image_digest=await _digest(node, template, image),
        )
        kinds.append(Wanted(spec, sizes[template.name]))
    return kinds


async def _digest(node: "Node", template: SandboxTemplate, image: str) -> str | None:
    """Give the digest of a template, or the one it is about to be pinned to."""
    if not node.driver.has_images or template.image_digest is not None:
        return template.image_digest if node.driver.has_images else None
    async with asyncio.timeout(_LOOK_S):
        return await node.driver.image_digest(image)


async def _follow_templates(node: "Node", pool: WarmPool) -> None:
    while True:
        try:
            await pool.want(await wanted(node))
        except (SandboxError, TimeoutError):
            log.warning("images of the pool were not looked at", exc_info=True)
        except Exception:
            log.exception("the pool did not follow its templates; trying again")
        await asyncio.sleep(_LOOK_S)


@operations.attachment
@asynccontextmanager
async def _pooling(node: "Node") -> AsyncIterator[None]:
    pool = NodePool(node)
    tasks = TaskSet()
    entry = (node, pool)
    node.pool = pool
    node.on_added.append(TOTALS.added)
    NODES.append(entry)
    try:
        if node.deps.options.sandbox_pool:
            tasks.start(_follow_templates(node, pool), name="templates of the pool")
            tasks.start(pool.run(), name="pool")
        yield
    finally:
        NODES.remove(entry)
        node.pool = None
        await tasks.aclose()
        await pool.aclose()
