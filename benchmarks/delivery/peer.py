"""The Node server with graphql-ws that delivery is measured against."""

import json
import os
import select
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.delivery.subscribers import Subscription
from tests.servers.installed import npm_packages

SOURCE = Path(__file__).resolve().parents[1] / "peers" / "graphql-ws"
_INSTALL_S = 300
_ANSWER_S = 120.0


def default_cache() -> Path:
    """Give where the packages of the peer are kept between runs."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "noosphere-benchmarks"


def install(cache: Path) -> Path:
    """Install the locked packages once; gives the folder. Raises AssertionError without Node."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise AssertionError("the peer needs node and npm")
    return npm_packages(SOURCE, "graphql-ws", npm=npm, base=cache, timeout_s=_INSTALL_S)


class Peer:
    """One Node server."""

    name = "graphql-ws"

    def __init__(self, folder: Path, cursor_chars: int) -> None:
        # Node looks packages up from where a script stands, so it stands beside them.
        script = folder / f"server-{os.getpid()}.mjs"
        shutil.copy(SOURCE / "server.mjs", script)
        try:
            self._process = subprocess.Popen(
                ["node", str(script), str(cursor_chars)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "NODE_ENV": "production"},
            )
            self.port = int(self._answer()["port"])
        finally:
            script.unlink()
        self.pid = self._process.pid

    def subscriptions(self, topics: int, subscribers: int) -> Sequence[Subscription]:
        """Give what each subscriber follows."""
        numbers = [number % topics for number in range(subscribers)]
        return [Subscription(f"topic-{number}", number) for number in numbers]

    def prepare(self, kind: str, series: dict[str, Any]) -> None:
        """Note the series that `publish` begins: `burst` or `paced`."""
        self._series = {kind: series}

    def publish(self) -> int:
        """Publish the series; gives the time of the first event in nanoseconds."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(self._series).encode() + b"\n")
        self._process.stdin.flush()
        return int(self._answer()["begun"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], _ANSWER_S)
        assert ready, "the peer is silent"
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()
