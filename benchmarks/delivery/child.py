"""A process of the benchmark that does what it is told, one call at a time."""

import asyncio
import gc
import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import uvloop

_CALL_S = 300.0


class Child:
    """Runs `factory()` in a process of its own and calls coroutine methods of what it gives."""

    def __init__(self, factory: Callable[..., Any], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, far = context.Pipe()
        self._process = context.Process(target=_main, args=(far, factory, arguments), daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        far.close()

    def begin(self, method: str, *arguments: Any) -> None:
        """Call without waiting; `result` must follow."""
        self._pipe.send((method, arguments))

    def result(self, timeout_s: float = _CALL_S) -> Any:
        """Give what the call gave. Raises AssertionError with the child's traceback."""
        if not self._pipe.poll(timeout_s):
            raise AssertionError(f"a process of the benchmark was silent for {timeout_s:g} s")
        is_good, value = self._pipe.recv()
        if not is_good:
            raise AssertionError(value)
        return value

    def call(self, method: str, *arguments: Any) -> Any:
        """Call and wait."""
        self.begin(method, *arguments)
        return self.result()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _main(pipe: Connection, factory: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    # What a measured process must not do is stop to look for garbage.
    gc.disable()
    uvloop.run(_serve(pipe, factory(*arguments)))


async def _serve(pipe: Connection, subject: Any) -> None:
    loop = asyncio.get_running_loop()
    while True:
        try:
            method, arguments = await loop.run_in_executor(None, pipe.recv)
        except EOFError:
            return
        try:
            answer = (True, await getattr(subject, method)(*arguments))
        except Exception:  # noqa: BLE001 - raised again where the call was made.
            answer = (False, traceback.format_exc())
        pipe.send(answer)
