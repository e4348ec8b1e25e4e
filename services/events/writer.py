"""A thread that owns a `Store` and turns the jobs of an event loop into few, shared commits."""

import asyncio
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from services.events.base import BusUnavailableError
from services.events.store import Store, StoreBusyError

_log = logging.getLogger(__name__)

T = TypeVar("T")
# Settled in one go on the loop, so that a burst to many taps leaves room for others between.
_BATCH_JOBS = 64
_CLOSE_TIMEOUT_S = 10.0


@dataclass(slots=True)
class _Job:
    run: Callable[[Store], Any]
    settle: Callable[[Any], None] | None
    future: asyncio.Future[Any]
    result: Any = None
    error: Exception | None = None


class Writer:
    """Runs jobs on the store in the order they come; all that wait at a time share one commit.

    A job's `settle` runs on the loop after the commit and before its `submit` returns, in the order
    of the jobs. The queue is as long as there are callers that wait for their job, no longer.
    """

    def __init__(
        self,
        store: Store,
        *,
        on_dropped: Callable[[Sequence[str]], None],
        on_reset: Callable[[], None],
    ) -> None:
        self._store = store
        self._on_dropped = on_dropped
        self._on_reset = on_reset
        self._jobs: list[_Job] = []
        self._condition = threading.Condition()
        self._is_stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ended: asyncio.Future[None] | None = None
        self._sweep_at = 0.0

    async def start(self) -> None:
        """Open the store. Raises BusUnavailableError with what is wrong if that fails."""
        self._loop = asyncio.get_running_loop()
        opened: asyncio.Future[None] = self._loop.create_future()
        self._ended = self._loop.create_future()
        # A daemon, so that a loop that ended without `aclose` does not keep the process alive.
        self._thread = threading.Thread(
            target=self._work, args=(opened,), name="event-log", daemon=True
        )
        self._thread.start()
        try:
            await opened
        except (StoreBusyError, sqlite3.Error, OSError) as error:
            raise BusUnavailableError(f"The event log cannot be opened: {error}") from error

    async def submit(
        self,
        run: Callable[[Store], T],
        settle: Callable[[T], None] | None = None,
        *,
        timeout_s: float,
    ) -> T:
        """Run `run` on the store's thread and give its result once that is on disk.

        Raises BusUnavailableError if it failed, was not done after `timeout_s` seconds, or the
        writer is closing. A job cancelled or late before it began is not done.
        """
        loop = asyncio.get_running_loop()
        job = _Job(run, settle, loop.create_future())
        with self._condition:
            if self._is_stopping or self._thread is None:
                raise BusUnavailableError("The event log is closed.")
            self._jobs.append(job)
            self._condition.notify()
        try:
            async with asyncio.timeout(timeout_s):
                result: T = await job.future
        except TimeoutError as error:
            raise BusUnavailableError(f"The disk did not answer in {timeout_s:g} s.") from error
        return result

    async def aclose(self) -> None:
        """Finish the jobs that wait, close the store and end the thread. Idempotent."""
        with self._condition:
            self._is_stopping = True
            self._condition.notify()
        if self._ended is None:
            return
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await asyncio.shield(self._ended)
        except TimeoutError:
            _log.error("The event log did not close in %g s", _CLOSE_TIMEOUT_S)

    def _post(self, function: Callable[..., None], *arguments: Any) -> None:
        assert self._loop is not None  # noqa: S101 - set before the thread starts.
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            # The loop ended without `aclose`: nobody is left to be told, and this thread ends too.
            self._is_stopping = True

    def _work(self, opened: asyncio.Future[None]) -> None:
        try:
            self._store.open()
        except Exception as error:  # noqa: BLE001 - reported where start() waits.
            self._is_stopping = True
            self._post(_fail, opened, error)
            self._post(_finish, self._ended)
            return
        self._post(_finish, opened)
        while jobs := self._next_batch():
            self._run(jobs)
            self._post(self._settle, jobs)
        self._store.close()
        self._post(_finish, self._ended)

    def _next_batch(self) -> list[_Job]:
        """Wait for jobs, sweeping meanwhile; nothing when the writer is to stop."""
        while True:
            with self._condition:
                if not self._jobs and not self._is_stopping:
                    self._condition.wait(self._until_sweep())
                jobs, self._jobs = self._jobs[:_BATCH_JOBS], self._jobs[_BATCH_JOBS:]
                is_stopping = self._is_stopping
            if not is_stopping and self._until_sweep() <= 0:
                self._sweep()
            if jobs:
                jobs = [job for job in jobs if not job.future.cancelled()]
                if jobs:
                    return jobs
            elif is_stopping:
                return []

    def _until_sweep(self) -> float:
        wait_s = self._sweep_at - time.monotonic()
        if self._store.next_expiry is not None:
            wait_s = min(wait_s, self._store.next_expiry - time.time())
        return max(wait_s, 0.0)

    def _sweep(self) -> None:
        self._sweep_at = time.monotonic() + self._store.sweep_interval_s
        try:
            with self._store.transaction():
                dropped, has_more = self._store.sweep()
            self._store.vacuum()
        except sqlite3.Error as error:
            _log.exception("The event log could not be swept")
            self._recover(error)
            # A disk that fails must not be asked again and again.
            self._store.next_expiry = None
            return
        if has_more:
            self._sweep_at = time.monotonic()
        if dropped:
            self._post(self._on_dropped, dropped)

    def _run(self, jobs: list[_Job]) -> None:
        """Run all jobs in one commit; if that fails, each in its own, so that only the bad fail."""
        try:
            with self._store.transaction():
                for job in jobs:
                    job.result = job.run(self._store)
        except Exception as error:  # noqa: BLE001 - reported where the job's caller waits.
            if len(jobs) > 1:
                for job in jobs:
                    self._run([job])
                return
            _log.warning("The event log refused a job: %s", error)
            if isinstance(error, sqlite3.Error):
                self._recover(error)
            jobs[0].error = BusUnavailableError("The event log could not be written.")
            jobs[0].error.__cause__ = error

    def _recover(self, error: sqlite3.Error) -> None:
        """Begin an empty file if the present one is corrupt."""
        if not self._store.is_corrupt(error):
            return
        try:
            self._store.reset(error)
        except (sqlite3.Error, OSError, StoreBusyError):
            _log.exception("The event log could not be begun anew")
        self._post(self._on_reset)

    def _settle(self, jobs: list[_Job]) -> None:
        for job in jobs:
            if job.error is None and job.settle is not None:
                job.settle(job.result)
            if job.future.done():
                continue
            if job.error is None:
                job.future.set_result(job.result)
            else:
                job.future.set_exception(job.error)


def _finish(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)


def _fail(future: asyncio.Future[None], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
