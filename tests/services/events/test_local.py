"""What the local bus promises beyond the contract: its file survives what happens to a process."""

import asyncio
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from services.events import open_bus, store
from services.events.base import BusUnavailableError
from services.events.local import LocalBus
from services.events.store import Retention, Store

Make = Callable[..., Awaitable[LocalBus]]

_WRITER = """
import asyncio, sys
from pathlib import Path
from services.events.local import LocalBus

async def write(bus, topic):
    n = 0
    while True:
        n += 1
        seq = await bus.append(topic, {"n": n, "text": "x" * 300})
        sys.stdout.write(f"{topic} {seq}\\n")
        sys.stdout.flush()

async def main():
    bus = LocalBus(Path(sys.argv[1]))
    await bus.start()
    await asyncio.gather(*(write(bus, f"t{k}") for k in range(20)))

asyncio.run(main())
"""


def moved_aside(directory: Path) -> list[str]:
    """Give the names of databases that were moved aside, without their side files."""
    names = directory.glob("events.sqlite3.corrupt-*")
    return [file.name for file in names if file.name.count("-") == 2]


def modes(directory: Path) -> set[int]:
    """Give the permissions of the database and its side files."""
    return {file.stat().st_mode & 0o777 for file in directory.glob("events.sqlite3*")}


def crash_image(path: Path, to: Path) -> Path:
    """Copy an open bus's files as a crash at this moment would leave them."""
    to.mkdir()
    for file in path.parent.glob(path.name + "*"):
        shutil.copy(file, to / file.name)
    return to / path.name


async def test_every_acknowledged_entry_survives_sigkill(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite3"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _WRITER, str(path)),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert process.stdout is not None
    acknowledged: dict[str, int] = {}
    async with asyncio.timeout(60):
        lines = [await process.stdout.readline() for _ in range(2_000)]
        process.send_signal(signal.SIGKILL)
        rest, _ = await process.communicate()
    # The last line may be cut in the middle.
    for line in b"".join([*lines, rest]).split(b"\n")[:-1]:
        topic, seq = line.decode().split()
        assert int(seq) == acknowledged.get(topic, 0) + 1
        acknowledged[topic] = int(seq)
    assert len(acknowledged) == 20

    bus = LocalBus(path)
    await bus.start()
    try:
        for topic, last in acknowledged.items():
            log = await bus.read(topic)
            assert log.is_complete
            assert log.head >= last
            assert [entry.seq for entry in log.entries] == list(range(1, log.head + 1))
            assert [entry.data["n"] for entry in log.entries] == list(range(1, log.head + 1))
            assert await bus.append(topic, {}) == log.head + 1
    finally:
        await bus.aclose()


async def test_an_entry_is_on_disk_before_a_tap_receives_it(
    make_local_bus: Make, tmp_path: Path
) -> None:
    path = tmp_path / "events.sqlite3"
    bus = await make_local_bus(path=path)
    async with bus.attach("t") as tap:
        appends = [asyncio.ensure_future(bus.append("t", {"n": n})) for n in range(20)]
        news = await tap.get(30)
        image = crash_image(path, tmp_path / "image")
        await asyncio.gather(*appends)
    copy = await make_local_bus(path=image)
    assert news is not None
    assert (await copy.read("t")).entries[0] == news


async def test_the_same_file_gives_the_same_epoch_and_entries(
    make_local_bus: Make, tmp_path: Path
) -> None:
    path = tmp_path / "events.sqlite3"
    first = await make_local_bus(path=path, ring_items=5)
    for n in range(20):
        await first.append("t", {"n": n})
    before = await first.read("t")
    await first.aclose()
    second = await make_local_bus(path=path)
    assert await second.read("t") == before
    assert await second.append("t", {}) == 21
    assert (await second.read("t", 20)).epoch == before.epoch


async def test_a_lost_file_begins_new_epochs(make_local_bus: Make, tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite3"
    first = await make_local_bus(path=path)
    await first.append("t", {})
    epoch = (await first.read("t")).epoch
    await first.aclose()
    path.unlink()
    second = await make_local_bus(path=path)
    assert await second.append("t", {}) == 1
    assert (await second.read("t")).epoch != epoch


@pytest.mark.parametrize("damage", ["header", "pages", "version", "not a database"])
async def test_a_corrupt_file_is_moved_aside(
    make_local_bus: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    path = tmp_path / "events.sqlite3"
    first = await make_local_bus(path=path)
    for _ in range(200):
        await first.append("t", {"text": "x" * 200})
    epoch = (await first.read("t")).epoch
    await first.aclose()
    content = bytearray(path.read_bytes())
    if damage == "header":
        content[:100] = bytes(100)
    elif damage == "pages":
        content[4096:] = b"\xa5" * (len(content) - 4096)
    elif damage == "not a database":
        content = bytearray(b"Dear diary, " * 1_000)
    if damage == "version":
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA user_version = 99")
        connection.close()
    else:
        path.write_bytes(content)

    second = await make_local_bus(path=path)
    assert (await second.read("t")).head == 0
    assert await second.append("t", {}) == 1
    assert (await second.read("t")).epoch != epoch
    assert len(moved_aside(tmp_path)) == 1
    assert "events.sqlite3 is unreadable" in caplog.text


async def test_corruption_met_later_loses_the_log_but_not_the_bus(
    make_local_bus: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.sqlite3"
    first = await make_local_bus(path=path)
    for _ in range(2_000):
        await first.append("t", {"text": "x" * 200})
    await first.aclose()
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = b"\xa5" * (len(content) - len(content) // 2)
    path.write_bytes(content)
    monkeypatch.setattr(store, "_CHECKED_BYTES", -1)

    second = await make_local_bus(path=path)
    async with second.attach("other") as tap:
        with pytest.raises(BusUnavailableError):
            await second.read("t")
        assert await tap.get(30) is None
        assert tap.lost()
        assert await second.append("t", {}) == 1
        assert await second.append("other", {}) == 1
        news = await tap.get(30)
        assert news is not None
        assert news.seq == 1
    assert len(moved_aside(tmp_path)) == 1


async def test_a_power_cut_begins_new_epochs_but_a_crash_does_not(
    make_local_bus: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.sqlite3"
    boot_id = tmp_path / "boot_id"
    boot_id.write_text("boot-1\n")
    monkeypatch.setattr(store, "_BOOT_ID", boot_id)
    bus = await make_local_bus(path=path)
    await bus.append("t", {})
    epoch = (await bus.read("t")).epoch
    open_image = crash_image(path, tmp_path / "open")
    crashed_image = crash_image(path, tmp_path / "crashed")
    await bus.aclose()

    crashed = await make_local_bus(path=crashed_image)
    assert (await crashed.read("t")).epoch == epoch
    boot_id.write_text("boot-2\n")
    cut = await make_local_bus(path=open_image)
    log = await cut.read("t")
    assert (log.head, log.epoch == epoch) == (1, False)
    # Closed properly before the machine stopped: nothing can be missing.
    proper = await make_local_bus(path=path)
    assert (await proper.read("t")).epoch == epoch


async def test_a_second_process_may_not_write_the_file(
    make_local_bus: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_LOCK_TIMEOUT_S", 0.05)
    path = tmp_path / "events.sqlite3"
    first = await make_local_bus(path=path)
    await first.append("t", {})
    with pytest.raises(BusUnavailableError, match="Another process"):
        await make_local_bus(path=path)
    assert await first.append("t", {}) == 2


async def test_a_place_that_cannot_be_written_stops_the_start(
    make_local_bus: Make, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BusUnavailableError, match="cannot be opened"):
        await make_local_bus(path=tmp_path / "file" / "events.sqlite3")


async def test_only_the_owner_may_read_the_file(make_local_bus: Make, tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite3"
    bus = await make_local_bus(path=path)
    await bus.append("t", {})
    assert modes(tmp_path) == {0o600}


async def test_a_job_that_fails_spares_the_others_of_its_commit(
    make_local_bus: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = await make_local_bus()
    append = Store.append

    def refuse_poison(self: Store, topic: str, payload: bytes) -> tuple[str, int]:
        written = append(self, topic, payload)
        if b"poison" in payload:
            raise sqlite3.OperationalError("database or disk is full")
        return written

    monkeypatch.setattr(Store, "append", refuse_poison)
    async with bus.attach("t") as tap:
        results = await asyncio.gather(
            *(bus.append("t", {"what": "poison" if n == 7 else n}) for n in range(20)),
            return_exceptions=True,
        )
        assert isinstance(results.pop(7), BusUnavailableError)
        assert results == list(range(1, 20))
        received = [await tap.get(30) for _ in range(19)]
    assert [news.seq for news in received if news] == list(range(1, 20))
    assert list((await bus.read("t")).entries) == received


async def test_what_memory_let_go_is_read_back_from_disk(make_local_bus: Make) -> None:
    bus = await make_local_bus(ring_items=4, ring_idle_s=0.0)
    for n in range(10):
        await bus.append("t", {"n": n})
    assert len(bus._rings) == 1
    assert [e.data["n"] for e in (await bus.read("t", 8)).entries] == [8, 9]
    assert [e.data["n"] for e in (await bus.read("t")).entries] == list(range(10))
    before = await bus.read("t")
    bus._release()
    assert len(bus._rings) == 0
    assert await bus.read("t") == before
    assert await bus.append("t", {"n": 10}) == 11
    assert (await bus.read("t")).head == 11


async def test_expired_and_idle_logs_are_gone_after_a_restart(
    make_local_bus: Make, tmp_path: Path
) -> None:
    path = tmp_path / "events.sqlite3"
    first = await make_local_bus(path=path)
    await first.append("kept", {})
    await first.append("expired", {})
    await first.expire("expired", 0.01)
    await first.aclose()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE topics SET used_at = used_at - 90000 WHERE topic = 'expired'")
        connection.execute("INSERT INTO topics VALUES (99, 'idle', 'e', 1000.0, NULL)")
        connection.execute("INSERT INTO entries VALUES (99, 1, '{}')")
    connection.close()
    second = await make_local_bus(path=path, retention=Retention(idle_s=3600))
    await second.ping()
    assert [(await second.read(t)).head for t in ("kept", "expired", "idle")] == [1, 0, 0]
    await second.aclose()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT topic FROM topics").fetchall() == [("kept",)]
        assert connection.execute("SELECT COUNT(*) FROM entries").fetchone() == (1,)
    connection.close()


async def test_appends_that_wait_together_share_commits(make_local_bus: Make) -> None:
    bus = await make_local_bus()
    commits = 0
    transaction = Store.transaction

    def counted(self: Store) -> object:
        nonlocal commits
        commits += 1
        return transaction(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "transaction", counted)
        await asyncio.gather(*(bus.append(f"t{n % 50}", {"n": n}) for n in range(1_000)))
    assert commits < 200


async def test_a_bus_that_was_never_started_or_is_left_open_keeps_nobody_waiting(
    tmp_path: Path,
) -> None:
    never = LocalBus(tmp_path / "never.sqlite3")
    with pytest.raises(BusUnavailableError):
        await never.append("t", {})
    await never.aclose()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _WRITER.replace("await asyncio.gather", "return #")),
        str(tmp_path / "open.sqlite3"),
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONPATH": "."},
    )
    async with asyncio.timeout(60):
        assert await process.wait() == 0


async def test_open_bus_keeps_its_file_in_the_data_directory(tmp_path: Path) -> None:
    bus = open_bus(None, tmp_path, "node-a")
    await bus.start()
    await bus.append("t", {})
    await bus.aclose()
    assert (tmp_path / "events.sqlite3").exists()
