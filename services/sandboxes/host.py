"""The sandboxes of one process: its driver, its housekeeping, and calls to the nodes of others."""

import asyncio
import logging
import weakref
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

from models.sandboxes import Sandbox
from sandbox import select as drivers
from sandbox.base import Capabilities, DriverEventKind, SandboxDriver
from sandbox.errors import SandboxError
from services.base import Deps, Viewer
from services.errors import UserError, UserErrorCode, UserErrors
from services.events.base import BusUnavailableError, CallError, Json, NodeUnavailableError
from services.events.calls import TaskSet
from services.sandboxes import code, housekeeping, operations, refusals
from services.sandboxes.clusters import kubernetes_options
from services.sandboxes.code import RunResult
from services.sandboxes.node import Node

log = logging.getLogger("noosphere.sandboxes")
METHOD = "sandbox"
_START_S = 2.0
_READY_S = 20.0
_CALL_S = 150.0
_LEAVE_S = 10.0
_OFF = "Sandboxes are not available: the server is still looking for a driver; try again soon."
_ASIDE = "This process only reads: it reaches no sandbox."


class SandboxHost:
    """Gives the process its sandboxes, or the reason why it has none.

    `driver` is a kind (`auto`, `docker`, `bubblewrap`, `off`) or a driver of one's own. Code never
    runs without a driver: everything that needs one then raises UserError UNAVAILABLE.
    """

    def __init__(
        self,
        *,
        driver: str | SandboxDriver = "auto",
        docker_url: str | None = None,
        state_dir: Path = Path("data/sandboxes"),
    ) -> None:
        self._wish = driver
        self._docker_url = docker_url
        self._state_dir = state_dir
        self._node: Node | None = None
        self._why = _OFF
        self._is_ready = asyncio.Event()
        self._is_closed = False
        self._is_aside = False
        self._tasks = TaskSet()
        self._attending = TaskSet()
        self._is_leaving = asyncio.Event()
        self._is_attended = False
        self._deps: Deps | None = None
        self._locks: code.Locks = weakref.WeakValueDictionary()

    # Life.

    async def start(self, deps: Deps) -> None:
        """Choose a driver, take up what an earlier process left, and begin housekeeping.

        Waits at most two seconds for it; an image that must be fetched does not delay the server.
        """
        self._deps = deps
        operations.load()
        deps.bus.serve(METHOD, self._answer)
        self._tasks.start(self._prepare(deps), name="prepare sandboxes")
        try:
            async with asyncio.timeout(_START_S):
                await self._is_ready.wait()
        except TimeoutError:
            log.info("sandboxes are being prepared")

    def stand_aside(self, deps: Deps) -> None:
        """Serve a process that only reads, in place of `start`.

        Nothing is taken up, asked or ended: what needs a host raises UserError UNAVAILABLE.
        """
        self._deps, self._why, self._is_aside = deps, _ASIDE, True
        self._is_ready.set()

    async def _prepare(self, deps: Deps) -> None:
        """Become ready; what fails, such as a database that is away, is tried again."""
        delay_s = 1.0
        is_chosen = False
        while True:
            try:
                if not is_chosen:
                    driver, self._why = await self._choose(deps)
                    is_chosen = True
                    log.log(logging.INFO if driver else logging.WARNING, "%s", self._why)
                    self._node = Node(deps, driver) if driver is not None else None
                if self._node is not None and not self._is_attended:
                    await self._attend(self._node)
                    self._is_attended = True
                await housekeeping.take_up(deps, self._node)
                break
            except Exception:
                log.exception("sandboxes could not be prepared; trying again")
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, 30.0)
        self._is_ready.set()
        if self._node is not None:
            self._tasks.start(housekeeping.run(self._node), name="sandbox housekeeping")
            self._tasks.start(self._heed(self._node), name="sandbox events")

    async def _attend(self, node: Node) -> None:
        """Enter what is attached to the node, in a task that leaves it again at the end."""
        is_entered = asyncio.Event()

        async def attend() -> None:
            try:
                async with AsyncExitStack() as stack:
                    for enter in operations.ATTACHMENTS:
                        await stack.enter_async_context(enter(node))
                    is_entered.set()
                    await self._is_leaving.wait()
            except Exception:
                log.exception("what is attached to the sandboxes failed")
                raise

        attending = self._attending.start(attend(), name="sandbox attachments")
        entered = asyncio.ensure_future(is_entered.wait())
        try:
            await asyncio.wait({attending, entered}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            entered.cancel()
        if attending.done():
            attending.result()

    async def _choose(self, deps: Deps) -> tuple[SandboxDriver | None, str]:
        if not isinstance(self._wish, str):
            await self._wish.check()
            return self._wish, f"{self._wish.name} runs the sandboxes."
        return await drivers.choose(
            self._wish,  # type: ignore[arg-type]  # the configuration has checked it.
            docker_image=deps.options.sandbox_template_image,
            docker_url=self._docker_url,
            state_dir=self._state_dir,
            docker_runtime=deps.options.sandbox_runtime,
            disk=deps.options.sandbox_disk,  # type: ignore[arg-type]  # checked as well.
            kubernetes=kubernetes_options(deps.options),
        )

    async def _heed(self, node: Node) -> None:
        """Note what the driver tells; that a sandbox ended is told by its channel as well."""
        async with aclosing(node.driver.events()) as events:  # type: ignore[type-var]
            async for event in events:
                if event.kind is DriverEventKind.OOM:
                    node.note_oom(event.sandbox_id)

    async def aclose(self) -> None:
        """End what runs, settle its rows, and let go of the driver. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        await self._tasks.aclose()
        await self._leave()
        if self._node is not None:
            try:
                await self._node.aclose()
            finally:
                await self._node.driver.aclose()

    async def _leave(self) -> None:
        """Leave what is attached to the node; what does not end in time is cancelled."""
        self._is_leaving.set()
        try:
            async with asyncio.timeout(_LEAVE_S):
                await self._attending.ended()
        except TimeoutError:
            log.warning("what is attached to the sandboxes did not end in time")
        await self._attending.aclose()

    @property
    def summary(self) -> str:
        """Say in a sentence what runs sandboxes here, or why nothing does."""
        return self._why

    async def check(self) -> str:
        """Say what runs sandboxes here. Raises SandboxError when the driver does not answer."""
        if not self._is_ready.is_set():
            return "being prepared"
        if self._node is None:
            return f"off: {self._why}"
        await self._node.driver.check()
        return self._node.driver.name

    async def doctor(self) -> list[Capabilities]:
        """Give what each driver enforces on this machine, or why it cannot work here."""
        return await drivers.report(
            docker_url=self._docker_url,
            state_dir=self._state_dir,
            docker_runtime=self.deps.options.sandbox_runtime,
        )

    # What verbs build on.

    @property
    def deps(self) -> Deps:
        """The dependencies given to `start`."""
        if self._deps is None:
            raise RuntimeError("the sandbox host has not started")
        return self._deps

    async def node(self) -> Node:
        """Give this process's node. Raises UserError UNAVAILABLE, with what to do, without one."""
        if self._is_closed:
            raise UserError(UserErrorCode.UNAVAILABLE, "The server is stopping.")
        try:
            async with asyncio.timeout(_READY_S):
                await self._is_ready.wait()
        except TimeoutError as error:
            raise UserError(UserErrorCode.UNAVAILABLE, _OFF) from error
        if self._node is None:
            raise UserError(UserErrorCode.UNAVAILABLE, self._why)
        return self._node

    async def ask(
        self, sandbox: Sandbox, operation: str, *, wait_s: float = _CALL_S, **arguments: Any
    ) -> Json:
        """Let the node that hosts the sandbox do something, here or elsewhere.

        Waits `wait_s` seconds for its answer at most. It goes on when the caller is cancelled.
        Raises UserError, UNAVAILABLE when the host does not answer; when the host is gone the
        sandbox is taken over, or FAILED.
        """
        if self._is_aside:
            raise UserError(UserErrorCode.UNAVAILABLE, _ASIDE)
        bus = self.deps.bus
        request = {"operation": operation, "sandbox_id": sandbox.id, **arguments}
        try:
            answer = await bus.call(sandbox.node_id, METHOD, request, timeout_s=wait_s)
        except NodeUnavailableError as error:
            if sandbox.node_id in await bus.nodes():
                raise _silent() from error
            node = self._node if self._is_ready.is_set() else None
            await housekeeping.take_over(self.deps, node, sandbox)
            raise UserError(
                UserErrorCode.UNAVAILABLE,
                "The host of the sandbox is gone; look at the sandbox's status and try again.",
            ) from error
        except BusUnavailableError as error:
            raise _silent() from error
        except CallError as error:
            if error.code in ("BUSY", "UNKNOWN_METHOD"):
                raise _silent() from error
            raise
        errors = answer.get("errors")
        if errors:
            found = [UserError(UserErrorCode(code), text, path) for code, text, path in errors]
            raise found[0] if len(found) == 1 else UserErrors(found)
        return dict(answer["result"])

    def tell(self, sandbox: Sandbox, operation: str, **arguments: Any) -> None:
        """Let the node that hosts the sandbox do something, and wait for no answer."""

        async def telling() -> None:
            try:
                await self.ask(sandbox, operation, **arguments)
            except (UserError, UserErrors, CallError, BusUnavailableError) as error:
                log.info("%s was not heard: %s", operation, error, extra={"id": sandbox.id})

        self._tasks.start(telling(), name=f"tell {operation}")

    async def _answer(self, request: Json) -> Json:
        try:
            node = await self.node()
            operation = operations.OPERATIONS[request["operation"]]
            return {"result": await operation(node, request["sandbox_id"], request) or {}}
        except UserErrors as errors:
            found = errors.errors
        except UserError as error:
            found = (error,)
        except SandboxError as error:
            found = (refusals.explain(error),)
        except TimeoutError:
            found = (_silent(),)
        return {"errors": [[error.code, error.message, list(error.path)] for error in found]}

    # Code for tools and plans.

    async def run_code(
        self,
        viewer: Viewer,
        *,
        code: str,
        language: str = "python",
        conversation_id: str | None = None,
        timeout_s: int | None = None,
        on_output: Callable[[str], Awaitable[None]] | None = None,
    ) -> RunResult:
        """Run code in the sandbox of a conversation, or in one of the viewer's own without one.

        See `services.sandboxes.code.run`.
        """
        return await _run_code(
            self.deps,
            self._locks,
            viewer,
            code=code,
            language=language,
            conversation_id=conversation_id,
            timeout_s=timeout_s,
            on_output=on_output,
        )


_run_code = code.run


def _silent() -> UserError:
    return UserError(
        UserErrorCode.UNAVAILABLE, "The sandbox's host did not answer in time; try again."
    )
