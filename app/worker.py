"""Leases tasks and runs them, many at a time."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge

from app.solitude import Solitude
from models.base import now
from models.system import Task
from services import system, tasks, tools, workflows
from services.base import Deps, work
from services.events.base import BusUnavailableError, NodeUnavailableError
from services.plans import running

if TYPE_CHECKING:
    from app.spans import Tracing

log = logging.getLogger("noosphere.worker")
Action = Callable[[], Awaitable[None]]
# Importing these modules registers their tasks.
HANDLERS = (workflows, running)
_POLL_S = 1.0
_ORPHANS_S = 1.0
# A lease that another node was given, because this one seemed dead, is noticed as soon.
_RENEW_S = 5.0
_CLEAN_S = 3600.0
_LOST_TOOLS_S = 30.0
_OUTAGE_S = 1.0
_SETTLE_S = 10.0
_TASKS = Counter("noosphere_tasks", "Tasks ended, by type and outcome.", ["type", "outcome"])
_RUNNING = Gauge("noosphere_tasks_running", "Tasks this process runs now.")


class Worker:
    """Runs tasks until it is stopped.

    Stopping cancels what runs and gives it back, so that another worker goes on with it.
    """

    def __init__(self, deps: Deps, tracing: "Tracing | None" = None) -> None:
        self._deps = deps
        self._tracing = tracing
        self._running: dict[str, asyncio.Task[None]] = {}
        self._lost: set[str] = set()
        self._freed = asyncio.Event()
        self._began_at = now()
        self._solitude = Solitude(deps.bus)
        self._is_alone = False

    async def run(self) -> None:
        """Claim and run tasks until cancelled; returns after everything was given back."""
        while True:
            try:
                await self._run_all()
            except Exception:
                # Database or bus are away: they come back, and the worker must be there then.
                log.exception("the worker was interrupted; it goes on")
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                # What failed hid that the worker was stopped at the same moment.
                raise asyncio.CancelledError
            await asyncio.sleep(_POLL_S)

    async def _run_all(self) -> None:
        await tasks.free_own(self._deps)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._claim(group))
            renew_s = min(self._deps.options.task_lease_s / 3, _RENEW_S)
            group.create_task(self._every(renew_s, self._renew))
            group.create_task(self._every(_CLEAN_S, self._clean))
            group.create_task(self._every(_LOST_TOOLS_S, self._settle_lost_tools))
            group.create_task(self._every(_ORPHANS_S, self._look_around))
            suspects: set[str] = set()
            group.create_task(self._every(_ORPHANS_S, lambda: self._free_orphans(suspects)))

    async def _claim(self, group: asyncio.TaskGroup) -> None:
        async with self._deps.bus.attach(tasks.WAKE_TOPIC) as tap:
            while True:
                slots = self._deps.options.worker_concurrency - len(self._running)
                if slots <= 0:
                    self._freed.clear()
                    await self._freed.wait()
                    continue
                claimed: list[Task] = []
                try:
                    claimed = await tasks.claim(
                        self._deps, limit=min(slots, 20), running=tuple(self._running)
                    )
                except Exception:
                    # A database that is away comes back; the worker must still be there then.
                    log.exception("tasks could not be claimed; trying again")
                    await asyncio.sleep(_POLL_S)
                for task in claimed:
                    self._running[task.id] = group.create_task(
                        self._run(task), name=f"{task.task_type} {task.id}"
                    )
                _RUNNING.set(len(self._running))
                if not claimed:
                    await tap.get(_POLL_S)
                    tap.lost()

    async def _run(self, task: Task) -> None:
        outcome = "failed"
        try:
            outcome = await self._attempt(task)
        except tasks.LeaseLostError:
            log.warning("lease lost, task interrupted", extra={"task_id": task.id})
            outcome = "interrupted"
        except asyncio.CancelledError:
            outcome = "interrupted"
            if task.id in self._lost:
                # Another worker has the task; this one goes on with the others.
                self._lost.discard(task.id)
            else:
                await self._give_back(task)
                raise
        except Exception:
            log.exception("a task could not be settled", extra={"task_id": task.id})
        finally:
            self._running.pop(task.id, None)
            self._freed.set()
            _RUNNING.set(len(self._running))
            _TASKS.labels(task.task_type, outcome).inc()

    async def _attempt(self, task: Task) -> str:
        kind = tasks.kinds[task.task_type]
        if task.retry_count > task.max_retries:
            return await self._failed(task, "It was interrupted too often.")
        try:
            if self._tracing is None:
                result = await kind.run(self._deps, task)
            else:
                result = await self._tracing.task(partial(kind.run, self._deps, task), task)
        except tasks.RetryLaterError as later:
            await tasks.release(self._deps, task, delay_s=later.delay_s)
            return "postponed"
        except Exception as error:
            if _is_lost(error):
                raise tasks.LeaseLostError(f"Another worker has the task {task.id}.") from error
            if _is_outage(error):
                # Nobody's fault: it must not use up the tries of the task.
                log.warning("task %s waits for the bus", task.task_type, extra={"task_id": task.id})
                await tasks.release(self._deps, task, delay_s=_OUTAGE_S)
                return "postponed"
            log.exception(
                "task %s failed",
                task.task_type,
                extra={"task_id": task.id, "payload": task.payload},
            )
            return await self._failed(task, f"{type(error).__name__}: {error}"[:2000])
        await tasks.complete(self._deps, task, result)
        return "completed"

    async def _failed(self, task: Task, message: str) -> str:
        dead = tasks.kinds[task.task_type].dead
        if dead is not None and task.retry_count >= task.max_retries:
            async with work(self._deps) as unit:
                await tasks.hold(unit, task)
            # Before the task is buried: if this is interrupted, it is found and done again.
            await dead(self._deps, task, message)
        return "dead" if await tasks.fail(self._deps, task, message) else "failed"

    async def _give_back(self, task: Task) -> None:
        try:
            async with asyncio.timeout(_SETTLE_S):
                await tasks.release(self._deps, task)
        except Exception:  # noqa: BLE001 - its lease runs out by itself.
            log.warning("a task could not be given back", extra={"task_id": task.id})

    async def _renew(self) -> None:
        # Only those asked about: a task claimed meanwhile is held without having been renewed.
        asked = list(self._running)
        held = await tasks.renew(self._deps, asked)
        for task_id in set(asked) - held:
            running = self._running.get(task_id)
            if running is not None:
                log.warning("lease lost, task interrupted", extra={"task_id": task_id})
                self._lost.add(task_id)
                running.cancel()

    async def _clean(self) -> None:
        dropped = await system.clean(self._deps)
        if any(dropped.values()):
            log.info("old rows dropped", extra=dropped)

    async def _look_around(self) -> None:
        """Settle what others left behind, once nobody else is there to go on with it."""
        was_alone, self._is_alone = self._is_alone, False
        self._is_alone = await self._solitude.look()
        if self._is_alone and not was_alone:
            await self._settle_lost_tools()

    async def _settle_lost_tools(self) -> None:
        # With no other process alive, what began before this one has lost its own.
        began_at = self._began_at if await self._solitude.look() else None
        lost = await tools.settle_lost(self._deps, begun_before=began_at)
        if lost:
            log.warning("runs of tools settled whose process had ended: %d", lost)

    async def _free_orphans(self, suspects: set[str]) -> None:
        """Free the tasks of nodes found dead twice in a row."""
        alive = await self._deps.bus.nodes()
        if self._deps.bus.node_id not in alive:
            return
        owners = await tasks.owners(self._deps)
        dead = owners - alive
        confirmed = dead & suspects
        suspects.clear()
        suspects.update(dead)
        if confirmed:
            freed = await tasks.free_orphans(self._deps, confirmed)
            log.warning("tasks of dead nodes freed: %d", freed, extra={"nodes": sorted(confirmed)})
            await self._settle_lost_tools()

    async def _every(self, interval_s: float, action: Action) -> None:
        while True:
            await asyncio.sleep(interval_s)
            try:
                await action()
            except BusUnavailableError:
                log.warning("bus unavailable; the worker goes on")
            except Exception:
                log.exception("housekeeping failed; trying again later")


def _is_outage(error: Exception) -> bool:
    """Tell whether a task failed because the bus did not answer, and for nothing else."""
    if isinstance(error, ExceptionGroup):
        return all(map(_is_outage, error.exceptions))
    return isinstance(error, BusUnavailableError) and not isinstance(error, NodeUnavailableError)


def _is_lost(error: Exception) -> bool:
    """Tell whether a task was given to another worker while it ran here."""
    if isinstance(error, ExceptionGroup):
        return any(map(_is_lost, error.exceptions))
    return isinstance(error, tasks.LeaseLostError)


@asynccontextmanager
async def working(deps: Deps, tracing: "Tracing | None" = None) -> AsyncIterator[Worker]:
    """Run a worker beside the block."""
    worker = Worker(deps, tracing)
    running_task = asyncio.create_task(worker.run(), name="worker")
    try:
        yield worker
    finally:
        running_task.cancel()
        await asyncio.gather(running_task, return_exceptions=True)
