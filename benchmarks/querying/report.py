"""From measured rounds to ratios, bars and tables."""

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.querying.operations import OPERATIONS
from benchmarks.querying.servers import KINDS, NODE, Measured
from benchmarks.querying.statements import OTHERS, READS, SIGN_IN

PRIMARY, PRIMARY_FLOOR = "noosphere-asyncmy", "floor-asyncmy"
BAR_CONNECTIONS = 16
_LEAST_OF_NODE = {"Q1": 1.5, "Q2": 1.5, "Q3": 1.2}
_LEAST_OF_FLOOR = 0.6

Cell = tuple[str, int]
"""Name of an operation, and connections."""
Rounds = dict[Cell, dict[str, list[Measured]]]
Measure = Callable[[Measured], float]


def rate(measured: Measured) -> float:
    """Requests per second."""
    return measured.round.rate


def p50(measured: Measured) -> float:
    """Median latency in seconds."""
    return measured.round.p50_s


def p99(measured: Measured) -> float:
    """Latency in seconds that a hundredth of the requests exceeds."""
    return measured.round.p99_s


def cpu(measured: Measured) -> float:
    """Seconds of a processor that the server used for a request."""
    return measured.cpu_s


def median(rounds: Sequence[Measured], measure: Measure) -> float:
    """Give the median of the rounds."""
    return statistics.median(measure(one) for one in rounds)


def ratio(ours: Sequence[Measured], theirs: Sequence[Measured], measure: Measure) -> float:
    """Give the median of the ratios of rounds that followed each other."""
    pairs = zip(ours, theirs, strict=True)
    return statistics.median(measure(one) / measure(other) for one, other in pairs)


@dataclass(frozen=True, slots=True)
class Bar:
    """Something that was promised, and what was found."""

    title: str
    value: float
    least: float | None = None
    most: float | None = None

    @property
    def is_met(self) -> bool:
        """Whether it holds."""
        above = self.least is None or self.value >= self.least
        return above and (self.most is None or self.value <= self.most)

    def __str__(self) -> str:
        """Give its line."""
        bar = f"≥ {self.least:g}" if self.least is not None else f"≤ {self.most:g}"
        return f"{self.title:<62} {self.value:7.2f}  {bar:<6} {'met' if self.is_met else 'MISSED'}"


@dataclass(slots=True)
class Findings:
    """What was measured so far, by part."""

    rates: Rounds = field(default_factory=dict)
    statements: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)
    processes: dict[tuple[str, int], list[Measured]] = field(default_factory=dict)
    growth: dict[tuple[str, str, int], list[Measured]] = field(default_factory=dict)
    circumstances: str = ""


def fastest_node(cell: Mapping[str, Sequence[Measured]]) -> str | None:
    """Name the Node server with the highest rate; None without any."""
    names = [name for name in cell if KINDS[name].family == NODE]
    return max(names, key=lambda name: median(cell[name], rate), default=None)


def bars(findings: Findings) -> list[Bar]:
    """Give the bars that can be told from what was measured."""
    found = []
    for (name, connections), cell in findings.rates.items():
        if connections == BAR_CONNECTIONS and PRIMARY in cell:
            found += _bars_of(name, cell)
    for (server, name), counted in findings.statements.items():
        levels = OPERATIONS[name].levels
        title = f"{name}: statements of {server}, sign-in apart"
        found.append(Bar(title, counted[READS], most=levels))
    return found


def _bars_of(name: str, cell: Mapping[str, Sequence[Measured]]) -> list[Bar]:
    ours, found = cell[PRIMARY], []
    node = fastest_node(cell)
    if node is not None:
        least = _LEAST_OF_NODE[name]
        title = f"{name}: requests/s to the fastest Node server ({node})"
        found.append(Bar(title, ratio(ours, cell[node], rate), least=least))
        slow = f"{name}: p99 to the fastest Node server ({node})"
        found.append(Bar(slow, ratio(ours, cell[node], p99), most=1.0))
    if PRIMARY_FLOOR in cell:
        title = f"{name}: requests/s to the hand-written floor"
        found.append(Bar(title, ratio(ours, cell[PRIMARY_FLOOR], rate), least=_LEAST_OF_FLOOR))
    return found


def show_cell(cell: Cell, measured: Mapping[str, Sequence[Measured]]) -> list[str]:
    """Give lines on all servers at one operation: medians, and ratios of the first of ours."""
    base = PRIMARY if PRIMARY in measured else next(iter(measured))
    lines = [
        f"\n{cell[0]} × {cell[1]} connections",
        f"{'':<20} {'req/s':>8} {'p50 ms':>8} {'p99 ms':>8} {'CPU ms':>8}"
        f"   {base} to it: rate, CPU",
    ]
    for name, rounds in measured.items():
        lines.append(
            f"{name:<20} {median(rounds, rate):8.0f} {median(rounds, p50) * 1e3:8.2f}"
            f" {median(rounds, p99) * 1e3:8.2f} {median(rounds, cpu) * 1e3:8.3f}"
            f"   {ratio(measured[base], rounds, rate):.2f} {ratio(measured[base], rounds, cpu):.2f}"
        )
    busiest = max(one.round.load for rounds in measured.values() for one in rounds)
    lines.append(f"The load generator used at most {busiest:.0%} of a core.")
    return lines


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)


def _ratios(rounds: Rounds, measure: Measure) -> str:
    """Give a table of the ratios of the first of ours to all others."""
    names = [name for name in KINDS if any(name in cell for cell in rounds.values())]
    if PRIMARY not in names:
        return ""
    others = [name for name in names if name != PRIMARY]
    rows = []
    for (name, connections), cell in rounds.items():
        cells = [
            f"{ratio(cell[PRIMARY], cell[other], measure):.2f}" if other in cell else "–"
            for other in others
        ]
        rows.append([name, str(connections), *cells])
    return _table(["", "connections", *others], rows)


def _statements(findings: Findings) -> str:
    rows = [
        [name, server, str(OPERATIONS[name].levels), *map(str, _counts(counted))]
        for (server, name), counted in findings.statements.items()
    ]
    head = ["", "server", "object fields", "reads", "sign-in", "ends of transactions"]
    return _table(head, rows) if rows else ""


def _counts(counted: Counter[str]) -> list[int]:
    return [counted[purpose] for purpose in (READS, SIGN_IN, OTHERS)]


def _processes(findings: Findings) -> str:
    numbers = sorted({number for _, number in findings.processes})
    rows = []
    for name in dict.fromkeys(name for name, _ in findings.processes):
        alone = findings.processes[name, numbers[0]]
        rows.append(
            [
                name,
                *(f"{ratio(findings.processes[name, n], alone, rate):.2f}" for n in numbers),
                *(f"{ratio(findings.processes[name, n], alone, cpu):.2f}" for n in numbers[-1:]),
            ]
        )
    head = ["", *(f"{n} processes" for n in numbers), "CPU a request, most to one"]
    return _table(head, rows) if rows else ""


def _growth(findings: Findings) -> str:
    rows = []
    factors = sorted({factor for _, _, factor in findings.growth})
    if len(factors) < 2:
        return ""
    for name, server in dict.fromkeys((name, server) for name, server, _ in findings.growth):
        small, large = (findings.growth[name, server, factor] for factor in factors)
        values = (ratio(large, small, measure) for measure in (rate, p99, cpu))
        rows.append([name, server, *(f"{value:.2f}" for value in values)])
    return _table(["", "server", "requests/s", "p99", "CPU a request"], rows)


def tables(findings: Findings) -> dict[str, str]:
    """Give the tables by name, those of parts that were not measured left out."""
    met = [[str(bar.title), f"{bar.value:.2f}", _bar(bar)] for bar in bars(findings)]
    found = {
        "circumstances": findings.circumstances if findings.rates else "",
        "bars": _table(["", "found", "bar"], met) if met else "",
        "rates": _ratios(findings.rates, rate),
        "cpu": _ratios(findings.rates, cpu),
        "p99": _ratios(findings.rates, p99),
        "statements": _statements(findings),
        "processes": _processes(findings),
        "growth": _growth(findings),
    }
    return {name: text for name, text in found.items() if text}


def _bar(bar: Bar) -> str:
    text = f"≥ {bar.least:g}" if bar.least is not None else f"≤ {bar.most:g}"
    return f"{text}, {'met' if bar.is_met else 'missed'}"


def write(page: Path, findings: Findings) -> None:
    """Put the tables into a page, between `<!-- name -->` and `<!-- end -->`."""
    text = page.read_text()
    for name, table in tables(findings).items():
        before, mark, rest = text.partition(f"<!-- {name} -->\n")
        if not mark:
            raise ValueError(f"{page} has no place for the table {name}")
        _, end, after = rest.partition("<!-- end -->")
        text = f"{before}{mark}{table}\n{end}{after}"
    page.write_text(text)
