"""Ways to sandboxes that break off while the sandboxes live on: they are opened again.

A connection to an engine or a cluster ends for many reasons that are none of the sandbox's. Only
what the driver says of the sandbox itself ends it: that it is gone, or has ended.
"""

import asyncio
import logging
import random
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from sandbox.client import SandboxClient
from sandbox.errors import ConflictError, DriverUnavailableError, NotFoundError, SandboxError
from services.base import Deps
from services.sandboxes import rows
from services.sandboxes.live import MENDS, Live

if TYPE_CHECKING:
    from services.sandboxes.hosting import Hosting

log = logging.getLogger("noosphere.sandboxes")
# An agent that does not answer, though its sandbox runs, is asked so often.
TRIES = 5
ASK_S = 30.0
FIRST_DELAY_S, LONGEST_DELAY_S = 0.1, 15.0
# Whose way breaks off more often than MENDS times in so many seconds breaks it off itself.
FLAPPING_S = 60.0


class _EndedError(Exception):
    """The sandbox itself is gone, or must be given up."""


async def mend(hosting: "Hosting", live: Live, lost: SandboxClient) -> bool:
    """Serve a sandbox by a new client in place of the lost one; False: it has ended.

    What runs in it goes on, where the agent lets it outlive its client. As long as the driver
    itself does not answer, or the database, it is asked again: of the sandbox that says nothing.
    """
    tries, delay_s = 0, FIRST_DELAY_S
    while tries < TRIES and not lost.is_distrusted and not _is_flapping(live):
        await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311 - no secret.
        delay_s = min(2 * delay_s, LONGEST_DELAY_S)
        try:
            return await _try(hosting, live, lost)
        except _EndedError:
            return False
        except (DriverUnavailableError, SQLAlchemyError) as error:
            log.info("driver or database is away: %s", error, extra={"sandbox_id": live.sandbox_id})
        except (SandboxError, TimeoutError) as error:
            tries += 1
            log.info("no way to it: %s", error, extra={"sandbox_id": live.sandbox_id})
    return False


async def _try(hosting: "Hosting", live: Live, lost: SandboxClient) -> bool:
    """Try once; True, unless it raises. The lost client is still there then, for another try."""
    if not await _is_ours(hosting.deps, live):
        await hosting.disown(live.sandbox_id)
        return True
    async with hosting.lock(live.sandbox_id):
        if live.is_ending or live.client is not lost:
            return True
        async with asyncio.timeout(ASK_S):
            client = await _open(hosting, live)
        if client is None:
            live.client = None
            live.is_renewed.set()
        else:
            await hosting.go_on(live, client)
        live.mended_at.append(asyncio.get_running_loop().time())
        log.warning("the way to a sandbox was mended", extra={"sandbox_id": live.sandbox_id})
    await lost.aclose()
    await begin(hosting, live)
    return True


def _is_flapping(live: Live) -> bool:
    at = live.mended_at
    return len(at) == MENDS and asyncio.get_running_loop().time() - at[0] < FLAPPING_S


async def _is_ours(deps: Deps, live: Live) -> bool:
    """Tell whether no other node has taken the sandbox over, which breaks our way off as well."""
    row = await rows.sandbox(deps, live.sandbox_id)
    return row is not None and row.status.is_live and row.node_id == deps.bus.node_id


async def _open(hosting: "Hosting", live: Live) -> SandboxClient | None:
    try:
        await hosting.driver.connect(live.driver_id)
        # One that is frozen answers nothing; its client comes when it is resumed.
        return None if live.is_paused else await hosting.connect(live.driver_id, live.env)
    except (NotFoundError, ConflictError) as error:
        raise _EndedError from error


async def begin(hosting: "Hosting", live: Live) -> None:
    """Do what is to be done with a new client, if there is one: when the database lets us."""
    client, delay_s = live.client, FIRST_DELAY_S
    while client is not None and live.client is client and not live.is_ending:
        try:
            await hosting.prepare(live)
            await hosting.begin_pending(live)
        except SQLAlchemyError:
            log.info("not prepared yet", extra={"sandbox_id": live.sandbox_id}, exc_info=True)
        else:
            return
        await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311 - no secret.
        delay_s = min(2 * delay_s, LONGEST_DELAY_S)
