"""bubblewrap without root: the same attempts are contained, and what is lost is said by name."""

import asyncio
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.sandbox.abuse import (
    test_calls,
    test_exhaustion,
    test_kernel,
    test_memory,
    test_namespaces,
    test_processes,
    test_secrets,
    test_sockets,
    test_terminal,
)
from tests.sandbox.abuse.attack import PROLOGUE, Attempt, matches
from tests.sandbox.test_bubblewrap import ROOT, interpreter_for_all

pytestmark = pytest.mark.bubblewrap

NOBODY = 65534
MODULES = (
    test_calls, test_kernel, test_memory, test_namespaces, test_processes, test_secrets,
    test_sockets, test_terminal,
)  # fmt: skip
HARD = {
    "a fork bomb": ("import os\nwhile True:\n  try: os.fork()\n  except OSError: pass", 1.5),
    "a bomb of memory": ("held = []\nwhile True: held.append(b'1' * (1 << 20))", 5.0),
    "a memory of many": (
        test_exhaustion.HOG.format(forks=3, take="held.append(b'1' * (1 << 20))"), 2.0
    ),
    "a disk that is full": (
        "file = open('/workspace/x', 'wb')\nwhile True: file.write(bytes(1 << 20))", 10.0
    ),
}  # fmt: skip


def declared(module: ModuleType) -> Iterator[tuple[str, Attempt]]:
    """The single attempts that a file of the list makes in a sandbox of its own."""
    for name, found in vars(module).items():
        for mark in getattr(found, "pytestmark", ()) if name.startswith("test_") else ():
            if mark.name == "parametrize" and mark.args[0] == "attempt":
                yield from ((f"{module.__name__}: {name}: {one.name}", one) for one in mark.args[1])


@pytest.fixture(scope="module")
def wanted() -> dict[str, Attempt]:
    return {name: one for module in MODULES for name, one in declared(module)}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory of that user's; those of pytest are shut to others whenever a run begins."""
    with tempfile.TemporaryDirectory(prefix="rootless-") as made:
        os.chmod(made, 0o711)  # noqa: S103 - that user passes through.
        (Path(made) / "nobody").mkdir()
        if os.geteuid() == 0:
            os.chown(Path(made) / "nobody", NOBODY, NOBODY)
        yield Path(made)


async def tried(folder: Path, listed: list[tuple[str, str, float]]) -> dict[str, dict[str, str]]:
    """What each of the attempts got, in a sandbox of an ordinary user."""
    if os.geteuid() != 0:
        pytest.skip("The whole list itself is made unprivileged here.")
    path = folder / "attempts.json"
    path.write_text(json.dumps(listed))
    server = await asyncio.create_subprocess_exec(
        interpreter_for_all(), "-m", "tests.sandbox.rootless_server", str(folder / "nobody"),
        str(NOBODY), str(path), stdout=asyncio.subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(160):
            out, _ = await server.communicate()
    finally:
        if server.returncode is None:
            server.kill()
            await server.wait()
    assert server.returncode == 0
    answers: dict[str, dict[str, str]] = json.loads(out)
    return answers


async def test_what_is_tried_of_the_kernel_is_contained_without_root(
    folder: Path, wanted: dict[str, Attempt]
) -> None:
    assert len(wanted) > 250
    listed = [(name, PROLOGUE + one.program, 30.0) for name, one in wanted.items()]
    answers = await tried(folder, listed)
    assert answers.keys() == wanted.keys()
    # One of another ABI may end by the signal of a bad call in place of an error.
    got = {
        name: answer["out"].split()
        for name, answer in answers.items()
        if (answer["reason"], answer["signal"]) != ("EXITED", 31)
    }
    wrong = {
        name: words
        for name, words in got.items()
        if not matches(words, wanted[name].expected.split())
    }
    assert wrong == {}
    assert {answer.get("beside", "well\n") for answer in answers.values()} == {"well\n"}


async def test_what_runs_out_without_root_runs_out_for_oneself(folder: Path) -> None:
    listed = [(name, PROLOGUE + program, limit) for name, (program, limit) in HARD.items()]
    answers = await tried(folder, [*listed, ("after", "print('well')", 10.0)])
    assert answers.pop("after")["out"] == "well\n"
    assert {answer.get("beside", "well\n") for answer in answers.values()} == {"well\n"}
    assert answers["a fork bomb"]["reason"] == "TIMED_OUT"
    assert "MemoryError" in answers["a bomb of memory"]["out"]
    assert "No space left" in answers["a disk that is full"]["out"]
