"""A Redis of one test module alone, to be killed, frozen, emptied and cut off."""

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

_READY = b"eady to accept connections"


class Redis:
    """One server on a Unix socket, and on `listen` (address, port) if given.

    `prefix` is the command it is run by, in a network of its own for example. Its data survive
    `kill`, unless `start` is told otherwise.
    """

    def __init__(
        self, *, prefix: Sequence[str] = (), listen: tuple[str, int] | None = None
    ) -> None:
        # Not under pytest's tmp_path: a socket's path may have 107 characters at most.
        self._directory = Path(tempfile.mkdtemp(prefix="nsr-"))
        self._prefix = prefix
        self._listen = listen
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{self._directory}/redis.sock"

    def start(self, *, is_empty: bool = False) -> None:
        """Start it, and return when it serves."""
        if is_empty:
            shutil.rmtree(self._directory / "appendonlydir", ignore_errors=True)
        address, port = self._listen or ("127.0.0.1", 0)
        self._process = subprocess.Popen(
            [
                *self._prefix,
                *("redis-server", "--bind", address, "--port", str(port)),
                *("--protected-mode", "no", "--unixsocket", f"{self._directory}/redis.sock"),
                *("--dir", str(self._directory), "--save", "", "--appendonly", "yes"),
            ],
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if _READY in line:
                return
        raise AssertionError("redis-server did not start")

    def kill(self) -> None:
        """End it as a power cut would. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate(timeout=10)

    def freeze(self) -> None:
        """Let it accept connections and bytes, and answer nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Make sure that it is gone, and its data with it."""
        self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)
