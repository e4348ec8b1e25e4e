"""The benchmark of queries runs, compares what servers answer, and notices what is wrong."""

import asyncio
import json
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from benchmarks import queries
from benchmarks.load import Answers, Round, measure, post
from benchmarks.querying import report, servers
from benchmarks.querying.data import COLUMNS, Shape, make_id
from benchmarks.querying.report import Findings
from benchmarks.querying.servers import KINDS, NODE, Measured
from tests.servers import UnavailableError, give_up, require
from tests.servers.base import program

_SMALL = (
    *("--users", "5", "--conversations", "50", "--messages", "2300"),
    *("--rounds", "1", "--seconds", "0.2", "--warm-up", "0.1", "--connections", "2"),
)
_OURS = ["noosphere-asyncmy", "noosphere-sqlite", "floor-asyncmy"]
_CACHE = os.environ.get("NOOSPHERE_TEST_CACHE", Path.home() / ".cache" / "noosphere-tests")


def _run(capsys: pytest.CaptureFixture[str], *given: str) -> list[str]:
    assert queries.main([*_SMALL, *given, "--cache", str(_CACHE)]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.timeout(600)  # Databases and many servers start, one after the other.
@pytest.mark.mysql
def test_a_small_run_compares_ours_with_the_floor(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text(queries._PAGE.read_text())
    lines = _run(capsys, "--peers", *_OURS, "--write", str(page))
    for name, asked in (("Q1", _OURS), ("Q2", _OURS), ("Q3", _OURS[:2])):
        place = lines.index(f"{name} × 2 connections")
        shown = [line.split()[0] for line in lines[place + 2 : place + 2 + len(asked)]]
        assert shown == asked
        assert f"{name}: statements of noosphere-asyncmy, sign-in apart" in "\n".join(lines)
        assert f"| {name} | 2 |" in page.read_text()


@pytest.mark.timeout(900)  # The packages of the servers are installed once.
@pytest.mark.mysql
def test_a_small_run_compares_ours_with_the_node_servers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    require("node")
    peers = [kind.name for kind in KINDS.values() if kind.family == NODE]
    lines = _run(capsys, "--only", "rates", "--peers", "noosphere-asyncmy", *peers)
    for line in lines:
        if line.startswith("LEFT OUT"):
            give_up("node", line)
    for name in ("Q1", "Q2", "Q3"):
        place = lines.index(f"{name} × 2 connections")
        shown = [line.split()[0] for line in lines[place + 2 : place + 3 + len(peers)]]
        assert shown == ["noosphere-asyncmy", *peers]


def test_all_that_was_promised_is_there() -> None:
    shape = Shape()
    rows = {table: list(shape.rows(table)) for table in COLUMNS}
    assert {t: len(found) for t, found in rows.items()} == {
        "users": 1_000,
        "conversations": 10_000,
        "messages": 120_000,
    }
    for table, found in rows.items():
        assert {len(row) for row in found} == {len(COLUMNS[table])}
        ids = [str(row[0]) for row in found]
        assert sorted(set(ids)) == ids
    counts = Counter(row[1] for row in rows["messages"])
    assert {counts[id_] for id_ in shape.asked_ids} == {50}
    assert {counts[row[0]] for row in rows["conversations"][shape.asked :]} == {11, 12}
    owners = Counter(row[1] for row in rows["conversations"])
    assert owners[shape.viewer_id] == shape.asked == 60
    assert len(owners) == 1_000


def test_ids_are_told_apart_by_their_kind_and_number() -> None:
    assert make_id("cnv", 0) != make_id("cnv", 1)
    assert len(make_id("msg", 1_200_000)) == 30
    assert make_id("usr", 7).startswith("usr_")


def _answer(data: Any, **rest: Any) -> bytes:
    return orjson.dumps({"data": data, **rest})


def test_a_wrong_answer_is_noticed_at_any_time() -> None:
    answers = Answers("a", [{"x": 1}, {"x": 2}])
    right = _answer({"x": 1}, extensions={"cost": {"left": 10}})
    answers.check(0, right)
    answers.check(0, _answer({"x": 1}, extensions={"cost": {"left": 9}}))
    answers.check(1, _answer({"x": 2}))
    wrong = (
        (0, _answer({"x": 2})),
        (0, _answer({"x": 1}, errors=[])),
        (0, _answer({"x": 1}, extensions={}, errors=[])),
        (1, _answer({"x": 1})),
        (1, _answer(None)),
        (1, b'{"errors":[]}'),
    )
    for index, body in wrong:
        with pytest.raises(AssertionError):
            answers.check(index, body)


def test_cursors_of_other_kinds_are_not_compared_but_must_be_there() -> None:
    expected = [{"edges": [{"cursor": "a", "node": {"id": "1"}}], "endCursor": None}]
    answers = Answers("a", expected, frozenset({"cursor", "endCursor"}))
    answers.check(0, _answer({"edges": [{"cursor": "z", "node": {"id": "1"}}], "endCursor": None}))
    for edge, end in (
        ({"cursor": "", "node": {"id": "1"}}, None),
        ({"cursor": None, "node": {"id": "1"}}, None),
        ({"cursor": "z", "node": {"id": "2"}}, None),
        ({"cursor": "z", "node": {"id": "1"}}, "z"),
    ):
        with pytest.raises(AssertionError):
            answers.check(0, _answer({"edges": [edge], "endCursor": end}))


@asynccontextmanager
async def _serving(*answers: bytes) -> AsyncIterator[int]:
    """Serve whole answers, in turn on each connection, in small pieces."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = 0
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.split(b"Content-Length: ")[1].split()[0]))
                answer = answers[number % len(answers)]
                for start in range(0, len(answer), 40):
                    writer.write(answer[start : start + 40])
                    await writer.drain()
                number += 1
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, family=socket.AF_INET)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()


_BODY = b'{"data":{"x":"' + b"y" * 100 + b'"}}'
_SIZED = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(_BODY), _BODY)
_CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n"
    % (
        *(60, _BODY[:60]),
        *(len(_BODY) - 60, _BODY[60:]),
    )
)


async def _load(port: int, connections: int = 2) -> Round:
    answers = Answers("a", [{"x": "y" * 100}])
    requests = [post("/graphql", b"{}", {})]
    return await measure([port], requests, connections=connections, seconds=0.05, answers=answers)


async def test_answers_are_read_sized_and_chunked() -> None:
    async with _serving(_SIZED, _CHUNKED) as port:
        found = await _load(port)
    assert found.requests >= 2
    assert 0 < found.p50_s <= found.p99_s


@pytest.mark.parametrize(
    "answer",
    [
        _SIZED.replace(b"200 OK", b"503 Gone"),
        _SIZED.replace(b"yyy", b"zzz", 1),
        _CHUNKED.replace(b"yyy", b"zzz", 1),
    ],
)
async def test_one_failure_fails_the_round(answer: bytes) -> None:
    async with _serving(_SIZED, answer) as port:
        with pytest.raises(AssertionError):
            await _load(port, 1)


def _rounds(*rates: float, p99_s: float = 0.01) -> list[Measured]:
    return [Measured(Round(100, rate, 0.001, p99_s, 0.1), 0.001) for rate in rates]


def _bars(
    ours: list[Measured], node: list[Measured], floor: list[Measured], name: str = "Q1"
) -> list[tuple[float, bool]]:
    cell = {"noosphere-asyncmy": ours, "yoga": _rounds(1, 1, 1), "yoga-jit": node}
    findings = Findings(rates={(name, 16): {**cell, "floor-asyncmy": floor}})
    return [(round(bar.value, 3), bar.is_met) for bar in report.bars(findings)]


def test_the_bars_are_held_against_the_fastest_node_server_and_the_floor() -> None:
    ours, floor = _rounds(150, 300, 150), _rounds(250, 250, 250)
    assert _bars(ours, _rounds(100, 100, 100), floor) == [(1.5, True), (1.0, True), (0.6, True)]
    slow = _rounds(149, 149, 149, p99_s=0.02)
    expected = [(1.49, False), (2.0, False), (0.596, False)]
    assert _bars(slow, _rounds(100, 100, 100), floor) == expected
    assert _bars(slow, _rounds(100, 100, 100), floor, "Q3")[0] == (1.49, True)


def test_more_statements_than_object_fields_miss_their_bar() -> None:
    counted = {("noosphere-asyncmy", "Q1"): Counter({"reads": 3, "sign-in": 1, "others": 9})}
    assert [bar.is_met for bar in report.bars(Findings(statements=counted))] == [True]
    counted["noosphere-asyncmy", "Q1"]["reads"] += 1
    assert [bar.is_met for bar in report.bars(Findings(statements=counted))] == [False]


def test_growth_and_processes_are_told_as_ratios() -> None:
    findings = Findings(
        processes={("yoga", 1): _rounds(100, 100), ("yoga", 2): _rounds(150, 170)},
        growth={("Q1", "yoga", 1): _rounds(100, 100), ("Q1", "yoga", 10): _rounds(50, 80)},
    )
    tables = report.tables(findings)
    assert set(tables) == {"processes", "growth"}
    assert tables["processes"].splitlines()[-1] == "| yoga | 1.00 | 1.60 | 1.00 |"
    assert tables["growth"].splitlines()[-1] == "| Q1 | yoga | 0.65 | 1.00 | 1.00 |"


def test_without_npm_the_servers_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "program", lambda name: None if name == "npm" else program(name))
    with pytest.raises(UnavailableError, match="npm"):
        servers.install(tmp_path)


def test_the_lock_of_the_servers_is_hashed_and_names_no_registry() -> None:
    lock = json.loads((servers.SOURCE / "package-lock.json").read_text())
    wanted = json.loads((servers.SOURCE / "package.json").read_text())["dependencies"]
    packages = {name: one for name, one in lock["packages"].items() if name}
    assert {name: packages[f"node_modules/{name}"]["version"] for name in wanted} == wanted
    assert all(one["integrity"].startswith("sha512-") for one in packages.values())
    assert not any("resolved" in one for one in packages.values())
