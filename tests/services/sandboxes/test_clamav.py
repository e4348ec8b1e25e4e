"""What ClamAV's own daemon says of files, and what becomes of them while it is in trouble."""

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from models.states import FileVerdict
from services.errors import UserError, UserErrorCode
from services.options import Options
from services.sandboxes import clamav
from services.sandboxes.scanning import Scanner, Verdict
from tests.servers.clamd import EICAR, HARMFUL, NAME, Clamd, running

pytestmark = pytest.mark.clamd
MIB = 1024 * 1024
WAIT_S = 60


@pytest.fixture
async def daemon(clamd_program: str, tmp_path: Path) -> AsyncIterator[Clamd]:
    async with running(
        clamd_program, tmp_path, StreamMaxLength="2M", MaxFileSize="1M", CommandReadTimeout="60"
    ) as daemon:
        yield daemon


def scanner_of(daemon: Clamd, tmp_path: Path, **more: object) -> Scanner:
    given = {"data_dir": tmp_path / "data", "clamav_url": daemon.url, **more}
    return Scanner(Options(**given))  # type: ignore[arg-type]


async def judged(scanner: Scanner, data: bytes) -> Verdict:
    async with asyncio.timeout(WAIT_S), scanner.intake() as intake:
        await intake.add(data)
        return await intake.judge()


async def is_refused(scanner: Scanner, data: bytes = b"good") -> bool:
    with pytest.raises(UserError) as caught:
        await judged(scanner, data)
    assert "try again soon" in caught.value.message
    return caught.value.code is UserErrorCode.UNAVAILABLE


@pytest.mark.parametrize("is_local", [False, True])
async def test_it_finds_what_its_signatures_say(
    daemon: Clamd, tmp_path: Path, is_local: bool
) -> None:
    url = daemon.local_url if is_local else daemon.url
    scanner = scanner_of(daemon, tmp_path, clamav_url=url)
    for data in (HARMFUL, b"-" * 500_000 + HARMFUL + b"-" * 500_000):
        verdict = await judged(scanner, data)
        assert (verdict.verdict, verdict.rule, verdict.engine) == (
            FileVerdict.INFECTED,
            NAME,
            "clamav",
        )
    assert (await judged(scanner, b"good")).verdict is FileVerdict.CLEAN
    # What our rules know need not be asked about.
    assert (await judged(scanner, EICAR)).engine == "yara"


async def test_what_is_beyond_its_limits_is_neither_clean_nor_infected(
    daemon: Clamd, tmp_path: Path
) -> None:
    scanner = scanner_of(daemon, tmp_path)
    longest_file, longest_stream = MIB, 2 * MIB
    for size in (longest_file + 1, longest_stream + 1, 8 * MIB):
        verdict = await judged(scanner, b"-" * size + HARMFUL)
        assert (verdict.verdict, verdict.rule) == (FileVerdict.UNSCANNED, None)
    assert (await judged(scanner, clamav.too_deep())).verdict is FileVerdict.UNSCANNED
    assert (await judged(scanner, b"good")).verdict is FileVerdict.CLEAN


async def test_a_limit_is_understood_though_it_hangs_up_meanwhile(
    daemon: Clamd, tmp_path: Path
) -> None:
    scanner = scanner_of(daemon, tmp_path)
    content = b"-" * 8 * MIB
    found = await asyncio.gather(*(judged(scanner, content) for _ in range(24)))
    assert {verdict.verdict for verdict in found} == {FileVerdict.UNSCANNED}


@pytest.mark.parametrize("is_told", [True, False])
async def test_a_daemon_that_hides_its_limits_is_named_in_the_log(
    clamd_program: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, is_told: bool
) -> None:
    told = {"AlertExceedsMax": "yes" if is_told else "no"}
    async with running(clamd_program, tmp_path, **told) as daemon:
        scanner = scanner_of(daemon, tmp_path)
        with caplog.at_level(logging.WARNING, "noosphere.sandboxes"):
            for _ in range(2):
                assert (await judged(scanner, b"good")).verdict is FileVerdict.CLEAN
    count = 0 if is_told else 1
    assert sum("AlertExceedsMax" in record.message for record in caplog.records) == count


async def test_files_are_refused_until_it_is_there_and_while_it_is_away(
    daemon: Clamd, tmp_path: Path
) -> None:
    await daemon.stop()
    scanner = scanner_of(daemon, tmp_path)
    assert await is_refused(scanner)
    assert await is_refused(scanner_of(daemon, tmp_path, clamav_url=daemon.local_url))
    lax = scanner_of(daemon, tmp_path, clamav_required=False)
    assert (await judged(lax, HARMFUL)).verdict is FileVerdict.UNSCANNED
    await daemon.start()
    assert (await judged(scanner, b"good")).verdict is FileVerdict.CLEAN
    assert (await judged(lax, HARMFUL)).is_infected
    daemon.signal(signal.SIGKILL)
    await daemon.stop()
    assert await is_refused(scanner)
    await daemon.start()
    assert (await judged(scanner, HARMFUL)).is_infected


async def test_one_that_dies_in_the_middle_of_a_file_calls_nothing_clean(daemon: Clamd) -> None:
    begun, killed = asyncio.Event(), asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"good" * 1000
        begun.set()
        await killed.wait()
        yield b"good" * 1000

    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
        scan = group.create_task(refused_scan(daemon.url, chunks()))
        await begun.wait()
        daemon.signal(signal.SIGKILL)
        await daemon.stop()
        killed.set()
    assert "does not answer" in str(scan.result())


async def refused_scan(url: str, chunks: AsyncIterator[bytes]) -> clamav.ClamavError:
    with pytest.raises(clamav.ClamavError) as caught:
        await clamav.scan(url, chunks)
    return caught.value


async def test_one_that_hangs_is_given_up_and_not_waited_for_again(
    daemon: Clamd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clamav, "_QUIET_S", 0.05)
    monkeypatch.setattr(clamav, "_PONG_S", 0.2)
    scanner = scanner_of(daemon, tmp_path)
    daemon.signal(signal.SIGSTOP)
    refused = await asyncio.gather(*(is_refused(scanner, b"%d" % n) for n in range(6)))
    assert refused == [True] * 6
    # Nobody waits now, however long that would be.
    monkeypatch.setattr(clamav, "_QUIET_S", 2 * WAIT_S)
    assert await is_refused(scanner)
    lax = scanner_of(daemon, tmp_path, clamav_required=False)
    lax._silent_until = scanner._silent_until
    assert (await judged(lax, HARMFUL)).verdict is FileVerdict.UNSCANNED
    daemon.signal(signal.SIGCONT)
    scanner._silent_until = 0
    assert (await judged(scanner, HARMFUL)).is_infected


async def test_one_that_is_only_slow_is_waited_for(
    daemon: Clamd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pongs = 0
    enough = asyncio.Event()
    connect = clamav._connect

    async def counting(url: str) -> socket.socket:
        nonlocal pongs
        pongs += 1
        if pongs == 4:  # The scan itself, then three PINGs.
            enough.set()
        return await connect(url)

    async def chunks() -> AsyncIterator[bytes]:
        yield HARMFUL
        await enough.wait()
        yield b"the end"

    monkeypatch.setattr(clamav, "_QUIET_S", 0.02)
    monkeypatch.setattr(clamav, "_connect", counting)
    async with asyncio.timeout(WAIT_S):
        assert await clamav.scan(daemon.url, chunks()) == NAME


async def test_many_at_once_wait_for_each_other(clamd_program: str, tmp_path: Path) -> None:
    async with running(clamd_program, tmp_path, MaxThreads="1", MaxQueue="2") as daemon:
        scanners = [scanner_of(daemon, tmp_path) for _ in range(12)]
        contents = [b"good", HARMFUL]
        found = await asyncio.gather(
            *(judged(scanner, data) for scanner in scanners for data in contents)
        )
    expected = [FileVerdict.CLEAN, FileVerdict.INFECTED] * len(scanners)
    assert [verdict.verdict for verdict in found] == expected


async def test_files_are_scanned_while_its_database_is_loaded_anew(
    daemon: Clamd, tmp_path: Path
) -> None:
    scanner = scanner_of(daemon, tmp_path)
    assert (await judged(scanner, b"something else")).verdict is FileVerdict.CLEAN
    added = f"Noosphere.Test.Else:0:*:{b'something else'.hex()}\n"
    (tmp_path / "signatures" / "more.ndb").write_text(added)
    assert await daemon.ask("RELOAD") == "RELOADING"
    async with asyncio.timeout(WAIT_S):
        while (verdict := await judged(scanner, b"something else")).rule is None:
            assert verdict.verdict is FileVerdict.CLEAN
    assert verdict.rule == "Noosphere.Test.Else.UNOFFICIAL"
    assert (await judged(scanner, HARMFUL)).rule == NAME


@pytest.mark.parametrize("room", ["_matching", "_asking"])
async def test_nobody_waits_for_ever_behind_files_that_are_scanned(
    daemon: Clamd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: str
) -> None:
    monkeypatch.setattr("services.sandboxes.scanning._ROOM_S", 0.05)
    scanner = scanner_of(daemon, tmp_path)
    places: asyncio.Semaphore = getattr(scanner, room)
    while not places.locked():
        await places.acquire()
    assert await is_refused(scanner)
    places.release()
    monkeypatch.undo()
    assert (await judged(scanner, b"good")).verdict is FileVerdict.CLEAN


async def test_files_that_it_takes_long_over_leave_room_for_others(
    daemon: Clamd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanner = scanner_of(daemon, tmp_path)
    asked, done = asyncio.Event(), asyncio.Event()
    scan = clamav.scan

    async def slow(url: str, chunks: AsyncIterator[bytes]) -> str | None:
        data = b"".join([chunk async for chunk in chunks])
        if data == b"slow":
            asked.set()
            await done.wait()

        async def again() -> AsyncIterator[bytes]:
            yield data

        return await scan(url, again())

    monkeypatch.setattr(clamav, "scan", slow)
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
        waiting = [group.create_task(judged(scanner, b"slow")) for _ in range(3)]
        await asked.wait()
        assert (await judged(scanner, HARMFUL)).is_infected
        assert not any(task.done() for task in waiting)
        done.set()
    assert {task.result().verdict for task in waiting} == {FileVerdict.CLEAN}
