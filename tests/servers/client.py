"""The test run's side of the keeper: launch it, ask it, let it go."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.servers.base import UnavailableError

_SOCKET = "NOOSPHERE_TEST_SERVERS"
# Longer than the keeper lets any start take, installing packages included.
_ANSWER_TIMEOUT_S = 1800.0
# Engines with containers take longest to end.
_CLOSE_TIMEOUT_S = 90.0

VARIABLES = {
    "mysql": ("NOOSPHERE_TEST_MYSQL_URL",),
    "redis": ("NOOSPHERE_TEST_REDIS_URL",),
    "docker": ("NOOSPHERE_TEST_DOCKER_URL", "NOOSPHERE_TEST_DOCKER_IMAGE"),
    "bubblewrap": ("NOOSPHERE_TEST_BUBBLEWRAP",),
    "browser": ("NOOSPHERE_TEST_BROWSER", "NOOSPHERE_TEST_CHROMEDRIVER"),
    "node": ("NOOSPHERE_TEST_NODE", "NOOSPHERE_TEST_NPM"),
    "ext4": ("NOOSPHERE_TEST_MKFS",),
    "kubectl": ("NOOSPHERE_TEST_KUBECTL",),
    "compose": ("NOOSPHERE_TEST_COMPOSE",),
    "haproxy": ("NOOSPHERE_TEST_HAPROXY",),
    "clamd": ("NOOSPHERE_TEST_CLAMD",),
    "network": ("NOOSPHERE_TEST_IP",),
    "runsc": ("NOOSPHERE_TEST_RUNSC_URL", "NOOSPHERE_TEST_RUNSC_IMAGE"),
}


class Session:
    """A keeper and the directory of its servers, for as long as this process lives."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._directory = _short_directory()
        path = self._directory / "keeper.sock"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        # Listening already, so that nobody has to wait for the keeper to have started.
        listener.listen(64)
        with listener:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.servers.keeper"),
                    *(str(listener.fileno()), str(self._directory), str(os.getpid())),
                ],
                cwd=Path(__file__).parents[2],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[listener.fileno()],
                start_new_session=True,
                text=True,
            )
        os.environ[_SOCKET] = str(path)
        self._listener = threading.Thread(target=self._listen, args=(say,), daemon=True)
        self._listener.start()

    def _listen(self, say: Callable[[str], None]) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            say(line.rstrip())

    def unavailable(self) -> dict[str, str]:
        """Give the servers that were asked for in vain, and the reasons."""
        reasons: dict[str, str] = _ask({"status": True})["unavailable"]
        return reasons

    def close(self) -> None:
        """Let the keeper end its servers; wait for it 90 s at most. Idempotent."""
        os.environ.pop(_SOCKET, None)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        # A process that a test forked and left may hold the pipe open still.
        self._process.terminate()
        try:
            self._process.wait(_CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            # It is installing packages, which must not be cut off; it ends by itself.
            return
        self._listener.join(5)
        self._process.stdout.close()
        shutil.rmtree(self._directory, ignore_errors=True)


def available() -> bool:
    """Whether a keeper, of this process or of one above it, can be asked."""
    return _SOCKET in os.environ


def prepare(names: Iterable[str]) -> None:
    """Start servers side by side. Those that cannot be had are told of when they are required."""
    if wanted := sorted(name for name in names if _given(name) is None):
        for name, answer in _ask({"require": wanted, "worker": _worker()}).items():
            _learn(name, answer)


def coordinates(name: str) -> dict[str, str]:
    """Give the environment variables of a server and set them in this process.

    Raises UnavailableError with the reason and what would help.
    """
    if (given := _given(name)) is not None:
        return given
    if name not in _known:
        _learn(name, _ask({"require": [name], "worker": _worker()})[name])
    answer = _known[name]
    if "unavailable" in answer:
        raise UnavailableError(answer["unavailable"])
    environment: dict[str, str] = answer["environment"]
    return environment


_known: dict[str, dict[str, Any]] = {}


def _learn(name: str, answer: dict[str, Any]) -> None:
    _known[name] = answer
    os.environ.update(answer.get("environment", {}))


def _given(name: str) -> dict[str, str] | None:
    """Give the variables if all are set, by the user or by an earlier answer."""
    values = {variable: os.environ.get(variable) for variable in VARIABLES[name]}
    given = {variable: value for variable, value in values.items() if value}
    return given if len(given) == len(values) else None


def _worker() -> str:
    return os.environ.get("PYTEST_XDIST_WORKER", "main")


def _ask(question: dict[str, Any]) -> dict[str, Any]:
    path = os.environ.get(_SOCKET)
    if path is None:
        raise UnavailableError("the tests' servers are not running: start them through pytest")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_ANSWER_TIMEOUT_S)
        connection.connect(path)
        with connection.makefile("rw") as stream:
            stream.write(json.dumps(question) + "\n")
            stream.flush()
            line = stream.readline()
    if not line:
        raise RuntimeError("the keeper of the tests' servers ended before it answered")
    answer: dict[str, Any] = json.loads(line)
    return answer


def _short_directory() -> Path:
    """Make a directory whose sockets have paths of fewer than 104 characters."""
    directory = tempfile.gettempdir()
    if len(directory) > 40:
        directory = "/tmp"
    return Path(tempfile.mkdtemp(prefix="noosphere-tests-", dir=directory))
