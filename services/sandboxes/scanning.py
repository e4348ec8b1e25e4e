"""Scanning files for what is harmful, by rules of our own and by ClamAV where there is one.

Bytes are taken in by an `Intake` as they come, which keeps them beside the quarantine until they
are judged:

    async with scanner(deps).intake() as intake:
        await intake.add(chunk)
        verdict = await intake.judge()
"""

import asyncio
import hashlib
import logging
import os
import secrets
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from models.states import FileVerdict
from services.base import Deps
from services.errors import UserError, UserErrorCode
from services.options import Options
from services.sandboxes import clamav

log = logging.getLogger("noosphere.sandboxes")
RULES = Path(__file__).with_name("rules")
YARA, CLAMAV = "yara", "clamav"
_CACHE = "sandbox scanner"
_AT_ONCE = 2
# ClamAV takes its own time, some of it on files that are made for that.
_ASKED_AT_ONCE = 8
_TIMEOUT_S = 20
# How long a file waits until others are scanned.
_ROOM_S = 60.0
# After silence nobody waits for ClamAV for so long.
_SILENT_S = 10.0
_CHUNK_BYTES = 1024 * 1024
_NAME_CHARS = 100


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known of some bytes. `rule` and `engine` name what was found, and by what.

    UNSCANNED is what was too large or took too long, or what ClamAV was not there to be asked
    about; never what is merely unknown to be bad.
    """

    verdict: FileVerdict
    sha256: str
    size_bytes: int
    rule: str | None = None
    engine: str | None = None

    @property
    def is_infected(self) -> bool:
        """Whether something was found."""
        return self.verdict is FileVerdict.INFECTED


class Scanner:
    """Judges files, some at a time; its rules are compiled once. See `scanner`."""

    def __init__(self, options: Options) -> None:
        self.quarantine = options.data_dir / "quarantine"
        self.most_bytes = options.scan_max_bytes
        self._clamav_url = options.clamav_url
        self._is_clamav_required = options.clamav_required
        self._rules: Any = None
        self._compiling = asyncio.Lock()
        self._matching = asyncio.Semaphore(_AT_ONCE)
        self._asking = asyncio.Semaphore(_ASKED_AT_ONCE)
        self._silent_until = 0.0
        self._are_limits_known = False

    @asynccontextmanager
    async def intake(self) -> AsyncIterator["Intake"]:
        """Take in the bytes of one file; what was kept of them goes at the end, unless kept."""
        taken = Intake(self)
        try:
            yield taken
        finally:
            await asyncio.shield(asyncio.to_thread(taken.close))

    async def find(self, path: Path) -> tuple[str, str] | None:
        """Give what is found in a file, and by what; None if nothing is.

        Raises TooMuchError for what cannot be judged, UserError UNAVAILABLE when ClamAV must be
        asked and does not answer, or when too many files wait.
        """
        late: TooMuchError | None = None
        try:
            async with _turn(self._matching):
                rules = await self._compiled()
                rule = await asyncio.to_thread(_match, rules, path)
            if rule is not None:
                return rule, YARA
        except TooMuchError as error:
            late = error  # ClamAV may find something all the same.
        if self._clamav_url:
            async with _turn(self._asking):
                name = await self._ask_clamav(path)
            if name is not None:
                return name[:_NAME_CHARS], CLAMAV
        if late is not None:
            raise late
        return None

    async def _compiled(self) -> Any:
        async with self._compiling:
            if self._rules is None:
                self._rules = await asyncio.to_thread(compile_rules)
            return self._rules

    async def _ask_clamav(self, path: Path) -> str | None:
        loop = asyncio.get_running_loop()
        try:
            if loop.time() < self._silent_until:
                raise clamav.ClamavError("ClamAV was silent a moment ago")
            found = await clamav.scan(self._clamav_url, _chunks(path))
            await self._look_at_limits()
        except clamav.ClamavLimitError as error:
            raise TooMuchError(f"too much for ClamAV: {error}") from error
        except clamav.ClamavError as error:
            if isinstance(error, clamav.ClamavSilentError):
                self._silent_until = loop.time() + _SILENT_S
            log.warning("a file was not scanned by ClamAV: %s", error)
            if self._is_clamav_required:
                raise UserError(
                    UserErrorCode.UNAVAILABLE,
                    "Files cannot be scanned right now, so none is taken in; try again soon.",
                ) from error
            raise TooMuchError("ClamAV does not answer") from error
        return found

    async def _look_at_limits(self) -> None:
        """Say once in the log if ClamAV calls clean what it has not looked at as a whole."""
        if self._are_limits_known:
            return
        self._are_limits_known = True
        try:
            is_told = await clamav.tells_limits(self._clamav_url)
        except clamav.ClamavError:
            self._are_limits_known = False
            return
        if not is_told:
            log.warning(
                "ClamAV calls files clean that are beyond its limits (MaxFileSize, MaxScanSize, "
                "MaxRecursion, ...): set AlertExceedsMax to yes in its configuration"
            )


class TooMuchError(Exception):
    """A file cannot be judged."""


class Intake:
    """The bytes of one file, kept on disk as far as they are scanned."""

    def __init__(self, scanner: Scanner) -> None:
        self._scanner = scanner
        self._place = scanner.quarantine / "incoming" / secrets.token_hex(16)
        self._file: IO[bytes] | None = None
        self._digest = hashlib.sha256()
        self._is_too_large = self._is_closed = False
        # A thread that adds goes on when whoever waited for it was cancelled.
        self._turn = threading.RLock()
        self.size_bytes = 0

    async def add(self, chunk: bytes) -> None:
        """Take in more bytes."""
        if chunk:
            await asyncio.to_thread(self._add, chunk)

    def _add(self, chunk: bytes) -> None:
        with self._turn:
            self._digest.update(chunk)
            self.size_bytes += len(chunk)
            if self.size_bytes > self._scanner.most_bytes:
                self._is_too_large = True
                self.close()
            if self._is_closed:
                return
            if self._file is None:
                self._place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
                # Unbuffered: what was added can be read by its name.
                self._file = os.fdopen(os.open(self._place, flags, 0o600), "wb", buffering=0)
            self._file.write(chunk)

    async def judge(self) -> Verdict:
        """Say what the bytes are. Raises UserError UNAVAILABLE as `Scanner.find` does."""
        sha256 = self._digest.hexdigest()
        if self._is_too_large:
            return Verdict(FileVerdict.UNSCANNED, sha256, self.size_bytes)
        try:
            found = await self._scanner.find(self._place) if self._file is not None else None
        except TooMuchError as error:
            log.info("a file is not scanned: %s", error)
            return Verdict(FileVerdict.UNSCANNED, sha256, self.size_bytes)
        if found is None:
            return Verdict(FileVerdict.CLEAN, sha256, self.size_bytes)
        rule, engine = found
        return Verdict(FileVerdict.INFECTED, sha256, self.size_bytes, rule, engine)

    def keep(self, name: str) -> None:
        """Leave the bytes in quarantine by this name, readable by the server alone. Blocks."""
        self._place.replace(self._scanner.quarantine / name)

    def close(self) -> None:
        """Let go of the bytes. Blocks. Idempotent."""
        with self._turn:
            self._is_closed = True
            if self._file is not None:
                self._file.close()
                self._file = None
                self._place.unlink(missing_ok=True)


@asynccontextmanager
async def _turn(room: asyncio.Semaphore) -> AsyncIterator[None]:
    """Wait for one's turn. Raises UserError UNAVAILABLE if that takes too long."""
    try:
        async with asyncio.timeout(_ROOM_S):
            await room.acquire()
    except TimeoutError as error:
        raise UserError(
            UserErrorCode.UNAVAILABLE, "Too many files wait to be scanned; try again soon."
        ) from error
    try:
        yield
    finally:
        room.release()


def compile_rules() -> Any:
    """Compile our rules, each file a namespace. Blocks. Raises yara.SyntaxError."""
    # Its libraries are of use only where files come in.
    import yara

    return yara.compile(filepaths={place.stem: str(place) for place in sorted(RULES.glob("*.yar"))})


def _match(rules: Any, path: Path) -> str | None:
    import yara  # Loaded by now: it compiled the rules.

    try:
        found = rules.match(str(path), timeout=_TIMEOUT_S)
    except yara.TimeoutError as error:
        raise TooMuchError("the rules take too long") from error
    return str(found[0].rule)[:_NAME_CHARS] if found else None


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    at = 0
    while chunk := await asyncio.to_thread(_piece, path, at):
        yield chunk
        at += len(chunk)
        if len(chunk) < _CHUNK_BYTES:
            return


def _piece(path: Path, at: int) -> bytes:
    # Nothing stays open behind a caller who is cancelled.
    with path.open("rb", buffering=0) as file:
        file.seek(at)
        return file.read(_CHUNK_BYTES)


def scanner(deps: Deps) -> Scanner:
    """Give the scanner of this process."""
    known = deps.caches.get(_CACHE)
    if not isinstance(known, Scanner):
        known = deps.caches[_CACHE] = Scanner(deps.options)
    return known
