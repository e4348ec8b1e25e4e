"""Delivery of events to many subscribers, side by side with a Node graphql-ws server.

Both servers run on this machine, one after the other in every round, and send the same events (a
text of 200 bytes) to the same subscribers, who check every byte. Ours is the product as it is; what
a worker writes comes to it through Redis. The peer publishes in its own process. Ratios are ours to
the peer's, and medians over the rounds; on a busy machine look at the CPU times.

  same    one topic, many subscribers: connect, a burst, and events at a steady pace
  many    as many topics as subscribers: connect, and a burst of token streams
  tokens  answers streaming from a model at once: from the model's chunk to the subscriber
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.delivery.broadcast import Broadcast
from benchmarks.delivery.measuring import Case, run
from benchmarks.delivery.noosphere import Ours, Redis, World
from benchmarks.delivery.peer import Peer, default_cache, install
from benchmarks.delivery.tokens import TokenCase, measure_tokens

_PARTS = ("same", "many", "tokens")
Measures = dict[str, float]
Round = dict[str, Measures]
"""By the name of the server: ours, the peer and, for one topic, the floor."""


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: a measure of both servers, and the bar on the ratio, if there is one."""

    part: str
    key: str
    title: str
    unit: str
    least: float | None = None
    most: float | None = None
    peer: str = "graphql-ws"


_ROWS = (
    Row("same", "frames_per_s", "one topic, burst", "frames/s", least=4.0),
    Row("same", "events_per_s", "one topic, burst, merged ones counted", "events/s"),
    Row("same", "frames_per_s", "one topic, burst, of a plain broadcast", "frames/s", peer="floor"),
    Row("same", "frame_cpu_us", "one topic, CPU of the server a frame", "µs"),
    Row("same", "paced_p50_ms", "one topic, paced, p50", "ms"),
    Row("same", "paced_p99_ms", "one topic, paced, p99", "ms", most=1.0),
    Row("same", "connect_s", "one topic, connect", "s", most=1.0),
    Row("same", "connect_cpu_s", "one topic, connect, CPU of the server", "s"),
    Row("same", "idle_mib", "one topic, memory, idle", "MiB", most=0.5),
    Row("same", "peak_mib", "one topic, memory, peak of the burst", "MiB", most=0.5),
    Row("same", "grown_mib", "one topic, memory, growth to the peak", "MiB"),
    Row("many", "frames_per_s", "many topics, burst", "frames/s", least=1.0),
    Row("many", "events_per_s", "many topics, burst, merged counted", "events/s"),
    Row("many", "frame_cpu_us", "many topics, CPU of the server a frame", "µs"),
    Row("many", "connect_s", "many topics, connect", "s", most=1.0),
    Row("many", "connect_cpu_s", "many topics, connect, CPU of the server", "s"),
    Row("many", "idle_mib", "many topics, memory, idle", "MiB", most=0.5),
    Row("many", "peak_mib", "many topics, memory, peak of the burst", "MiB", most=0.5),
    Row("many", "grown_mib", "many topics, memory, growth to the peak", "MiB"),
)


@dataclass(frozen=True, slots=True)
class Limit:
    """A line of the table for what has no peer: a measure and the most it may be."""

    key: str
    title: str
    most: float


_LIMITS = (
    Limit("p50_ms", "tokens, model to subscriber, p50", 50.0),
    Limit("p99_ms", "tokens, model to subscriber, p99", 120.0),
)


def _line(title: str, shown: tuple[str, str], ratio: float, bar: str, is_met: bool) -> str:
    verdict = "" if not bar else ("met" if is_met else "MISSED")
    return f"{title:<40} {shown[0]:>18} {shown[1]:>18} {ratio:>7.2f}  {bar:<6} {verdict}".rstrip()


def _show_row(row: Row, rounds: list[Round]) -> bool:
    """Print a line; tells whether its bar, if it has one, is met."""
    pairs = [(one["noosphere"][row.key], one[row.peer][row.key]) for one in rounds]
    ratio = statistics.median(ours / peer for ours, peer in pairs)
    bar, is_met = "", True
    if row.least is not None:
        bar, is_met = f"≥ {row.least:g}", ratio >= row.least
    elif row.most is not None:
        bar, is_met = f"≤ {row.most:g}", ratio <= row.most
    medians = [statistics.median(values) for values in zip(*pairs, strict=True)]
    digits = 0 if medians[0] >= 1000 else 2
    ours, peer = (f"{value:,.{digits}f} {row.unit}" for value in medians)
    print(_line(row.title, (ours, peer), ratio, bar, is_met))
    return is_met


def _show_limit(limit: Limit, rounds: list[Measures]) -> bool:
    value = statistics.median(one[limit.key] for one in rounds)
    ratio, is_met = value / limit.most, value <= limit.most
    shown = (f"{value:,.1f} ms", f"limit {limit.most:g} ms")
    print(_line(limit.title, shown, ratio, "≤ 1", is_met))
    return is_met


def _report(parts: dict[str, list[Round]], tokens: list[Measures]) -> bool:
    """Print the table: medians, and the median of the rounds' ratios. Tells if all bars are met."""
    print(f"\n{'':<40} {'noosphere':>18} {'graphql-ws':>18} {'ratio':>7}  bar")
    results = [_show_row(row, parts[row.part]) for row in _ROWS if row.part in parts]
    results += [_show_limit(limit, tokens) for limit in _LIMITS if tokens]
    print()
    for part, rounds in parts.items():
        for name in rounds[0]:
            size, load, merged = (
                statistics.median(one[name][key] for one in rounds)
                for key in ("bytes", "load", "merged")
            )
            told = f"; {merged:.1%} of the events came merged into others" if merged else ""
            print(
                f"{part}, {name}: {size:.0f} bytes a frame; in the burst the busiest process of"
                f" the subscribers used {load:.0%} of a core{told}."
            )
    if tokens:
        rate, cores = (
            statistics.median(one[key] for one in tokens) for key in ("tokens_per_s", "cores")
        )
        print(
            f"tokens: the model sent {rate:,.0f}/s; the processes of the product used"
            f" {cores:.2f} cores."
        )
    return all(results)


def _rounds(count: int, part: str, case: Case, world: World, folder: Path) -> Iterator[Round]:
    """Measure the servers in turn. The first tells how long its cursors are, for equal frames."""
    for _ in range(count):
        ours = run(Ours(world), case)
        cursor_chars = int(ours["cursor_chars"])
        found = {"noosphere": ours, "graphql-ws": run(Peer(folder, cursor_chars), case)}
        if part == "same":
            found["floor"] = run(Broadcast(cursor_chars), replace(case, paced=0))
        yield found


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=_PARTS, default=list(_PARTS), help="which parts")
    add("--rounds", type=int, default=3)
    add("--subscribers", type=int, default=1000)
    add("--same-events", type=int, default=200, help="events of the burst on one topic")
    add("--many-events", type=int, default=50, help="events of the burst on each of many topics")
    add("--paced-events", type=int, default=50)
    add("--paced-rate", type=float, default=10.0, help="events a second at a steady pace")
    add("--viewers", type=int, default=10, help="people whom the many topics belong to")
    add("--streams", type=int, default=500, help="answers streaming at once")
    add("--token-rate", type=float, default=20.0, help="tokens a second of each answer")
    add("--ramp", type=float, default=10.0, help="seconds over which the answers begin")
    add("--seconds", type=float, default=5.0, help="seconds for which all answers are under way")
    add("--bus", choices=("redis", "embedded"), default="redis", help="bus of the token streams")
    add("--workers", type=int, default=0, help="processes that write the answers; 0: the server")
    add("--redis", help="URL of a Redis that may be emptied; one is started otherwise")
    add("--processes", type=int, default=1, help="processes the subscribers are spread over")
    add("--in-flight", type=int, default=100, help="sockets being opened at a time")
    add("--cache", type=Path, default=default_cache(), help="where the peer's packages are kept")
    add("--check", action="store_true", help="exit with 1 when a bar is missed")
    return parser.parse_args(given)


def _cases(arguments: argparse.Namespace) -> dict[str, Case]:
    count = arguments.subscribers
    both: dict[str, int] = {"processes": arguments.processes, "in_flight": arguments.in_flight}
    return {
        "same": Case(
            1,
            count,
            arguments.same_events,
            paced=arguments.paced_events,
            rate=arguments.paced_rate,
            **both,
        ),
        "many": Case(count, count, arguments.many_events, **both),
    }


def main(given: list[str] | None = None) -> int:
    """Run the comparison; gives the exit code."""
    arguments = _arguments(given)
    parts: dict[str, list[Round]] = {}
    tokens: list[Measures] = []
    with tempfile.TemporaryDirectory() as name:
        bus = Redis(Path(name), arguments.redis)
        try:
            for part, found in _measure_delivery(arguments, Path(name), bus):
                parts.setdefault(part, []).append(found)
                rates = [f"{each['frames_per_s']:,.0f} frames/s" for each in found.values()]
                print(f"{part}, round {len(parts[part])}: {', '.join(rates)}", flush=True)
            for one in _measure_tokens(arguments, Path(name), bus):
                tokens.append(one)
                shown = ", ".join(f"{key} {value:,.2f}" for key, value in one.items())
                print(f"tokens, round {len(tokens)}: {shown}", flush=True)
        finally:
            bus.close()
    is_met = _report(parts, tokens)
    return 1 if arguments.check and not is_met else 0


def _measure_delivery(
    arguments: argparse.Namespace, directory: Path, bus: Redis
) -> Iterator[tuple[str, Round]]:
    cases = {name: case for name, case in _cases(arguments).items() if name in arguments.only}
    if not cases:
        return
    folder = install(arguments.cache)
    topics = max(case.topics for case in cases.values())
    world = World(directory, bus, conversations=topics, viewers=arguments.viewers)
    for part, case in cases.items():
        for found in _rounds(arguments.rounds, part, case, world, folder):
            yield part, found


def _measure_tokens(
    arguments: argparse.Namespace, directory: Path, bus: Redis
) -> Iterator[Measures]:
    if "tokens" not in arguments.only:
        return
    case = TokenCase(
        arguments.streams,
        arguments.token_rate,
        arguments.ramp,
        arguments.seconds,
        bus if arguments.bus == "redis" else None,
        arguments.workers,
    )
    for number in range(arguments.rounds):
        yield measure_tokens(directory / f"tokens-{number}", case)


if __name__ == "__main__":
    sys.exit(main())
