"""A process of the benchmark that does what it is told, one call at a time."""

import asyncio
import gc
import importlib
import multiprocessing
import subprocess
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvloop

_ROOT = Path(__file__).parents[2]
_CALL_S = 300.0


class Child:
    """Runs `factory()` in a process of its own and calls coroutine methods of what it gives."""

    def __init__(self, factory: Callable[..., Any], *arguments: Any) -> None:
        self._pipe, far = multiprocessing.Pipe()
        # Not through multiprocessing, which imports all of the main module in every process.
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.delivery.child"),
                *(str(far.fileno()), factory.__module__, factory.__qualname__),
            ],
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
            pass_fds=[far.fileno()],
        )
        self.pid = self._process.pid
        far.close()
        self._pipe.send(arguments)

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
        self._process.kill()
        self._process.wait()


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


def _main(descriptor: str, module: str, name: str) -> None:
    # What a measured process must not do is stop to look for garbage.
    gc.disable()
    pipe: Connection = Connection(int(descriptor))
    factory = getattr(importlib.import_module(module), name)
    uvloop.run(_serve(pipe, factory(*pipe.recv())))


if __name__ == "__main__":
    _main(*sys.argv[1:])
