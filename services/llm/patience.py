"""Limits on many short waits."""

import asyncio
from types import TracebackType
from typing import Self


class Patience:
    """Limits the waits of one task, one after the other, with one timer for all of them.

    `with patience.until(when):` cancels what the block waits for at `when`, by the clock of the
    loop, and then raises TimeoutError, as `asyncio.timeout_at` does. That one sets a timer for
    every wait, which costs more than anything else that is done with a token; here the timer only
    looks whether somebody waits beyond their time. Close it after the last wait.
    """

    __slots__ = ("_cancelling", "_has_run_out", "_is_waiting", "_loop", "_task", "_timer", "_until")

    def __init__(self) -> None:
        """Begin for the present task."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - who waits is a task.
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._until = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._cancelling = 0
        self._is_waiting = self._has_run_out = False

    def until(self, when: float) -> Self:
        """Set the end of the wait that begins now."""
        self._until = when
        return self

    def __enter__(self) -> None:
        """Begin to wait."""
        self._is_waiting, self._cancelling = True, self._task.cancelling()
        if self._timer is None or self._timer.when() > self._until:
            self.close()
            self._timer = self._loop.call_at(self._until, self._look)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the wait. Raises TimeoutError if its time ran out and nobody else cancelled it."""
        self._is_waiting = False
        if self._has_run_out:
            self._has_run_out = False
            left = self._task.uncancel()
            if left <= self._cancelling and kind is asyncio.CancelledError:
                raise TimeoutError from error

    def close(self) -> None:
        """Let the timer go."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if not self._is_waiting:
            return
        if self._loop.time() < self._until:
            self._timer = self._loop.call_at(self._until, self._look)
            return
        self._has_run_out = True
        self._task.cancel()
