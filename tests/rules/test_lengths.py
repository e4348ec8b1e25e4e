"""Files are short enough to be read at a sitting; those that are not may only become shorter."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = (
    *("app", "schema", "resolvers", "services", "sandbox", "models", "migrations"),
    *("tests", "benchmarks"),
)
MOST = 400
"""Lines. What is longer becomes a package of the same name, of modules named by their content."""

SLACK = 50
"""Lines that a longer file may lose before its length is written down anew."""

LONGER = {
    "sandbox/base.py": 507,
}
"""Nothing is added to this list, and its numbers only fall."""


def lengths() -> dict[str, int]:
    """Give the lines of every file of code but migrations, which are never touched again."""
    files = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8").count("\n")
        for path in files
        if "node_modules" not in path.parts and path.parent.name != "versions"
    }


def test_no_file_is_longer_than_it_may_be() -> None:
    known = lengths()
    assert len(known) > 500
    most = {path: LONGER.get(path, MOST) for path in known}
    assert {path: found for path, found in known.items() if found > most[path]} == {}


@pytest.mark.parametrize("path", LONGER)
def test_an_exception_is_still_one_and_no_larger_than_it_must_be(path: str) -> None:
    found = lengths().get(path, 0)
    assert found > MOST, f"{path} has {found} lines: take it from the list"
    assert LONGER[path] - found < SLACK, f"{path} has {found} lines: write that down"
