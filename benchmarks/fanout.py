"""Delivery of events to many subscribers, side by side with a Node graphql-ws server.

Both servers run on this machine, one after the other in every round, and send the same events (a
text of 200 bytes) to the same subscribers, who check every byte. Ours is the product as it is; what
a worker writes comes to it through Redis. The peer publishes in its own process.

  same    one topic, many subscribers: connect, a burst, and events at a steady pace
  many    as many topics as subscribers: connect, and a burst of token streams
  tokens  answers streaming from a model at once: from the model's chunk to the subscriber
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.delivery.measuring import Case, run
from benchmarks.delivery.noosphere import Ours, Redis, World
from benchmarks.delivery.peer import Peer, default_cache, install
from benchmarks.delivery.tokens import TokenCase, measure_tokens

_PARTS = ("same", "many", "tokens")
_CURSOR_CHARS = 100
Round = dict[str, float]


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: a measure of both servers, and the bar on the ratio, if there is one."""

    part: str
    key: str
    title: str
    unit: str
    least: float | None = None
    most: float | None = None


_ROWS = (
    Row("same", "frames_per_s", "one topic, burst", "frames/s", least=4.0),
    Row("same", "events_per_s", "one topic, burst", "events/s"),
    Row("same", "paced_p50_ms", "one topic, paced, p50", "ms"),
    Row("same", "paced_p99_ms", "one topic, paced, p99", "ms", most=1.0),
    Row("same", "connect_s", "one topic, connect", "s", most=1.0),
    Row("same", "idle_mib", "one topic, memory, idle", "MiB", most=0.5),
    Row("same", "peak_mib", "one topic, memory, peak of the burst", "MiB", most=0.5),
    Row("many", "frames_per_s", "many topics, burst", "frames/s", least=1.0),
    Row("many", "events_per_s", "many topics, burst", "events/s"),
    Row("many", "connect_s", "many topics, connect", "s", most=1.0),
    Row("many", "idle_mib", "many topics, memory, idle", "MiB", most=0.5),
    Row("many", "peak_mib", "many topics, memory, peak of the burst", "MiB", most=0.5),
    Row("many", "empty_mib", "memory before the first socket", "MiB"),
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


def _line(title: str, ours: str, peer: str, ratio: float, bar: str, *, is_met: bool | None) -> str:
    verdict = "" if is_met is None else ("met" if is_met else "MISSED")
    return f"{title:<40} {ours:>18} {peer:>18} {ratio:>7.2f}  {bar:<7} {verdict}".rstrip()


def _show_row(row: Row, pairs: list[tuple[Round, Round]]) -> bool:
    """Print a line; tells whether its bar, if it has one, is met."""
    ours = statistics.median(a[row.key] for a, _ in pairs)
    peer = statistics.median(b[row.key] for _, b in pairs)
    ratio = statistics.median(a[row.key] / b[row.key] for a, b in pairs)
    bar, is_met = "", None
    if row.least is not None:
        bar, is_met = f"≥ {row.least:g}", ratio >= row.least
    elif row.most is not None:
        bar, is_met = f"≤ {row.most:g}", ratio <= row.most
    digits = 0 if ours >= 1000 else 2
    shown = [f"{value:,.{digits}f} {row.unit}" for value in (ours, peer)]
    print(_line(row.title, *shown, ratio, bar, is_met=is_met))
    return is_met is not False


def _show_limit(limit: Limit, rounds: list[Round]) -> bool:
    value = statistics.median(one[limit.key] for one in rounds)
    ratio, is_met = value / limit.most, value <= limit.most
    shown = (f"{value:,.1f} ms", f"limit {limit.most:g} ms")
    print(_line(limit.title, *shown, ratio, "≤ 1", is_met=is_met))
    return is_met


def _report(pairs: dict[str, list[tuple[Round, Round]]], tokens: list[Round]) -> bool:
    """Print the table: medians, and the median of the rounds' ratios. Tells if all bars are met."""
    print(f"\n{'':<40} {'noosphere':>18} {'graphql-ws':>18} {'ratio':>7}  bar")
    results = [_show_row(row, pairs[row.part]) for row in _ROWS if row.part in pairs]
    results += [_show_limit(limit, tokens) for limit in _LIMITS if tokens]
    for part, rounds in pairs.items():
        ours, peer = rounds[-1]
        print(f"{part}: {ours['bytes']:.0f} and {peer['bytes']:.0f} bytes a frame", end="")
        merged = statistics.median(a["merged"] for a, _ in rounds)
        told = f"; noosphere merged {merged:.1%} of the events into others" if merged else ""
        print(f"{told}.")
    if tokens:
        rate = statistics.median(one["tokens_per_s"] for one in tokens)
        print(f"tokens: the model sent {rate:,.0f} a second.")
    return all(results)


def _interleaved(
    rounds: int, case: Case, ours: Callable[[], Ours], peer: Callable[[int], Peer]
) -> Iterable[tuple[Round, Round]]:
    cursor_chars = _CURSOR_CHARS
    for _ in range(rounds):
        first = run(ours(), case)
        cursor_chars = int(first["cursor_chars"]) or cursor_chars
        yield first, run(peer(cursor_chars), case)


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
    add("--tokens", type=int, default=100, help="tokens of each answer")
    add("--token-rate", type=float, default=20.0, help="tokens a second of each answer")
    add("--bus", choices=("redis", "embedded"), default="redis", help="bus of the token streams")
    add("--processes", type=int, default=1, help="processes the subscribers are spread over")
    add("--in-flight", type=int, default=100, help="sockets being opened at a time")
    add("--cache", type=Path, default=default_cache(), help="where the peer's packages are kept")
    add("--check", action="store_true", help="exit with 1 when a bar is missed")
    return parser.parse_args(given)


def _cases(arguments: argparse.Namespace) -> dict[str, Case]:
    count = arguments.subscribers
    both = {"processes": arguments.processes, "in_flight": arguments.in_flight}
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
    pairs: dict[str, list[tuple[Round, Round]]] = {}
    tokens: list[Round] = []
    cases = {name: case for name, case in _cases(arguments).items() if name in arguments.only}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        redis = Redis(directory)
        try:
            if cases:
                folder = install(arguments.cache)
                topics = max(case.topics for case in cases.values())
                world = World(directory, redis, conversations=topics, viewers=arguments.viewers)
            for part, case in cases.items():
                pairs[part] = []
                for number, pair in enumerate(
                    _interleaved(
                        arguments.rounds, case, lambda: Ours(world), lambda n: Peer(folder, n)
                    )
                ):
                    pairs[part].append(pair)
                    print(f"{part}, round {number + 1}: {_brief(pair)}", flush=True)
            if "tokens" in arguments.only:
                case_ = TokenCase(
                    arguments.streams,
                    arguments.tokens,
                    arguments.token_rate,
                    redis if arguments.bus == "redis" else None,
                )
                for number in range(arguments.rounds):
                    tokens.append(measure_tokens(directory / f"tokens-{number}", case_))
                    print(f"tokens, round {number + 1}: {tokens[-1]}", flush=True)
        finally:
            redis.close()
    is_met = _report(pairs, tokens)
    return 1 if arguments.check and not is_met else 0


def _brief(pair: tuple[Round, Round]) -> str:
    ours, peer = (one["frames_per_s"] for one in pair)
    return f"{ours:,.0f} and {peer:,.0f} frames/s, ratio {ours / peer:.2f}"


if __name__ == "__main__":
    sys.exit(main())
