"""Queries through the whole product, side by side with Node servers and a hand-written floor.

All of them run on this machine on the same data, each in one process, and are asked in turn in
every round. Every body is compared; a wrong or failed answer fails the run. Ours authenticates
every request, and applies access rules, cost limits and metrics. The Node servers and the floor do
none of that, which is to their advantage. Ratios are medians over the rounds; on a busy machine
look at the CPU times.

  Q1   a conversation with 50 messages and their authors
  Q2   20 conversations with 10 messages and authors each
  Q3   a Relay-style query: node, fragments, connections with edges, cursors and pageInfo

  rates       requests/s, p50, p99 and CPU of every server at several numbers of connections
  statements  how many statements an operation takes, counted by the database
  processes   how throughput grows with processes
  growth      what ten times the data cost
"""

import argparse
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import uvloop

from benchmarks.querying import report, statements
from benchmarks.querying.data import Shape
from benchmarks.querying.operations import OPERATIONS, Operation
from benchmarks.querying.report import Findings
from benchmarks.querying.servers import KINDS, NODE, OURS, Kind, Server, default_cache, start
from benchmarks.querying.world import World
from tests.servers.base import UnavailableError

_PARTS = ("rates", "statements", "processes", "growth")
_PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
_SCALED = ("noosphere-asyncmy", "yoga-jit", "floor-asyncmy")
_PROCESSES = (1, 2, 4)
_SCALED_CONNECTIONS = 64


class Run:
    """One run: what was asked for, and what was found."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.findings = Findings()
        self.left_out: dict[str, str] = {}

    @property
    def operations(self) -> list[Operation]:
        """The operations that are asked."""
        return [OPERATIONS[name] for name in self.arguments.queries]

    @property
    def kinds(self) -> list[Kind]:
        """The servers asked for, ours first: what ours answer is expected of the others."""
        chosen = [KINDS[name] for name in KINDS if name in self.arguments.peers]
        return [kind for kind in chosen if kind.name not in self.left_out]

    @asynccontextmanager
    async def running(
        self, world: World, kinds: Sequence[Kind], processes: int = 1
    ) -> AsyncIterator[list[Server]]:
        """Start servers for the block. What cannot be had here is left out, loudly."""
        servers: list[Server] = []
        try:
            for kind in kinds:
                try:
                    server = await start(kind, world, self.arguments.cache, processes)
                except UnavailableError as error:
                    self.left_out[kind.name] = str(error)
                    say(f"LEFT OUT: {kind.name}: {error}")
                    continue
                servers.append(server)
                if kind.family == OURS:
                    for operation in self.operations:
                        await world.learn(operation, kind, f"http://127.0.0.1:{server.ports[0]}")
            yield servers
        finally:
            for server in servers:
                server.close()

    async def warm(self, servers: Sequence[Server]) -> None:
        """Let compilers, caches and pools of all servers get ready."""
        for operation in self.operations:
            for server in servers:
                if server.kind.speaks(operation):
                    await server.measure(
                        operation,
                        connections=report.BAR_CONNECTIONS,
                        seconds=self.arguments.warm_up,
                    )

    async def rates(self, servers: Sequence[Server]) -> None:
        """Measure every server at every operation and number of connections."""
        await self.warm(servers)
        for operation in self.operations:
            speaking = [server for server in servers if server.kind.speaks(operation)]
            for connections in self.arguments.connections:
                cell = self.findings.rates.setdefault((operation.name, connections), {})
                for _ in range(self.arguments.rounds):
                    for server in speaking:
                        measured = await server.measure(
                            operation, connections=connections, seconds=self.arguments.seconds
                        )
                        cell.setdefault(server.kind.name, []).append(measured)
                print("\n".join(report.show_cell((operation.name, connections), cell)), flush=True)
        for server in servers:
            print(f"{server.kind.name} used {server.idle:.1%} of a core while nobody asked it.")

    async def statements(self, world: World, servers: Sequence[Server]) -> None:
        """Count the statements of our servers on MariaDB."""
        for server in servers:
            if server.kind.family != OURS or not server.kind.driver.startswith("mysql"):
                continue
            for operation in self.operations:
                counted = await statements.count(server, world, operation)
                self.findings.statements[server.kind.name, operation.name] = counted
                print(f"{server.kind.name}, {operation.name}: {dict(counted)}", flush=True)

    async def processes(self, world: World) -> None:
        """Measure Q1 with several processes, each of them on a port of its own."""
        operation = self.operations[0]
        for kind in self._scaled():
            for _ in range(self.arguments.rounds):
                for number in self.arguments.processes:
                    async with self.running(world, [kind], number) as servers:
                        for server in servers:
                            await self.warm([server])
                            measured = await server.measure(
                                operation,
                                connections=_SCALED_CONNECTIONS,
                                seconds=self.arguments.seconds,
                            )
                            key = (kind.name, number)
                            self.findings.processes.setdefault(key, []).append(measured)
                            print(
                                f"{operation.name}, {kind.name}, {number} processes:"
                                f" {measured.round.rate:.0f}/s",
                                flush=True,
                            )

    async def growth(self, directory: Path, small: World) -> None:
        """Measure the same servers with the data and with several times as much."""
        factor = self.arguments.factor
        async with World(directory, self.shape.times(factor), say) as large:
            kinds = self._scaled()
            async with self.running(small, kinds) as few, self.running(large, kinds) as many:
                await self.warm([*few, *many])
                for operation in self.operations:
                    for _ in range(self.arguments.rounds):
                        for size, servers in ((1, few), (factor, many)):
                            await self._grown(operation, size, servers)

    async def _grown(self, operation: Operation, size: int, servers: Sequence[Server]) -> None:
        for server in servers:
            if not server.kind.speaks(operation):
                continue
            measured = await server.measure(
                operation, connections=report.BAR_CONNECTIONS, seconds=self.arguments.seconds
            )
            key = (operation.name, server.kind.name, size)
            self.findings.growth.setdefault(key, []).append(measured)
            rate = f"{measured.round.rate:.0f}/s"
            print(f"{operation.name}, {server.kind.name}, data × {size}: {rate}", flush=True)

    def _scaled(self) -> list[Kind]:
        return [kind for kind in self.kinds if kind.name in _SCALED]

    @property
    def shape(self) -> Shape:
        """How much data there are."""
        arguments = self.arguments
        return Shape(arguments.users, arguments.conversations, arguments.messages)

    async def go(self, directory: Path) -> None:
        """Measure everything that was asked for."""
        only = self.arguments.only
        async with World(directory / "small", self.shape, say) as world:
            if "rates" in only or "statements" in only:
                async with self.running(world, self.kinds) as servers:
                    if "statements" in only:
                        await self.statements(world, servers)
                    if "rates" in only:
                        await self.rates(servers)
            if "processes" in only:
                await self.processes(world)
            if "growth" in only:
                await self.growth(directory / "large", world)


def say(text: str) -> None:
    """Tell what is going on."""
    print(text, file=sys.stderr, flush=True)


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=_PARTS, default=["rates", "statements"], help="which parts")
    add("--queries", nargs="+", choices=list(OPERATIONS), default=list(OPERATIONS))
    add("--peers", nargs="+", choices=list(KINDS), default=list(KINDS), help="which servers")
    add("--connections", type=int, nargs="+", default=[1, 16, 64])
    add("--rounds", type=int, default=5)
    add("--seconds", type=float, default=2.0, help="of each round")
    add("--warm-up", type=float, default=2.0, help="seconds, of each server and query")
    add("--users", type=int, default=1_000)
    add("--conversations", type=int, default=10_000)
    add("--messages", type=int, default=120_000)
    add("--processes", type=int, nargs="+", default=list(_PROCESSES))
    add("--factor", type=int, default=10, help="how many times the data for `growth`")
    add("--cache", type=Path, default=default_cache(), help="where the peers' packages are kept")
    add("--write", type=Path, nargs="?", const=_PAGE, help="put the tables into a page")
    add("--check", action="store_true", help="exit with 1 when a bar is missed or a peer left out")
    arguments = parser.parse_args(given)
    if not any(KINDS[name].family == OURS for name in arguments.peers):
        parser.error("one of ours must be among the servers: it tells what is right")
    return arguments


def main(given: list[str] | None = None) -> int:
    """Run the comparison; gives the exit code."""
    arguments = _arguments(given)
    run, before = Run(arguments), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        uvloop.run(run.go(Path(name)))
    bars = report.bars(run.findings)
    run.findings.circumstances = (
        f"Last written on {os.cpu_count()} cores, with {before:.0f} to {os.getloadavg()[0]:.0f}"
        f" processes wanting them, after {arguments.rounds} rounds of {arguments.seconds:g} s."
    )
    print(f"\n{run.findings.circumstances}")
    print("\n".join(map(str, bars)))
    for left_out, reason in run.left_out.items():
        print(f"LEFT OUT: {left_out}: {reason}")
    if arguments.write is not None:
        report.write(arguments.write, run.findings)
    is_complete = not any(KINDS[left_out].family == NODE for left_out in run.left_out)
    is_met = is_complete and all(bar.is_met for bar in bars)
    return 1 if arguments.check and not is_met else 0


if __name__ == "__main__":
    sys.exit(main())
