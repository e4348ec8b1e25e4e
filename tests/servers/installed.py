"""Packages that tests and benchmarks install once per machine, whoever asks for them first."""

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

_NPM_S = 150


def cache() -> Path:
    """Give where the packages of tests are kept between runs."""
    default = Path.home() / ".cache" / "noosphere-tests"
    return Path(os.environ.get("NOOSPHERE_TEST_CACHE", default))


def once(folder: Path, install: Callable[[Path], None]) -> Path:
    """Have `install` fill a folder unless it is filled; others wait meanwhile. Gives the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if not (folder / ".complete").exists():
            install(folder)
            (folder / ".complete").touch()
    return folder


def npm_packages(
    source: Path, name: str, *, npm: str, base: Path | None = None, timeout_s: float = _NPM_S
) -> Path:
    """Install what the lock file of a folder pins, once per lock file; give where that is.

    Raises CalledProcessError and TimeoutExpired.
    """

    def install(folder: Path) -> None:
        for file in ("package.json", "package-lock.json"):
            shutil.copy(source / file, folder / file)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=timeout_s)

    lock = hashlib.sha256((source / "package-lock.json").read_bytes()).hexdigest()[:16]
    return once((base or cache()) / f"{name}-{lock}", install)
