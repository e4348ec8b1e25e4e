"""What every server of the tests is made of: programs, processes, ports and patience.

Only the standard library is used here and in the modules of the servers, so that the keeper starts
in some ten milliseconds.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_SEARCH = os.pathsep.join(
    [os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"]
)
_POLL_S = 0.02
_LOG_TAIL_BYTES = 1500


class UnavailableError(Exception):
    """A server cannot be had here; the message says why and what would help."""


@dataclass
class Place:
    """Where one server lives: a directory of its own, and a way to say what takes long."""

    directory: Path
    say: Callable[[str], None]
    processes: list["Process"] = field(default_factory=list)
    undo: list[Callable[[], None]] = field(default_factory=list)

    async def run(self, name: str, *argv: str | Path) -> "Process":
        """Start a process that `aclose` ends. Its output goes to `<name>.log`."""
        process = Process(name, argv, self.directory / f"{name}.log")
        await process.start()
        self.processes.append(process)
        return process

    async def aclose(self) -> None:
        """End the processes, the last one first, and undo the rest. Idempotent."""
        while self.processes:
            await self.processes.pop().stop()
        while self.undo:
            await asyncio.to_thread(self.undo.pop())


class Process:
    """A server's process in a session of its own, so that Ctrl-C reaches the tests alone."""

    def __init__(self, name: str, argv: tuple[str | Path, ...], log: Path) -> None:
        self.name = name
        self._argv = [str(word) for word in argv]
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PATH": _SEARCH},
                start_new_session=True,
            )

    async def answer(self, probe: Callable[[], Awaitable[bool]], timeout_s: float = 60) -> None:
        """Return once `probe` succeeds. Raises UnavailableError if the process ends or is late."""
        assert self._process is not None
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    if self._process.returncode is not None:
                        raise UnavailableError(
                            f"{self.name} ended with code {self._process.returncode}: {self.tail()}"
                        )
                    with contextlib.suppress(OSError, EOFError):
                        if await probe():
                            return
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise UnavailableError(
                f"{self.name} did not answer within {timeout_s:.0f} s: {self.tail()}"
            ) from None

    def tail(self) -> str:
        """Give the last lines of the log."""
        return self._log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()

    def send(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    async def stop(self, grace_s: float = 20) -> None:
        """Ask the process to end; after the grace, end everything in its session."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.terminate()
            process.send_signal(signal.SIGCONT)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def program(*names: str) -> str | None:
    """Give the path of the first of the programs that is installed."""
    for name in names:
        if path := shutil.which(name, path=_SEARCH):
            return path
    return None


def free_port() -> int:
    """Give a TCP port of 127.0.0.1 that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def run_once(
    *argv: str | Path, timeout_s: float, env: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run a program to its end. Give its exit code and all of its output.

    Raises UnavailableError if it is not done in time; it is ended then.
    """
    process = await asyncio.create_subprocess_exec(
        *(str(word) for word in argv),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "PATH": _SEARCH, **(env or {})},
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(timeout_s):
            output, _ = await process.communicate()
    except TimeoutError:
        raise UnavailableError(f"{argv[0]} took more than {timeout_s:.0f} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    assert process.returncode is not None
    return process.returncode, output.decode(errors="replace")
