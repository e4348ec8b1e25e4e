"""Running a tool: arguments checked, time bounded, the run kept, failure told as a result."""

import asyncio
import logging
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select, update

from models.base import new_id, now
from models.states import RunState
from models.tools import Tool, ToolExecution
from services.base import Deps, work
from services.errors import UserError, UserErrors
from services.tools import arguments as args
from services.tools.base import BuiltIn, Done, ToolContext, ToolError
from services.tools.registry import check_arguments, find, refusal, specs

__all__ = [
    "Outcome",
    "ToolContext",
    "check_arguments",
    "execute",
    "settle_lost",
    "specs",
]

log = logging.getLogger("noosphere.tools")
_CODE = re.compile(r"[A-Z][A-Z_]+")
# How long a cancelled run may take to note that it was cancelled.
_FAREWELL_S = 5.0
# A run still open so long after its time is over has lost its process.
_LOST_AFTER_S = 60


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. `result` is JSON; after a failure it holds `error {code message}`.

    `execution_id` is None only for a tool that does not exist: there is nothing to keep a run of.
    """

    execution_id: str | None
    is_ok: bool
    result: Any


async def execute(context: ToolContext, name: str, arguments: str | Mapping[str, Any]) -> Outcome:
    """Run the tool `name` for the context's viewer, with a JSON object or its text.

    A failure of any kind (unknown or disabled tool, wrong arguments, timeout, an error of the tool)
    is an outcome, never an exception. Cancelling marks the run CANCELED.

    Raises UnauthenticatedError for an anonymous viewer.
    """
    user_id = context.viewer.id
    found, names = await find(context.deps, name)
    if found is None:
        return Outcome(None, False, _failure(*_said([refusal(found, name, names)])))
    run = _Run(context.deps, new_id(ToolExecution.prefix), found.id, user_id)
    tool = found.built_in
    if tool is None or not found.is_enabled:
        return await run.refuse(None, [refusal(found, name, names)])
    given: dict[str, Any] | None = None
    try:
        given = args.read(arguments)
        checked = await asyncio.to_thread(args.check, name, tool.input_schema, given)
    except UserErrors as errors:
        return await run.refuse(given, errors.errors)
    except UserError as error:
        return await run.refuse(given, [error])
    await run.begin(checked)
    return await _attempt(context, tool, run, checked)


async def _attempt(
    context: ToolContext, tool: BuiltIn, run: "_Run", arguments: dict[str, Any]
) -> Outcome:
    try:
        async with asyncio.timeout(tool.timeout_s) as limit:
            done = await tool.run(context, arguments)
    except asyncio.CancelledError:
        await run.cancel()
        raise
    except TimeoutError as error:
        if not limit.expired():
            # A wait inside the tool, not the tool as a whole.
            return await run.fail(*_masked(tool, run, error))
        return await run.fail(
            "TIMED_OUT",
            f"The tool {tool.name} took longer than {tool.timeout_s} seconds and was stopped.",
            status=RunState.TIMED_OUT,
        )
    except ToolError as error:
        return await run.fail(
            error.code,
            error.message,
            status=error.status,
            details=error.details,
            sandbox_id=error.sandbox_id,
        )
    except Exception as error:  # noqa: BLE001 - sorted by `_told`; what it does not know is masked.
        told = _told(error)
        return await run.fail(*(told or _masked(tool, run, error)))
    return await run.complete(done)


def _told(error: Exception) -> tuple[str, str] | None:
    """Give code and message of an error that is meant for the user, or None."""
    if isinstance(error, UserErrors):
        return _said(error.errors)
    # Errors of sandboxes, providers, calls between nodes and requests have both as well.
    code, message = getattr(error, "code", None), getattr(error, "message", None)
    is_ours = isinstance(code, str) and _CODE.fullmatch(code) and code != "INTERNAL"
    return (str(code), message) if is_ours and isinstance(message, str) else None


def _said(errors: Sequence[UserError]) -> tuple[str, str]:
    return str(errors[0].code), " ".join(error.message for error in errors)


def _masked(tool: BuiltIn, run: "_Run", error: Exception) -> tuple[str, str]:
    error_id = f"err_{secrets.token_hex(6)}"
    log.error(
        "tool failed unexpectedly",
        exc_info=error,
        extra={"tool": tool.name, "tool_execution_id": run.id, "error_id": error_id},
    )
    return (
        "INTERNAL",
        f"The tool {tool.name} failed unexpectedly. The server's log has it as {error_id}.",
    )


def _failure(code: str, message: str, details: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {**(details or {}), "error": {"code": code, "message": message}}


@dataclass(frozen=True, slots=True)
class _Run:
    """One row of `tool_executions`."""

    deps: Deps
    id: str
    tool_id: str
    user_id: str

    async def begin(self, parameters: dict[str, Any]) -> None:
        """Note that the run is asked for, and that it begins."""
        at = now()
        await self._add(parameters, status=RunState.RUNNING, started_at=at)

    async def refuse(
        self, parameters: dict[str, Any] | None, errors: Sequence[UserError]
    ) -> Outcome:
        """Note a call that was not run."""
        code, message = _said(errors)
        result = _failure(code, message)
        await self._add(
            parameters,
            status=RunState.FAILED,
            result=result,
            error_code=code,
            error_message=message,
            completed_at=now(),
        )
        return Outcome(self.id, False, result)

    async def complete(self, done: Done) -> Outcome:
        """Note what the tool made."""
        await self._settle(status=RunState.COMPLETED, result=done.value, sandbox_id=done.sandbox_id)
        return Outcome(self.id, True, done.value)

    async def fail(
        self,
        code: str,
        message: str,
        *,
        status: RunState = RunState.FAILED,
        details: Mapping[str, Any] | None = None,
        sandbox_id: str | None = None,
    ) -> Outcome:
        """Note why the tool did not do it."""
        result = _failure(code, message, details)
        await self._settle(
            status=status,
            result=result,
            error_code=code[:50],
            error_message=message,
            sandbox_id=sandbox_id,
        )
        return Outcome(self.id, False, result)

    async def cancel(self) -> None:
        """Note that the run was cancelled, within seconds; `settle_lost` mends what is missed."""
        message = "The run was canceled."
        try:
            async with asyncio.timeout(_FAREWELL_S):
                await self._settle(
                    status=RunState.CANCELED,
                    result=_failure("CANCELED", message),
                    error_code="CANCELED",
                    error_message=message,
                )
        except Exception:  # The cancellation must go on whatever becomes of the note.
            log.exception("a canceled run could not be noted", extra={"tool_execution_id": self.id})

    async def _add(self, parameters: dict[str, Any] | None, **values: Any) -> None:
        async with work(self.deps) as unit:
            unit.session.add(
                ToolExecution(
                    id=self.id,
                    tool_id=self.tool_id,
                    user_id=self.user_id,
                    parameters=parameters,
                    **values,
                )
            )

    async def _settle(self, **values: Any) -> None:
        async with work(self.deps) as unit:
            await unit.session.execute(
                update(ToolExecution)
                .where(ToolExecution.id == self.id, ToolExecution.status == RunState.RUNNING)
                .values(completed_at=now(), **values)
            )


async def settle_lost(deps: Deps, *, begun_before: datetime | None = None) -> int:
    """Fail the runs whose process ended before them; gives how many. For a periodic task.

    They are those whose time is long over, and those that began before `begun_before`: a time since
    when no process but the caller's lives.
    """
    at = now()
    async with work(deps) as unit:
        rows = (
            await unit.session.execute(
                select(ToolExecution.id, ToolExecution.started_at, Tool.timeout_s)
                .join(Tool, Tool.id == ToolExecution.tool_id)
                .where(ToolExecution.status == RunState.RUNNING)
            )
        ).all()
        lost = [
            row.id
            for row in rows
            if row.started_at is None
            or (begun_before is not None and row.started_at < begun_before)
            or row.started_at + timedelta(seconds=row.timeout_s + _LOST_AFTER_S) < at
        ]
        if lost:
            message = "The server ended while the tool ran."
            await unit.session.execute(
                update(ToolExecution)
                .where(ToolExecution.id.in_(lost), ToolExecution.status == RunState.RUNNING)
                .values(
                    status=RunState.FAILED,
                    result=_failure("LOST", message),
                    error_code="LOST",
                    error_message=message,
                    completed_at=at,
                )
            )
        return len(lost)
