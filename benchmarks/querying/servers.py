"""The servers that are compared, each as one process or several on ports of their own."""

import asyncio
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.delivery.processes import cpu_s
from benchmarks.load import Answers, Round, measure
from benchmarks.querying import operations
from benchmarks.querying.operations import CURSORS, Operation
from benchmarks.querying.world import World
from tests.product import ROOT, Product, free_port
from tests.servers.base import UnavailableError, program

SOURCE = ROOT / "benchmarks" / "peers" / "graphql-servers"
OURS, NODE, FLOOR = "noosphere", "node", "floor"
_INSTALL_S = 900
_START_S = 90.0
_STEP_S = 0.05


@dataclass(frozen=True, slots=True)
class Kind:
    """A server that can be started: `argv` and environment of one of its processes.

    `driver` names the database as the server's own URLs do.
    """

    name: str
    family: str
    driver: str
    argv: tuple[str, ...] = ()

    def speaks(self, operation: Operation) -> bool:
        """Tell whether it can be asked."""
        return self.family != FLOOR or operation.name != "Q3"


KINDS = {
    kind.name: kind
    for kind in (
        Kind("noosphere-asyncmy", OURS, "mysql+asyncmy"),
        Kind("noosphere-aiomysql", OURS, "mysql+aiomysql"),
        Kind("noosphere-sqlite", OURS, "sqlite+aiosqlite"),
        Kind("yoga", NODE, "mysql", ("yoga.mjs",)),
        Kind("yoga-jit", NODE, "mysql", ("yoga.mjs", "jit")),
        Kind("apollo", NODE, "mysql", ("apollo.mjs",)),
        Kind("postgraphile", NODE, "postgres", ("postgraphile.mjs",)),
        Kind("floor-asyncmy", FLOOR, "mysql+asyncmy"),
        Kind("floor-aiomysql", FLOOR, "mysql+aiomysql"),
    )
}


@dataclass(frozen=True, slots=True)
class Measured:
    """A round with what it took of the server's processors: seconds for each request."""

    round: Round
    cpu_s: float


class Server:
    """A running server; `close` ends it."""

    def __init__(
        self,
        kind: Kind,
        world: World,
        ports: Sequence[int],
        pids: Sequence[int],
        close: Sequence[Callable[[], None]],
    ) -> None:
        self.kind, self.ports, self.pids = kind, ports, pids
        self._world, self._close = world, close
        self._requests: dict[str, tuple[list[bytes], Answers]] = {}
        self._since, self._since_cpu_s = time.monotonic(), self._used_s()
        self._asked_s = self._asked_cpu_s = 0.0

    def _used_s(self) -> float:
        return sum(cpu_s(pid) for pid in self.pids)

    @property
    def idle(self) -> float:
        """The share of a core that it has used while nobody asked it."""
        elapsed_s = time.monotonic() - self._since - self._asked_s
        return (self._used_s() - self._since_cpu_s - self._asked_cpu_s) / elapsed_s

    def close(self) -> None:
        """End its processes."""
        for close in self._close:
            close()

    def requests(self, operation: Operation) -> list[bytes]:
        """Give the requests of an operation as this server wants them."""
        if self.kind.family == OURS:
            return operations.graphql(operation, self._world.shape, self._world.headers(self.kind))
        if self.kind.family == FLOOR:
            return operations.floor(operation, self._world.shape)
        if self.kind.name == "postgraphile":
            return operations.postgraphile(operation, self._world.shape)
        return operations.graphql(operation, self._world.shape, {})

    async def measure(self, operation: Operation, *, connections: int, seconds: float) -> Measured:
        """Measure one round. Raises AssertionError for a wrong answer."""
        known = self._requests.get(operation.name)
        if known is None:
            # Its cursors are PostGraphile's own; all else must be equal.
            ignored = CURSORS if self.kind.name == "postgraphile" else frozenset[str]()
            answers = Answers(self.kind.name, self._world.expected(operation), ignored)
            known = self._requests[operation.name] = (self.requests(operation), answers)
        begun, before_s = time.monotonic(), self._used_s()
        found = await measure(
            self.ports, known[0], connections=connections, seconds=seconds, answers=known[1]
        )
        used_s = self._used_s() - before_s
        self._asked_s += time.monotonic() - begun
        self._asked_cpu_s += used_s
        return Measured(found, used_s / found.requests)


async def start(kind: Kind, world: World, cache: Path, processes: int = 1) -> Server:
    """Start a server. Raises UnavailableError when something it needs cannot be had."""
    if kind.family == OURS:
        return await _start_product(kind, world, processes)
    url = await world.url(kind.driver)
    ports, pids, closes = [], [], []
    for _ in range(processes):
        port = free_port()
        process = _spawn(kind, url, port, world, cache)
        ports.append(port)
        pids.append(process.pid)
        closes.append(partial(_end, process))
        try:
            await _answers(kind.name, process, port, world.log(kind.name))
        except BaseException:
            for close in closes:
                close()
            raise
    return Server(kind, world, ports, pids, closes)


async def _start_product(kind: Kind, world: World, processes: int) -> Server:
    environment = await world.environment(kind.driver, is_shared=processes > 1)
    products: list[Product] = []
    try:
        for number in range(processes):
            directory = world.data_directory(kind, number if processes > 1 else None)
            product = Product(directory, **environment)
            products.append(product)
            # Starting polls: not on the loop that measures.
            await asyncio.to_thread(product.start, within_s=_START_S)
    except BaseException:
        for product in products:
            product.close()
        raise
    await world.sign_in(kind, products[0].url)
    pids = [product.process.pid for product in products if product.process is not None]
    closes = [product.close for product in products]
    return Server(kind, world, [product.port for product in products], pids, closes)


def _spawn(kind: Kind, url: str, port: int, world: World, cache: Path) -> "subprocess.Popen[bytes]":
    environment = dict(os.environ)
    if kind.family == FLOOR:
        argv, directory = [sys.executable, "-m", "benchmarks.floor", url, str(port)], ROOT
    else:
        directory = install(cache)
        node = directory / "node_modules" / _node_package() / "bin" / "node"
        argv = [str(node), *kind.argv]
        environment |= {
            "NODE_ENV": "production",
            "GRAPHILE_ENV": "production",
            "DATABASE_URL": url,
            "VIEWER_ID": world.shape.viewer_id,
            "PORT": str(port),
        }
    with world.log(kind.name).open("ab") as log:
        return subprocess.Popen(
            argv, cwd=directory, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


async def _answers(name: str, process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        with suppress(OSError):
            (await asyncio.open_connection("127.0.0.1", port))[1].close()
            return
        if process.poll() is not None or time.monotonic() > deadline:
            output = await asyncio.to_thread(log.read_text)
            raise AssertionError(f"{name} did not start: {output[-2000:]}")
        await asyncio.sleep(_STEP_S)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def default_cache() -> Path:
    """Give where the packages of the peers are kept between runs."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "noosphere-benchmarks"


def _node_package() -> str:
    machine = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine())
    if machine is None or sys.platform != "linux":
        raise UnavailableError("the peers' Node.js is there for Linux on x86-64 and ARM64 alone")
    return f"node-linux-{machine}"


def install(cache: Path) -> Path:
    """Install the locked packages once, Node.js among them; gives the folder.

    Raises UnavailableError without npm, or when it fails.
    """
    npm = program("npm")
    if npm is None:
        raise UnavailableError("the peers need npm")
    lock = (SOURCE / "package-lock.json").read_bytes()
    folder = cache / f"graphql-servers-{hashlib.sha256(lock).hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        for file in (*SOURCE.glob("*.json"), *SOURCE.glob("*.mjs")):
            if file.read_bytes() != _content(folder / file.name):
                shutil.copy(file, folder / file.name)
        if not (folder / ".complete").exists():
            command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            done = subprocess.run(
                command, cwd=folder, check=False, capture_output=True, timeout=_INSTALL_S
            )
            if done.returncode != 0:
                raise UnavailableError(f"npm failed: {done.stderr.decode()[-1000:]}")
            (folder / ".complete").touch()
    return folder


def _content(file: Path) -> bytes:
    return file.read_bytes() if file.exists() else b""
