"""One measured round: the same for both servers."""

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.delivery import processes
from benchmarks.delivery.child import Child
from benchmarks.delivery.subscribers import Seen, Subscribers, Subscription
from benchmarks.delivery.texts import END

_MIB = 1_048_576


class Server(Protocol):
    """A server under measurement, and whoever publishes on it."""

    name: str
    pid: int
    port: int

    def subscriptions(self, topics: int, subscribers: int) -> Sequence[Subscription]:
        """Give what each subscriber follows."""

    def prepare(self, kind: str, series: dict[str, Any]) -> None:
        """Note the series that `publish` begins: `burst` or `paced`."""

    def publish(self) -> int:
        """Publish the series; gives the time of the first event in nanoseconds."""

    def close(self) -> None:
        """End it."""


@dataclass(frozen=True, slots=True)
class Case:
    """How many subscribers follow how many topics, and how much is published on each."""

    topics: int
    subscribers: int
    burst: int
    paced: int = 0
    rate: float = 10.0
    processes: int = 1
    in_flight: int = 100


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a series, the seconds it took, and those of a core both sides used for it."""

    seen: Seen
    elapsed_s: float
    server_s: float
    subscribers_s: float


class Crowd:
    """The subscribers of a round, spread over processes."""

    def __init__(self, count: int) -> None:
        self._children = [Child(Subscribers) for _ in range(count)]

    def _call(self, method: str, *arguments: Any) -> list[Any]:
        for child in self._children:
            child.begin(method, *arguments)
        return [child.result() for child in self._children]

    def connect(self, port: int, subscriptions: Sequence[Subscription], in_flight: int) -> float:
        """Open all; gives the seconds from the first connect to the last first event."""
        count = len(self._children)
        for number, child in enumerate(self._children):
            child.begin("connect", port, subscriptions[number::count], max(1, in_flight // count))
        times = [child.result() for child in self._children]
        return float(max(ended for _, ended in times) - min(begun for begun, _ in times)) / 1e9

    def series(self, server: Server, kind: str, series: dict[str, Any]) -> Outcome:
        """Publish a series and check all that came."""
        server.prepare(kind, series)
        self.follow(END.encode())
        before_s = processes.cpu_s(server.pid), self.cpu_s()
        begun = server.publish()
        self.received()
        server_s, own_s = processes.cpu_s(server.pid) - before_s[0], self.cpu_s() - before_s[1]
        seen = Seen()
        for part in self._call("check_series", series["first"], series["count"]):
            seen.add(part)
        return Outcome(seen, (seen.ended - begun) / 1e9, server_s, own_s)

    def cpu_s(self) -> float:
        """Give the seconds of a core the busiest of the processes has used."""
        return max(processes.cpu_s(child.pid) for child in self._children)

    def follow(self, mark: bytes) -> None:
        """Get ready for what ends with `mark`."""
        self._call("follow", mark)

    def received(self) -> None:
        """Wait until everybody has all."""
        self._call("received")

    def tokens(self, per_stream: int, begun: int, ended: int) -> tuple[Seen, set[int]]:
        """Check the tokens everybody has; give them and the numbers of their streams.

        The latencies are of those sent between two times in nanoseconds.
        """
        seen, streams = Seen(), set()
        for part, numbers in self._call("check_tokens", per_stream, begun, ended):
            seen.add(part)
            streams |= numbers
        return seen, streams

    def close(self) -> None:
        """End the processes, and their sockets with them."""
        for child in self._children:
            child.close()


@contextmanager
def crowd(count: int) -> Iterator[Crowd]:
    """Give subscribers that are gone afterwards."""
    subscribers = Crowd(count)
    try:
        yield subscribers
    finally:
        subscribers.close()


def percentiles_ms(latencies: Sequence[int]) -> tuple[float, float]:
    """Give p50 and p99 of nanoseconds, in milliseconds."""
    cuts = statistics.quantiles(latencies, n=100)
    return cuts[49] / 1e6, cuts[98] / 1e6


def measure(server: Server, case: Case) -> dict[str, float]:
    """Run a round: connect, a burst, and a paced series if there is one."""
    processes.settle(server.pid)
    found = {"empty_mib": processes.resident(server.pid) / _MIB}
    with crowd(case.processes) as subscribers:
        subscriptions = server.subscriptions(case.topics, case.subscribers)
        before_s = processes.cpu_s(server.pid)
        found["connect_s"] = subscribers.connect(server.port, subscriptions, case.in_flight)
        found["connect_cpu_s"] = processes.cpu_s(server.pid) - before_s
        processes.settle(server.pid)
        found["idle_mib"] = processes.resident(server.pid) / _MIB
        processes.reset_peak(server.pid)
        series = {"topics": case.topics, "first": 0, "count": case.burst}
        burst = subscribers.series(server, "burst", series)
        seen = burst.seen
        found |= {
            "frames_per_s": seen.frames / burst.elapsed_s,
            "events_per_s": (seen.frames + seen.merged) / burst.elapsed_s,
            "frame_cpu_us": burst.server_s / seen.frames * 1e6,
            "load": burst.subscribers_s / burst.elapsed_s,
            "merged": seen.merged / (seen.frames + seen.merged),
            "bytes": seen.size / seen.frames,
            "cursor_chars": seen.cursor_chars,
            "peak_mib": processes.peak(server.pid) / _MIB,
        }
        found["grown_mib"] = found["peak_mib"] - found["empty_mib"]
        if case.paced:
            processes.settle(server.pid)
            series = {"topics": case.topics, "first": case.burst, "count": case.paced}
            paced = subscribers.series(server, "paced", {**series, "rate": case.rate})
            found["paced_p50_ms"], found["paced_p99_ms"] = percentiles_ms(paced.seen.latencies)
    return found


def run(server: Server, case: Case) -> dict[str, float]:
    """Measure a server and end it."""
    try:
        return measure(server, case)
    finally:
        server.close()
        # What the kernel still does for a thousand closed sockets is nobody's time.
        time.sleep(0.2)
