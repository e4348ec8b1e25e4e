"""The clients and executions of the sandboxes of one node, and the rows that tell of them."""

import asyncio
import functools
import logging
import secrets
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.exc import SQLAlchemyError

from models.base import now
from models.sandboxes import Sandbox, SandboxResources, SandboxSecurityPolicy
from models.states import RunState, SandboxStatus
from sandbox.base import SandboxDriver
from sandbox.client import Execution, SandboxClient
from sandbox.limits import Limits
from sandbox.policy import Policy
from services.base import Deps, work
from services.errors import UserError, UserErrorCode
from services.events.calls import TaskSet
from services.sandboxes import mending, removals, rows, running, settling
from services.sandboxes.live import Live
from services.sandboxes.removals import Kind
from services.sandboxes.running import Run

log = logging.getLogger("noosphere.sandboxes")
DRIVER_S = 30.0
KILL_S = 2.0
SETTLE_S = 10.0
MEND_S = 3.0
_OOM_RECENT_S = 10.0


class Hosting(ABC):
    """What is live on a node, and what runs in it.

    `on_added` is told of a sandbox whenever a client begins to serve it: made, taken up, resumed
    after a restart. `on_ending` is told before it ends or is let go of. They neither wait nor
    raise. `preparing` is awaited before anything runs in it, then and whenever it is resumed.
    """

    def __init__(self, deps: Deps, driver: SandboxDriver) -> None:
        self.deps = deps
        self.driver = driver
        self.live: dict[str, Live] = {}
        # Whether the driver may have something left that housekeeping should look for.
        self.is_untidy = False
        self.on_added: list[Callable[[Live], None]] = []
        self.on_ending: list[Callable[[Live], None]] = []
        self.preparing: list[Callable[[Live], Awaitable[None]]] = []
        self._tasks = TaskSet()
        self._busy: set[str] = set()
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._ooms: dict[str, float] = {}
        self._nonce = secrets.token_hex(8)

    @property
    def survives(self) -> bool:
        """Whether sandboxes of the driver outlive this process."""
        return self.driver.survives_server

    def lock(self, sandbox_id: str) -> asyncio.Lock:
        """Give the lock under which the state of a sandbox changes."""
        return self._locks.setdefault(sandbox_id, asyncio.Lock())

    def _spawn(self, action: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        async def guarded() -> None:
            try:
                await action
            except Exception:
                log.exception("%s failed", name)

        return self._tasks.start(guarded(), name=name)

    async def meanwhile(
        self, actions: Mapping[str, Coroutine[Any, Any, None]], wait_s: float
    ) -> None:
        """Do something with sandboxes beside the caller, who waits for it for a while only.

        One of which something is being done already is passed over; errors are logged.
        """
        tasks = set[asyncio.Task[None]]()
        for sandbox_id, action in actions.items():
            if sandbox_id in self._busy:
                action.close()
                continue
            self._busy.add(sandbox_id)
            task = self._spawn(action, f"housekeeping of {sandbox_id}")
            task.add_done_callback(functools.partial(self._not_busy, sandbox_id))
            tasks.add(task)
        if tasks:
            await asyncio.wait(tasks, timeout=wait_s)

    def _not_busy(self, sandbox_id: str, _: asyncio.Task[None]) -> None:
        self._busy.discard(sandbox_id)

    # Rows.

    async def _row(self, sandbox_id: str) -> Sandbox:
        row = await rows.sandbox(self.deps, sandbox_id)
        if row is None:
            raise rows.absent("id")
        return row

    async def _terms(self, sandbox_id: str) -> tuple[Limits, Policy]:
        async with self.deps.db.reading() as connection:
            limits = (
                await connection.execute(
                    select(SandboxResources).where(SandboxResources.sandbox_id == sandbox_id)
                )
            ).one()
            policy = (
                await connection.execute(
                    select(
                        SandboxSecurityPolicy.network_policy, SandboxSecurityPolicy.env_variables
                    ).where(SandboxSecurityPolicy.sandbox_id == sandbox_id)
                )
            ).one()
        return (
            Limits(
                cpu_millis=limits.cpu_limit,
                memory_bytes=limits.memory_limit,
                disk_bytes=limits.disk_limit,
                pids=limits.pids_limit,
                inodes=limits.inodes_limit,
                # Not `network_limit`: what is let out holds that one, not the driver.
            ),
            Policy.from_json({"network": policy.network_policy, "env": policy.env_variables}),
        )

    async def _set(
        self,
        sandbox_id: str,
        status: SandboxStatus,
        expected: Sequence[SandboxStatus],
        *,
        cleared: str | None = None,
        **values: Any,
    ) -> bool:
        """Change the row of a sandbox, and say so; not one of another node or in another state.

        `cleared` says why nobody asked for its end, for the record of cleaning up.
        """
        if not status.is_live:
            values = {"stop_requested_at": None, **values}
        async with work(self.deps) as unit:
            changed = await unit.session.execute(
                update(Sandbox)
                .where(
                    Sandbox.id == sandbox_id,
                    Sandbox.node_id == self.deps.bus.node_id,
                    Sandbox.status.in_(expected),
                )
                .values(status=status, **values)
            )
            is_changed = bool(changed.rowcount)  # type: ignore[attr-defined]
            if is_changed and cleared:
                removals.record(unit, Kind.SANDBOX, sandbox_id, cleared, sandbox_id=sandbox_id)
            return is_changed

    async def go_on(self, live: Live, client: SandboxClient) -> None:
        """Serve a sandbox by a client: go on with what outlived an earlier one, and settle what
        did not.

        To be called under the lock of the sandbox, once for each of its clients. Raises what
        reading raises: then nothing has changed, and the client is closed.
        """
        try:
            unfinished = await rows.unfinished(self.deps, sandbox_id=live.sandbox_id)
        except BaseException:
            await client.aclose()
            raise
        # From here to where it is watched nothing waits, nor fails.
        live.client = client
        running = [row for row in unfinished if row.status is RunState.RUNNING]
        lost = [row for row in running if not self._go_on_with(live, client, row.id)]
        for execution in client.kept.values():
            execution.release()
        client.kept.clear()
        live.is_renewed.set()
        self._add(live)
        for row in lost:
            if not await settling.settle_or_leave(self.deps, row):
                return

    def _go_on_with(self, live: Live, client: SandboxClient, execution_id: str) -> bool:
        """Tell whether an execution goes on: it is kept inside, or its run still ends it."""
        name = self.kept_name(client, execution_id)
        before = live.runs.get(execution_id)
        if name is None:
            return before is not None
        current = live.runs[execution_id] = Run(execution_id, name)
        work = functools.partial(self._resume, before, client, current, client.kept.pop(name))
        self._spawn(self._until_done(live, current, work), f"resume {execution_id}")
        return True

    def kept_name(self, client: SandboxClient, execution_id: str) -> str | None:
        """Give the name by which a client keeps an execution that nobody goes on with yet."""
        names = (self._name(execution_id, is_bound=bound) for bound in (False, True))
        return next((name for name in names if name in client.kept), None)

    def _name(self, execution_id: str, *, is_bound: bool) -> str:
        """Name an execution for the agent: what is bound to this process, no other goes on with."""
        if not self.survives:
            return ""
        return f"{execution_id}/{self._nonce}" if is_bound else execution_id

    async def _settle_lost(self, sandbox_id: str, *, keep_pending: bool) -> None:
        """Settle what ended with a sandbox; what is not settled now, housekeeping looks for."""
        try:
            unfinished = await rows.unfinished(self.deps, sandbox_id=sandbox_id)
        except SQLAlchemyError:
            log.warning("nothing was settled yet", extra={"sandbox_id": sandbox_id}, exc_info=True)
            return
        for row in unfinished:
            is_due = row.status is RunState.RUNNING or not keep_pending
            if is_due and not await settling.settle_or_leave(self.deps, row):
                # The others would wait as long, and whoever ends the sandbox with them.
                return

    # Clients and executions.

    async def connect(self, name: str, env: Mapping[str, str]) -> SandboxClient:
        channel = await self.driver.open_channel(name)
        return await SandboxClient.connect(channel, env)

    def _add(self, live: Live) -> None:
        self.live[live.sandbox_id] = live
        if live.client is not None:
            self.serve(live, live.client)

    def serve(self, live: Live, client: SandboxClient) -> None:
        """Have a client of a live sandbox watched, and tell who is to be told of it."""
        self._watch(live, client)
        for tell in self.on_added:
            tell(live)

    async def prepare(self, live: Live) -> None:
        """Do what is to be done before anything runs in a sandbox."""
        for prepare in self.preparing:
            await prepare(live)

    def _watch(self, live: Live, client: SandboxClient) -> None:
        async def watch() -> None:
            await client.wait_lost()
            if live.is_ending or live.client is not client:
                return
            if not self.survives or not await mending.mend(self, live, client):
                await self.lose(live.sandbox_id, self._why(live.driver_id))

        self._spawn(watch(), f"watch {live.sandbox_id}")

    def note_oom(self, name: str) -> None:
        """Remember that a sandbox ran out of memory, to say so if it ends now."""
        at = time.monotonic()
        self._ooms = {key: t for key, t in self._ooms.items() if at - t < _OOM_RECENT_S}
        self._ooms[name] = at

    def _why(self, name: str) -> str:
        if time.monotonic() - self._ooms.get(name, float("-inf")) < _OOM_RECENT_S:
            return "The sandbox ran out of memory and ended."
        return "The sandbox ended unexpectedly."

    def begin(self, live: Live, execution_id: str, *, is_bound: bool = False) -> None:
        """Run an execution beside the caller, unless it runs already.

        One that is bound to this process ends with it, whatever becomes of the sandbox.
        """
        if execution_id in live.runs or live.is_ending:
            return
        if live.client is None or (live.client.is_lost and self.survives):
            # It is run when there is a way to the sandbox again.
            return
        name = self._name(execution_id, is_bound=is_bound)
        current = live.runs[execution_id] = Run(execution_id, name)
        work = functools.partial(running.run, self.deps, live.client, current)
        self._spawn(self._until_done(live, current, work), f"run {execution_id}")

    async def begin_pending(self, live: Live) -> None:
        """Run what was asked for while the sandbox could not run it."""
        for row in await rows.unfinished(self.deps, sandbox_id=live.sandbox_id):
            if row.status is RunState.PENDING:
                self.begin(live, row.id)

    async def _resume(
        self, before: Run | None, client: SandboxClient, current: Run, execution: Execution
    ) -> None:
        if before is not None:
            # It still writes down what it had.
            await before.done.wait()
        await running.resume(self.deps, client, current, execution)

    async def _until_done(
        self, live: Live, current: Run, work: Callable[[], Awaitable[None]]
    ) -> None:
        try:
            await work()
        except Exception:
            log.exception("execution failed", extra={"id": current.execution_id})
            if current.execution is not None:
                current.execution.release()
            await settling.settle(self.deps, current.execution_id, settling.LOST)
        finally:
            current.done.set()
            if live.runs.get(current.execution_id) is current:
                del live.runs[current.execution_id]

    async def settle(self, execution_id: str) -> None:
        """End an execution that nothing runs any more, if it has not ended."""
        row = await rows.standing(self.deps, execution_id)
        if row is not None:
            await settling.settle_lost(self.deps, row)

    async def cancel(self, sandbox_id: str, execution_id: str) -> None:
        """End an execution, and give it a moment to end. Idempotent."""
        live = self.live.get(sandbox_id)
        current = live.runs.get(execution_id) if live is not None else None
        if live is None or current is None:
            await self.settle(execution_id)
            return
        await current.cancel()
        if not live.is_paused:
            await self._wait_for(current)

    async def _wait_for(self, current: Run) -> None:
        try:
            async with asyncio.timeout(KILL_S):
                await current.done.wait()
        except TimeoutError:
            log.info("an execution takes its time to end", extra={"id": current.execution_id})

    def client(self, sandbox_id: str) -> SandboxClient:
        """Give the client of a running sandbox, which counts as use. Raises UserError CONFLICT."""
        live = self.live.get(sandbox_id)
        if live is None or live.client is None or live.is_ending:
            raise gone()
        live.used_at = now()
        return live.client

    async def answers(self, live: Live) -> bool:
        """Tell whether there is a way to a sandbox; one that broke off is given a moment."""
        try:
            async with asyncio.timeout(MEND_S):
                while live.client is not None and live.client.is_lost and not live.is_ending:
                    live.is_renewed.clear()
                    await live.is_renewed.wait()
        except TimeoutError:
            return False
        return True

    def touch(self, sandbox_id: str) -> None:
        """Note that a sandbox is being used, so that it does not count as idle."""
        live = self.live.get(sandbox_id)
        if live is not None:
            live.used_at = now()

    async def _wait(self, live: Live, timeout_s: float) -> None:
        """Wait until the runs of a sandbox are settled, at most so long."""
        waits = [asyncio.ensure_future(current.done.wait()) for current in live.runs.values()]
        if waits:
            _, late = await asyncio.wait(waits, timeout=timeout_s)
            for wait in late:
                wait.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _tell_ending(self, live: Live) -> None:
        if not live.is_ending:
            live.is_ending = True
            live.is_renewed.set()
            for tell in self.on_ending:
                tell(live)

    @abstractmethod
    async def disown(self, sandbox_id: str) -> None:
        """Let go of a sandbox whose row has ended, or was taken over by another node."""

    @abstractmethod
    async def lose(self, sandbox_id: str, why: str) -> None:
        """Note that a sandbox ended by itself; its executions end with it."""


def driver_id(row: Sandbox) -> str:
    """Give the name the driver knows a sandbox by: its own id unless it came out of the pool."""
    return row.container_id or row.id


def gone() -> UserError:
    """Give the answer for a sandbox that has ended meanwhile."""
    return UserError(UserErrorCode.CONFLICT, "The sandbox has ended; create another one.", ("id",))
